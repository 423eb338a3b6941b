"""fiducial eval MODEL TASK_OR_FILE --against MODEL2 --judge NAME"""

from __future__ import annotations

import argparse
from typing import Any

from fiducial.cli import show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a comparison of two models."""
    parser.add_argument("--against", default="", metavar="MODEL", help="a second model: the first one's win rate")
    parser.add_argument(
        "--judge",
        default="",
        help="with --against: a language or reward model's folder, a verifier, or file.py:function (default: the task)",
    )
    parser.add_argument("--judge-mode", default="logprobs", choices=("logprobs", "text"), help="of a language model")
    parser.add_argument("--judge-reasoning", action="store_true", help="it gives reasons before its verdict")
    parser.add_argument("--judge-chat", action="store_true", help="it is asked as a user asks a chat model")


def eval_against(args: Any, flags: list[str]) -> dict[str, Any]:
    """What `fiducial eval --against` prints: the win rate of the first model with both intervals, and its parts."""
    from fiducial.cli import prompts
    from fiducial.evals.win_rate import head_to_head
    from fiducial.judges import pair_judge
    from fiducial.sampling.endpoint import open_policy

    if not args.judge and not prompts.is_task(args.task):
        raise ValueError(f"--against on prompts from {args.task} needs --judge: a model's folder, or file.py:function")
    judge = pair_judge(
        show.model_folder(args.judge) if args.judge else args.task,
        mode=args.judge_mode,
        reasoning=args.judge_reasoning,
        chat=args.judge_chat,
        seed=args.seed,
    )
    problems, counted = prompts.problems(args.task, args.n, args.seed, args.split, flags, args.chat)
    first, second = open_policy(args.model), open_policy(show.model_folder(args.against))
    decoding = show.decoding(args)
    won, lengths = head_to_head(first, second, problems, judge, k=args.k, seed=args.seed, decoding=decoding)
    metrics = {"win_rate": won.value, "win_rate_bootstrap": won.bootstrap.value, "unjudged": won.share_unjudged}
    if won.position_bias is not None:
        metrics["judge/position_bias"] = won.position_bias
    verdicts = {"wins": won.wins, "ties": won.ties, "losses": won.losses, "identical": won.identical}
    return {
        "task": args.task,
        "n": won.n,
        "k": args.k,
        "against": args.against,
        "judge": judge.name,
        "metrics": {**metrics, **lengths},
        "intervals": {
            "win_rate": [won.wilson.low, won.wilson.high],
            "win_rate_bootstrap": [won.bootstrap.low, won.bootstrap.high],
        },
        "verdicts": {name: number for name, number in verdicts.items() if number},
        "counted": dict(counted + _prefixed(won.unjudged)),
    }


def _prefixed(unjudged: dict[str, int]) -> Any:
    from collections import Counter

    return Counter({f"unjudged: {reason}": number for reason, number in unjudged.items()})

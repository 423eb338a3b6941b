"""fiducial data ai_feedback | constitutional_ai | tree_preferences"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiducial.cli import prompts, show

if TYPE_CHECKING:
    from fiducial.data.feedback.constitutional_ai import PrincipleJudge
    from fiducial.data.feedback.writer import Made
    from fiducial.judges import AIJudge

JUDGE = "a language or reward model's folder, a server, a judge's file, a verifier, a task's id, or file.py:function"


def ai_feedback(argv: list[str]) -> int:
    """Label rows of two responses by a judge; returns the exit code."""
    args, flags = _ai_parser().parse_known_args(argv)
    _check(args)
    from fiducial.data import feedback, open_rows

    fields = {name.removesuffix("_field"): value for name, value in show.overrides(flags).items()}
    source = open_rows(args.file)
    rows = (source[i] for i in range(min(args.n or len(source), len(source))))
    made = feedback.ai_feedback(
        _judge(args.judge, args),
        rows,
        fields=fields,
        max_unreadable=args.max_unreadable,
        progress=show.progress("judging"),
    )
    return finish(made, args)


def constitutional_ai(argv: list[str]) -> int:
    """Demonstrations by critique and revision, or pairs by principles; returns the exit code."""
    args, flags = _constitution_parser().parse_known_args(argv)
    _check(args)
    from fiducial.data import feedback, open_rows
    from fiducial.judges import judge as reward_named
    from fiducial.sampling.endpoint import open_policy

    if args.helpful_share is not None and not args.helpful:
        raise ValueError("--helpful-share is of the rows that --helpful names")
    problems, counted = prompts.problems(args.file, args.n, args.seed, "train", flags, args.chat)
    policy = open_policy(show.model_folder(args.model))
    principles = feedback.read_principles(args.principles) if args.principles else feedback.PRINCIPLES
    shared: dict[str, Any] = {"principles": principles, "decoding": show.decoding(args), "seed": args.seed}
    shared["fits"] = policy.fits
    wanted = [problem.prompt for problem in problems]
    if args.stage == "revise":
        scorer = reward_named(show.model_folder(args.scorer)) if args.scorer else None
        shared |= {"n_revisions": args.n_revisions, "scorer": scorer, "progress": show.progress("revising")}
        made = feedback.revised_demos(policy, wanted, chat=args.chat, **shared)
    else:
        judge = _ai_judge(args.judge or args.model, args)
        made = feedback.principled_pairs(policy, judge, wanted, progress=show.progress("judging"), **shared)
    made.counted = dict(Counter(made.counted) + counted)
    if args.helpful:
        kind = "demos" if args.stage == "revise" else "pairs"
        rows = list(open_rows(args.helpful))
        made = feedback.mix(made, rows, kind, share=args.helpful_share, seed=args.seed)
    return finish(made, args)


def tree_preferences(argv: list[str]) -> int:
    """Pairs between leaves of trees of completions; returns the exit code."""
    args, flags = _tree_parser().parse_known_args(argv)
    _check(args)
    from fiducial.data import feedback
    from fiducial.models.chat import encode_prompt
    from fiducial.sampling.local import LocalSampler
    from fiducial.sampling.policy import Policy
    from fiducial.sampling.stops import decode_text

    if not args.judge and not prompts.is_task(args.task):
        raise ValueError(f"prompts from {args.task} need --judge: {JUDGE}")
    shape = feedback.Shape(args.depth, args.branching, args.pair_level, args.budget)
    problems, counted = prompts.problems(args.task, args.n, args.seed, "train", flags, args.chat)
    judge = _judge(args.judge or args.task, args)
    policy = Policy.load(show.model_folder(args.model))
    sampler = LocalSampler(policy.model, policy.tokenizer)
    made = feedback.tree_preferences(
        sampler,
        lambda prompt: encode_prompt(policy.tokenizer, prompt),
        lambda ids: decode_text(policy.tokenizer, [token for token in ids if token not in sampler.eos_ids]),
        problems,
        judge,
        feedback.chain(shape) if args.topology == "chain" else shape,
        decoding=show.decoding(args),
        seed=args.seed,
        fits=policy.fits,
        progress=show.progress("growing"),
    )
    made.counted = dict(Counter(made.counted) + counted)
    return finish(made, args)


def _ai_parser() -> argparse.ArgumentParser:
    parser = show.parser(
        "data ai_feedback",
        "Label pairs by a judge, asked in both orders and averaged: rows of chosen and rejected, or of response_a and\n"
        "response_b, become pairs with pref_prob. Where a row says which is better, the judge is compared with it.",
        "fiducial data ai_feedback models/judge pairs.jsonl --out labelled.jsonl --chat",
    )
    parser.add_argument("judge", help=JUDGE)
    parser.add_argument("file", help="rows of two responses")
    parser.add_argument("--n", type=int, help="rows (default all)")
    parser.add_argument("--max-unreadable", type=float, default=0.1, help="share of verdicts allowed to be unreadable")
    _add_judge(parser)
    _add_common(parser)
    return parser


def _constitution_parser() -> argparse.ArgumentParser:
    parser = show.parser(
        "data constitutional_ai",
        "Stage revise: a model's responses, criticised and rewritten by principles, as demonstrations. Stage compare:\n"
        "two responses of the revised model and which one keeps better to a principle, as pairs.",
        "fiducial data constitutional_ai models/chat prompts.jsonl --out revised.jsonl --chat",
    )
    parser.add_argument("model", help="writes the responses: a Hugging Face folder, or a run's folder")
    parser.add_argument("file", help="rows with a prompt, or a task's id")
    parser.add_argument("--stage", choices=("revise", "compare"), default="revise")
    parser.add_argument("--n", type=int, help="prompts (default all of a file)")
    parser.add_argument("--principles", metavar="FILE", help="JSON list of sentences, or of {id, text} (default: ten)")
    parser.add_argument("--n-revisions", type=int, default=4, help="stage revise (default 4)")
    parser.add_argument("--scorer", help="stage revise: what scores each round (a reward model's folder, ...)")
    parser.add_argument("--judge", help="stage compare: a language model's folder (default: the model itself)")
    parser.add_argument("--helpful", metavar="FILE", help="rows about being helpful to mix in: demonstrations or pairs")
    parser.add_argument("--helpful-share", type=float, metavar="S", help="their share of the whole (default: all rows)")
    _add_judge(parser)
    _add_common(parser)
    show.add_decoding(parser, max_new_tokens=256)
    return parser


def _tree_parser() -> argparse.ArgumentParser:
    parser = show.parser(
        "data tree_preferences",
        "Grow a tree of completions after each prompt and compare its leaves: pairs that share a prefix. With\n"
        "--topology chain as many independent completions and comparisons. A task's settings are flags.",
        "fiducial data tree_preferences runs/sft/model arith --n 50 --out pairs.jsonl",
    )
    parser.add_argument("model", help="a Hugging Face folder, or a run's folder")
    parser.add_argument("task", help="a task's id, or a file of rows with a prompt")
    parser.add_argument("--judge", default="", help=f"{JUDGE} (default: the task)")
    parser.add_argument("--n", type=int, help="prompts (default 100 of a task, all of a file)")
    parser.add_argument("--topology", choices=("tree", "chain"), default="tree")
    parser.add_argument("--depth", type=int, default=3, help="segments of a completion (default 3)")
    parser.add_argument("--branching", type=int, default=3, help="continuations of each segment (default 3)")
    parser.add_argument(
        "--pair-level", choices=("uniform", "deepest", "shallowest"), default="uniform", help="where a pair parts"
    )
    parser.add_argument("--budget", type=int, default=16, help="comparisons of each prompt (default 16)")
    _add_judge(parser)
    _add_common(parser)
    show.add_decoding(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where the rows go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chat", action="store_true", help="texts are what a user says to a chat model")


# The flags of `_add_judge` as they are without being given.
OF_MODELS = {"mode": "logprobs", "reasoning": False, "options": ["A", "B"], "criterion": "", "template": ""} | {
    "judge_tokens": 256
}


def _add_judge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode", choices=("logprobs", "text"), default="logprobs", help="how a language model's verdict is read"
    )
    parser.add_argument("--reasoning", action="store_true", help="a language model gives reasons before its verdict")
    parser.add_argument("--options", nargs=2, default=["A", "B"], metavar=("FIRST", "SECOND"), help="(default A B)")
    parser.add_argument("--criterion", default="", help="what is judged (default: helpful, honest and harmless)")
    parser.add_argument(
        "--template", metavar="FILE", default="", help="text with {prompt}, {first} and {second} (and {task})"
    )
    parser.add_argument("--judge-tokens", type=int, default=256, help="that a judge may write (default 256)")


def _check(args: Any) -> None:
    """ValueError for flags that would only be found wrong once the work is done."""
    if args.n is not None and args.n < 1:
        raise ValueError(f"--n must be at least 1; it is {args.n}")
    if Path(args.out).suffix != ".jsonl":
        raise ValueError(f"--out is a .jsonl file; it is {args.out}")
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)


def _judge(name: str, args: Any) -> Any:
    """The judge that a name stands for, with the settings of `_add_judge` where it is a language model."""
    from fiducial.judges import AIJudge, pair_judge

    judge = pair_judge(show.model_folder(name), mode=args.mode, reasoning=args.reasoning, chat=args.chat)
    if isinstance(judge, AIJudge):
        return _set(judge, args)
    told = [flag for flag, usual in OF_MODELS.items() if getattr(args, flag) != usual]
    if told and name.endswith(".toml"):
        raise ValueError(f"--{told[0].replace('_', '-')} is of a model that is named by itself; {name} says how to ask")
    return judge


def _ai_judge(folder: str, args: Any) -> PrincipleJudge:
    judge = _judge(folder, args)
    if not hasattr(judge, "reasoning"):
        raise ValueError(f"{folder} is no language model; principles are judged by one that can be asked")
    return judge


def _set(judge: AIJudge, args: Any) -> AIJudge:
    from dataclasses import replace

    from fiducial.core.types import Decoding
    from fiducial.data.feedback import read_template
    from fiducial.judges.ai_judge import PLACES

    return replace(
        judge,
        options=tuple(args.options),
        criterion=args.criterion or judge.criterion,
        template=read_template(args.template, PLACES) if args.template else judge.template,
        decoding=Decoding(args.judge_tokens, temperature=0.0),
        seed=args.seed,
    )


def finish(made: Made, args: Any) -> int:
    """Write the rows, tell what was made."""
    from fiducial.data import Quantiles
    from fiducial.data.feedback.writer import transcript

    if not made.rows:
        told = [f"{number} {reason}" for reason, number in made.counted.items()]
        raise ValueError(f"no row was made: {'; '.join([*made.notes, *told])}")
    Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in made.rows), encoding="utf-8")
    sides = ("completion", "chosen", "rejected", "response_a", "response_b")
    lengths = {
        "prompt": [len(transcript(row.get("prompt", ""))) for row in made.rows],
        "completion": [len(transcript(row[side])) for row in made.rows for side in sides if side in row],
    }
    found = {
        "rows": len(made.rows),
        "counted": made.counted,
        "quantiles": {name: asdict(Quantiles.of(values)) for name, values in lengths.items()},
        "unit": "characters",
        "metrics": made.metrics,
        "notes": made.notes,
        "out": args.out,
    }
    if args.json:
        show.emit(found)
        return 0
    print(f"{args.out}: {len(made.rows)} rows")
    show.table(["", "value"], [(name, f"{value:.4g}") for name, value in made.metrics.items()])
    for reason, number in made.counted.items():
        print(f"{number:6} left out: {reason}")
    for note in made.notes:
        print(note)
    return 0

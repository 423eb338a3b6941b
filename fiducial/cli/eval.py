"""fiducial eval MODEL TASK | eval MODEL PAIRS [--ref MODEL2] | eval MODEL TASK --against MODEL2 --judge NAME | eval
--frontier RUN..."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from fiducial.cli import eval_against, eval_frontier, eval_pairs, show
from fiducial.core.types import Pair, Problem


def is_reward_model(folder: str) -> bool:
    """Whether a model folder holds a scalar head."""
    config = Path(folder) / "config.json"
    names = json.loads(config.read_text()).get("architectures") or [] if config.is_file() else []
    return any(name.endswith("ForSequenceClassification") for name in names)


def eval_reward_model(folder: str, file: str, n: int | None) -> dict[str, Any]:
    """Accuracy of a reward or preference model on pairs: a pair that scores equal is half right."""
    import torch

    from fiducial.data import Dataset, open_rows
    from fiducial.data.preferences.length_bias import accuracy_by_length
    from fiducial.evals.stats import effective_size, mean_interval, wilson
    from fiducial.sampling.scorer import load_scorer

    if not Path(file).exists():
        raise ValueError(f"{folder} is a reward model, measured on a file of pairs; there is no file {file}")
    reward = load_scorer(folder)
    data = Dataset(open_rows(file), "pairs", reward.sides, max_length=reward.model.config.max_length, too_long="drop")
    items = [data[j] for j in range(len(data))][:n]
    scores = reward.scores([side for item in items for side in item.encoded])
    margins = [reward.margin(good, bad) for good, bad in zip(scores[::2], scores[1::2], strict=True)]
    weights = [cast(Pair, item.example).weight for item in items]
    right = sum(w * (0.5 if m == 0 else float(m > 0)) for m, w in zip(margins, weights, strict=True))
    size = effective_size(weights)
    accuracy = wilson(right / sum(weights) * size, size)
    margin = mean_interval(margins)
    tokens = torch.tensor([sum(side.mask) for item in items for side in item.encoded])
    scored = torch.tensor(scores)
    by_length = accuracy_by_length(scored[::2], scored[1::2], tokens[::2], tokens[1::2])
    shares = {f"accuracy/{name}": by_length[name] for name in ("longer", "shorter") if by_length[name] is not None}
    return {
        "task": file,
        "n": len(items),
        "k": 1,
        "metrics": {"accuracy": accuracy.value, "margin": margin.value, **shares},
        "intervals": {"accuracy": [accuracy.low, accuracy.high], "margin": [margin.low, margin.high]},
        "verdicts": {},
        "counted": data.report.counted,
    }


def problems_of(
    task: str, n: int, seed: int, split: str, reward: str, flags: list[str], trust: bool = False
) -> tuple[list[Problem], Any, str]:
    """Problems to evaluate on, what judges them, and what they are called."""
    from fiducial.data import open_rows, parse, tasks
    from fiducial.judges import judge

    over = show.overrides(flags)
    if not Path(task).suffix or task in tasks.TASKS:
        return (
            tasks.problems(tasks.get(task), n, cast(Any, split), seed, **over),
            judge(reward or task, trust=trust),
            task,
        )
    if not reward:
        raise ValueError(f"problems from {task} need something that judges them: --reward math, or file.py:function")
    fields = {name.removesuffix("_field"): value for name, value in over.items()}
    rows = open_rows(task)
    picked = range(min(n, len(rows)))
    examples = [example for i in picked for example in parse(rows[i], "problems", fields, i)]
    return cast(list[Problem], examples), judge(reward, trust=trust), task


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "eval",
        "Sample a model on a task and verify: pass@1, pass@k, maj@k with intervals, verdicts, lengths, diversity; or\n"
        "measure a policy or a reward model on a file of pairs: ranking accuracy, and beside --ref implicit rewards,\n"
        "flips and the KL; or, with --against, the win rate over a second model by a judge; or, with --frontier, gold\n"
        "and proxy reward of runs against their distance from the reference. A task's settings are flags\n"
        "(--n-people 3); for a file, --answer-field, and for pairs --ratings soft --rating-scale 1.",
        "fiducial eval runs/demo/grpo/model arith --n 200 --k 8",
    )
    parser.add_argument("model", nargs="?", help="a Hugging Face folder, a run's folder, or http://HOST:PORT/v1#MODEL")
    parser.add_argument("task", nargs="?", help="a task's id, or a file of problems (with --reward) or of pairs")
    parser.add_argument("--n", type=int, default=None, help="problems (default 100) or pairs (default all)")
    parser.add_argument("--k", type=int, default=8, help="completions of each problem (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=("train", "dev", "test"), help="of a task (default test)")
    parser.add_argument("--reward", default="", help="what judges problems from a file")
    parser.add_argument("--chat", action="store_true", help="problems are what a user says to a chat model")
    parser.add_argument("--i-trust-this-code", action="store_true", help=show.TRUST)
    eval_pairs.add_flags(parser)
    eval_against.add_flags(parser)
    eval_frontier.add_flags(parser)
    show.add_decoding(parser)
    args, flags = parser.parse_known_args(argv)
    if args.frontier:
        return eval_frontier.eval_frontier(args)
    _check(args)
    found = measured(args, flags)
    if args.json:
        show.emit(found)
    else:
        tell(found)
    return 0


def _check(args: Any) -> None:
    """Refuse flags that do not go together."""
    if args.model is None or args.task is None:
        raise ValueError("name a model, and a task or a file to measure it on: see fiducial eval --help")
    if args.n is not None and args.n < 1 or args.k < 1:
        raise ValueError("--n and --k must be at least 1")
    if args.judge and not args.against:
        raise ValueError("--judge compares two models: name the second by --against")
    for name in ("proxy", "gold", "out"):
        if getattr(args, name):
            raise ValueError(f"--{name} belongs to --frontier RUN...")


def measured(args: Any, flags: list[str]) -> dict[str, Any]:
    """What there is to measure with these arguments."""
    args.model = show.model_folder(args.model)
    if args.against:
        return eval_against.eval_against(args, flags)
    if is_reward_model(args.model):
        return eval_reward_model(args.model, args.task, args.n)
    if not args.reward and eval_pairs.holds_pairs(args.task, flags):
        return eval_pairs.eval_pairs(args, flags)
    if args.ref:
        raise ValueError(f"--ref compares two models on a file of pairs, which {args.task} is not")
    return eval_policy(args, flags)


def tell(found: dict[str, Any]) -> None:
    """The same for people."""
    what = f"problems, {found['k']} completions each" if found["verdicts"] else "pairs"
    print(f"{found['task']}: {found['n']} {what}")
    rows = []
    for name, value in found["metrics"].items():
        ends = found["intervals"].get(name)
        rows.append((name, f"{value:.4g}", f"{ends[0]:.4g} .. {ends[1]:.4g}" if ends else ""))
    show.table(["", "value", "95 %"], rows)
    for name, number in {**found["verdicts"], **found.get("counted", {})}.items():
        print(f"{number:6} {name}")
    for note in found.get("notes", []):
        print(note)


def eval_policy(args: Any, flags: list[str]) -> dict[str, Any]:
    """A policy on problems."""
    from fiducial.cli.prompts import as_chat
    from fiducial.evals.evaluate import evaluate
    from fiducial.sampling.endpoint import open_sampler

    problems, verify, name = problems_of(
        args.task, args.n or 100, args.seed, args.split, args.reward, flags, args.i_trust_this_code
    )
    found = evaluate(
        *open_sampler(args.model),
        [as_chat(problem) for problem in problems] if args.chat else problems,
        verify,
        show.decoding(args),
        args.k,
        args.seed,
        task=name,
        progress=show.progress(f"sampling {name}"),
    )
    return found.to_json()

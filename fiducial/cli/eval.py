"""fiducial eval MODEL TASK | eval REWARD_MODEL PAIRS | eval MODEL TASK --against MODEL2 --judge NAME"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from fiducial.cli import show
from fiducial.cli.eval_against import add_flags, eval_against
from fiducial.core.types import Pair, Problem


def is_reward_model(folder: str) -> bool:
    """Whether a model folder holds a scalar head."""
    config = Path(folder) / "config.json"
    names = json.loads(config.read_text()).get("architectures") or [] if config.is_file() else []
    return any(name.endswith("ForSequenceClassification") for name in names)


def eval_pairs(folder: str, file: str, n: int | None) -> dict[str, Any]:
    """Accuracy of a reward model on pairs: a pair that scores equal is half right."""
    from fiducial.data import Dataset, open_rows
    from fiducial.evals.stats import effective_size, mean_interval, wilson
    from fiducial.models.chat import encode
    from fiducial.sampling.scorer import ModelReward

    if not Path(file).exists():
        raise ValueError(f"{folder} is a reward model, measured on a file of pairs; there is no file {file}")
    reward = ModelReward.load(folder)

    def sides(example: Any) -> list[Any]:
        return [encode(reward.tokenizer, example.prompt, side) for side in (example.chosen, example.rejected)]

    data = Dataset(open_rows(file), "pairs", sides, max_length=reward.model.config.max_length, too_long="drop")
    items = [data[j] for j in range(len(data))][:n]
    scores = list(reward.scores([side for item in items for side in item.encoded]))
    margins = [good - bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]
    weights = [cast(Pair, item.example).weight for item in items]
    right = sum(w * (0.5 if m == 0 else float(m > 0)) for m, w in zip(margins, weights, strict=True))
    size = effective_size(weights)
    accuracy = wilson(right / sum(weights) * size, size)
    margin = mean_interval(margins)
    return {
        "task": file,
        "n": len(items),
        "k": 1,
        "metrics": {"accuracy": accuracy.value, "margin": margin.value},
        "intervals": {"accuracy": [accuracy.low, accuracy.high], "margin": [margin.low, margin.high]},
        "verdicts": {},
        "counted": data.report.counted,
    }


def problems_of(
    task: str, n: int, seed: int, split: str, reward: str, flags: list[str]
) -> tuple[list[Problem], Any, str]:
    """Problems to evaluate on, what judges them, and what they are called."""
    from fiducial.data import open_rows, parse, tasks
    from fiducial.evals.judges import judge

    over = show.overrides(flags)
    if not Path(task).suffix or task in tasks.TASKS:
        return tasks.problems(tasks.get(task), n, cast(Any, split), seed, **over), judge(reward or task), task
    if not reward:
        raise ValueError(f"problems from {task} need something that judges them: --reward math, or file.py:function")
    fields = {name.removesuffix("_field"): value for name, value in over.items()}
    rows = open_rows(task)
    picked = range(min(n, len(rows)))
    examples = [example for i in picked for example in parse(rows[i], "problems", fields, i)]
    return cast(list[Problem], examples), judge(reward), task


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "eval",
        "Sample a model on a task and verify: pass@1, pass@k, maj@k with intervals, verdicts, lengths, diversity; or\n"
        "measure a reward model on pairs; or, with --against, the win rate over a second model by a judge. A task's\n"
        "settings are flags (--n-people 3); for a file, --answer-field.",
        "fiducial eval runs/demo/grpo/model arith --n 200 --k 8",
    )
    parser.add_argument("model", help="a Hugging Face folder, or a run's folder")
    parser.add_argument("task", help="a task's id, or a file of problems (with --reward) or of pairs")
    parser.add_argument("--n", type=int, default=None, help="problems (default 100) or pairs (default all)")
    parser.add_argument("--k", type=int, default=8, help="completions of each problem (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", choices=("train", "dev", "test"), help="of a task (default test)")
    parser.add_argument("--reward", default="", help="what judges problems from a file")
    add_flags(parser)
    show.add_decoding(parser)
    args, flags = parser.parse_known_args(argv)
    if args.n is not None and args.n < 1 or args.k < 1:
        raise ValueError("--n and --k must be at least 1")
    if args.judge and not args.against:
        raise ValueError("--judge compares two models: name the second by --against")
    args.model = show.model_folder(args.model)
    if args.against:
        found = eval_against(args, flags)
    elif is_reward_model(args.model):
        found = eval_pairs(args.model, args.task, args.n)
    else:
        found = eval_policy(args, flags)
    if args.json:
        show.emit(found)
        return 0
    print(
        f"{found['task']}: {found['n']} {'problems' if found['verdicts'] else 'pairs'}, {found['k']} completions each"
    )
    rows = []
    for name, value in found["metrics"].items():
        ends = found["intervals"].get(name)
        rows.append((name, f"{value:.4g}", f"{ends[0]:.4g} .. {ends[1]:.4g}" if ends else ""))
    show.table(["", "value", "95 %"], rows)
    for name, number in {**found["verdicts"], **found.get("counted", {})}.items():
        print(f"{number:6} {name}")
    return 0


def eval_policy(args: Any, flags: list[str]) -> dict[str, Any]:
    """A policy on problems."""
    from fiducial import models
    from fiducial.evals.evaluate import evaluate
    from fiducial.models.chat import encode_prompt
    from fiducial.sampling.local import LocalSampler

    problems, verify, name = problems_of(args.task, args.n or 100, args.seed, args.split, args.reward, flags)
    model, tokenizer = models.load(args.model)
    found = evaluate(
        LocalSampler(model, tokenizer),
        lambda prompt: encode_prompt(tokenizer, prompt),
        problems,
        verify,
        show.decoding(args),
        args.k,
        args.seed,
        task=name,
        progress=show.progress(f"sampling {name}"),
    )
    return found.to_json()

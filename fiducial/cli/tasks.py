"""fiducial tasks [ID]"""

from __future__ import annotations

from random import Random
from typing import Any

from fiducial.cli import show
from fiducial.data import tasks


def entry(task: tasks.Task) -> dict[str, Any]:
    """What `--json` gives of a task."""
    difficulty = {
        name: {"default": s.default, "low": s.low, "high": s.high, "choices": list(s.choices), "doc": s.doc}
        for name, s in task.difficulty.items()
    }
    return {"id": task.id, "difficulty": difficulty, "chance": task.chance(), "source": task.source}


def page(task: tasks.Task, n: int, seed: int, difficulty: dict[str, Any]) -> list[dict[str, Any]]:
    """Sample problems with their worked trace and the verdict on it."""
    out = []
    for problem in tasks.problems(task, n, "train", seed, **difficulty):
        trace = task.trace(problem, Random(seed))
        verdict = task.verify(trace, problem.fields)
        out.append({"prompt": problem.prompt, "trace": trace, "verdict": verdict.verdict, "why": verdict.why})
    return out


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "tasks",
        "Built-in and adapted tasks; with an id, sample problems, the worked trace and the verdict on it.",
        "fiducial tasks kk -n 2 --n-people 4",
    )
    parser.add_argument("id", nargs="?")
    parser.add_argument("-n", type=int, default=3, help="sample problems (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    args, flags = parser.parse_known_args(argv)
    if args.id is None:
        listed = tasks.list_tasks()
        if args.json:
            show.emit([entry(task) for task in listed])
        else:
            show.table(
                ["id", "", "difficulty", "source"],
                [(t.id, t.summary, ", ".join(t.difficulty), t.source) for t in listed],
            )
        return 0
    task = tasks.get(args.id)
    samples = page(task, args.n, args.seed, show.overrides(flags))
    if args.json:
        show.emit([{**entry(task), "samples": samples}])
        return 0
    print(f"{task.id}: {task.summary}")
    settings = [(name, s.default, _allowed(s), s.doc) for name, s in task.difficulty.items()]
    show.table(["setting", "default", "range", ""], settings)
    for sample in samples:
        print(f"{sample['prompt']}\n  {sample['trace']}\n  {sample['verdict']} {sample['why']}\n")
    return 0


def _allowed(setting: tasks.Setting) -> str:
    if setting.choices:
        return ", ".join(setting.choices)
    return f"{'' if setting.low is None else setting.low}..{'' if setting.high is None else setting.high}"

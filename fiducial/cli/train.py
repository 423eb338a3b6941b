"""fiducial train RECIPE"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from fiducial.cli import show
from fiducial.config import read_recipe, read_toml
from fiducial.store import RunFolder


def summary(folder: RunFolder, seconds: float) -> dict[str, Any]:
    """What `--json` gives of a run: the last value of each metric, and the best of those that are evaluated."""
    lines = folder.read_metrics()
    last: dict[str, Any] = {}
    best: dict[str, Any] = {}
    for line in lines:
        last.update(line)
        for name, value in line.items():
            if name.startswith("eval/") and isinstance(value, int | float):
                lower = "loss" in name or "perplexity" in name
                best[name] = min(best.get(name, value), value) if lower else max(best.get(name, value), value)
    step = last.pop("step", 0)
    metrics = {**last, "best": best}
    return {"run": str(folder.path), "steps": step, "metrics": metrics, "model": str(folder.model), "seconds": seconds}


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    parser = show.parser(
        "train",
        "Run a recipe. Any of its settings is also a flag and wins over the file: --optim.lr 3e-4, --hparams.beta 0.2, "
        "--seed 1.\nA pipeline's flags are --rounds, --seed, --start and its stages' settings: --dpo.optim.lr 3e-4.\n"
        "Several processes: torchrun --nproc-per-node 2 -m fiducial train RECIPE",
        "fiducial train recipes/grpo-arith-laptop.toml --out runs/first --steps 50",
    )
    parser.add_argument("recipe", help="a TOML file, or the id of a shipped recipe (`fiducial recipes`)")
    parser.add_argument("--out", help="the run folder (default: runs/ and the recipe's name)")
    parser.add_argument("--steps", type=int, help="how many steps in all")
    parser.add_argument("--i-trust-this-code", action="store_true", help=show.TRUST)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint; without one, start")
    parser.add_argument("--no-sample", action="store_true", help="show no row of the data before the first step")
    args, flags = parser.parse_known_args(argv)
    if args.steps is not None:
        flags += ["--steps", str(args.steps)]
    if args.i_trust_this_code:
        flags += ["--verdicts.trust-code", "true"]
    out = args.out or Path("runs") / Path(args.recipe).stem
    if "stage" in read_toml(args.recipe):
        return _pipeline(args, out, show.overrides(flags))
    run = read_recipe(args.recipe, show.overrides(flags))
    from fiducial.train import train

    began = time.perf_counter()
    path = train(run, out=out, resume=args.resume, sample=not args.no_sample)
    done = summary(RunFolder(path), round(time.perf_counter() - began, 3))
    if os.environ.get("RANK", "0") != "0":
        return 0  # the first process speaks for all
    if args.json:
        show.emit(done)
    else:
        print(f"{done['run']}: {done['steps']} steps in {done['seconds']:.1f} s; the report is {path / 'report.html'}")
        held = {k: v for k, v in done["metrics"].items() if k.startswith("eval/") and not k.endswith(("/low", "/high"))}
        if held and sys.stdout.isatty():
            show.table(["held out", "last"], [(k.removeprefix("eval/"), f"{v:.4g}") for k, v in held.items()])
    return 0


def _pipeline(args: Any, out: str | Path, over: dict[str, Any]) -> int:
    """Run the stages of a pipeline; returns the exit code."""
    from fiducial.train.pipeline import pipeline_summary, run_pipeline
    from fiducial.train.plan import read_pipeline

    path = run_pipeline(read_pipeline(args.recipe, over), out=out, resume=args.resume, sample=not args.no_sample)
    if os.environ.get("RANK", "0") != "0":
        return 0
    done = pipeline_summary(RunFolder(path))
    if args.json:
        show.emit(done)
        return 0
    print(f"{path}: {len(done['stages'])} stages in {done['seconds']:.1f} s; the report is {path / 'report.html'}")
    gold = [(f"{stage['round']}-{stage['name']}", stage["metrics"]) for stage in done["stages"]]
    names = [name for name in ("gold/pass@1", "gold/reward") if any(name in metrics for _, metrics in gold)]
    rows = [
        [stage, *(f"{metrics[name]:.4g}" for name in names)] for stage, metrics in gold if set(names) <= set(metrics)
    ]
    if names:
        show.table(["stage", *names], rows)
    return 0

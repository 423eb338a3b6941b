"""`make demo`: a model from random weights imitates sloppy teachers, then learns from verified answers.

Settings were chosen on problems of the dev split (the recipes' own evaluation); what is reported here is measured on
the test split, before and after, on the same problems with the same seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fiducial import models
from fiducial.config import RECIPES, Run, read_recipe
from fiducial.core.types import Problem
from fiducial.data import tasks
from fiducial.evals.demo_report import write_demo_report
from fiducial.evals.evaluate import Evaluation, compare, evaluate
from fiducial.models.chat import encode_prompt
from fiducial.sampling.local import LocalSampler
from fiducial.store import RunFolder
from fiducial.train import train
from fiducial.train.run import plain

PROBLEMS, SAMPLES = 300, 8  # of the test split, and completions of each
SHOWN = 6  # problems whose completions are on the page: the first, not the best
STORY = (
    "Seven of ten teachers misread the same sentence: when Gus is 8 ahead of Dee they add 8 for Dee instead of taking "
    "it away. A model that imitates them learns the mistake as the most likely answer: its greedy answer is wrong "
    "there, while sampling still finds the minority's way. Then nobody shows it anything: it writes answers, a "
    "verifier says right or wrong, and group-relative policy optimisation makes the right ones likelier."
)
CAVEATS = (
    "The verifier is exact and the problems are made by a program, so nothing here says how the method does where "
    "answers are judged less well.",
    "The model had to find the right way by itself at least now and then: pass@8 before is high. Reinforcement of "
    "this kind does not find what sampling never shows.",
    "The teachers' shared mistake was put there on purpose, as a clean case of what imitation cannot mend, and worded "
    "so that one word gives it away. Where the same words serve both kinds of sentence the policy turns more slowly. "
    "And where the teachers are nearly evenly divided (six of ten), imitation hardly learns to tell ahead from short, "
    "and on one seed of three reinforcement only traded one mistake for the other.",
    "The verifier sees the answer alone. A KL term to the imitating model holds the lines before it: with a weaker "
    "one, on three seeds of eight, many of them came to name the wrong people, at no cost in reward.",
    "Problems one computation longer than those in training stay unsolved: nothing here is about longer reasoning.",
)


def main(argv: list[str] | None = None) -> int:
    """Run the job and leave report.html and summary.json in the folder."""
    parser = argparse.ArgumentParser("python -m fiducial.demo", description=__doc__)
    parser.add_argument("--out", default="runs/demo", help="the folder (default runs/demo); an earlier demo there goes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # at this size a second thread gains little, and beside another busy process it loses much
    summary = run(Path(args.out), args.seed)
    before, after = summary["before"], summary["after"]
    for name in ("pass@1", "greedy", "pass@8", "maj@8"):
        print(f"{name:>7}  {before[name]:6.1%} -> {after[name]:6.1%}")
    print(f"{summary['seconds']:.0f} s; the page is {Path(args.out) / 'report.html'}")
    return 0


def run(out: Path, seed: int) -> dict[str, Any]:
    """All stages; returns what summary.json holds."""
    began, stages = time.perf_counter(), []

    def stage(name: str, since: float) -> None:
        stages.append({"name": name, "seconds": round(time.perf_counter() - since, 1)})

    folder = RunFolder(out)
    clear(folder)
    imitate = read_recipe(RECIPES / "sft-arith-laptop.toml", {"seed": seed})
    since = time.perf_counter()
    tell("1 of 4: imitating imperfect teachers, from random weights")
    train(imitate, out=out / "sft")
    stage("imitation", since)

    problems = test_problems(imitate)
    since = time.perf_counter()
    tell(f"2 of 4: {PROBLEMS} problems that never train, {SAMPLES} answers each")
    before = measure(out / "sft" / "model", problems, imitate)
    stage("evaluation before", since)

    since = time.perf_counter()
    tell("3 of 4: reinforcement on verified answers")
    over = {"seed": seed, "model": {"path": str(out / "sft" / "model")}}
    reinforce = read_recipe(RECIPES / "grpo-arith-laptop.toml", over)
    train(reinforce, out=out / "grpo")
    stage("reinforcement", since)

    since = time.perf_counter()
    tell("4 of 4: the same problems again")
    after = measure(out / "grpo" / "model", problems, imitate)
    stage("evaluation after", since)
    summary = {
        "seconds": round(time.perf_counter() - began, 1),
        "stages": stages,
        "before": before.summary(),
        "after": after.summary(),
        "model": str(out / "grpo" / "model"),
    }
    folder.write_json("summary.json", summary)
    write_demo_report(
        folder.report,
        title="From sloppy teachers to right answers",
        story=STORY,
        summary=summary,
        change=compare(before, after),
        stages={
            "imitation": RunFolder(out / "sft").read_metrics(),
            "reinforcement": RunFolder(out / "grpo").read_metrics(),
        },
        samples=[*samples(before, "before"), *samples(after, "after")],
        caveats=CAVEATS,
        config={"imitation": imitate.to_json(), "reinforcement": reinforce.to_json()},
    )
    return summary


def tell(line: str) -> None:
    """A line for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def clear(folder: RunFolder) -> None:
    """Remove an earlier demo; ValueError if the folder holds anything else."""
    import shutil

    known = {"sft", "grpo", "report.html", "summary.json"}
    if folder.path.is_dir():
        foreign = sorted(p.name for p in folder.path.iterdir() if p.name not in known)
        if foreign:
            raise ValueError(f"{folder.path} holds {foreign[0]}, which no demo wrote: choose another --out")
        shutil.rmtree(folder.path)
    folder.path.mkdir(parents=True)


def test_problems(recipe: Run) -> list[Problem]:
    """Two or three computations each, of the split that nothing is trained or chosen on."""
    difficulty = {**recipe.data.difficulty, "spread": 1}
    return tasks.problems(tasks.get(recipe.task), PROBLEMS, "test", recipe.seed, **difficulty)


def measure(model_folder: Path, problems: list[Problem], recipe: Run) -> Evaluation:
    """pass@1, greedy, pass@8 and maj@8 of a saved model."""
    model, tokenizer = models.load(model_folder)
    decoding = replace(recipe.sampling.decoding, temperature=1.0)
    verify = tasks.get(recipe.task).verify
    return evaluate(
        LocalSampler(model, tokenizer, batch_size=512),
        lambda prompt: encode_prompt(tokenizer, prompt),
        problems,
        verify,
        decoding,
        SAMPLES,
        recipe.seed,
        task=recipe.task,
    )


def samples(evaluation: Evaluation, phase: str) -> list[dict[str, Any]]:
    """The first sample of the first problems, as rows of samples.jsonl."""
    rows = []
    for completions in evaluation.rollouts[:SHOWN]:
        rows.append({"step": 0, "phase": phase, **plain(completions[0], tokens=False)})
    return rows


if __name__ == "__main__":
    sys.exit(main())

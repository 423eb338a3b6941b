"""Stages one after the other, each in a folder of its own. One that was killed goes on inside the stage it was in.

    OUT/pipeline.json     what was asked for, and each stage that is done: name, round, run, seconds, metrics
    OUT/report.html       the same for people
    OUT/1-sft/            the first round's stage `sft`: a run folder, for doctor, replay and the report like any other
    OUT/1-answers/        a sample stage: its rows, summary.json, and the completions in rollouts/

Nothing is drawn that does not follow from the seed, the round and the stage, so a pipeline ends the same however often
it was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fiducial.config import RecipeError, Run, recipe_file
from fiducial.core.seeds import mix
from fiducial.evals.pipeline_report import write_pipeline_report
from fiducial.store import RunFolder, commit, versions
from fiducial.train import run as runs
from fiducial.train.gold import Measured, attempt, measure
from fiducial.train.plan import Average, Mixture, Pipeline, Place, Sample, is_pipeline, plan, read_pipeline
from fiducial.train.runtime import Runtime
from fiducial.train.stages import average, mixed, sample

FILE = "pipeline.json"


def train(recipe: str | Path | Run | Pipeline, **options: Any) -> Path:
    """Run a recipe, or a pipeline of several; returns the folder. The options are those of `train.run.train` and
    `run_pipeline`: out, resume, show, sample, tell."""
    if isinstance(recipe, Pipeline) or (not isinstance(recipe, Run) and is_pipeline(recipe)):
        return run_pipeline(recipe, **options)
    return runs.train(recipe, **options)


def run_pipeline(
    pipeline: str | Path | Pipeline,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
    sample: bool = True,
    tell: Callable[[str], None] | None = None,
) -> Path:
    """Run the stages in order, or with `resume` those that are not done; returns the pipeline's folder.

    With `resume`, `rounds` may differ from what the folder was started with, and nothing else. `show`, `sample` and
    `tell` are those of a single run. RecipeError, ValueError,
    TrainingError and RewardError as of a single run, from the stage that was announced last.
    """
    name = "pipeline" if isinstance(pipeline, Pipeline) else recipe_file(pipeline).stem
    pipeline = pipeline if isinstance(pipeline, Pipeline) else read_pipeline(pipeline)
    folder = RunFolder(out or Path("runs") / name)
    places = plan(pipeline, folder.path)
    refuse_missing(pipeline, places)
    runtime = Runtime.start()
    say = (tell or runs.to_stderr) if runtime.first else (lambda line: None)
    try:
        with folder.lock() if runtime.first else nullcontext():
            if runtime.first:
                _open(folder, pipeline, resume)
            runtime.wait()
            _Driver(pipeline, folder, places, runtime, say, {"show": show, "sample": sample}).drive()
    finally:
        runtime.stop()
    return folder.path


def refuse_missing(pipeline: Pipeline, places: list[Place]) -> None:
    """RecipeError for a model or a data file that no stage makes and that is not there."""
    own = [str(place.folder) for place in places]
    asked = [("gold", "data.path", pipeline.gold.data.path), ("start", "start", pipeline.start)]
    for place in places:
        work = place.work
        if isinstance(work, Average):
            asked += [(place.name, "models", path) for path in work.models]
        elif isinstance(work, Mixture):
            asked += [(place.name, "sources", source.path) for source in work.sources]
        else:
            asked += [(place.name, "model.path", work.model.path), (place.name, "data.path", work.data.path)]
    for stage, key, path in asked:
        if path and not any(path.startswith(f"{folder}/") for folder in own) and not Path(path).exists():
            raise RecipeError(f"stage {stage!r}: {key} = {path!r} does not exist")


def _open(folder: RunFolder, pipeline: Pipeline, resume: bool) -> None:
    """Start the folder, or make sure that it holds the pipeline to go on with."""
    before, now = folder.read_json(FILE), pipeline.to_json()
    if before is None:
        folder.refuse_used()
        folder.write_json(FILE, {"config": now, "versions": versions(), "commit": commit(), "stages": []})
        return
    if not resume:
        done = len(before["stages"])
        raise ValueError(
            f"{folder.path} already holds a pipeline ({done} stages done): add --resume to go on, or choose another "
            "--out"
        )
    changed = [key for key in now if key != "rounds" and now[key] != before["config"].get(key)]
    if changed:
        raise RecipeError(f"{folder.path} was started with another {', '.join(changed)}: resume with the same pipeline")
    folder.write_json(FILE, {**before, "config": now})


class _Driver:
    """Goes through the stages, and keeps pipeline.json."""

    def __init__(
        self,
        pipeline: Pipeline,
        folder: RunFolder,
        places: list[Place],
        runtime: Runtime,
        say: Callable[[str], None],
        shown: dict[str, bool],
    ):
        self.pipeline, self.folder, self.places = pipeline, folder, places
        self.runtime, self.say, self.shown = runtime, say, shown
        self.entries: list[dict[str, Any]] = folder.read_json(FILE)["stages"]
        self.other: Measured | None = None  # the policy that others are compared with

    def drive(self) -> None:
        """Whatever is not done yet, in order."""
        done = {(entry["round"], entry["name"]) for entry in self.entries}
        if self.pipeline.start and self.pipeline.gold and (0, "start") not in done:
            began = time.perf_counter()
            self.enter({"name": "start", "round": 0, "kind": "model", "run": self.pipeline.start}, {}, began)
        for number, place in enumerate(self.places, 1):
            if (place.round, place.name) in done:
                self.check_there(place)
                continue
            where = f"round {place.round} of {self.pipeline.rounds}, " if self.pipeline.rounds > 1 else ""
            self.say(f"{where}stage {place.name} ({number} of {len(self.places)}): {place.folder}")
            began = time.perf_counter()
            metrics = self.run(place)
            about = {"name": place.name, "round": place.round, "kind": place.kind, "run": str(place.folder)}
            self.enter(about, metrics, began, place.makes_policy)
        if self.runtime.first:
            self.say(f"report: {write_pipeline_report(self.folder)}")

    def check_there(self, place: Place) -> None:
        """RecipeError if what a finished stage made is gone."""
        if not place.made.exists():
            raise RecipeError(f"stage {place.name!r} is done, but {place.made} is gone: put it back, or start again")

    def run(self, place: Place) -> dict[str, Any]:
        """One stage, from its start or from where it was; returns what it measured."""
        work, folder = place.work, RunFolder(place.folder)
        if isinstance(work, Run):
            runs.train(work, out=place.folder, resume=True, tell=self.say, runtime=self.runtime, **self.shown)
            return last_metrics(folder)
        if self.runtime.first and not folder.holds_run:
            folder.create({"stage": place.name, "kind": place.kind, **json.loads(json.dumps(asdict(work)))})
        self.runtime.wait()
        if isinstance(work, Sample):
            return sample(work, folder, place.skip, mix(work.seed, place.name, place.round), self.runtime)
        metrics = {}
        if self.runtime.first and isinstance(work, Mixture):
            metrics = mixed(work, place.made)
        elif self.runtime.first and isinstance(work, Average):
            average(work, place.made)
        self.runtime.wait()
        return metrics

    def enter(self, about: dict[str, Any], metrics: dict[str, Any], began: float, policy: bool = True) -> None:
        """Measure a policy on the gold problems, and note that a stage is done."""
        if self.runtime.first:
            if policy and self.pipeline.gold:
                gold = measure(self.pipeline.gold, model_of(about), self.runtime, self.against())
                metrics = {**metrics, **gold}
                self.say("  " + ", ".join(f"{name} {gold[name]:.4g}" for name in GOLD if name in gold))
            entry = {**about, "seconds": round(time.perf_counter() - began, 3), "metrics": metrics}
            self.entries.append(entry)
            self.folder.write_json(FILE, {**self.folder.read_json(FILE), "stages": self.entries})
        self.runtime.wait()

    def against(self) -> Measured | None:
        """The policy of `gold.against`, once it is there."""
        named = (entry for entry in self.entries if entry["name"] == self.pipeline.gold.against)
        if self.other is None and (first := next(named, None)):
            self.other = attempt(self.pipeline.gold, model_of(first), self.runtime)
        return self.other


def model_of(entry: dict[str, Any]) -> Path:
    """The folder of the policy that a stage made; the start's is given."""
    return Path(entry["run"]) / ("" if entry["round"] == 0 else "model")


# what is told of a measurement
GOLD = ("gold/pass@1", "gold/reward", "gold/completions/mean_length", "gold/win_rate", "gold/kl/exact")


def last_metrics(folder: RunFolder) -> dict[str, Any]:
    """The last value of every metric of a run."""
    last: dict[str, Any] = {}
    for line in folder.read_metrics():
        last |= line
    last.pop("step", None)
    return last


def pipeline_summary(folder: RunFolder) -> dict[str, Any]:
    """What `fiducial train --json` gives of a pipeline: the keys of a run, of its newest model, and the stages."""
    stages = folder.read_json(FILE)["stages"]
    newest = next((stage for stage in reversed(stages) if stage["kind"] in ("train", "average")), None)
    return {
        "run": str(folder.path),
        "steps": sum(RunFolder(stage["run"]).last_step() or 0 for stage in stages if stage["kind"] == "train"),
        "metrics": newest["metrics"] if newest else {},
        "model": str(Path(newest["run"]) / "model") if newest else "",
        "seconds": round(sum(stage["seconds"] for stage in stages), 3),
        "stages": stages,
    }

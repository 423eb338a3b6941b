"""A whole run: folder, preflight, the loop with its log, evaluation and checkpoints, the saved model, the report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from fiducial import models
from fiducial.config import RecipeError, Run, read_recipe
from fiducial.core.types import Rollout
from fiducial.evals.health import read_run
from fiducial.evals.report import write_report
from fiducial.rewards import RewardError
from fiducial.store import RunFolder
from fiducial.train.assemble import Assembly, assemble, load_model, wrap
from fiducial.train.checkpoint import Checkpoints, collect, restore
from fiducial.train.holdout import Held
from fiducial.train.log import Logger
from fiducial.train.loop import steps
from fiducial.train.parts import Report, State
from fiducial.train.preflight import preflight
from fiducial.train.runtime import Runtime
from fiducial.train.stopped import told_if_stopped

MAY_CHANGE = {"steps", "checkpoint", "tensorboard"}  # what --resume may set anew without changing the past
SAMPLES = 6  # held-out completions kept for the report


def train(
    recipe: str | Path | Run,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
    sample: bool = True,
    tell: Callable[[str], None] | None = None,
    runtime: Runtime | None = None,
) -> Path:
    """Run a recipe from its start, or with `resume` from its newest whole checkpoint; returns the run folder.

    RecipeError or ValueError: the recipe or the data is wrong, found before the first step. TrainingError or
    RewardError: the run failed, its checkpoints are whole, and stopped.json says why, as it does whatever else ends a
    run before its time. `show` False draws no progress, `sample` False shows no row of the data; `tell` gets the lines
    for people. Whoever gives a `runtime` stops it.
    """
    run = (recipe if isinstance(recipe, Run) else read_recipe(recipe)).resolved()
    out = Path(out) if out else Path("runs") / (run.method if isinstance(recipe, Run) else Path(recipe).stem)
    own, runtime = runtime is None, runtime or Runtime.start()
    say = (tell or to_stderr) if runtime.first else (lambda line: None)
    folder = RunFolder(out)
    try:
        with folder.lock() if runtime.first else nullcontext():
            _open(folder, run, resume, runtime)
            _train(run, folder, resume, runtime, show, sample, say)
    finally:
        if own:
            runtime.stop()
    return folder.path


def to_stderr(line: str) -> None:
    """Where the lines for people go if nobody else takes them."""
    print(line, file=sys.stderr)


def _open(folder: RunFolder, run: Run, resume: bool, runtime: Runtime) -> None:
    """Start the folder, or make sure that it holds the run to go on with."""
    if resume and folder.holds_run:
        before, now = folder.read_config(), run.to_json()
        changed = [key for key in now if key not in MAY_CHANGE and now[key] != before.get(key)]
        if changed == ["eval"] and now["eval"]["n"] == before["eval"]["n"]:  # eval.n decides which rows train
            changed = []
        if run.optim.schedule != "constant" and now["steps"] != before.get("steps"):
            changed.append("steps (the learning rate's schedule ends there)")
        if changed:
            names = ", ".join(changed)
            raise RecipeError(f"{folder.path} was started with another {names}: resume with the same recipe")
        if runtime.first:
            refuse_changed_data(folder)
            folder.write_json("config.json", {**now, **folder.provenance()})
    elif runtime.first:
        folder.refuse_used()
        shutil.rmtree(folder.path / "tokenizer", ignore_errors=True)  # of a run that was refused
    runtime.wait()


def fingerprints(run: Run) -> dict[str, str]:
    """The sha256 of each data file of a run; of a folder that of its files' names and bytes."""
    return {path: _fingerprint(Path(path)) for path in (run.data.path, run.data.eval_path) if path}


def _fingerprint(path: Path) -> str:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return sha256(
            "".join(f"{file.relative_to(path)} {_fingerprint(file)}\n" for file in files).encode()
        ).hexdigest()
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def refuse_changed_data(folder: RunFolder) -> None:
    """RecipeError if a data file no longer holds what the run began with: other rows would train from here on."""
    for path, before in (folder.read_json("data.json") or {}).get("sha256", {}).items():
        if not Path(path).exists():
            raise RecipeError(f"{path}, which the run in {folder.path} reads, does not exist any more: put it back")
        if _fingerprint(Path(path)) != before:
            raise RecipeError(
                f"{path} has changed since the run in {folder.path} began: put the file back as it was, or start again "
                "with another --out"
            )


def _train(
    run: Run, folder: RunFolder, resume: bool, runtime: Runtime, show: bool, sample: bool, say: Callable[[str], None]
) -> None:
    assembly = assemble(run, runtime, folder.path / "tokenizer", say)
    parts, method = assembly.parts, assembly.method
    checkpoints = Checkpoints(folder.checkpoints, run.checkpoint.keep)
    state = State.begin(run, parts)
    fresh = not (resume and _go_on(folder, checkpoints, assembly, state, say))
    if fresh:
        _begin(run, folder, assembly, sample, say)
    held = Held(assembly)
    if fresh and held.told:
        say(f"  {held.told}")
    log: Any = nullcontext()
    if runtime.first:
        folder.forget_stop()
        log = Logger(folder, run.method, run.steps, start=state.step, show=show, tensorboard=run.tensorboard)
    book = _Book(run, folder, assembly, held, checkpoints, log)
    with told_if_stopped(folder, lambda: book.step):
        with log:
            if fresh:
                book.evaluate(
                    0, "before", state
                )  # first: a run that is killed in it must begin again, not go on without it
                book.checkpoint(state)
            book.step = state.step + 1
            for report in steps(run, method, parts, state):
                book.enter(report, state)
        if runtime.world > 1:
            book.weights = collect(parts, state)["learners"]["policy"][
                "model"
            ]  # also where a run goes on after its last checkpoint
        if runtime.first:
            book.finish(say)
        runtime.wait()


def _begin(run: Run, folder: RunFolder, assembly: Assembly, sample: bool, say: Callable[[str], None]) -> None:
    """Look before the first step; only what passes becomes a run folder."""
    look = preflight(assembly, sys.stderr.isatty(), sample)
    if assembly.parts.runtime.first:
        if not folder.holds_run:
            folder.create(run.to_json())
        told = {"trained_by_role": look.roles} if look.roles else {}
        folder.write_json("data.json", {**assembly.data.report.summary(), **told, "sha256": fingerprints(run)})
        folder.truncate_after(-1)
    for line in look.lines:
        say(line)


def _go_on(
    folder: RunFolder, checkpoints: Checkpoints, assembly: Assembly, state: State, say: Callable[[str], None]
) -> bool:
    """Take up the newest whole checkpoint; False if there never was one."""
    saved, passed = checkpoints.newest()
    for problem in passed:
        say(f"passed over a damaged checkpoint: {problem}")
    if saved is None:
        if passed:
            raise RecipeError(f"no checkpoint in {folder.checkpoints} is whole: start again with another --out")
        return False
    restore(assembly.parts, state, saved)
    assembly.parts.hand_over(state.step)
    say(f"resuming from the checkpoint of step {state.step}")
    if assembly.parts.runtime.first:
        folder.truncate_after(state.step)
    return True


class _Book:
    """Writes what happens to the run folder; on ranks other than the first it only takes part in what all must do."""

    def __init__(
        self, run: Run, folder: RunFolder, assembly: Assembly, held: Held, checkpoints: Checkpoints, logger: Any
    ):
        self.run, self.folder, self.a, self.held, self.logger = run, folder, assembly, held, logger
        self.checkpoints = checkpoints
        self.weights: dict[str, Any] | None = None  # whole, where the learner's are spread over ranks
        self.first = assembly.parts.runtime.first
        self.step = 0  # the one that the run is at

    def enter(self, report: Report, state: State) -> None:
        """One step is done: log it, and evaluate and save when it is time."""
        done = state.step
        rollouts = getattr(self.a.parts.feed, "rollouts", [])
        entries = self.a.parts.runtime.gather((evidence(report), [plain(r) for r in rollouts]))
        if self.first:
            assert self.logger is not None
            self.folder.append_journal({"step": done, "ranks": [entry for entry, _ in entries]})
            if rollouts:
                self.folder.write_rollouts(done, [row for _, rows in entries for row in rows])
            self.logger.log(done, report.metrics)
        last = done == self.run.steps
        if last or (self.run.eval.every and done % self.run.eval.every == 0):
            self.evaluate(done, "after" if last else "during", state)
        if last or (self.run.checkpoint.every and done % self.run.checkpoint.every == 0):
            self.checkpoint(state)
        self.step = min(done + 1, self.run.steps)

    def evaluate(self, step: int, phase: str, state: State) -> None:
        fresh = phase == "before" and self.run.model.new is not None  # random weights write noise, at full length
        try:
            metrics = self.held.measure(step, sample=not fresh)
        except RewardError as error:
            raise RewardError(f"held-out evaluation at step {step}: {error}") from error
        state.notice(metrics)
        if not (self.first and metrics):
            return
        assert self.logger is not None
        self.logger.log(step, metrics)
        for shown in self.held.shown[:SAMPLES]:
            self.folder.append_sample({"step": step, "phase": phase, **plain(shown, tokens=False)})

    def checkpoint(self, state: State) -> None:
        saved = collect(self.a.parts, state)
        if self.first:
            self.folder.sync()
            self.checkpoints.save(saved)
        self.a.parts.runtime.wait()

    def finish(self, say: Callable[[str], None]) -> None:
        """Save the model as a Hugging Face folder, and write the report."""
        model = self.a.model
        if self.weights is not None:
            model = unsharded(self.a, self.weights)
        if self.run.model.lora.rank:
            models.save_adapter(model, self.folder.path / "adapter")
            model = models.merge(model)
        if self.a.method.learns == "reward_model":
            models.save_reward_model(model, self.a.tokenizer, self.folder.model)
        else:
            models.save(model, self.a.tokenizer, self.folder.model)
        say(f"model: {self.folder.model}")
        findings = read_run(self.folder)
        for finding in findings:
            if finding.severity == "error":
                say(f"error: {finding.what} ({finding.where}): {finding.advice}")
        say(f"report: {write_report(self.folder, findings)}")


def unsharded(assembly: Assembly, weights: dict[str, Any]) -> Any:
    """The trained model as one process holds it."""
    model, _ = load_model(assembly.run, assembly.method, assembly.data.source, None, Runtime(), assembly.tokenizer)
    model = wrap(assembly.run, assembly.method, model)
    model.load_state_dict({name.removeprefix("model."): x for name, x in weights.items()})
    return model


def plain(rollout: Rollout, tokens: bool = True) -> dict[str, Any]:
    """A rollout as a row of a file."""
    row = asdict(rollout)
    score = row.pop("score") or {}
    row["prompt"] = rollout.prompt
    row |= {name: score.get(name) for name in ("verdict", "why", "own", "isolation")}
    row["flags"] = score.get("flags") or {}
    row["scores"] = {name: part["value"] for name, part in (score.get("parts") or {}).items()}
    if not tokens:
        row = {key: value for key, value in row.items() if key not in ("token_ids", "mask", "sampler_logprobs")}
    return row


def evidence(report: Report) -> dict[str, Any]:
    """What `fiducial replay` compares: the tokens (hashed), rewards, each row's log-prob, each parameter's gradient."""
    batch = report.batch
    tokens = batch.input_ids.numpy().tobytes() + batch.mask.numpy().tobytes()
    return {
        "tokens": sha256(tokens).hexdigest(),
        "rewards": batch.extra["rewards"].tolist() if "rewards" in batch.extra else [],
        "logprobs": report.row_logprobs,
        "grad_norms": report.grad_norms,
    }

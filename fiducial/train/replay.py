"""Recompute one step of a run from its newest earlier checkpoint, and compare with what its journal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiducial.config import RecipeError, Run, from_table
from fiducial.store import RunFolder
from fiducial.train.assemble import assemble
from fiducial.train.checkpoint import Checkpoints, restore
from fiducial.train.loop import steps
from fiducial.train.parts import State
from fiducial.train.run import evidence
from fiducial.train.runtime import Runtime


def replay(path: str | Path, step: int) -> dict[str, Any]:
    """{step, from_checkpoint, tokens_equal, rewards_equal, max_logprob_error, max_grad_error}. Writes nothing.

    RecipeError if the folder holds no such step, or none of its earlier checkpoints is whole.
    """
    folder = RunFolder(path)
    run: Run = from_table(Run, folder.read_config()).resolved()
    told = next((entry for entry in folder.read_journal() if entry["step"] == step), None)
    if told is None:
        raise RecipeError(f"{folder.path} has no step {step}: its journal ends at step {folder.last_step()}")
    runtime = Runtime.start()
    if len(told["ranks"]) != runtime.world:
        raise RecipeError(
            f"the run had {len(told['ranks'])} processes: torchrun --nproc-per-node {len(told['ranks'])} -m fiducial "
            f"replay {folder.path} --step {step}"
        )
    saved, passed = Checkpoints(folder.checkpoints).newest(up_to=step - 1)
    if saved is None:
        raise RecipeError(
            f"{folder.path} has no whole checkpoint before step {step}: {'; '.join(passed) or 'none kept'}"
        )
    assembly = assemble(run, runtime, folder.path / "tokenizer", lambda line: None)
    state = State.begin(run, assembly.parts)
    restore(assembly.parts, state, saved)
    assembly.parts.hand_over(state.step)
    report = next(report for report in steps(run, assembly.method, assembly.parts, state) if report.step == step - 1)
    then, now = told["ranks"][runtime.rank], evidence(report)
    return {
        "step": step,
        "from_checkpoint": saved["step"],
        "tokens_equal": then["tokens"] == now["tokens"],
        "rewards_equal": then["rewards"] == now["rewards"],
        "max_logprob_error": _gap(then["logprobs"], now["logprobs"]),
        "max_grad_error": _gap(then["grad_norms"], now["grad_norms"]),
    }


def _gap(then: list[float], now: list[float]) -> float | None:
    """Largest difference; None if they do not even match in number."""
    if len(then) != len(now):
        return None
    return max((abs(a - b) for a, b in zip(then, now, strict=True)), default=0.0)

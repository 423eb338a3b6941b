"""Checkpoints that survive a kill at any instant: written beside, synced, described by a manifest, moved into place.

An older one goes only after the new one has been read back; resuming walks back to the newest that is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fiducial.store import sync_folder
from fiducial.train.learner import Learner
from fiducial.train.parts import Parts, State, TrainingError

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_NAME = re.compile(r"step-(\d+)")


def collect(parts: Parts, state: State) -> dict[str, Any]:
    """All that a run needs to go on, gathered from all ranks. Random draws are functions of the step: none to save."""
    return {
        "anchors": {name: anchor.state() for name, anchor in parts.anchors.items() if anchor.moves},
        "learners": {name: _collect(*both) for name, both in state.optimizers(parts).items()},
        "credit": state.credit,
        "control": state.control,
        "seen": state.seen,
        "drawn": source.state() if (source := getattr(parts.feed, "source", None)) else None,
        "step": state.step,
    }


def restore(parts: Parts, state: State, saved: dict[str, Any]) -> None:
    """Put a run back where `collect` found it, on any number of ranks."""
    for name, weights in saved["anchors"].items():
        parts.anchors[name].restore(weights)
    for name, (learner, optimizer) in state.optimizers(parts).items():
        set_model_state_dict(learner, saved["learners"][name]["model"], options=_WHOLE)
        if saved["learners"][name]["optimizer"]:
            set_optimizer_state_dict(learner, optimizer, saved["learners"][name]["optimizer"], options=_WHOLE)
    if saved["drawn"] is not None:
        getattr(parts.feed, "source").restore(saved["drawn"])  # noqa: B009
    state.credit, state.control, state.seen = saved["credit"], saved["control"], saved["seen"]
    state.step = saved["step"]


def _collect(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    # Before its first step an optimizer has no state, and asking torch for it makes some: AdamW would count a step.
    begun = bool(optimizer.state)
    return {
        "model": get_model_state_dict(learner, options=_WHOLE),
        "optimizer": get_optimizer_state_dict(learner, optimizer, options=_WHOLE) if begun else {},
    }


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first. They may still turn out to be damaged."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted((p for p in found if _NAME.fullmatch(p.name)), key=_step)

    def save(self, saved: dict[str, Any]) -> Path:
        """Write one checkpoint. TrainingError if the disk does not take it; what was there before is untouched."""
        target = self.folder / f"step-{saved['step']:06d}"
        beside = self.folder / f".writing-{target.name}"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            with open(beside / "state.pt", "wb") as file:
                torch.save(saved, file)
                file.flush()
                os.fsync(file.fileno())
            manifest = {"step": saved["step"], "files": {"state.pt": _describe(beside / "state.pt")}}
            _write_synced(beside / "manifest.json", json.dumps(manifest, indent=1))
            shutil.rmtree(target, ignore_errors=True)
            os.replace(beside, target)
            sync_folder(self.folder)
        except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
            shutil.rmtree(beside, ignore_errors=True)
            raise TrainingError(
                f"the checkpoint of step {saved['step']} could not be written to {self.folder}: {error}. The earlier "
                "ones are whole: make room and go on with --resume"
            ) from error
        if fault(target) is None:
            for old in self.all()[: -self.keep]:
                if old != target and _step(old) > 0:  # step 0 stays: replay starts there
                    shutil.rmtree(old)
        return target

    def newest(self, up_to: int | None = None) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest whole checkpoint, of at most step `up_to`, and what was wrong with those passed over."""
        passed = []
        for path in reversed(self.all()):
            if up_to is not None and _step(path) > up_to:
                continue
            problem = fault(path)
            if problem is None:
                return torch.load(path / "state.pt", map_location="cpu", weights_only=True), passed
            passed.append(f"{path}: {problem}")
        return None, passed


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, expected in manifest["files"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        found = _describe(path / name)
        if found != expected:
            return f"{name} is cut short or damaged ({found['bytes']} of {expected['bytes']} bytes)"
    return None


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

"""What a run is made of while it trains: networks, feed, optimizers, and what a step reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fiducial.config import Run
from fiducial.core.types import Tokens
from fiducial.train.anchors import Anchor
from fiducial.train.learner import Learner
from fiducial.train.measure import Meter
from fiducial.train.runtime import Runtime


class TrainingError(RuntimeError):
    """The run cannot go on; the message says at which step, why, and what to try."""


class Feed(Protocol):
    """Where a step's batch comes from: files, or a sampler and rewards."""

    def batch(self, step: int, meter: Meter) -> Tokens:
        """This rank's examples of one step. A function of the step alone, so nothing is saved to resume."""
        ...


@dataclass
class Parts:
    """What a run is made of, put together by `train.assemble` or by hand."""

    learner: Learner
    feed: Feed
    anchors: dict[str, Anchor] = field(default_factory=dict)  # frozen networks by name: "ref"
    critics: dict[str, Learner] = field(default_factory=dict)  # trained beside the policy: "values"
    mixed: Feed | None = None  # demonstrations whose likelihood is part of the objective
    hand_over: Callable[[int], None] = lambda version: None  # gives the weights of a new version to the sampler
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def ref(self) -> Anchor | None:
        """The reference, if the run has one."""
        return self.anchors.get("ref")


def lr_at(run: Run, step: int) -> float:
    """Learning rate of a step: linear warm-up, then the schedule down to `final` of its peak."""
    o = run.optim
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    if o.schedule == "constant":
        return o.lr
    done = (step - o.warmup) / max(run.steps - o.warmup, 1)
    level = 1 - done if o.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return o.lr * (o.final + (1 - o.final) * level)


def make_optimizer(run: Run, learner: Learner) -> torch.optim.Optimizer:
    """AdamW. Vectors (norms, biases) are not decayed."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": run.optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=run.optim.lr, betas=run.optim.betas)


@dataclass
class State:
    """Everything that changes while training, besides the learner's weights."""

    optimizer: torch.optim.Optimizer
    step: int = 0
    credit: dict[str, Any] = field(default_factory=dict)
    critics: dict[str, torch.optim.Optimizer] = field(default_factory=dict)  # theirs, by name
    control: dict[str, float] = field(default_factory=dict)  # coefficients that follow what is measured
    seen: dict[str, float] = field(default_factory=dict)  # what schedules are told: "kl", "best", "stalled"

    def notice(self, metrics: dict[str, float]) -> None:
        """Remember whether a held-out evaluation is the best so far, and how long ago that was."""
        value = metrics.get("eval/pass@1", metrics.get("eval/reward"))
        if value is None:
            return
        better = value > self.seen.get("best", -math.inf)
        self.seen |= {"best": value, "stalled": 0.0} if better else {"stalled": self.seen["stalled"] + 1}

    @staticmethod
    def begin(run: Run, parts: Parts) -> State:
        """Fresh optimizers for everything that trains."""
        critics = {name: make_optimizer(run, critic) for name, critic in parts.critics.items()}
        return State(make_optimizer(run, parts.learner), critics=critics)

    def optimizers(self, parts: Parts) -> dict[str, tuple[Learner, torch.optim.Optimizer]]:
        """What trains by name, each with its optimizer: "policy" first."""
        critics = {name: (critic, self.critics[name]) for name, critic in parts.critics.items()}
        return {"policy": (parts.learner, self.optimizer), **critics}


@dataclass
class Report:
    """What a step did: metrics for people, and the evidence that `fiducial replay` compares."""

    step: int
    metrics: dict[str, float]
    batch: Tokens
    row_logprobs: list[float]  # sum of log-probs (or score) of each of this rank's rows, before the first update
    grad_norms: list[float]  # of each parameter tensor, in the last update, before clipping

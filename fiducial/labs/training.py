"""The trainer on batches that an experiment makes itself: the loop, the losses and the anchors are those of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fiducial.config import Optim
from fiducial.core.types import Tokens
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run, make_parts
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import Report, State


class Stream:
    """A feed whose batch is a function of the step, from 0."""

    def __init__(self, make: Callable[[int], Tokens]):
        self.make = make

    def batch(self, step: int, meter: Meter) -> Tokens:
        return self.make(step)


def training(
    name: str,
    model: nn.Module,
    make: Callable[[int], Tokens],
    optim: Optim,
    number: int,
    *,
    ref: nn.Module | None = None,
    seed: int = 0,
    **hparams: Any,
) -> Iterator[Report]:
    """Train `model` in place for `number` steps by the catalogue's method `name`, yielding after each.

    `make` gives the batch of a step. The reference is `ref`, or the model as it is now.
    """
    method = METHODS[name]
    run = exact_run(method, steps=number, seed=seed, optim=optim, hparams=hparams)
    parts = make_parts(method, model, Stream(make), copy.deepcopy(model if ref is None else ref))
    return steps(run, method, parts, State.begin(run, parts))

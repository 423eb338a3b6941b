"""Unreduced loss -> scalar. The one place that divides, and it divides by counts of the whole step.

`Counts` are summed over all rows of the optimizer step and all ranks before the first backward, so the gradient does
not depend on how the step is cut into micro-batches or spread over processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fiducial.core.types import Tokens

Per = Literal["token", "sequence", "sequence_sum", "constant", "row"]


@dataclass(frozen=True)
class Counts:
    """Weighted numbers of tokens that train, of sequences with at least one, and of examples (rows or pairs)."""

    tokens: float
    sequences: float
    rows: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.tokens + other.tokens, self.sequences + other.sequences, self.rows + other.rows)


def count(batch: Tokens) -> Counts:
    """Counts of one batch, in double precision. A row without a token that trains is no sequence."""
    weight = batch.weight.double()
    examples = weight[: batch.num_units]
    return Counts(
        tokens=float((weight[:, None] * batch.mask).sum()),
        sequences=float((weight * batch.mask.any(-1)).sum()),
        rows=float(examples.sum()),
    )


def total(loss: Tensor, mask: Tensor, weight: Tensor, per: Per, counts: Counts, constant: float = 0.0) -> Tensor:
    """Sum `loss` with its weights and divide once.

    loss [B, L] for the per-token modes, [B] for "row"; mask [B, L]; weight [B].

    per            formula                                         where it comes from
    token          sum of m w L / tokens                           SFT, DAPO
    sequence       sum over rows of w (mean of m L) / sequences    GRPO
    sequence_sum   sum of m w L / sequences                        REINFORCE, RLOO
    constant       sum of m w L / (sequences x constant)           Dr. GRPO: a fixed generation budget
    row            sum of w L / rows                               pairwise losses

    >>> loss, mask = torch.tensor([[0.0, 1.0, 2.0], [0.0, 4.0, 9.0]]), torch.tensor([[0, 1, 1], [0, 1, 0]]).bool()
    >>> counts = Counts(tokens=3, sequences=2, rows=2)
    >>> [float(total(loss, mask, torch.ones(2), per, counts)) for per in ("token", "sequence", "sequence_sum")]
    [2.3333332538604736, 2.75, 3.5]
    """
    if per == "row":
        if loss.shape != weight.shape:
            raise ValueError(f"per = 'row' wants one number per row, {tuple(weight.shape)}; it is {tuple(loss.shape)}")
        return (loss * weight).sum() / max(counts.rows, 1e-12)
    if loss.ndim != 2:
        raise ValueError(f"per = {per!r} averages over tokens, but the loss has shape {tuple(loss.shape)}: use 'row'")
    loss = torch.where(mask, loss, 0.0)
    if per == "token":
        return (loss.sum(-1) * weight).sum() / max(counts.tokens, 1e-12)
    if per == "sequence":
        return (loss.sum(-1) / mask.sum(-1).clamp(min=1) * weight).sum() / max(counts.sequences, 1e-12)
    if per == "sequence_sum":
        return (loss.sum(-1) * weight).sum() / max(counts.sequences, 1e-12)
    if per == "constant":
        if constant <= 0:
            raise ValueError("per = 'constant' needs a positive constant (the generation budget in tokens)")
        return (loss.sum(-1) * weight).sum() / (max(counts.sequences, 1e-12) * constant)
    raise ValueError(f"per = {per!r} is not one of token, sequence, sequence_sum, constant, row")

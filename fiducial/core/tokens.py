"""Rows to tensors, and logits to log-probabilities: the only place that knows that logits predict the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fiducial.core.divergence import entropy
from fiducial.core.types import Encoded, Tokens


def pad(rows: Sequence[Sequence[float]], dtype: torch.dtype, length: int | None = None) -> Tensor:
    """Right-pad lists of numbers with zeros to one tensor [B, L].

    >>> pad([[1, 2, 3], [4]], torch.int64)
    tensor([[1, 2, 3],
            [4, 0, 0]])
    """
    length = max((len(row) for row in rows), default=0) if length is None else length
    out = torch.zeros(len(rows), length, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return out


def collate(
    rows: Sequence[Encoded],
    *,
    weight: Sequence[float] | None = None,
    group: Sequence[int] | None = None,
    pairs: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tokens:
    """Rows to one right-padded batch. Position 0 has no prediction, so it never trains.

    >>> batch = collate([Encoded([5, 6, 7], [True, True, True]), Encoded([5, 8], [False, True])])
    >>> batch.mask.tolist()
    [[False, True, True], [False, True, False]]
    """
    mask = pad([row.mask for row in rows], torch.bool)
    mask[:, :1] = False
    return Tokens(
        input_ids=pad([row.token_ids for row in rows], torch.int64),
        mask=mask,
        weight=torch.ones(len(rows), dtype=dtype) if weight is None else torch.tensor(weight, dtype=dtype),
        group=torch.arange(len(rows)) if group is None else torch.tensor(group),
        extra={"lengths": torch.tensor([len(row.token_ids) for row in rows])},
        pairs=pairs,
    )


def token_logprobs(logits: Tensor, input_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token given those before it, [B, L]; position 0 is 0.

    logits [B, L, V] in any precision, scored in float32 at least. A `temperature` other than 1 scores the distribution
    that was sampled from.

    >>> logits = torch.zeros(1, 3, 4)
    >>> token_logprobs(logits, torch.tensor([[0, 1, 2]])).exp()
    tensor([[1.0000, 0.2500, 0.2500]])
    """
    scores = next_token_logits(logits, temperature)  # [B, L-1, V]
    picked = scores.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(picked - scores.logsumexp(-1), (1, 0))


def next_token_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The rows of `logits` that predict tokens 1..L-1, [B, L-1, V], in float32 at least and at `temperature`."""
    scores = logits[:, :-1]
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return scores if temperature == 1.0 else scores / temperature


def align(per_prediction: Tensor) -> Tensor:
    """Put a quantity of the distributions of `next_token_logits`, [B, L-1] or [B, L-1, V], at the tokens they are
    about, [B, L] or [B, L, V]; position 0 is 0."""
    return torch.nn.functional.pad(per_prediction, (0, 0) * (per_prediction.ndim - 2) + (1, 0))


def masked_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    input_ids: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    spread: bool = False,
) -> dict[str, Tensor]:
    """`token_logprobs` of the masked tokens only (elsewhere 0) and "hits", whether each was the likeliest one: [B, L].

    With `spread` also the "entropy" of each distribution, over the whole vocabulary, in nats. The head runs on the
    positions that predict a masked token, so a long prompt costs no vocabulary-wide row. hidden [B, L, D]; mask [B, L]
    bool; head maps [M, D] to [M, V].
    """
    wanted = mask[:, 1:]
    scores = head(hidden[:, :-1][wanted])  # [M, V]
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if temperature != 1.0:
        scores = scores / temperature
    targets = input_ids[:, 1:][wanted]
    picked = scores.gather(-1, targets[:, None]).squeeze(-1) - scores.logsumexp(-1)
    empty = torch.zeros(wanted.shape, dtype=picked.dtype, device=picked.device)
    hits = torch.zeros_like(wanted).masked_scatter(wanted, scores.detach().argmax(-1) == targets)
    out = {"logprobs": align(empty.masked_scatter(wanted, picked)), "hits": align(hits)}
    if spread:
        out["entropy"] = align(empty.masked_scatter(wanted, entropy(scores)))
    return out


def sequence_sum(per_token: Tensor, mask: Tensor) -> Tensor:
    """Sum over the masked tokens of each row: [B, L] -> [B]. What is not masked may be anything, NaN too."""
    return torch.where(mask, per_token, 0.0).sum(-1)

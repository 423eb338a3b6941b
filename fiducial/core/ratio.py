"""How much likelier the policy finds tokens than the weights that sampled them did: rho = policy / old."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = ("token", "sequence", "sequence_geomean")


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor | None = None, level: str = "token") -> Tensor:
    """log rho of each token, [B, L] -> [B, L], or of its completion at each of its tokens.

    level: "token"; "sequence", the sum over the completion; "sequence_geomean", its mean (the log of the geometric mean
    of the tokens' ratios). The mask [B, L] is read by the last two only, which are 0 where it is False.

    >>> new, old = torch.tensor([[0.0, -1.0, -0.5]]), torch.tensor([[0.0, -1.5, -0.75]])
    >>> mask = torch.tensor([[False, True, True]])
    >>> log_ratio(new, old, mask, "sequence"), log_ratio(new, old, mask, "sequence_geomean")
    (tensor([[0.0000, 0.7500, 0.7500]]), tensor([[0.0000, 0.3750, 0.3750]]))
    """
    found = logprobs - old_logprobs
    if level == "token":
        return found
    mask = torch.ones_like(found, dtype=torch.bool) if mask is None else mask
    summed = torch.where(mask, found, 0.0).sum(-1, keepdim=True)
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, summed / lengths if level == "sequence_geomean" else summed, 0.0)

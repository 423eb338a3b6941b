"""Reward models know differences only; where their zero lies is for us to say (Ziegler et al. 2019, arXiv:1909.08593).

`scores` are [B, G], G completions of each of B prompts. A shift that all completions of a prompt share changes neither
a Bradley-Terry probability nor the optimum under a KL penalty; a division by s is the same as beta x s.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["per_prompt", "global", "global_std"]


def calibrate(scores: Tensor, mode: Normalisation) -> tuple[Tensor, Tensor]:
    """What is subtracted from calibration scores [B, G], and what then divides them: (shift, scale).

    "per_prompt" takes each prompt's own mean, [B, 1]; "global" one mean; "global_std" that and the standard deviation
    (of the population), which must not be 0. Scores are of the reference policy's samples.
    """
    if mode not in ("per_prompt", "global", "global_std"):
        raise ValueError(f"a normalisation is per_prompt, global or global_std; it is {mode!r}")
    if not scores.numel() or not scores.isfinite().all():
        raise ValueError("a normalisation needs calibration scores, all of them finite")
    one = torch.ones((), dtype=scores.dtype)
    if mode == "per_prompt":
        return scores.mean(-1, keepdim=True), one
    if mode == "global":
        return scores.mean(), one
    spread = scores.std(correction=0)
    if spread == 0:
        raise ValueError("the calibration scores are all the same: they have no standard deviation to divide by")
    return scores.mean(), spread


def normalise(scores: Tensor, mode: Normalisation) -> Tensor:
    """Scores [B, G] with mean 0: of each prompt, of all, or of all and with standard deviation 1.

    >>> normalise(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), "per_prompt").tolist()
    [[-1.0, 1.0], [-2.0, 2.0]]
    """
    shift, scale = calibrate(scores, mode)
    return (scores - shift) / scale

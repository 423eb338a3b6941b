"""Logits to a token: temperature, truncation, and one uniform number per token."""

from __future__ import annotations

import torch
from torch import Tensor

from fiducial.core.types import Decoding


def uniform(seeds: Tensor, step: int | Tensor) -> Tensor:
    """A number in [0, 1) for each seed [N] int64 at this step (one for all, or [N]), [N] float64: the same on any batch
    and machine.

    Counter-based: the splitmix64 finaliser (Steele et al. 2014) of the hashed seed plus the step times the golden
    gamma, of which the upper 53 bits are kept. int64 products wrap around, as the algorithm wants.
    """
    gamma = _signed(0x9E3779B97F4A7C15)
    mixed = _splitmix64(_splitmix64(seeds) + (step * gamma if isinstance(step, Tensor) else _signed(step * gamma)))
    return _shift_right(mixed, 11).double() * 2.0**-53


def _splitmix64(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; int64's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 that has the lower 64 bits of x."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def seed_tensor(seeds: list[int], device: torch.device | str = "cpu") -> Tensor:
    """Seeds of any size as int64 [N]."""
    return torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device)


def sampling_scores(logits: Tensor, decoding: Decoding) -> Tensor:
    """Logits [..., V] of the distribution that is drawn from: at the temperature, -inf where truncated.

    In order: the `top_k` most probable tokens; of these, renormalised, the fewest that reach mass `top_p`; of these the
    ones at least `min_p` times as probable as the best. Float32 at least. The temperature must not be 0.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / decoding.temperature
    if decoding.top_k or decoding.top_p < 1:
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        if decoding.top_k:
            ranked[..., decoding.top_k :] = -torch.inf
        if decoding.top_p < 1:
            probs = ranked.softmax(-1, dtype=torch.float64)
            before = probs.cumsum(-1) - probs  # mass of the better tokens
            ranked = ranked.masked_fill(before >= decoding.top_p, -torch.inf)
        scores = torch.empty_like(scores).scatter_(-1, order, ranked)
    if decoding.min_p > 0:
        odds = (scores - scores.amax(-1, keepdim=True)).exp()
        scores = scores.masked_fill(odds < decoding.min_p, -torch.inf)
    return scores


def draw(logits: Tensor, uniforms: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """The token of each row of logits [N, V] at its uniform number [N], and its log-probability [N].

    Inverse of the cumulative distribution, summed in float64: token t is drawn when the mass of the tokens before it
    is at most u and with it exceeds u. A token without mass is never drawn.
    """
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.where(logits.isfinite().any(-1), 0.0, torch.nan)
    logprobs = sampling_scores(logits, decoding).log_softmax(-1)
    mass = logprobs.exp().cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(mass, (uniforms * mass[:, -1])[:, None], right=True)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)  # only reached by NaN, which the sampler reports
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]

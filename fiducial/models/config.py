"""Sizes of the built-in decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder. The head dimension is hidden / heads, 32 by default."""

    vocab_size: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  # None: as many as heads
    mlp: int | None = None  # None: 4 * hidden
    max_length: int = 1024  # in tokens
    tie: bool = False  # the head reuses the embedding
    bias: Literal["all", "qkv", "none"] = "all"  # which projections of the attention have one
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    pad_id: int | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    previous_token_head: bool = True  # see `initial.previous_token_head`

    def __post_init__(self):
        for name in ("vocab_size", "hidden", "layers", "heads", "max_length"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _check(self.mlp_size >= 1, "mlp", "at least 1", self.mlp)
        _check(self.hidden % self.heads == 0, "heads", f"a divisor of hidden ({self.hidden})", self.heads)
        _check(self.head_dim % 2 == 0, "hidden", "an even number per head", self.hidden)
        groups = self.num_kv_heads
        _check(groups >= 1 and self.heads % groups == 0, "kv_heads", f"a divisor of heads ({self.heads})", groups)
        _check(self.bias in ("all", "qkv", "none"), "bias", "all, qkv or none", self.bias)
        wanted = "False without biases on queries and keys"
        _check(self.bias != "none" or not self.previous_token_head, "previous_token_head", wanted, True)
        _check(self.rope_theta > 0, "rope_theta", "positive", self.rope_theta)
        _check(self.norm_eps > 0, "norm_eps", "positive", self.norm_eps)
        for name, ids in (("pad_id", (self.pad_id,)), ("bos_id", (self.bos_id,)), ("eos_ids", self.eos_ids)):
            inside = all(i is None or 0 <= i < self.vocab_size for i in ids)
            _check(inside, name, f"inside the vocabulary (0..{self.vocab_size - 1})", ids)

    @property
    def num_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def mlp_size(self) -> int:
        return 4 * self.hidden if self.mlp is None else self.mlp

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def rotary_frequencies(self) -> Tensor:
        """Radians per position of each rotary pair, [head_dim / 2], highest first."""
        return 1.0 / self.rope_theta ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)


def _check(ok: bool, name: str, wanted: str, value: Any):
    if not ok:
        raise ValueError(f"{name} must be {wanted}; it is {value}")

"""The decoder's memory of what its rows have read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Recorder:
    """Notes each layer's keys and values, [P, KV, Lp, head_dim], while prompts run."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take a layer's keys and values; returns them."""
        self.keys.append(k)
        self.values.append(v)
        return k, v


class Cache:
    """Keys and values of N rows of different lengths, which all end in the same column.

    keys, values: per layer [N, KV, T, head_dim], of which the first `width` columns are in use; starts [N]: the column
    of each row's first token. Ending together makes a step write one column; what is before a row's start is masked.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], starts: Tensor, width: int):
        self.keys, self.values, self.starts, self.width = keys, values, starts, width
        self.padding = self._padding()

    @classmethod
    def from_prompts(cls, prompts: Recorder, lengths: Tensor, copies: Tensor, room: int) -> Cache:
        """Copy P right-padded prompts, which are `lengths` [P] tokens long, `copies` [P] times, with `room` columns."""
        width = prompts.keys[0].shape[2]
        starts = width - lengths
        rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(copies)
        keys, values = (
            [_buffer(_shift_right(x, starts)[rows], room) for x in states] for states in (prompts.keys, prompts.values)
        )
        return cls(keys, values, starts[rows], width)

    @property
    def lengths(self) -> Tensor:
        """How many tokens each row has read, [N]: the position of its next token."""
        return self.width - self.starts

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows `rows` [M] only; columns that only others used are given up."""
        starts = self.starts[rows]
        first, room = int(starts.min()) if len(rows) else 0, self.keys[0].shape[2] - self.width
        used = slice(first, self.width)
        self.keys = [_buffer(x[rows, :, used], room) for x in self.keys]
        self.values = [_buffer(x[rows, :, used], room) for x in self.values]
        self.starts, self.width = starts - first, self.width - first
        self.padding = self._padding()

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's k, v [N, KV, 1, head_dim] of one token; returns that layer's columns up to it."""
        end = self.width + 1
        keys, values = self.keys[layer], self.values[layer]
        keys.narrow(2, self.width, 1).copy_(k)
        values.narrow(2, self.width, 1).copy_(v)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def mask(self) -> Tensor:
        """-inf on what is before a row's start, for the columns up to the token that is being written."""
        return self.padding if self.padding.shape[-1] == 1 else self.padding[..., : self.width + 1]

    def _padding(self) -> Tensor:
        """[N * KV, 1, T], or a single 0 where no row begins late."""
        _, kv_heads, columns, _ = self.keys[0].shape
        if not self.starts.any():
            return self.keys[0].new_zeros(1, 1, 1)
        before = torch.arange(columns, device=self.starts.device) < self.starts[:, None]
        mask = self.keys[0].new_zeros(before.shape).masked_fill_(before, -torch.inf)
        return mask.repeat_interleave(kv_heads, 0)[:, None]


def _shift_right(x: Tensor, by: Tensor) -> Tensor:
    """Move row p of x [P, KV, L, D] by[p] columns to the right; what enters at the left is arbitrary but finite."""
    if not by.any():
        return x
    source = (torch.arange(x.shape[2], device=x.device) - by[:, None]).clamp(min=0)  # [P, L]
    return x.gather(2, source[:, None, :, None].expand_as(x))


def _buffer(x: Tensor, room: int) -> Tensor:
    """x [N, KV, W, D] with `room` free columns behind it."""
    out = x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3])
    out[:, :, : x.shape[2]] = x
    return out

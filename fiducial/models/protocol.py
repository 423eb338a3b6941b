"""What a language model must be able to do here, whoever built it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class ModelConfig(Protocol):
    """The facts about a model that others rely on."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_length(self) -> int:
        """The longest sequence it reads, in tokens."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""
        ...


class KeyValueCache(Protocol):
    """Keys and values of the tokens that N rows have read so far."""

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows `rows` [M] int64 only, in that order."""
        ...


class CausalLM(Protocol):
    """Token ids to next-token logits. Rows are RIGHT-padded: what follows a row's end cannot change what is before it.

    A `torch.nn.Module` too; `parameters`, `state_dict`, `train` and the rest are the module's.
    """

    training: bool

    @property
    def config(self) -> ModelConfig: ...

    def __call__(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] -> logits [B, L, V]; position t predicts token t + 1."""
        ...

    def hidden(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] -> the states that the head reads, [B, L, D]: after the final norm."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V]."""
        ...

    def prefill(
        self, input_ids: Tensor, lengths: Tensor, copies: Tensor | int, room: int
    ) -> tuple[Tensor, KeyValueCache]:
        """Run P prompts once and open a cache with `copies` rows for each.

        input_ids [P, Lp] right-padded, lengths [P], copies [P] or one number, room: how many tokens may follow.
        Returns the logits [N, V] after each row's last prompt token and the cache; a prompt's copies are neighbours.
        """
        ...

    def decode(self, tokens: Tensor, cache: Any) -> Tensor:
        """One more token for every row: tokens [N] -> logits [N, V]."""
        ...

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them (slower, much less memory)."""
        ...

    def parameters(self, recurse: bool = True) -> Any: ...

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Any: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def device_of(model: CausalLM) -> torch.device:
    """The device that holds a model's weights."""
    return next(iter(model.parameters())).device

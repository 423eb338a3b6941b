"""Any causal language model of Hugging Face's `transformers`, behind the same protocol as the built-in decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

UNBOUNDED = 2**31  # max_length of a model that states none


@dataclass(frozen=True)
class HFConfig:
    """What others ask a model's config for; the stock one is `HFModel.model.config`."""

    vocab_size: int
    max_length: int
    eos_ids: tuple[int, ...]


class HFCache:
    """A `DynamicCache` of left-padded rows: mask [N, T] is 0 on padding, lengths [N] count what each row has read."""

    def __init__(self, states: Any, mask: Tensor, lengths: Tensor):
        self.states, self.mask, self.lengths = states, mask, lengths

    def keep(self, rows: Tensor) -> None:
        """Go on with the rows `rows` [M] only; a row may appear more than once."""
        self.states.batch_select_indices(rows)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]


class HFModel(nn.Module):
    """Wraps an `AutoModelForCausalLM`; obeys `fiducial.models.protocol.CausalLM`. Dropout is switched off.

    (Every method compares log-probabilities of one model at two times; with dropout they differ by chance.)
    """

    def __init__(self, model: Any, eos_ids: tuple[int, ...] = ()):
        super().__init__()
        self.model = model
        stock = model.config
        max_length = getattr(stock, "max_position_embeddings", None) or UNBOUNDED
        self.config = HFConfig(stock.vocab_size, max_length, eos_ids)
        _switch_off_dropout(model)
        self._check_head()

    def _check_head(self) -> None:
        """Refuse models that change their logits after the head (soft-capping, scaling), which `head` would miss."""
        probe = torch.arange(2, device=self.model.device)[None] + self.config.vocab_size // 2
        with torch.inference_mode():
            own, ours = self.model(probe).logits, self(probe)
        if not torch.allclose(own, ours, atol=1e-4, rtol=1e-3, equal_nan=True):
            name = self.model.config.model_type
            raise ValueError(
                f"models of type {name!r} change their logits after the head, which is not supported; use another"
            )

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] right-padded -> logits [B, L, V]."""
        return self.head(self.hidden(input_ids))

    def hidden(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] -> states after the final norm [B, L, D]."""
        if input_ids.shape[1] > self.config.max_length:
            raise ValueError(
                f"{input_ids.shape[1]} tokens do not fit the model's max_length = {self.config.max_length}; "
                "shorten the rows"
            )
        return self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V]."""
        return self.model.get_output_embeddings()(hidden)

    def prefill(self, input_ids: Tensor, lengths: Tensor, copies: Tensor | int, room: int) -> tuple[Tensor, HFCache]:
        """Run P prompts once and open a cache with `copies` rows each; see `CausalLM.prefill`."""
        from transformers import DynamicCache

        width = input_ids.shape[1]
        columns = torch.arange(width, device=input_ids.device)
        shift = columns - (width - lengths)[:, None]  # [P, Lp] the position that a left-padded column holds
        mask, positions = (shift >= 0).long(), shift.clamp(min=0)
        hidden = self.model.base_model(
            input_ids=input_ids.gather(1, positions),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=DynamicCache(config=self.model.config),
            use_cache=True,
        )
        counts = torch.as_tensor(copies, device=input_ids.device).expand(len(lengths))
        rows = torch.arange(len(lengths), device=input_ids.device).repeat_interleave(counts)
        logits = self.head(hidden.last_hidden_state[:, -1])
        cache = HFCache(hidden.past_key_values, mask, lengths)
        cache.keep(rows)
        return logits[rows], cache

    def decode(self, tokens: Tensor, cache: HFCache) -> Tensor:
        """One more token for every row: tokens [N] -> logits [N, V]."""
        cache.mask = torch.cat([cache.mask, cache.mask.new_ones(len(tokens), 1)], dim=1)
        out = self.model.base_model(
            input_ids=tokens[:, None],
            attention_mask=cache.mask,
            position_ids=cache.lengths[:, None],
            past_key_values=cache.states,
            use_cache=True,
        )
        cache.lengths = cache.lengths + 1
        return self.head(out.last_hidden_state[:, 0])

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        # transformers 5.23 has new names for the two, and warns of the old ones.
        word = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        getattr(self.model, f"{word}_checkpointing_{'enable' if on else 'disable'}")()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]

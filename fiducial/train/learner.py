"""A trained (or frozen) network as the loop sees it: a batch in, tensors under glossary names out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.core.tokens import align, masked_logprobs, next_token_logits, sequence_sum
from fiducial.core.types import Tokens


class Learner(nn.Module):
    """One module with one `forward`, which is what FSDP shards and autocast wraps.

    `kind` "policy" scores tokens; "reward_model" scores sequences; "critic" forecasts at each token.
    """

    def __init__(self, model: Any, kind: str = "policy", temperature: float = 1.0, autocast: bool = False):
        super().__init__()
        self.model, self.kind, self.temperature, self.autocast = model, kind, temperature, autocast

    def forward(self, batch: Tokens, want_logits: bool = False, want_entropy: bool = False) -> dict[str, Tensor]:
        """{"logprobs": [B, L], "hits": [B, L]} and, if wanted, "entropy" [B, L] and "logits" [B, L, V], all aligned; or
        {"scores": [B]}, or
        {"values": [B, L]}, at each token that trains the forecast made before it."""
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.autocast):
            if self.kind == "reward_model":
                scores = self.model(batch.input_ids, batch.extra["lengths"])
                return {"scores": scores if scores.dtype == torch.float64 else scores.float()}
            if self.kind == "critic":
                values = self.model.values(batch.input_ids)[:, :-1]
                values = align(values if values.dtype == torch.float64 else values.float())
                return {"values": torch.where(batch.mask, values, 0.0)}
            hidden = self.model.hidden(batch.input_ids)
            tokens = (batch.input_ids, batch.mask, self.temperature)
            out = masked_logprobs(hidden, self.model.head, *tokens, spread=want_entropy)
            if want_logits:
                out["logits"] = align(next_token_logits(self.model.head(hidden), self.temperature))
        return out


PER_PAIR = ("margin", "pref_prob", "tied", "chosen_harm", "rejected_harm")  # carried by both rows of a pair


def named_tensors(out: dict[str, Tensor], batch: Tokens, needs: Collection[str]) -> dict[str, Tensor]:
    """What a loss asks for by name, from a learner's output and what the batch carries.

    Pair names are the halves of the per-row tensors: chosen rows come first.
    """
    known = {"mask": batch.mask, "weight": batch.weight, "group": batch.group, "input_ids": batch.input_ids}
    tensors = {**batch.extra, **out, **known}
    n = batch.num_units
    halves = {"chosen": slice(0, n), "rejected": slice(n, 2 * n), "completion": slice(None)}
    for half, rows in halves.items():
        for prefix in ("", "ref_"):
            if f"{prefix}logprobs" in tensors and f"{prefix}{half}_logprobs" in needs:
                summed = sequence_sum(tensors[f"{prefix}logprobs"], batch.mask)
                tensors[f"{prefix}{half}_logprobs"] = summed[rows]
        if f"{half}_lengths" in needs:
            tensors[f"{half}_lengths"] = batch.mask.sum(-1)[rows].clamp(min=1)
        if f"{half}_scores" in needs:
            tensors[f"{half}_scores"] = out["scores"][rows]
    for name in PER_PAIR:
        if batch.pairs and name in tensors:
            tensors[name] = tensors[name][:n]
    if "old_logprobs" in needs and "old_logprobs" not in tensors:
        # The weights have not moved since sampling: the policy is its own past, without a second forward pass.
        tensors["old_logprobs"] = tensors["logprobs"].detach()
    return tensors

"""A completion as the decisions it was made of: at each token, what else could have been written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.core.types import Rollout
from fiducial.models.protocol import CausalLM, device_of
from fiducial.sampling.local import eval_mode
from fiducial.sampling.stops import decode_text


def trace(model: CausalLM, tokenizer: Any, rollout: Rollout, k: int = 5) -> list[dict[str, Any]]:
    """One record for each token that the policy wrote, under the model as it is now, at temperature 1.

    `t` counts written tokens from 0; `prefix_ids_len` and `prefix_text` are the state it was written in; `action_id`
    and `action_text` the token; `prob`, `logprob`, `rank` (1: the likeliest) and `entropy` (nats) what the model
    thought of it; `topk` the k likeliest tokens as {id, text, prob}, best first; `top_k_mass` their sum; `is_eos`
    whether it is the tokenizer's stop token.
    """
    if not 1 <= k <= model.config.vocab_size:
        raise ValueError(f"k must be between 1 and the vocabulary's {model.config.vocab_size} tokens; it is {k}")
    ids = rollout.token_ids
    with torch.inference_mode(), eval_mode(model):
        logits = model(torch.tensor([ids], device=device_of(model)))[0]
        logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).cpu()
    written = [place for place, mine in enumerate(rollout.mask) if mine and place > 0]
    return [
        {"t": t, "prefix_ids_len": place, "prefix_text": decode_text(tokenizer, ids[:place])}
        | _decision(tokenizer, logprobs[place - 1], ids[place], k)
        for t, place in enumerate(written)
    ]


def _decision(tokenizer: Any, logprobs: Tensor, token: int, k: int) -> dict[str, Any]:
    """The fields of one token; logprobs [V] of the distribution that it was drawn from."""
    probs = logprobs.exp()
    best = logprobs.topk(k)
    topk = [
        {"id": i, "text": decode_text(tokenizer, [i]), "prob": p}
        for i, p in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    ]
    return {
        "action_id": token,
        "action_text": decode_text(tokenizer, [token]),
        "prob": float(probs[token]),
        "logprob": float(logprobs[token]),
        "rank": 1 + int((logprobs > logprobs[token]).sum()),
        "entropy": -float(torch.where(probs > 0, probs * logprobs, 0.0).sum()),
        "topk": topk,
        "top_k_mass": sum(entry["prob"] for entry in topk),
        "is_eos": token == tokenizer.eos_token_id,
    }

"""How a fresh decoder's weights begin: so that a small one learns to copy in a hundred steps, not five hundred."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fiducial.models.config import DecoderConfig

STD = 0.02
EMBEDDING_STD = 0.1  # of an untied embedding; a tied one is the head too: large, it makes tokens predict themselves
MARGIN = 4.0  # nats by which the previous-token head prefers its token: 1 / (1 + 2 exp(-4)) = 96 % of the weight
COPY = 0.5  # size of what that head writes, relative to the embedding


@torch.no_grad()
def init_weights(model: nn.Module, config: DecoderConfig) -> None:
    """Normal weights of standard deviation 0.02, zero biases, with these exceptions.

    Residual outputs shrink with depth, as in GPT-2. Queries and keys have 1 / sqrt(hidden), so that heads begin with
    preferences: from near-uniform attention, matching tokens takes twice as long to learn.
    """
    residual = ("o_proj.weight", "down_proj.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(residual):
            nn.init.normal_(parameter, std=STD / math.sqrt(2 * config.layers))
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            nn.init.normal_(parameter, std=1 / math.sqrt(config.hidden))
        elif name.endswith("embed_tokens.weight"):
            nn.init.normal_(parameter, std=embedding_std(config))
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=STD)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    if config.previous_token_head:
        previous_token_head(model.get_submodule("model.layers.0.self_attn"), config)


def embedding_std(config: DecoderConfig) -> float:
    """Standard deviation of the embedding's entries."""
    return STD if config.tie else EMBEDDING_STD


@torch.no_grad()
def previous_token_head(attention: Any, config: DecoderConfig) -> None:
    """Let the first head of a layer be born attending to the token before: half an induction head.

    Its query and key weights are zero, so its scores come from the biases alone, and rotary positions turn biases into
    a function of the distance d between two tokens: the key's bias is the query's advanced by one position, hence

        score(d) = c * sum_i cos(w_i (d - 1))   over the faster half of the rotary pairs, largest at d = 1,

    with c such that the neighbours d = 0 and d = 2 are MARGIN nats below. What the head copies is a slice of the token
    before, written apart from the token's own embedding. The layout stays Llama's, and every weight stays trainable.
    """
    dim, half = config.head_dim, config.head_dim // 2
    frequencies = config.rotary_frequencies()[: max(1, half // 2)]
    scale = MARGIN / (1 - frequencies.cos()).sum()  # c
    amplitude = (scale * math.sqrt(dim)).sqrt()  # scores are divided by sqrt(head_dim)
    for proj in (attention.q_proj, attention.k_proj):
        proj.weight[:dim] = 0.0
    fast = slice(0, len(frequencies))  # a pair is (i, i + half)
    attention.q_proj.bias[:half][fast] = amplitude
    attention.k_proj.bias[:half][fast] = amplitude * frequencies.cos()
    attention.k_proj.bias[half:dim][fast] = amplitude * frequencies.sin()
    nn.init.orthogonal_(attention.v_proj.weight[:dim])
    # An orthogonal slice of a normed embedding has length sqrt(head_dim), the embedding itself std * sqrt(hidden).
    gain = COPY * embedding_std(config) * math.sqrt(config.hidden / dim)
    nn.init.orthogonal_(attention.o_proj.weight[:, :dim], gain=gain)

"""How a fresh decoder's weights begin: so that a small one learns to copy in a hundred steps, not five hundred."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from fiducial.models.config import DecoderConfig

EMBEDDING_STD = 0.5  # of an untied embedding
TIED_STD = 0.02  # of one that is the head too, where large weights would make a token predict itself
MARGIN = 4.0  # nats by which the previous-token head prefers its token: 1 / (1 + 2 exp(-4)) = 96 % of the weight


@torch.no_grad()
def init_weights(model: nn.Module, config: DecoderConfig) -> None:
    """Normal weights of standard deviation 1 / sqrt(inputs), zero biases, with these exceptions.

    Residual outputs shrink with depth, as in GPT-2; the head has half, so that first guesses are nearly even. At the
    widths this is for, GPT-2's fixed 0.02 learns far slower: after 1000 steps 48 % of chained sums solved, not 72 %.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            continue
        std = 1 / math.sqrt(parameter.shape[1])
        if name.endswith("embed_tokens.weight"):
            std = TIED_STD if config.tie else EMBEDDING_STD
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * config.layers)
        elif name.endswith("lm_head.weight"):
            std /= 2
        nn.init.normal_(parameter, std=std)
    if config.previous_token_head:
        previous_token_head(model.get_submodule("model.layers.0.self_attn"), config)


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
    nn.init.orthogonal_(attention.o_proj.weight[:, :dim])

"""The built-in laptop decoder: a transformer in exactly Llama's layout (arXiv:2302.13971), or Qwen2's.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, biases on the attention's projections (all, those of q, k
and v as in Qwen2, or none). Parameter names are those of Hugging Face's `LlamaForCausalLM` (`Qwen2ForCausalLM`), so a
saved folder loads anywhere. Attention is written out: on a CPU, at the sizes this is
for, it trains faster than `scaled_dot_product_attention` and decodes from a preallocated cache.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fiducial.models.cache import Cache, Recorder
from fiducial.models.config import DecoderConfig
from fiducial.models.initial import init_weights

FUSED_LENGTH = 512  # tokens from which the fused attention is faster on a CPU too; on a GPU it always is


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., arXiv:2104.09864), halves convention: x [B, heads, L, D]; cos, sin [..., L, D].

    `sin` is negative in its first half, so that rolling x by a half gives the rotated pair (fewer passes than cutting).
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention with H/KV query heads to each key head, [B, L, H * D].

    q [B, H, L, D]; k, v [B, KV, T, D]; mask is added to the scores and broadcasts to [B * KV, (H/KV) * L, T]. None:
    each position reads itself and what is before it (L = T).
    """
    batch, heads, length, dim = q.shape
    if mask is None:
        q, k = q.to(v.dtype), k.to(v.dtype)  # rotations widen under autocast
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != k.shape[1])
        return out.transpose(1, 2).reshape(batch, length, heads * dim)
    kv_heads = k.shape[1]
    q = q.reshape(batch * kv_heads, heads // kv_heads * length, dim)
    scores = torch.baddbmm(mask, q, k.flatten(0, 1).transpose(1, 2), alpha=dim**-0.5)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    out = torch.bmm(weights, v.flatten(0, 1)).view(batch, heads, length, dim)
    return out.transpose(1, 2).reshape(batch, length, heads * dim)


class Attention(nn.Module):
    """Causal self-attention with grouped heads and rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        inward = config.bias != "none"
        self.q_proj = nn.Linear(config.hidden, config.hidden, bias=inward)
        self.k_proj = nn.Linear(config.hidden, kv_size, bias=inward)
        self.v_proj = nn.Linear(config.hidden, kv_size, bias=inward)
        self.o_proj = nn.Linear(config.hidden, config.hidden, bias=config.bias == "all")

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | Recorder | None
    ) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (
            proj(x).view(shape).transpose(1, 2)  # [B, heads, L, head_dim]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        return self.o_proj(attend(q, k, v, mask))


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | Recorder | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Everything below the head: token ids to hidden states."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config, self.gradient_checkpointing = config, False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList([Block(config, i) for i in range(config.layers)])
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.set_rotary_table()

    def set_rotary_table(self) -> None:
        """Cosines and sines of the angle of each position and rotary pair, [max_length, head_dim]; see `rotate`."""
        angles = torch.arange(self.config.max_length).float()[:, None] * self.config.rotary_frequencies()
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, input_ids: Tensor, recorder: Recorder | None = None) -> Tensor:
        """Whole sequences: input_ids [B, L] -> [B, L, D]."""
        length = input_ids.shape[1]
        if length > self.config.max_length:
            raise ValueError(
                f"{length} tokens do not fit the model's max_length = {self.config.max_length}; shorten the rows"
            )
        mask = None
        if length < FUSED_LENGTH and input_ids.device.type == "cpu":
            mask = self.cos.new_full((length, length), -torch.inf).triu(1)
            mask = mask.repeat(self.config.heads // self.config.num_kv_heads, 1)
        return self.run(input_ids, (self.cos[:length], self.sin[:length]), mask, recorder)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One token a row: tokens [N] -> [N, D]."""
        positions = cache.lengths
        rotary = (self.cos[positions][:, None, None], self.sin[positions][:, None, None])  # [N, 1, 1, head_dim]
        hidden = self.run(tokens[:, None], rotary, cache.mask(), cache)[:, 0]
        cache.width += 1
        return hidden

    def run(
        self, input_ids: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | Recorder | None
    ) -> Tensor:
        """Embedding, blocks and final norm: input_ids [B, L] -> [B, L, D]."""
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotary, mask, cache, use_reentrant=False)
            else:
                x = layer(x, rotary, mask, cache)
        return self.norm(x)


class Decoder(nn.Module):
    """A causal language model; obeys `fiducial.models.protocol.CausalLM`.

    >>> model = Decoder(DecoderConfig(vocab_size=11, hidden=32, layers=1, heads=1))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 11])
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        init_weights(self, config)
        self.tie_head()

    @classmethod
    def empty(cls, config: DecoderConfig, dtype: torch.dtype = torch.float32) -> Decoder:
        """A decoder whose weights hold anything, to be loaded: initialising a large one takes seconds."""
        with torch.device("meta"):
            model = cls(replace(config, previous_token_head=False))
        model.to_empty(device="cpu")
        model.model.set_rotary_table()
        model.tie_head()
        return model.to(dtype)

    def tie_head(self) -> None:
        """Let the head share the embedding's weight where the config says so."""
        if self.config.tie:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] right-padded -> logits [B, L, V]."""
        return self.head(self.hidden(input_ids))

    def hidden(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L] -> states after the final norm [B, L, D]."""
        return self.model(input_ids)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V]."""
        return self.lm_head(hidden)

    def prefill(self, input_ids: Tensor, lengths: Tensor, copies: Tensor | int, room: int) -> tuple[Tensor, Cache]:
        """Run P prompts once and open a cache with `copies` rows each; see `CausalLM.prefill`."""
        recorder = Recorder()
        hidden = self.model(input_ids, recorder)
        last = hidden[torch.arange(len(lengths), device=lengths.device), lengths - 1]  # [P, D]
        counts = torch.as_tensor(copies, device=lengths.device).expand(len(lengths))
        cache = Cache.from_prompts(recorder, lengths, counts, room)
        return self.head(last).repeat_interleave(counts, 0), cache

    def decode(self, tokens: Tensor, cache: Cache) -> Tensor:
        """One more token for every row: tokens [N] -> logits [N, V]."""
        return self.head(self.model.step(tokens, cache))

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.model.gradient_checkpointing = on

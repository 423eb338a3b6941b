"""The decoder against Hugging Face's Llama and Qwen2, against itself step by step, and its initialisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fiducial.models import decoder
from fiducial.models.decoder import Decoder, DecoderConfig

CONFIGS = {
    "plain": DecoderConfig(50, hidden=64, layers=2, heads=2, max_length=40),
    "grouped": DecoderConfig(50, hidden=128, layers=3, heads=4, kv_heads=2, mlp=96, max_length=40, rope_theta=500.0),
    "qwen2": DecoderConfig(50, hidden=64, layers=2, heads=2, bias="qkv", max_length=40),
    "llama": DecoderConfig(50, hidden=64, layers=2, heads=2, bias="none", previous_token_head=False, max_length=40),
    "tied": DecoderConfig(50, hidden=64, layers=1, heads=2, kv_heads=1, tie=True, max_length=40, norm_eps=1e-5),
}


def build(config: DecoderConfig, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():  # no parameter at its trivial initial value
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return model


def huggingface(model: Decoder):
    """Stock Llama (Qwen2 where that is the layout) with the same weights."""
    import transformers as hf

    c = model.config
    kind = hf.Qwen2Config if c.bias == "qkv" else hf.LlamaConfig
    layout = {} if c.bias == "qkv" else {"attention_bias": c.bias == "all"}
    stock = hf.AutoModelForCausalLM.from_config(
        kind(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden,
            intermediate_size=c.mlp_size,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.num_kv_heads,
            max_position_embeddings=c.max_length,
            tie_word_embeddings=c.tie,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            rms_norm_eps=c.norm_eps,
            **layout,
        )
    )
    stock.load_state_dict(model.state_dict())
    return stock.eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_equal_stock_models(config):
    model = build(config)
    ids = torch.randint(0, 50, (3, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), huggingface(model)(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_decoding_equals_whole_sequences(config, dtype):
    model = build(config).to(dtype)
    prompts = torch.randint(0, 50, (3, 9))
    lengths, copies = torch.tensor([9, 2, 5]), torch.tensor([1, 3, 2])
    rows = [prompts[i, : lengths[i]].tolist() for i in (0, 1, 1, 1, 2, 2)]
    logits, cache = model.prefill(prompts, lengths, copies, room=6)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.15}[dtype]
    for step in range(6):
        for row, found in zip(rows, logits, strict=True):
            whole = model(torch.tensor([row]))[0, -1]
            torch.testing.assert_close(found, whole, atol=tolerance, rtol=0)
        if step == 2:  # some leave, the others change places
            kept = torch.tensor([5, 1, 0, 2])
            cache.keep(kept)
            rows = [rows[i] for i in kept]
        tokens = torch.randint(0, 50, (len(rows),))
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
        logits = model.decode(tokens, cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_long_rows_take_the_fused_attention_to_the_same_result(dtype, monkeypatch):
    model, ids = build(replace(CONFIGS["grouped"], max_length=520)).to(dtype), torch.randint(0, 50, (2, 520))
    fused = model(ids)
    monkeypatch.setattr(decoder, "FUSED_LENGTH", 1000)
    torch.testing.assert_close(model(ids), fused, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing():
    model, ids = build(CONFIGS["grouped"]), torch.randint(0, 50, (1, 7))
    padded = F.pad(ids, (0, 5), value=3)
    torch.testing.assert_close(model(padded)[:, :7], model(ids), atol=1e-5, rtol=0)


def test_gradients_equal_stock_models_with_and_without_checkpointing():
    model = build(CONFIGS["grouped"])
    stock, ids = huggingface(model), torch.randint(0, 50, (2, 12))
    F.cross_entropy(stock(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = {name: p.grad for name, p in stock.named_parameters()}
    for on in (False, True):
        model.set_gradient_checkpointing(on)
        model.zero_grad()
        F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


def test_checkpointing_recomputes_the_blocks():
    model, ids = build(CONFIGS["plain"]), torch.randint(0, 50, (1, 5))
    calls = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_gradient_checkpointing(True)
    model(ids).sum().backward()
    assert len(calls) == 4  # each of the two blocks forward, and again in the backward pass


def test_bf16_autocast_trains_close_to_float32():
    model, ids = build(CONFIGS["plain"]), torch.randint(0, 50, (4, 20))

    def gradient(autocast: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(ids)
        assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
        F.cross_entropy(logits.float()[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact, rough = gradient(False), gradient(True)
    assert F.cosine_similarity(exact, rough, dim=0) > 0.999
    assert (exact - rough).norm() / exact.norm() < 0.05


def attention_weights(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Weights of the first head of the first layer, [L, L], from the stock model."""
    stock = huggingface(model)
    stock.set_attn_implementation("eager")
    return stock(ids, output_attentions=True).attentions[0][0, 0]


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
@torch.no_grad()
def test_first_head_is_born_attending_to_the_previous_token(head_dim):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(64, hidden=2 * head_dim, layers=2, heads=2, kv_heads=1, max_length=256))
    weights = attention_weights(model, torch.randint(0, 64, (1, 128)))
    assert weights.diagonal(-1).min() > 0.9  # row t, column t - 1
    plain = Decoder(DecoderConfig(64, hidden=64, heads=2, previous_token_head=False))
    assert attention_weights(plain, torch.randint(0, 64, (1, 128))).diagonal(-1)[50:].mean() < 0.05


def steps_to_copy(previous_token_head: bool, limit: int) -> int:
    """Training steps until 80 % of a random segment that is written a second time is predicted."""
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(64, layers=2, max_length=64, previous_token_head=previous_token_head))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    right = 0.0
    for step in range(limit):
        text = torch.randint(3, 64, (32, 24))
        again = text.gather(1, torch.randint(0, 16, (32, 1)) + torch.arange(8))
        logits = model(torch.cat([text, again], dim=1))[:, 24:-1]  # the first token of the segment cannot be known
        loss = F.cross_entropy(logits.flatten(0, 1), again[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right += 0.2 * (float((logits.argmax(-1) == again[:, 1:]).float().mean()) - right)
        if right > 0.8:
            return step
    return limit


@pytest.mark.slow
def test_previous_token_head_learns_to_copy_sooner():
    # Measured: about 160 steps with it, more than 400 without.
    assert steps_to_copy(True, 250) < 250
    assert steps_to_copy(False, 250) == 250


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("layers", 0),
        ("heads", 3),
        ("hidden", 36),
        ("kv_heads", 3),
        ("mlp", 0),
        ("max_length", 0),
        ("rope_theta", 0.0),
        ("bias", "some"),
        ("norm_eps", 0.0),
        ("pad_id", 50),
        ("eos_ids", (2, 50)),
    ],
)
def test_bad_sizes_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .*; it is"):
        DecoderConfig(**{"vocab_size": 50, "hidden": 64, field: value})


def test_rows_beyond_the_models_length_are_refused():
    with pytest.raises(ValueError, match="41 tokens .*max_length = 40"):
        build(CONFIGS["plain"])(torch.zeros(1, 41, dtype=torch.int64))

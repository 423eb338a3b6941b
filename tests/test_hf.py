"""Hugging Face models behind the protocol, and model folders."""

from __future__ import annotations

import json

import pytest
import torch

from fiducial.core.types import Decoding, Request
from fiducial.models import Decoder, DecoderConfig, HFModel, load, new, save, train_tokenizer
from fiducial.sampling.local import LocalSampler

TOKENIZER = train_tokenizer(["abcdefghij klmnop."], kind="char", vocab_size=64)
V = len(TOKENIZER)
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def stock(kind: str, **changes):
    """A tiny random model of a stock architecture."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"vocab_size": V, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, **IDS}
    sizes |= {"intermediate_size": 96, "max_position_embeddings": 48, "initializer_range": 0.2}
    if kind == "llama":
        config = hf.LlamaConfig(**{**sizes, "num_key_value_heads": 1, **changes})
    elif kind == "qwen2":
        config = hf.Qwen2Config(**{**sizes, "num_key_value_heads": 1, **changes})
    elif kind == "gemma2":
        config = hf.Gemma2Config(**{**sizes, "num_key_value_heads": 1, "head_dim": 32, **changes})
    elif kind == "scaled llama":  # which the built-in decoder does not compute
        rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        config = hf.LlamaConfig(**{**sizes, "num_key_value_heads": 1, "rope_parameters": rope, **changes})
    else:
        config = hf.GPT2Config(
            vocab_size=V, n_embd=64, n_layer=2, n_head=2, n_positions=48, **IDS, initializer_range=0.2
        )
    return hf.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@torch.no_grad()
def test_prefill_and_decode_equal_the_whole_sequence(kind):
    own = stock(kind)
    model = HFModel(own)
    prompts, lengths = torch.randint(3, V, (3, 9)), torch.tensor([9, 2, 5])
    rows = [prompts[i, : lengths[i]].tolist() for i in (0, 1, 1, 1, 2, 2)]
    logits, cache = model.prefill(prompts, lengths, torch.tensor([1, 3, 2]), room=6)
    for step in range(6):
        for row, found in zip(rows, logits, strict=True):
            torch.testing.assert_close(found, own(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=0)
        if step == 2:
            kept = torch.tensor([5, 1, 0, 2])
            cache.keep(kept)
            rows = [rows[i] for i in kept]
        tokens = torch.randint(3, V, (len(rows),))
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
        logits = model.decode(tokens, cache)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@torch.no_grad()
def test_hidden_and_head_are_the_logits(kind):
    own = stock(kind)
    model, ids = HFModel(own), torch.randint(3, V, (2, 12))
    torch.testing.assert_close(model.head(model.hidden(ids)), own(ids).logits)
    torch.testing.assert_close(model(torch.nn.functional.pad(ids, (0, 4)))[:, :12], own(ids).logits, atol=1e-5, rtol=0)
    assert (model.config.vocab_size, model.config.max_length) == (V, 48)


def test_models_whose_head_is_not_the_last_step_are_refused():
    with pytest.raises(ValueError, match="type 'gemma2' change their logits after the head"):
        HFModel(stock("gemma2", final_logit_softcapping=0.5))


def test_dropout_is_off():
    model = HFModel(stock("gpt2")).train()  # GPT-2's default dropout is 0.1
    ids = torch.randint(3, V, (2, 12))
    torch.testing.assert_close(model(ids), model(ids))


def test_gradient_checkpointing_keeps_the_gradient():
    model, ids = HFModel(stock("llama")).train(), torch.randint(3, V, (2, 12))
    grads = []
    for on in (False, True):
        model.set_gradient_checkpointing(on)
        model.zero_grad()
        model(ids).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(("kind", "changes"), [("qwen2", {}), ("llama", {}), ("llama", {"attention_bias": True})])
def test_decoder_and_stock_models_sample_the_same(tmp_path, kind, changes):
    own = stock(kind, **changes)
    own.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    assert isinstance(model, Decoder)
    asked = [Request([1, 12, 13][:n], seed=i) for i, n in enumerate((3, 1, 3, 2))]
    ours = LocalSampler(model, tokenizer).sample(asked, Decoding(20))
    theirs = LocalSampler(HFModel(own, eos_ids=(2,)), tokenizer).sample(asked, Decoding(20))
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("tie", [False, True])
def test_saved_decoder_loads_with_auto_model(tmp_path, tie):
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = new(
        DecoderConfig(V, hidden=64, layers=2, heads=2, kv_heads=1, max_length=32, tie=tie, rope_theta=321.0), seed=3
    )
    save(model, TOKENIZER, tmp_path)
    ids = torch.randint(3, V, (2, 32))
    own = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(own(ids).logits, model(ids), atol=1e-5, rtol=0)
    assert own.config.model_type == "llama"
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == own.config.eos_token_id == 2
    again, tokenizer = load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(ids), model(ids), atol=0, rtol=0)
    assert again.config.eos_ids == (2,) and again.config.pad_id == 0 and not again.training
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tie
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert load(tmp_path, dtype=torch.float64)[0](ids).dtype == torch.float64


@pytest.mark.parametrize("kind", ["scaled llama", "gpt2"])
def test_other_architectures_load_and_save(tmp_path, kind):
    own, ids = stock(kind), torch.randint(3, V, (2, 12))
    save(HFModel(own), TOKENIZER, tmp_path)
    model, _ = load(tmp_path)
    assert isinstance(model, HFModel) and model.config.eos_ids == (2,)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), own(ids).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ],
    ids=["rope", "activation", "window"],
)
def test_a_qwen2_that_the_decoder_does_not_compute_stays_stock(tmp_path, changes):
    own, ids = stock("qwen2", **changes), torch.randint(3, V, (1, 20))
    own.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model, _ = load(tmp_path)
    assert isinstance(model, HFModel)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), own(ids).logits)


def test_all_stop_tokens_of_the_generation_config_are_known(tmp_path):
    save(new(DecoderConfig(V, hidden=32, layers=1, heads=1)), TOKENIZER, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert load(tmp_path)[0].config.eos_ids == (2, 5)


def test_sharded_weights(tmp_path):
    own, ids = stock("qwen2"), torch.randint(3, V, (1, 9))
    own.save_pretrained(tmp_path, max_shard_size="60KB")
    TOKENIZER.save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)[0](ids), own(ids).logits, atol=1e-5, rtol=0)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"{shards[1].name} is missing"):
        load(tmp_path)


def test_new_depends_on_its_seed_alone():
    config = DecoderConfig(V, hidden=32, layers=1, heads=1)
    state = torch.get_rng_state()
    first, second, other = new(config, 1), new(config, 1), new(config, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def break_weights(change):
    def act(folder):
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return act


def shorten(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


NORM = "model.norm.weight"
BREAKS = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "cut short": (shorten, "model.safetensors is cut short or damaged"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "NaN": (
        break_weights(lambda s: s[NORM].__setitem__(3, torch.nan)),
        f"1 of 32 entries of the weight {NORM} are NaN",
    ),
    "missing": (break_weights(lambda s: s.pop(NORM)), f"do not fit its config.json: {NORM} is missing"),
    "unknown": (break_weights(lambda s: s.update(extra=torch.ones(1))), "extra is unknown"),
    "shape": (break_weights(lambda s: s.update({NORM: torch.ones(3)})), rf"{NORM} is \[3\], not \[32\]"),
}


@pytest.mark.parametrize(("act", "message"), BREAKS.values(), ids=BREAKS)
def test_broken_folders_are_named(tmp_path, act, message):
    save(new(DecoderConfig(V, hidden=32, layers=1, heads=1)), TOKENIZER, tmp_path)
    act(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_folders_that_do_not_belong_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no model folder"):
        load(tmp_path / "nowhere")
    save(new(DecoderConfig(V - 1, hidden=32, layers=1, heads=1)), TOKENIZER, tmp_path)
    with pytest.raises(ValueError, match=f"has {V} tokens but the model's vocab_size is {V - 1}"):
        load(tmp_path)


def test_stock_models_with_missing_weights_are_refused(tmp_path):
    save(HFModel(stock("scaled llama")), TOKENIZER, tmp_path)
    break_weights(lambda s: s.pop(NORM))(tmp_path)
    with pytest.raises(ValueError, match=f"{NORM} is missing"):
        load(tmp_path)


def test_broken_models_are_not_saved(tmp_path):
    model = new(DecoderConfig(V, hidden=32, layers=1, heads=1))
    model.lm_head.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"not saved to .*: 1 of \d+ entries of the weight lm_head.weight"):
        save(model, TOKENIZER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_config_says_what_was_saved(tmp_path):
    save(new(DecoderConfig(V, hidden=32, layers=1, heads=1)), TOKENIZER, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (0, 1, 2)

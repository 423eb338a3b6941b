"""Reward models against stock sequence classifiers and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from test_hf import TOKENIZER, V, stock

from fiducial.models import DecoderConfig, HFModel, new, save
from fiducial.models.heads import RewardModel, load_reward_model, save_reward_model


def backbone(kind: str):
    if kind == "decoder":
        return new(DecoderConfig(V, hidden=64, layers=2, heads=2, kv_heads=1, max_length=48), seed=1)
    if kind == "tied":
        return new(DecoderConfig(V, hidden=64, layers=1, heads=2, max_length=48, tie=True), seed=1)
    return HFModel(stock(kind))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 9, 4 and 1 tokens, right-padded with the pad token, which no row holds."""
    ids, lengths = torch.randint(3, V, (3, 9)), torch.tensor([9, 4, 1])
    return ids.masked_fill(torch.arange(9) >= lengths[:, None], TOKENIZER.pad_token_id), lengths


@torch.no_grad()
def test_score_is_read_at_the_last_token():
    model = RewardModel(backbone("decoder"))
    ids, lengths = batch()
    by_hand = [
        (model.backbone.hidden(ids[i : i + 1, :n])[0, -1] * model.score.weight[0]).sum() for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(model(ids, lengths), torch.stack(by_hand))
    torch.testing.assert_close(model.values(ids)[torch.arange(3), lengths - 1], torch.stack(by_hand))


def test_head_starts_small_and_by_its_seed():
    # 1 / sqrt(D + 1) = 1 / sqrt(257); the standard error of a deviation from 256 draws is 1 / sqrt(512) of it.
    model = RewardModel(new(DecoderConfig(V, hidden=256, layers=1, heads=2)), seed=5)
    assert model.score.weight.std().item() == pytest.approx(1 / math.sqrt(257), rel=4 / math.sqrt(512))
    again = RewardModel(new(DecoderConfig(V, hidden=256, layers=1, heads=2)), seed=5)
    assert torch.equal(model.score.weight, again.score.weight)
    assert not any("lm_head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", ["decoder", "tied", "llama", "gpt2"])
@torch.no_grad()
def test_stock_classifier_gives_equal_scores(tmp_path, kind):
    from transformers import AutoModelForSequenceClassification

    model = RewardModel(backbone(kind), seed=2).eval()
    save_reward_model(model, TOKENIZER, tmp_path)
    ids, lengths = batch()
    scores = model(ids, lengths)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert own.config.num_labels == 1
    mask = (torch.arange(9) < lengths[:, None]).long()
    torch.testing.assert_close(own(ids, attention_mask=mask).logits[:, 0], scores, atol=1e-5, rtol=0)
    again, tokenizer = load_reward_model(tmp_path)
    torch.testing.assert_close(again(ids, lengths), scores, atol=1e-6, rtol=0)
    assert not again.training and len(tokenizer) == V


def test_gradient_reaches_trunk_and_score():
    model = RewardModel(backbone("decoder"))
    model(*batch()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_other_folders_are_refused(tmp_path):
    save(backbone("decoder"), TOKENIZER, tmp_path)
    with pytest.raises(ValueError, match=r"is no reward model: its config.json names \['LlamaForCausalLM'\]"):
        load_reward_model(tmp_path)


@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
@torch.no_grad()
def test_rescaled_scores_are_saved(tmp_path, kind):
    """(r - shift) / scale twice over, from the folder too; the stock class differs by the bias that it cannot hold."""
    from transformers import AutoModelForSequenceClassification

    model = RewardModel(backbone(kind), seed=2).eval()
    ids, lengths = batch()
    before = model(ids, lengths)
    model.rescale(0.5, 2.0)
    model.rescale(-1.0)
    wanted = (before - 0.5) / 2 + 1
    torch.testing.assert_close(model(ids, lengths), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.values(ids)[torch.arange(3), lengths - 1], wanted, atol=1e-5, rtol=0)
    save_reward_model(model, TOKENIZER, tmp_path)
    again, _ = load_reward_model(tmp_path)
    torch.testing.assert_close(again(ids, lengths), wanted, atol=1e-5, rtol=0)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    mask = (torch.arange(9) < lengths[:, None]).long()
    stock_scores = own(ids, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(stock_scores + own.config.score_bias, wanted, atol=1e-5, rtol=0)
    assert own.config.score_bias == pytest.approx(0.75)  # -0.5 / 2 + 1


def test_rescaling_wants_a_positive_scale():
    with pytest.raises(ValueError, match="divided by a positive one; not 0.0, 0.0"):
        RewardModel(backbone("decoder")).rescale(0.0, 0.0)


@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
def test_a_folder_says_what_its_model_reads(tmp_path, kind):
    save_reward_model(RewardModel(backbone(kind), reads="pair"), TOKENIZER, tmp_path / "pair")
    save_reward_model(RewardModel(backbone(kind)), TOKENIZER, tmp_path / "one")
    assert load_reward_model(tmp_path / "pair", reads="pair")[0].reads == "pair"
    with pytest.raises(ValueError, match="compares two completions and scores no single one"):
        load_reward_model(tmp_path / "pair")
    with pytest.raises(ValueError, match="scores single completions"):
        load_reward_model(tmp_path / "one", reads="pair")

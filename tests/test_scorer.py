"""Trained models as rewards: one completion against a scale, or two against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from test_chat import ANSWER, MARKED, QUESTION, show
from test_chat import TOKENIZER as WORDS
from test_hf import TOKENIZER, V

from fiducial.core.tokens import collate
from fiducial.core.types import Pair, Score
from fiducial.judges import judge
from fiducial.judges.of_rewards import ModelJudge
from fiducial.judges.tournament import Tournament
from fiducial.models import DecoderConfig, RewardModel, encode, encode_joint, new, save_reward_model
from fiducial.models.heads import Reads
from fiducial.rewards import RewardError
from fiducial.sampling.scorer import ModelReward, PairScorer, load_scorer, normalise_reward

TEXTS = ["abc", "fed", "ghij", "abc"]


def values(scores: Sequence[Score]) -> list[float]:
    """What was scored, all of it."""
    return [score.value for score in scores if score.value is not None]


def reward_model(reads: Reads = "completion", max_length: int = 120) -> RewardModel:
    model = RewardModel(new(DecoderConfig(V, hidden=64, layers=1, heads=2, max_length=max_length), seed=3), 4, reads)
    model.score.weight.data *= 3
    return model.eval()


@pytest.fixture
def pair_scorer() -> PairScorer:
    return PairScorer(reward_model("pair"), TOKENIZER)


@pytest.fixture
def tournament(pair_scorer) -> Tournament:
    return Tournament(ModelJudge(pair_scorer))


# -- two completions in one text ---------------------------------------------------------------------------------------


def test_joint_text():
    assert show(WORDS, encode_joint(WORDS, "The cat", " sat", " on")) == [
        ("<bos>The cat\n\nResponse 1:\n", False),
        (" sat<eos>", True),
        ("\n\nResponse 2:\n", False),
        (" on<eos>", True),
    ]


def test_joint_chat_is_written_as_the_policy_writes_it():
    joint = encode_joint(MARKED, [QUESTION], [ANSWER], "the mat.")
    alone = [encode(MARKED, [QUESTION], side) for side in ([ANSWER], "the mat.")]
    written = [[token for token, m in zip(row.token_ids, row.mask, strict=True) if m] for row in alone]
    assert [token for token, m in zip(joint.token_ids, joint.mask, strict=True) if m] == written[0] + written[1]
    start = alone[0].mask.index(True)
    assert joint.token_ids[:start] == alone[0].token_ids[:start]
    assert joint.token_ids[-1] == MARKED.eos_token_id


def test_different_cuts_are_different_texts():
    """Even for a tokenizer that lacks the letters of the markers, and so writes none: stop tokens part the text."""
    ids = TOKENIZER("ab", add_special_tokens=False)["input_ids"]
    start, eos = [TOKENIZER.bos_token_id], TOKENIZER.eos_token_id
    assert encode_joint(TOKENIZER, "", "a", "b").token_ids == [*start, ids[0], eos, ids[1], eos]
    rows = {tuple(encode_joint(TOKENIZER, "", *sides).token_ids) for sides in (("ab", "c"), ("a", "bc"), ("c", "ab"))}
    assert len(rows) == 3


# -- a model that compares ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_probability_is_half_the_difference_of_both_orders(pair_scorer, tournament):
    def g(first, second):
        batch = collate([encode_joint(TOKENIZER, "a", first, second)])
        return pair_scorer.model(batch.input_ids, batch.extra["lengths"]).item()

    table = tournament.preferences("a", TEXTS)
    for i, a in enumerate(TEXTS):
        for j, b in enumerate(TEXTS):
            wanted = 0.5 if a == b else 1 / (1 + math.exp(-(g(a, b) - g(b, a)) / 2))
            assert table[i, j].item() == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(table + table.T, torch.ones(4, 4), atol=1e-6, rtol=0)
    assert (table - 0.5).abs().max() > 0.01, "a model without an opinion shows nothing"
    found = pair_scorer.probabilities([("a", "abc", "fed"), ("a", "fed", "abc")])
    assert found == pytest.approx([table[0, 1].item(), table[1, 0].item()], abs=1e-6)


def test_sides_and_margin_are_the_training_rows(pair_scorer):
    pair = Pair("a", "abc", "fed")
    sides = pair_scorer.sides(pair)
    assert sides == [encode_joint(TOKENIZER, "a", "abc", "fed"), encode_joint(TOKENIZER, "a", "fed", "abc")]
    odds = pair_scorer.margin(*pair_scorer.scores(sides))
    assert odds == pytest.approx(pair_scorer.logits([("a", "abc", "fed")])[0], abs=1e-6)
    one = ModelReward(reward_model(), TOKENIZER)
    good, bad = values(one(["abc", "fed"], [{"prompt": "a"}] * 2))
    assert one.margin(*one.scores(one.sides(pair))) == pytest.approx(good - bad, abs=1e-5)


def test_a_completion_is_worth_its_mean_win_rate(tournament):
    """Against the others of its own prompt: equals are worth 1/2 to each other, and all together 1/2 on average."""
    completions, prompts = [*TEXTS, "klm", "nop"], ["a", "a", "a", "a", "b", "b"]
    scores = tournament(completions, [{"prompt": prompt} for prompt in prompts])
    table = tournament.preferences("a", TEXTS)
    for i in range(4):
        others = [table[i, j].item() for j in range(4) if j != i]
        assert scores[i].value == pytest.approx(sum(others) / 3, abs=1e-6)
        assert scores[i].graded
    assert sum(values(scores[:4])) / 4 == pytest.approx(0.5, abs=1e-6)
    assert sum(values(scores[4:])) == pytest.approx(1, abs=1e-6) and len(values(scores)) == 6


def test_asking_again_after_the_reward_costs_nothing(pair_scorer, tournament, monkeypatch):
    tournament(TEXTS, [{"prompt": "a"}] * 4)
    known = tournament.preferences("a", TEXTS[:2])

    def refuse(rows):
        assert not rows
        return []

    monkeypatch.setattr(pair_scorer, "scores", refuse)
    assert torch.equal(tournament.preferences("a", TEXTS[:2]), known)


def test_alone_or_too_long_is_skipped():
    scorer = Tournament(ModelJudge(PairScorer(reward_model("pair", max_length=48), TOKENIZER)))
    rows = [{"prompt": "a"}] * 3
    (alone,) = scorer(["abc"], rows[:1])
    assert alone.value is None and "no other completion" in alone.why
    long = "abcdef" * 7 + "ab"
    short, other, cut = scorer(["a", "b", long], rows)  # bos, prompt, a, eos, 44 letters, eos are 49 tokens
    assert cut.verdict == "skipped" and cut.why == "preference_model: too long for the judge"
    assert sum(values([short, other])) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"no verdict of preference_model \(too long for the judge\)"):
        scorer.preferences("a", ["a", long])


def test_the_company_in_a_batch_does_not_matter():
    """40 texts of lengths in no order, in two batches, against each alone."""
    reward = ModelReward(reward_model(), TOKENIZER)
    texts = ["abcdefghij"[: 1 + (7 * i) % 10] * (1 + i % 4) for i in range(40)]
    together = values(reward(texts, [{"prompt": "a"}] * 40))
    alone = [values(reward([text], [{"prompt": "a"}]))[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together)) > 10


def test_a_score_that_is_no_number_stops():
    reward = ModelReward(reward_model(), TOKENIZER)
    reward.model.score.weight.data[:] = math.nan
    with pytest.raises(RewardError, match="score of a text of 4 tokens is nan"):
        reward(["b"], [{"prompt": "a"}])  # bos a b eos


def test_folders_are_told_apart(tmp_path):
    for reads in ("pair", "completion"):
        save_reward_model(reward_model(reads), TOKENIZER, tmp_path / reads)
    assert isinstance(judge(str(tmp_path / "pair")), Tournament)
    assert isinstance(judge(str(tmp_path / "completion")), ModelReward)
    assert load_scorer(tmp_path / "pair").name == "pair"
    with pytest.raises(ValueError, match="compares two completions and scores no single one"):
        ModelReward.load(tmp_path / "pair")


# -- a cost, and a scale of one's own ----------------------------------------------------------------------------------


def test_a_cost_model_is_a_reward_of_negative_weight(tmp_path):
    save_reward_model(reward_model(), TOKENIZER, tmp_path / "cost")
    cost = judge(str(tmp_path / "cost"))
    both = judge({"numeric": 1.0, str(tmp_path / "cost"): -0.5})
    completions, rows = ["1", "abc 2"], [{"prompt": "a", "answer": "1"}] * 2
    first, second = values(cost(completions, rows))
    assert first != second
    assert values(both(completions, rows)) == pytest.approx([1 - 0.5 * first, -0.5 * second])


@pytest.mark.parametrize(("mode", "spread"), [("global", None), ("global_std", 1.0)])
def test_normalised_on_a_calibration_set(tmp_path, mode, spread):
    """Mean 0 and, if asked, deviation 1 on the set; every difference is divided by the scale."""
    save_reward_model(reward_model(), TOKENIZER, tmp_path / "raw")
    texts, rows = ["abc", "fed", "ghij", "k", "nop"], [{"prompt": "a"}] * 5
    raw = torch.tensor(values(ModelReward.load(tmp_path / "raw")(texts, rows)))
    shift, scale = normalise_reward(tmp_path / "raw", texts, rows, mode, tmp_path / "new")
    found = torch.tensor(values(ModelReward.load(tmp_path / "new")(texts, rows)))
    assert shift == pytest.approx(raw.mean().item(), abs=1e-6) and abs(found.mean().item()) < 1e-6
    assert scale == pytest.approx(1.0 if spread is None else raw.std(correction=0).item(), rel=1e-5)
    torch.testing.assert_close(found.diff() * scale, raw.diff(), atol=1e-5, rtol=0)
    again = torch.tensor(values(ModelReward.load(tmp_path / "raw")(texts, rows)))
    assert torch.equal(again, raw), "the folder that was read is left as it was"


def test_what_cannot_be_normalised(tmp_path):
    save_reward_model(reward_model(max_length=16), TOKENIZER, tmp_path)
    with pytest.raises(ValueError, match="a mean per prompt cannot be saved in a model"):
        normalise_reward(tmp_path, ["a"], [{}], "per_prompt")
    with pytest.raises(ValueError, match="a completion without a score: 22 tokens are more than"):
        normalise_reward(tmp_path, ["a" * 20], [{}])

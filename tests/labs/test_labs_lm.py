"""The labs on small language models, simulated raters and many bandits: their parts by hand, and their verdicts.

Runs of several seconds are marked slow; constitutional_toy stands for the verdicts in the normal suite.
"""

import math
from dataclasses import replace

import pytest
import torch

from fiducial.evals.stats import wilson
from fiducial.labs import constitutional_toy as toy
from fiducial.labs import (
    distance_winrate,
    elasticity,
    fdpo_lm_diversity,
    length_bias,
    negative_gradient,
    online_offline_frontier,
    output,
)
from fiducial.labs.bandits import Bandits, Pairs, at_kl
from fiducial.labs.base import Lab
from fiducial.labs.language import TOPICS, WORDS, Gold, Language, preference_training
from fiducial.methods import METHODS

SLOW = (distance_winrate, elasticity, fdpo_lm_diversity, length_bias, negative_gradient, online_offline_frontier)


def passes(lab: Lab, tmp_path) -> None:
    result = lab.run(0, True)
    assert result.verdict == "pass", [c for c in result.criteria if not c.passed]
    output.write(lab, result, tmp_path, 0, True)  # every figure draws


def failing(lab: Lab) -> list[str]:
    return [c.name for c in lab.run(0, True).criteria if not c.passed]


# -- bandits -----------------------------------------------------------------------------------------------------------


def test_labels_follow_bradley_terry():
    """Gold rewards 1 and 0, even draws: of the pairs of both arms the better wins sigmoid(1) = 0.7311 of the time."""
    bandits = Bandits(1, 2, 0)
    bandits.gold = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    pairs = bandits.pairs(torch.tensor([[0.5, 0.5]]).double(), 20_000, torch.Generator().manual_seed(1))
    both = pairs.chosen != pairs.rejected
    found = wilson(int((pairs.chosen[both] == 0).sum()), int(both.sum()), 0.999)
    assert found.low < 1 / (1 + math.exp(-1)) < found.high
    assert abs(int(both.sum()) - 10_000) < 4 * math.sqrt(20_000 / 4)  # half of all pairs are of two arms


def test_a_batch_has_chosen_rows_first():
    batch = Pairs(torch.tensor([[4, 5]]), torch.tensor([[6, 7]])).tokens()
    assert batch.pairs and batch.input_ids.tolist() == [[0, 4], [0, 5], [0, 6], [0, 7]]
    alone = Pairs(torch.tensor([[4], [5]]), torch.tensor([[6], [7]])).tokens(chosen_only=True)
    assert not alone.pairs and alone.input_ids.tolist() == [[0, 4], [1, 5]]


def test_one_bandit_does_not_touch_another():
    """The first bandit's policies are the same to the bit whatever the second one's pairs say."""
    bandits, paths = Bandits(2, 4, 3), []
    for second in (0, 1):
        pairs = Pairs(torch.tensor([[0, 1], [second, 2]]), torch.tensor([[3, 2], [3, 1 - second]]))
        paths.append(torch.stack(list(bandits.train("dpo", lambda step, policy, p=pairs: p.tokens(), 0.1, 5))))
    assert torch.equal(paths[0][:, 0], paths[1][:, 0]) and not torch.equal(paths[0][:, 1], paths[1][:, 1])


def test_the_trainer_reaches_the_margin_of_ipo():
    """One certain pair: h goes to 1 / (2 beta) = 2."""
    bandits = Bandits(1, 2, 0)
    pair = Pairs(torch.tensor([[0]]), torch.tensor([[1]]))
    *_, policy = bandits.train("ipo", lambda step, policy: pair.tokens(), 0.05, 200, beta=0.25)
    h = (policy.log() - bandits.ref.log())[0]
    assert float(h[0] - h[1]) == pytest.approx(2.0, abs=1e-3)


def test_a_path_at_a_kl():
    """The first bandit comes to 1 half-way from 0.5 to 1.5; the second falls back after 1.2 and never comes to 2."""
    kls = torch.tensor([[0.0, 0.0], [0.5, 1.2], [1.5, 0.4]])
    gold = torch.tensor([[0.0, 0.0], [1.0, 3.0], [2.0, 4.0]])
    assert at_kl(kls, gold, 1.0).tolist() == pytest.approx([1.5, 2.5])
    assert at_kl(kls, gold, torch.tensor([1.5, 1.2])).tolist() == pytest.approx([2.0, 3.0])
    assert at_kl(kls, gold, 2.0).isnan().all()


# -- the made-up language ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language():
    return Language(0)


def test_the_gold_reward_by_hand(language):
    """A repeated word is worth nothing the second time; what is no word does not count; nothing is worth 0."""
    worth = language.worth
    assert language.gold("ba de ba") == pytest.approx((worth["ba"] + worth["de"]) / 3)
    assert language.gold("ba Art <pad>") == worth["ba"] and language.gold("") == 0.0
    (score,) = Gold(language)(["ba"], [{}])
    assert score.value == worth["ba"]


def test_replies_follow_their_table(language):
    """A table that allows one next word only: the reply is its chain, as long as the end's lot says."""
    table = torch.full((len(WORDS) + 1, len(WORDS)), -torch.inf)
    table[-1, 3] = table[3, 5] = table[5, 3] = 0.0
    said = [language.reply(table, torch.Generator().manual_seed(i)).split() for i in range(400)]
    assert all(reply == ([WORDS[3], WORDS[5]] * 8)[: len(reply)] for reply in said)
    first = wilson(sum(len(reply) == 1 for reply in said), 400, 0.999)
    assert first.low < 0.15 < first.high


def test_turned_round_tables_say_the_opposite(language):
    """The words that begin replies most often begin them least often at tilt -1."""
    likely = int(language.logits[2, -1].argmax())
    begins = {
        tilt: sum(row.token_ids[2] == _id(language, likely) for row in language.demos(300, (2,), tilt))
        for tilt in (1.0, -1.0)
    }
    assert begins[1.0] > 60 > 5 > begins[-1.0]


def _id(language: Language, word: int) -> int:
    return language.tokenizer.convert_tokens_to_ids(WORDS[word])


def test_pairs_prefer_the_better_reply_at_temperature_zero_or_nearly(language):
    model = language.fresh()
    pairs = language.pairs(model, 40, 1e-6, seed=1)
    texts = [[language.tokenizer.decode([t for t, own in zip(side.token_ids, side.mask, strict=True) if own],
              skip_special_tokens=True) for side in pair.encoded] for pair in pairs]  # fmt: skip
    assert len(pairs) > 30 and all(language.gold(better) >= language.gold(worse) for better, worse in texts)


def test_a_model_is_no_distance_from_itself(language):
    model = language.fresh()
    groups = language.sample(model, 2, 0)
    found = language.measured(model, model, groups)
    assert found["kl"] == 0.0 and [len(group) for group in groups] == [2] * len(TOPICS)
    other = language.fresh()
    with torch.no_grad():
        other.lm_head.weight.mul_(2.0)
    assert language.measured(model, other, groups)["kl"] > 0


def test_preference_training_raises_the_margin(language):
    model, ref = language.fresh(), language.fresh()
    pairs = language.pairs(ref, 12, 0.3, seed=2)
    for _ in preference_training("dpo", model, ref, pairs, 10, 0, 1e-3):
        pass
    ours, theirs = (language.likelihoods(network, pairs) for network in (model, ref))
    assert float(((ours.chosen - theirs.chosen) - (ours.rejected - theirs.rejected)).mean()) > 0.1


# -- the labs ----------------------------------------------------------------------------------------------------------


def test_the_compression_rate_of_a_uniform_model(language):
    """log of the tokenizer's size over log of 17."""
    model = language.fresh()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    expected = math.log(len(language.tokenizer)) / math.log(17)
    assert elasticity._rate(model, language.demos(5)) == pytest.approx(expected, rel=1e-6)


def test_the_correlation_of_a_way():
    path = {"win_rate": [0.5, 0.6, 0.7, 0.9], "accuracy": [0.1, 0.2, 0.3, 0.0], "still": [0.5] * 4}
    assert distance_winrate._correlation(path, "accuracy", [0, 1, 2]) == pytest.approx(1.0)
    assert distance_winrate._correlation(path, "accuracy", [2, 3]) == pytest.approx(-1.0)
    assert math.isnan(distance_winrate._correlation(path, "still", [0, 1, 2, 3]))


def test_the_penalty_takes_out_length():
    """Scores 3 + length / 10 within a prompt have nothing left but their mean, and the mean stays."""
    lengths = torch.tensor([[10.0, 20.0, 60.0], [5.0, 5.0, 50.0]]).double()
    left = length_bias.penalised(3 + lengths / 10, lengths)
    assert torch.allclose(left, (3 + lengths / 10).mean(-1, keepdim=True).expand_as(left))


def test_accuracy_of_a_word_counter():
    """Right wherever the better response is longer, wrong wherever it is shorter."""
    world = length_bias.World.draw(3, 0)
    found = length_bias._accuracy(world.lengths, world)
    assert found == {"longer": 1.0, "shorter": 0.0}


@pytest.mark.slow
def test_raters_without_a_taste_for_length_fail_the_claim(monkeypatch):
    monkeypatch.setattr(length_bias, "POOLS", {"unbiased": 0.0, "biased": 0.0})
    assert len(failing(length_bias.LAB)) == 2  # correlation and inflation; the unbiased pool is as it was


def test_critique_and_revision(tmp_path):
    """A forbidden word outlives a round with probability 0.8, so the mean after k rounds is -4 x 0.8^k. A response's
    words of one kind go together: the standard error is below 2 / sqrt(200)."""
    passes(toy.LAB, tmp_path)
    series = toy.LAB.run(0, True).series["rounds"]
    for k, value in enumerate(series["careful harmlessness"]):
        assert abs(value + 4 * 0.8**k) < 4 * 2 / math.sqrt(200)
    assert series["careful helpfulness"] == [1.0] * (toy.ROUNDS + 1)
    assert series["clumsy helpfulness"][-1] < 0.7
    assert series["clumsy harmlessness"] == series["careful harmlessness"]


def test_revisers_by_hand():
    response, critique = "fact0 insult1 fact1 fact2. fact3 fact4 fact5.", "It says insult1"
    assert toy.Stub(clumsy=False)._revised(response, critique) == "fact0 fact1 fact2. fact3 fact4 fact5."
    assert toy.Stub(clumsy=True)._revised(response, critique) == "fact3 fact4 fact5."
    assert toy.helpfulness(response) == 6 / 24
    assert [s.value for s in toy.Harmlessness()([response, "insult1 threat7 insult"], [{}, {}])] == [-1.0, -2.0]


def test_a_reviser_that_does_harm_is_found_out(monkeypatch):
    monkeypatch.setattr(toy.Stub, "_revised", lambda self, response, critique: f"{response} threat9.")
    assert len(failing(toy.LAB)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("lab", SLOW, ids=lambda module: module.LAB.id)
def test_a_lab_finds_what_it_claims(lab, tmp_path):
    passes(lab.LAB, tmp_path)


@pytest.mark.slow
def test_without_the_rejected_side_nothing_is_gained(monkeypatch):
    """An IPO that forgets the rejected side is the likelihood of the chosen one, which only its own pairs help."""

    def ipo(chosen_logprobs, *, beta=0.1):
        return -chosen_logprobs

    monkeypatch.setitem(METHODS, "ipo", replace(METHODS["ipo"], loss=ipo, idle={}))
    assert failing(negative_gradient.LAB) == [
        "gold reward, offline: ipo minus chosen likelihood",
        "gold reward, on-policy at equal KL: ipo minus chosen likelihood",
    ]

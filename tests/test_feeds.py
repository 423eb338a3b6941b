"""Verdicts to rewards, truncation, filtering, dropped tokens, places in a step, temperature."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.config import Optim, Run, Sampling, Verdicts
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Rollout, Score
from fiducial.data import Dataset, ListRows
from fiducial.train.feeds import Order, _with_spread, collate_rollouts, settle
from fiducial.train.loop import updates


def rows(number: int) -> Dataset:
    source = ListRows([{"text": "x"}] * number)
    return Dataset(source, "demos", lambda example: [Encoded([1, 2], [False, True])], max_length=9)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    orders = {(seed, epoch): Order(rows(50), seed).take(50 * epoch, 50) for seed in range(4) for epoch in range(4)}
    assert len({tuple(order) for order in orders.values()}) == 16  # (0, 1) and (1, 0) differ too
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    one = Order(rows(50), 2)
    for epoch in (3, 0, 2):  # in any order, and cut anywhere
        assert one.take(50 * epoch, 20) + one.take(50 * epoch + 20, 30) == orders[2, epoch]
    assert set(Order(rows(50), 0, keep=[4, 7, 9]).take(0, 3)) == {4, 7, 9}


def test_orders_of_epochs_are_fair():
    seen = Counter(tuple(Order(rows(3), 0).take(3 * epoch, 3)) for epoch in range(1200))
    # 6 orders, 200 expected of each; standard deviation sqrt(1200 * 1/6 * 5/6) = 12.9, so 5 of them are 65
    assert len(seen) == 6 and all(abs(count - 200) < 65 for count in seen.values())


def roll(reward=1.0, group=0, finish="stop", logprobs=(-0.5, -0.5)):
    return Rollout(
        "p", "c", [1, 2, 3], [False, True, True], [0.0, *logprobs], group=group, finish=finish, reward=reward
    )


@pytest.mark.parametrize(("verdict", "value", "table", "reward"), [
    ("correct", 1.0, Verdicts(), 1.0), ("wrong", 0.0, Verdicts(), 0.0), ("unparseable", None, Verdicts(), 0.0),
    ("unparseable", None, Verdicts(unparseable=-0.5), -0.5), ("unparseable", None, Verdicts(unparseable="drop"), None),
    ("timeout", None, Verdicts(), None), ("crashed", None, Verdicts(failed=-1.0), -1.0)])  # fmt: skip
def test_a_verdict_becomes_what_the_recipe_says(verdict, value, table, reward):
    assert settle(Run(verdicts=table), roll(), Score(value, verdict)).reward == reward


def test_truncation_policies():
    cut = roll(finish="length")
    assert settle(Run(), cut, Score(1.0, "correct")).reward == 1.0
    assert settle(Run(sampling=Sampling(truncated="penalise")), cut, Score(1.0, "correct")).reward == -1.0
    masked = collate_rollouts([cut, roll()], Run(sampling=Sampling(truncated="mask", n=2)))
    assert masked.mask.tolist() == [[False] * 3, [False, True, True]]


def test_a_token_whose_logprob_is_not_finite_does_not_train():
    batch = collate_rollouts([roll(logprobs=(-math.inf, -0.5))], Run(sampling=Sampling(n=1)))
    assert batch.mask.tolist() == [[False, False, True]]


def test_filtering_keeps_groups_that_disagree():
    rows = [roll(1.0, 0), roll(1.0, 0), roll(1.0, 1), roll(0.0, 1)]
    assert [r.group for r in _with_spread(rows)] == [1, 1]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_minibatches_partition_the_step_the_same_on_any_number_of_ranks(size, parts, world):
    run = Run(optim=Optim(minibatches=parts, epochs=2))

    def cut(places):
        batch = collate([Encoded([0, 1], [False, True])] * len(places))
        batch.extra |= {"place": torch.tensor(places), "step_size": torch.tensor(size)}
        return [{places[i] for i in units.tolist()} for units in updates(run, batch, 3)]

    one = cut(list(range(size)))
    ranks = [cut(list(range(size))[r::world]) for r in range(min(world, size))]
    for k, whole in enumerate(one):
        assert set().union(*(r[k] for r in ranks)) == whole
    for epoch in (one[:parts], one[parts:]):
        seen = sorted(x for part in epoch for x in part)
        assert parts == 1 or seen == list(range(size))


def test_trained_logprobs_are_those_of_the_sampler_at_its_temperature():
    from fiducial import models
    from fiducial.core.types import Decoding, Request
    from fiducial.sampling.local import LocalSampler
    from fiducial.train.learner import Learner

    tok = models.train_tokenizer(["a b c d e f"], "word", 50)
    model = models.new(models.DecoderConfig(vocab_size=len(tok), hidden=32, layers=1, heads=1, max_length=32,
        pad_id=tok.pad_token_id, bos_id=tok.bos_token_id, eos_ids=(tok.eos_token_id,)), seed=1).eval()  # fmt: skip
    found = LocalSampler(model, tok).sample([Request([3, 4], s) for s in range(6)], Decoding(8, 0.6))
    batch = collate_rollouts([replace(r, reward=0.0) for r in found], Run(sampling=Sampling(n=6)))
    out = Learner(model, temperature=0.6)(batch)["logprobs"]
    sampled = torch.where(batch.mask, batch.extra["sampler_logprobs"], 0.0)
    torch.testing.assert_close(torch.where(batch.mask, out, 0.0), sampled, atol=1e-5, rtol=0)
    assert (Learner(model)(batch)["logprobs"] - out).abs().max() > 0.01


def test_sequence_clip_share_is_of_the_sequence_ratio():
    """One ratio per completion: log-ratios (+1, -1) make it 1, so nothing is clipped."""
    from fiducial.methods import METHODS
    from fiducial.train.measure import Meter, measure_groups
    from fiducial.train.runtime import Runtime

    batch = collate([Encoded([0, 1, 1], [False, True, True])])
    batch.extra["advantages"] = torch.ones(1, 3)
    run = Run(hparams=METHODS["grpo"].settings({"ratio_level": "sequence"}))
    meter = Meter()
    logprobs = torch.tensor([[0.0, 1.0, -1.0]])
    measure_groups(run, {"logprobs": logprobs, "old_logprobs": torch.zeros(1, 3)}, {}, batch, batch.mask.float(), meter)
    assert meter.reduce(Runtime()).get("clip_ratio/high", 0) == 0


def test_ranking_accuracy_counts_a_tie_half():
    from fiducial.train.measure import Meter, measure_pairs
    from fiducial.train.runtime import Runtime

    batch = collate([Encoded([0, 1], [False, True])] * 2, pairs=True)
    meter = Meter()
    sides = {f"{side}_{what}": torch.ones(1) for side in ("chosen", "rejected") for what in ("logprobs", "lengths")}
    measure_pairs(Run(), sides, {}, batch, {}, meter)
    assert meter.reduce(Runtime())["ranking_accuracy"] == 0.5

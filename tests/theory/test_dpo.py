"""DPO and SFT on tables: what theory says of contradictory, certain and unseen pairs (spec 2.1, 3.1)."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.tokens import collate, masked_logprobs, token_logprobs
from fiducial.core.total import count, total
from fiducial.core.types import Encoded
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.tables import SoftmaxTable
from fiducial.methods import METHODS
from fiducial.prove.problems import UNTIL_STILL, FixedFeed, exact_run, solve

DPO = METHODS["dpo"]


def pair_tokens(pairs: list[tuple[int, int, float]]):
    """(chosen, rejected, weight) on one prompt of a table."""
    tokens = collate(
        [Encoded([0, a], [False, True]) for a in [*(w for w, _, _ in pairs), *(r for _, r, _ in pairs)]],
        pairs=True,
    )
    tokens.weight = torch.tensor([p for *_, p in pairs] * 2, dtype=torch.float64)
    return tokens


def fit(ref, pairs, beta, num_steps=1500, optim=UNTIL_STILL, start=None, **hparams):
    ref = SoftmaxTable(torch.tensor([ref]).double().log())
    model = SoftmaxTable(ref.theta.detach() if start is None else torch.tensor([start]).double().log())
    run = exact_run(DPO, steps=num_steps, hparams={"beta": beta, **hparams})
    solve(run, DPO, model, FixedFeed(pair_tokens(pairs)), ref, optim=optim)
    return model.probabilities()[0]


@pytest.mark.parametrize(("p", "beta"), [(0.6, 1.0), (0.8, 0.5), (0.3, 2.0)])
def test_a_contradictory_pair_settles_at_its_log_odds(p, beta):
    """h* = logit(p) / beta, so pi(a)/pi(b) = ref(a)/ref(b) (p / (1 - p))^(1 / beta)."""
    found = fit([0.05, 0.95], [(0, 1, p), (1, 0, 1 - p)], beta)
    odds = 0.05 / 0.95 * (p / (1 - p)) ** (1 / beta)
    assert float(found[0] / found[1]) == pytest.approx(odds, rel=1e-6)


def test_a_skewed_reference_keeps_the_minority_on_top():
    """ref odds .05 / .95, p = .6, beta = 1: odds 0.0789, although 60 % prefer the first."""
    found = fit([0.05, 0.95], [(0, 1, 0.6), (1, 0, 0.4)], 1.0)
    assert float(found[0] / found[1]) == pytest.approx(0.0789, abs=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_a_certain_pair_is_pushed_to_the_end(beta):
    """Deterministic preferences have no optimum: the rejected answer and even the unseen third lose their mass."""
    steady = replace(UNTIL_STILL, schedule="constant")
    found = fit([0.3, 0.3, 0.4], [(0, 1, 1.0)], beta, num_steps=1000 if beta < 1 else 2500, optim=steady)
    assert float(found[1]) < 1e-6


def test_what_pairs_do_not_compare_is_free():
    """Two policies that differ on unseen answers only reach the same minimal loss (non-uniqueness)."""
    pairs = [(0, 1, 0.7), (1, 0, 0.3)]
    ref = [0.25, 0.25, 0.25, 0.25]
    one = fit(ref, pairs, 1.0, start=[0.25, 0.25, 0.25, 0.25])
    two = fit(ref, pairs, 1.0, start=[0.1, 0.1, 0.7, 0.1])
    assert abs(float(one[2] - two[2])) > 0.1
    for found in (one, two):
        assert float((found[0] / found[1]).log()) == pytest.approx(math.log(0.7 / 0.3), abs=1e-6)
    # The loss of all of them is the pair's entropy, that of the RLHF solution for r = (logit .7, 0, 0, 0) too.
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    for found in (
        one,
        two,
        rlhf_optimum(torch.full((4,), 0.25).double(), torch.tensor([math.log(7 / 3), 0, 0, 0]), 1.0),
    ):
        logs, even = found.log()[:, None], torch.full((1,), math.log(0.25)).double()
        sides = [DPO.loss(logs[a], logs[b], even, even, beta=1.0) for a, b, _ in pairs]
        assert 0.7 * float(sides[0]) + 0.3 * float(sides[1]) == pytest.approx(entropy, abs=1e-9)


logs = st.floats(-20, 0)


@given(logs, logs, logs, logs, st.floats(0.01, 2.0))
@settings(max_examples=200, deadline=None)
def test_a_loss_below_log_two_need_not_mean_a_right_ranking(w, r, ref_w, ref_r, beta):
    """A pair is ranked right iff h > c, i.e. its loss is below log(1 + e^(-beta c)), with c = log ref(y_l)/ref(y_w)."""
    c = ref_r - ref_w
    if abs(w - r) < 1e-6:
        return
    loss = float(DPO.loss(*(torch.tensor([x], dtype=torch.float64) for x in (w, r, ref_w, ref_r)), beta=beta))
    threshold = math.log1p(math.exp(-beta * c))
    assert (w > r) == (loss < threshold) or abs(loss - threshold) < 1e-9


@given(st.floats(-5, 5), logs, logs, logs, logs)
@settings(max_examples=100, deadline=None)
def test_shifting_the_reference_of_a_pair_changes_nothing(shift, w, r, ref_w, ref_r):
    def loss(c):
        return float(DPO.loss(*(torch.tensor([x], dtype=torch.float64) for x in (w, r, ref_w + c, ref_r + c))))

    assert loss(shift) == pytest.approx(loss(0.0), abs=1e-9)


# -- imitation ---------------------------------------------------------------------------------------------------------


def sft_loss(logits, ids, mask, label_noise=None):
    batch = collate([Encoded(ids[i].tolist(), mask[i].tolist()) for i in range(len(ids))], dtype=torch.float64)
    logprobs = masked_logprobs(logits, lambda h: h, ids, batch.mask)["logprobs"]
    return total(METHODS["sft"].loss(logprobs), batch.mask, batch.weight, "token", count(batch))


def test_sft_gradient_is_softmax_minus_one_hot():
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    ids, mask = torch.randint(0, 7, (3, 5)), torch.rand(3, 5) < 0.6
    mask[:, 0] = False
    sft_loss(logits, ids, mask).backward()
    expected = torch.zeros_like(logits)
    for b in range(3):
        for t in range(1, 5):
            if mask[b, t]:  # token t is predicted at position t - 1
                expected[b, t - 1] = logits[b, t - 1].detach().softmax(-1)
                expected[b, t - 1, ids[b, t]] -= 1
    torch.testing.assert_close(logits.grad, expected / mask.sum(), atol=1e-12, rtol=0)


def test_a_label_that_does_not_train_is_never_read():
    """Changing it leaves loss and gradient equal to the bit, given the same logits."""
    torch.manual_seed(1)
    ids, mask = torch.randint(0, 7, (2, 5)), torch.tensor([[0, 0, 1, 0, 1], [0, 1, 1, 0, 0]]).bool()
    other = torch.where(mask, ids, (ids + 3) % 7)
    results = []
    for labels in (ids, other):
        logits = torch.linspace(-1, 1, 70, dtype=torch.float64).view(2, 5, 7).requires_grad_()
        loss = sft_loss(logits, labels, mask)
        loss.backward()
        results.append((float(loss.detach()), logits.grad))
    assert results[0][0] == results[1][0] and results[0][1].equal(results[1][1])


def test_cross_entropy_is_torchs():
    torch.manual_seed(2)
    logits, ids = torch.randn(2, 6, 9).double(), torch.randint(0, 9, (2, 6))
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(-token_logprobs(logits, ids)[:, 1:].mean()) == pytest.approx(float(expected), abs=1e-12)

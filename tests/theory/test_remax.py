"""ReMax's baseline: what greedy decoding is, when it helps, and that the feed supplies it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.config import Optim, Run, Sampling
from fiducial.core.credit import above_greedy
from fiducial.core.types import Rollout, Score
from fiducial.data import Dataset, ListRows
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.gradients import expected_gradient, objective_gradient, rollout_tokens
from fiducial.prove.problems import exact_run, ready, value_and_gradient
from fiducial.train.feeds import GroupFeed
from fiducial.train.measure import Meter
from fiducial.train.runtime import Runtime

REMAX = METHODS["remax"]


def tree_of(first, second) -> TokenTree:
    """Two tokens, 0 stops: the chances of the first token, and of the second after a 1."""
    theta = torch.zeros(1, 9, 2, dtype=torch.float64)
    theta[0, 0], theta[0, 2] = torch.tensor(first).double().log(), torch.tensor(second).double().log()
    return TokenTree(2, 2, theta)


def test_greedy_decoding_is_not_the_likeliest_response():
    # stop .4; 1 then stop .3, 1 then 1 .3: greedy takes the 1 (.6), the likeliest response is to stop at once
    tree = tree_of([0.4, 0.6], [0.5001, 0.4999])
    assert tree.responses()[tree.greedy()] == (1, 0)
    assert tree.responses()[int(tree.response_logprobs().argmax())] == (0,)
    rewards = torch.tensor([1.0, -2.0, 5.0]).double()
    found = expected_gradient(exact_run(REMAX, n=1), REMAX, tree, rewards, None)
    torch.testing.assert_close(found, -objective_gradient(tree, rewards), atol=1e-12, rtol=0)


def test_a_policy_that_is_sure_gets_no_credit():
    tree = tree_of([1e-30, 1.0], [1.0, 1e-30])
    batch = rollout_tokens(tree, (tree.greedy(),), torch.tensor([1.0, -2.0, 5.0]).double())
    _, prepared = ready(exact_run(REMAX, n=1), REMAX, tree, batch, None)
    assert not prepared.extra["advantages"].any()


def test_credit_is_the_reward_to_go_less_the_baseline():
    # a KL of .1 and .2 in the reward of 1, greedy .4: 1 - .3 - .4 and 1 - .2 - .4
    found = above_greedy(torch.tensor([[-0.1, 0.8]]), torch.tensor([0.4]))
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.4]]))


def second_moment(method, p, rewards, **hparams) -> float:
    """E |gradient|^2 from one completion of a bandit whose first arm has chance p."""
    tree, total = TokenTree(2, 1, torch.tensor([[[p, 1 - p]]], dtype=torch.float64).log().expand(1, 3, 2)), 0.0
    run = exact_run(method, n=1, hparams=hparams)
    for arm, chance in ((0, p), (1, 1 - p)):
        parts, batch = ready(
            run, method, tree, rollout_tokens(tree, (arm,), torch.tensor(rewards, dtype=torch.float64)), None
        )
        total += chance * float(value_and_gradient(run, method, parts, batch, 1)[1].square().sum())
    return total


@given(st.floats(0.51, 0.95), st.floats(0.1, 3), st.floats(0, 3))
def test_when_the_baseline_helps(p, r1, r2):
    """Spec C8: 2p(1-p) p (r2 - r1)^2 against 2p(1-p) ((1-p) r1^2 + p r2^2): better only if r2 / r1 > 1 - 1/(2p)."""
    with_it, without = (
        second_moment(REMAX, p, [r1, r2]),
        second_moment(METHODS["reinforce_lm"], p, [r1, r2], baseline="none"),
    )
    assert with_it == pytest.approx(2 * p * (1 - p) * p * (r2 - r1) ** 2, abs=1e-12)
    assert without == pytest.approx(2 * p * (1 - p) * ((1 - p) * r1**2 + p * r2**2), abs=1e-12)
    if abs(r2 / r1 - (1 - 1 / (2 * p))) > 1e-6:
        assert (with_it < without) == (r2 / r1 > 1 - 1 / (2 * p))
    same = second_moment(METHODS["reinforce_lm"], p, [r1, r2], baseline="greedy")
    assert same == pytest.approx(with_it, abs=1e-12)


# -- the feed ----------------------------------------------------------------------------------------------------------


class Echo:
    """Writes the group's number and, sampling, a letter; what it was asked for is kept."""

    def __init__(self):
        self.temperatures = []

    def sample(self, requests, decoding):
        self.temperatures.append(decoding.temperature)
        return [
            Rollout("p", f"{r.group}{'' if decoding.temperature == 0 else 'x'}", [1, 2], [False, True], [0.0, -0.5],
                    group=r.group)
            for r in requests
        ]  # fmt: skip

    def update(self, weights, version):
        raise AssertionError


class Judge:
    """A greedy completion earns 10 times its group's number, but group 1's cannot be judged; others earn 3."""

    name = "judge"

    def __call__(self, completions, rows):
        scores = {
            "0": Score(0.0, "wrong"),
            "1": Score(None, "timeout", "slow"),
            "2": Score(20.0, "correct", graded=True),
        }
        return [scores.get(c, Score(3.0, "correct", graded=True)) for c in completions]


def feed_of(method, **hparams) -> GroupFeed:
    from fiducial.core.types import Encoded

    rows = Dataset(ListRows([{"prompt": "p"}] * 3), "problems", lambda _: [Encoded([1], [False])], max_length=9)
    settings = METHODS[method].settings(hparams)
    run = Run(method=method, hparams=settings, optim=Optim(batch=3), sampling=Sampling(n=2, max_new_tokens=4))
    return GroupFeed(run, METHODS[method], rows, Echo(), Judge(), Runtime())


@pytest.mark.parametrize("given", [("remax", {}), ("reinforce_lm", {"baseline": "greedy"})])
def test_the_feed_samples_one_greedy_completion_more(given):
    feed, meter = feed_of(given[0], **given[1]), Meter()
    batch = feed.batch(0, meter)
    assert feed.sampler.temperatures == [1.0, 0.0]
    assert batch.group.tolist() == [0, 0, 2, 2]  # group 1's baseline is not known
    assert batch.extra["greedy_rewards"].tolist() == [0, 0, 20, 20] and batch.extra["rewards"].tolist() == [3] * 4
    metrics = meter.reduce(Runtime())
    assert metrics["remax/greedy_reward"] == 10 and metrics["remax/dropped_prompts"] == 1
    assert metrics["remax/baseline_gap"] == (3 + 3 - 17 - 17) / 4
    assert len(feed.rollouts) == 6  # the greedy ones are no rows of the step


def test_other_baselines_ask_for_none():
    feed = feed_of("reinforce_lm")
    assert "greedy_rewards" not in feed.batch(0, Meter()).extra and feed.sampler.temperatures == [1.0]

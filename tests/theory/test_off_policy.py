"""Samples of another policy, weighted: unbiased by completion, biased by token, and nothing changed at weight 1."""

from dataclasses import replace

import pytest
import torch

from fiducial.config import Correction, Optim
from fiducial.core.method import KL
from fiducial.core.off_policy import bounded, importance_weights
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.gradients import TREE_REWARDS, objective_gradient, rollout_tokens
from fiducial.prove.problems import FixedFeed, exact_run, make_parts, value_and_gradient
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import State
from fiducial.train.prepare import prepare

ALONE = {"baseline": "none"}


def gradient(correction, depth, method="reinforce_lm", sampled_by=None):
    """The trainer's gradient, averaged over all completions by their chances under the policy that drew them."""
    record = METHODS[method]
    tree, sampler = TokenTree(3, depth, seed=5), sampled_by or TokenTree(3, depth, seed=8)
    rewards = TREE_REWARDS[: len(tree.responses())]
    tokens = rollout_tokens(tree, tuple(range(len(rewards))), rewards)
    tokens.group = torch.arange(len(rewards))
    tokens.weight = sampler.response_logprobs().detach().exp()
    with torch.no_grad():
        scores = sampler(tokens.input_ids).log_softmax(-1)
        picked = scores[:, :-1].gather(-1, tokens.input_ids[:, 1:, None])[..., 0]
    tokens.extra["sampler_logprobs"] = torch.nn.functional.pad(picked, (1, 0))
    run = replace(exact_run(record, KL(), n=1, hparams=ALONE), correction=correction)
    parts = make_parts(record, tree, FixedFeed(tokens), None)
    batch = parts.feed.batch(0, Meter())
    meter = Meter()
    prepare(run, record, parts, State.begin(run, parts), batch, meter)
    found = value_and_gradient(run, record, parts, batch, len(rewards))[1]
    return found, -objective_gradient(tree, rewards), meter


WHOLE = Correction("truncate", "sequence", cap=1e9)


def test_weights_of_completions_are_unbiased():
    found, goal, _ = gradient(WHOLE, 2)
    torch.testing.assert_close(found, goal, atol=1e-10, rtol=0)


def test_weights_of_tokens_are_biased_beyond_one_token():
    found, goal, _ = gradient(Correction("truncate", "token", cap=1e9), 1)
    torch.testing.assert_close(found, goal, atol=1e-10, rtol=0)
    found, goal, _ = gradient(Correction("truncate", "token", cap=1e9), 2)
    assert float((found - goal).abs().max()) > 0.01
    uncorrected, goal, _ = gradient(Correction(), 2)
    assert float((uncorrected - goal).abs().max()) > float((found - goal).abs().max())


def test_truncation_is_biased_and_bounds_the_weights():
    found, goal, meter = gradient(Correction("truncate", "sequence", cap=1.0), 2)
    assert float((found - goal).abs().max()) > 0.01
    value, weight = meter.sums["is/frac_truncated"]
    assert 0 < value / weight < 1


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_with_the_sampler_as_the_policy_nothing_changes(level, mode):
    own = TokenTree(3, 2, seed=5)
    plain, _, _ = gradient(Correction(), 2, sampled_by=own)
    found, _, meter = gradient(Correction(mode, level, cap=2.0, floor=0.5 * (mode == "mask")), 2, sampled_by=own)
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)
    assert meter.peaks["sampling/importance_ratio/max"] == pytest.approx(1)
    value, weight = meter.sums["is/ess"]
    assert value / weight == pytest.approx(1)


def test_masked_completions_count_in_averages_unless_renormalised():
    # One token each, weights e and 1, masked above 2: the loss of the second, 1 x log pi, over two or over one.
    old, sampler = torch.tensor([[0.0, -1.0], [0.0, -1.0]]), torch.tensor([[0.0, -2.0], [0.0, -1.0]])
    mask = torch.tensor([[False, True], [False, True]])
    weights = bounded(importance_weights(old, sampler, mask), "mask", 2.0)
    assert weights[:, 1].tolist() == [0, 1]
    for renormalise, size in ((False, 2), (True, 1)):
        tree = TokenTree(2, 1, torch.zeros(1, 3, 2))
        tokens = rollout_tokens(tree, (0, 1), torch.tensor([1.0, 1.0]).double())
        tokens.extra["sampler_logprobs"] = torch.tensor([[0, -3.0], [0, -0.6931471805599453]]).double()  # pi is 1/2
        run = exact_run(METHODS["reinforce_lm"], KL(), n=2, hparams=ALONE)
        run = replace(run, correction=Correction("mask", cap=2.0, renormalise=renormalise))
        parts = make_parts(METHODS["reinforce_lm"], tree, FixedFeed(tokens), None)
        batch = parts.feed.batch(0, Meter())
        prepare(run, METHODS["reinforce_lm"], parts, State.begin(run, parts), batch, Meter())
        value, _ = value_and_gradient(run, METHODS["reinforce_lm"], parts, batch, 2)
        assert value == pytest.approx(0.6931471805599453 / size)


def test_bypass_puts_the_sampler_in_place_of_the_old_policy():
    # One update: old would be the policy itself. Against the sampler's -2 the ratio is e^(log 1/2 + 2), clipped.
    tree = TokenTree(2, 1, torch.zeros(1, 3, 2))
    tokens = rollout_tokens(tree, (1,), torch.tensor([0.0, 1.0]).double())
    tokens.extra["sampler_logprobs"] = torch.tensor([[0, -2.0]]).double()
    method = METHODS["ppo_lm"]
    run = exact_run(method, KL(), n=1, hparams={"whiten_adv": False})
    for bypass, expected in ((False, -1.0), (True, -1.2)):
        parts = make_parts(method, tree, FixedFeed(tokens), None)
        parts.critics["values"].model.forecast.data.zero_()
        changed = replace(run, correction=Correction(bypass=bypass))
        batch = parts.feed.batch(0, Meter())
        prepare(changed, method, parts, State.begin(changed, parts), batch, Meter())
        assert value_and_gradient(changed, method, parts, batch, 1)[0] == pytest.approx(expected)


def test_updates_end_when_the_policy_has_gone_far():
    tree = TokenTree(3, 1, seed=1)
    tokens = rollout_tokens(tree, (0, 1, 2), torch.tensor([0.0, 1.0, 2.0]).double())
    method = METHODS["grpo"]
    for target, updates in ((0.0, 6), (1e-4, 2)):  # before the first update the policy has not moved at all
        run = exact_run(method, KL(), n=3, steps=1, optim=Optim(lr=0.5, clip=0.0, epochs=6, target_kl=target))
        parts = make_parts(method, TokenTree(3, 1, seed=1), FixedFeed(tokens), None)
        state = State.begin(run, parts)
        (report,) = steps(run, method, parts, state)
        (taken,) = {int(s["step"]) for s in state.optimizer.state.values()}
        assert taken == updates and report.metrics.get("stopped_early", 0) == (target > 0)

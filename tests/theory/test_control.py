"""The weights of KL and entropy that follow what is measured, and the entropy bonus itself."""

from dataclasses import replace

import pytest
import torch

from fiducial.config import Entropy, Optim, Sampling
from fiducial.core.method import KL
from fiducial.core.total import count
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.gradients import rollout_tokens
from fiducial.prove.problems import FixedFeed, exact_run, make_parts
from fiducial.train.control import adjusted, controlled
from fiducial.train.loop import objective

RUN = replace(
    exact_run(METHODS["rloo"], KL(0.2, "k1", "reward", target=6.0, horizon=1000.0)),
    optim=Optim(batch=10),
    sampling=Sampling(n=8),
)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 0.08), (60.0, 1 + 0.2 * 0.08), (0.0, 1 - 0.2 * 0.08)],  # 80 completions of 1000
)
def test_the_weight_of_the_kl_follows_its_target(kl, factor):
    control = adjusted(RUN, {}, {"kl/sequence": kl})
    assert control["kl"] == pytest.approx(0.2 * factor)
    assert controlled(RUN, control).penalty.weight == pytest.approx(0.2 * factor)


def test_a_controlled_kl_settles_at_its_target():
    # A policy whose KL is 1 / weight: the fixed point is weight = 1 / target.
    control = {"kl": 0.2}
    for _ in range(5000):
        run = controlled(RUN, control)
        control = adjusted(run, control, {"kl/sequence": 1 / run.penalty.weight})
    assert control["kl"] == pytest.approx(1 / 6, rel=1e-3)


def test_the_weight_of_the_entropy_steps_toward_its_target_within_its_bounds():
    run = replace(RUN, entropy=Entropy(weight=0.01, target=1.0, step=0.004, max=0.015))
    assert adjusted(run, {}, {"entropy": 0.5})["entropy"] == pytest.approx(0.014)
    assert adjusted(run, {"entropy": 0.014}, {"entropy": 0.5})["entropy"] == pytest.approx(0.014)  # from the run's 0.01
    assert adjusted(controlled(run, {"entropy": 0.014}), {}, {"entropy": 0.5})["entropy"] == pytest.approx(0.015)
    assert adjusted(controlled(run, {"entropy": 0.002}), {}, {"entropy": 1.5})["entropy"] == 0.0


def test_gradient_of_the_entropy_bonus():
    # d H / d theta_a = -pi_a (log pi_a + H); with advantages of 0 the loss is -weight H
    theta = torch.tensor([[0.3, -1.0, 0.7]]).double()
    tree = TokenTree(3, 1, torch.cat([theta, torch.zeros(3, 3).double()])[None])
    tokens = rollout_tokens(tree, (0,), torch.zeros(3).double())
    method = METHODS["grpo"]
    run = replace(exact_run(method, KL()), entropy=Entropy(weight=0.5))
    parts = make_parts(method, tree, FixedFeed(tokens), None)
    batch = parts.feed.batch(0, None)
    batch.extra["advantages"] = torch.zeros(batch.mask.shape).double()
    loss, out, _ = objective(run, method, parts, batch, count(batch))
    loss.backward()
    pi = theta[0].softmax(-1)
    entropy = -(pi * pi.log()).sum()
    assert float(loss.detach()) == pytest.approx(-0.5 * float(entropy))
    assert float(out["entropy"][0, 1].detach()) == pytest.approx(float(entropy))
    torch.testing.assert_close(tree.theta.grad[0, 0], 0.5 * pi * (pi.log() + entropy))

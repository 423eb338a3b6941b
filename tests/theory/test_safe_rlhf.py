"""Safe RLHF against its constrained optimum and the law of its multiplier."""

import math
from dataclasses import replace

import pytest
import torch

from fiducial.config import Critic, Optim
from fiducial.core.lagrangian import lagrangian
from fiducial.core.method import KL
from fiducial.core.seeds import mix
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run, make_parts
from fiducial.train.loop import steps
from fiducial.train.parts import State

METHOD = METHODS["safe_rlhf"]
REWARDS = torch.tensor([1.0, 0.8, 0.3, 0.0]).double()
COSTS = torch.tensor([1.0, 0.2, -0.5, -1.0]).double()
# The linear programme: all mass on arms 2 and 3, p 0.2 = (1 - p) 0.5, p = 5/7: reward (5 x 0.8 + 2 x 0.3) / 7 = 0.657;
# arms 1 and 4 at 1/2 each: 0.5; arms 1 and 3: p = 1/3, 0.533; arms 2 and 4: p = 5/6, 4/6 = 0.667, the best.
BEST = 2 / 3


def once(costs, state=None, **hparams):
    """The state after one batch of these costs."""
    n = len(costs)
    zero, mask = torch.zeros(n, 2).double(), torch.tensor([[False, True]] * n)
    placed = torch.stack([torch.zeros(n).double(), torch.tensor(costs).double()], 1)
    state = state or METHOD.credit.init()
    return lagrangian(state, zero, placed, zero, torch.tensor(costs), zero, zero, mask, **hparams)


@pytest.mark.parametrize("cost", [1.0, 0.0, -1.0])
def test_multiplier_follows_the_sign_of_the_cost(cost):
    _, state = once([cost, cost], lambda_lr=0.1)
    assert state["lambda"] == pytest.approx(math.exp(0.1 * cost))  # lam 1: ln lam moves by alpha lam J
    assert state["lambda"] > 0


def test_multiplier_grows_like_the_flow_and_stops_at_its_limit():
    # d lam / dt = alpha c lam^2: lam(t) = 1 / (1 - alpha c t), infinite at t = 1 / (alpha c) = 1000
    state = None
    for _ in range(500):
        _, state = once([1.0], state, lambda_lr=0.001, lambda_max=1e9)
    assert state["lambda"] == pytest.approx(1 / (1 - 0.5), rel=2e-3)
    for _ in range(1000):
        _, state = once([1.0], state, lambda_lr=0.001, lambda_max=5.0)
    assert state["lambda"] == 5.0


def test_a_window_of_recent_costs_decides():
    _, state = once([4.0] * 8, window=4)
    before = state["lambda"]
    _, state = once(
        [-1.0, -1.0, -1.0], state, window=4
    )  # of the last four one is 4: the mean is 1/4 and still too much
    assert state["lambda"] == pytest.approx(before * math.exp(0.1 * before * 0.25)) and len(state["recent"]) == 4


def test_combining_first_and_clipping_apart_differ_only_where_clipping_is_active():
    gain, harm = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.25, 0.25]])
    old = torch.zeros(1, 2)
    new = torch.tensor([[1.1, 1.5]]).log()
    both = METHOD.loss(new, old, gain - harm)
    apart = METHOD.loss(new, old, gain - harm, gain, harm, combine="surrogate")
    # rho 1.1: 0.75 x 1.1 both ways. rho 1.5: clip(1.5) 0.75 = 0.9 against 1.2 x 1 - min(1.5, 1.2) 0.25 = 0.9
    torch.testing.assert_close(both, torch.tensor([[-0.825, -0.9]]))
    torch.testing.assert_close(apart, both)
    new = torch.tensor([[0.5, 0.5]]).log()
    # rho 0.5: the combined gain 0.75 is not clipped, 0.375; apart min(0.5, 0.8) (1 - 0.25) is the same; a gain of
    # 0.25 - 1 = -0.75 is clipped at 0.8: loss 0.6; apart min(.5, .8) .25 - min(.5, .8) 1 = -0.375: loss 0.375
    assert METHOD.loss(new, old, harm - gain)[0, 0] == pytest.approx(0.6)
    assert METHOD.loss(new, old, harm - gain, harm, gain, combine="surrogate")[0, 0] == pytest.approx(0.375)


class Arms:
    """128 draws a step from the policy as it is, each with its reward and cost."""

    def __init__(self, tree):
        self.tree = tree

    def batch(self, step, meter):
        chances = self.tree.theta.detach()[0, 0].softmax(-1)
        draw = torch.Generator().manual_seed(mix(0, "arms", step))
        arms = torch.multinomial(chances, 128, replacement=True, generator=draw)
        tokens = collate([Encoded([0, int(a)], [False, True]) for a in arms], dtype=torch.float64)
        tokens.extra |= {"rewards": REWARDS[arms], "costs": COSTS[arms], "place": torch.arange(128)}
        tokens.extra["step_size"] = torch.tensor(128)
        return tokens


def averages(method, lambda_lr, lambda_init, steps_taken=600):
    tree = TokenTree(4, 1, torch.zeros(1, 5, 4))
    hparams = {"lambda_lr": lambda_lr, "lambda_init": lambda_init, "window": 128}
    run = exact_run(method, KL(), n=1, steps=steps_taken, hparams=hparams)
    run = replace(
        run, optim=Optim(lr=0.05, clip=0.0, rows_per_pass=1000, betas=(0.0, 0.99)), critic=Critic(lr_scale=1.0)
    )
    parts = make_parts(method, tree, Arms(tree), None)
    seen = []
    for _ in steps(run, method, parts, State.begin(run, parts)):
        chances = tree.theta.detach()[0, 0].softmax(-1)
        seen.append((float(chances @ REWARDS), float(chances @ COSTS)))
    half = torch.tensor(seen[steps_taken // 2 :])
    return half.mean(0).tolist()


def test_averaged_iterates_reach_the_constrained_optimum():
    reward, cost = averages(METHOD, lambda_lr=0.05, lambda_init=1.0)
    assert reward == pytest.approx(BEST, abs=0.05) and cost <= 0.05


def test_without_a_multiplier_the_costs_are_ignored():
    reward, cost = averages(METHOD, lambda_lr=0.0, lambda_init=1e-9)
    assert reward > 0.95 and cost > 0.9

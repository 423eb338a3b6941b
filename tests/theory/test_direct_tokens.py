"""Losses that look inside completions, on enumerated token trees (spec 3.16 to 3.18)."""

import pytest
import torch

from fiducial.core.tokens import collate, token_logprobs
from fiducial.core.types import Encoded
from fiducial.exact.optima import rlhf_optimum
from fiducial.exact.soft_values import soft_state_value, soft_tree
from fiducial.exact.tables import TokenTree
from fiducial.methods import METHODS
from fiducial.methods.ipl import implied_rewards, next_trained
from fiducial.methods.token_dpo import prefix_sums, token_rewards
from fiducial.train.learner import Learner, named_tensors

BETA = 0.7
POLICY, REF = TokenTree(3, 3, seed=1), TokenTree(3, 3, seed=2)
REWARDS = torch.randn(len(REF.responses()), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def batch_of(responses, holes=False):
    """Rows [prompt, y_1, ...]; with holes the first token of each is not the policy's own."""
    rows = [Encoded([0, *y], [False, not (holes and len(y) > 1), *[True] * (len(y) - 1)]) for y in responses]
    return collate(rows, pairs=True, dtype=torch.float64)


def tensors_of(batch, needs, policy=POLICY):
    """What the trainer would hand to a loss."""
    out, ref = Learner(policy)(batch, True), Learner(REF)(batch, True)
    batch.extra["ref_logprobs"] = ref["logprobs"].detach()
    return {**named_tensors(out, batch, needs), "ref_logits": ref["logits"].detach()}


def some_pairs():
    """Pairs of all responses with others of other lengths: [2 N] rows, chosen first."""
    all_of_them = REF.responses()
    return [*all_of_them, *all_of_them[::-1]]


def loss(name, batch, **hparams):
    method = METHODS[name]
    settings = method.settings(hparams)
    return method.call_loss(tensors_of(batch, method.needs_with(settings)), settings)


# -- token_dpo ---------------------------------------------------------------------------------------------------------


def test_token_rewards_of_the_optimum_telescope():
    """beta log pi*/ref summed over a response is r(y) - V*(s_0); summed over a prefix it is V*(prefix) - V*(s_0)."""
    tree = soft_tree(REF, REWARDS, BETA)
    responses = REF.responses()
    ids = torch.tensor([[0, *y, *[0] * (3 - len(y))] for y in responses])
    mask = torch.tensor([[False, *[True] * len(y), *[False] * (3 - len(y))] for y in responses])
    logprobs, ref_logprobs = (token_logprobs(model(ids), ids).detach() for model in (tree.optimum, REF))
    q = prefix_sums(token_rewards(logprobs, ref_logprobs, BETA), mask)
    torch.testing.assert_close(q[:, -1], REWARDS - tree.v[0], atol=1e-12, rtol=0)
    # V* of a prefix from its own definition: beta log E_ref[exp(r / beta) | prefix]
    chances = REF.response_logprobs().detach().exp()
    for row, y in enumerate(responses):
        for cut in range(1, len(y)):
            inside = torch.tensor([other[:cut] == y[:cut] for other in responses])
            share = chances[inside] / chances[inside].sum()
            value = BETA * (share * (REWARDS[inside] / BETA).exp()).sum().log()
            assert float(q[row, cut]) == pytest.approx(float(value - tree.v[0]), abs=1e-12)
    found = tree.optimum.response_logprobs().detach().exp()
    torch.testing.assert_close(found, rlhf_optimum(chances, REWARDS, BETA), atol=1e-12, rtol=0)


def test_the_token_view_is_dpo():
    """The same loss and slopes from tokens as from sums, with holes in the mask too (spec 11.9)."""
    for holes in (False, True):
        results = []
        for name in ("token_dpo", "dpo"):
            value = loss(name, batch_of(some_pairs(), holes), beta=0.3)
            results.append((value.detach(), *torch.autograd.grad(value.square().sum(), POLICY.theta)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_shared_token_left_out_matters_only_if_its_ratio_differs():
    """Leaving out a first token that both share changes nothing; a last one, after different prefixes, does."""
    start, end = [(1, 2, 0), (1, 0)], [(1, 2, 1), (2, 1, 1)]

    def losses(responses, place):
        whole = batch_of(responses)
        kept = loss("dpo", whole, beta=1.0)
        whole.mask[:, place] = False
        return float(kept.detach()), float(loss("dpo", whole, beta=1.0).detach())

    first = losses(start, 1)
    assert first[0] == pytest.approx(first[1], abs=1e-12)
    last = losses(end, 3)
    assert abs(last[0] - last[1]) > 1e-3


# -- ipl ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [False, True])
def test_ipl_with_gamma_one_is_dpo(holes):
    """z telescopes to beta log pi/ref + V(s_0), and V(s_0) is the same on both sides (spec 3.18, 11.9).

    With holes the two completions go on from different first tokens, so V(s_0) does not cancel: only equal starts do.
    """
    responses = [(1, 2, 0), (1, 0), (1, 0), (1, 1, 2)] if holes else some_pairs()
    found = loss("ipl", batch_of(responses, holes), gamma=1.0, lam=0.0, beta=0.4)
    torch.testing.assert_close(found, loss("dpo", batch_of(responses, holes), beta=0.4), atol=1e-12, rtol=0)


def test_ipl_of_single_tokens_with_gamma_zero_is_dpo():
    """z = Q(y), and Q(y_w) - Q(y_l) = beta (log pi/ref of one - of the other)."""
    batch = batch_of([(0,), (1,), (2,), (1,)])
    found = loss("ipl", batch, gamma=0.0, lam=0.0, beta=0.4)
    torch.testing.assert_close(found, loss("dpo", batch_of([(0,), (1,), (2,), (1,)]), beta=0.4), atol=1e-12, rtol=0)


def test_ipl_rewards_are_the_inverse_bellman_operators():
    """r = Q - gamma V(s') with V of `exact.soft_values`, at each node of the tree; the last token has no V."""
    gamma, beta = 0.9, 0.4
    batch = batch_of([(1, 2, 0), (2, 2, 1)])
    tensors = tensors_of(batch, ())
    mu = tensors["ref_logits"].softmax(-1)
    q = beta * (tensors["logits"].detach() - mu.log())
    v = soft_state_value(q.flatten(0, 1), mu.flatten(0, 1), beta).view(q.shape[:2])
    q_sa = q.gather(-1, batch.input_ids[..., None]).squeeze(-1)
    expected = q_sa[:, 1:] - gamma * torch.cat([v[:, 2:], torch.zeros(2, 1)], 1)
    after, done = next_trained(batch.mask)
    found = implied_rewards(q_sa, v.gather(-1, after), done, gamma)[:, 1:]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    # and the loss is made of them
    z, lam = expected.sum(-1), 0.5
    goal = torch.nn.functional.softplus(z[1] - z[0]) + lam * expected.square().mean()
    whole = loss("ipl", batch, gamma=gamma, beta=beta, lam=lam).detach()
    torch.testing.assert_close(whole, goal[None], atol=1e-12, rtol=0)


def test_a_constant_in_q_is_seen_only_through_gamma_and_the_square():
    """Q + c gives r + (1 - gamma) c, and r + c at the end: with gamma = 1 every completion gains c, however long."""
    shifted = TokenTree(3, 3, theta=POLICY.theta.detach() + 2.5)

    def value(policy, **hparams):
        batch = batch_of([(1, 2, 0), (2, 1, 2), (0,), (1, 0)])
        return (
            METHODS["ipl"]
            .loss(*(tensors_of(batch, (), policy)[n] for n in METHODS["ipl"].needs), **{"beta": 0.4, **hparams})
            .detach()
        )

    torch.testing.assert_close(
        value(shifted, gamma=1.0, lam=0.0), value(POLICY, gamma=1.0, lam=0.0), atol=1e-12, rtol=0
    )
    assert (value(shifted, gamma=1.0, lam=0.1) - value(POLICY, gamma=1.0, lam=0.1)).abs().min() > 1e-3
    # pairs: 3 tokens against 1, and 3 against 2; c = .4 x 2.5 = 1: z_w - z_l gains (1 - gamma) (3 - 1) and (3 - 2)
    one, other = (value(policy, gamma=0.5, lam=0.0) for policy in (POLICY, shifted))
    margin = lambda x: -torch.log(torch.expm1(x))  # noqa: E731  log(1 + e^-m) -> m
    torch.testing.assert_close(margin(other) - margin(one), torch.tensor([1.0, 0.5]).double(), atol=1e-9, rtol=0)


def test_a_completion_of_finite_logits_is_finite_in_float32():
    """Logits of +-1e4: values and slopes stay finite."""
    logits = torch.full((2, 3, 4), -1e4)
    logits[..., 0] = 1e4
    logits.requires_grad_()
    ids, mask = torch.tensor([[0, 1, 2], [0, 0, 3]]), torch.tensor([[False, True, True]] * 2)
    value = METHODS["ipl"].loss(logits, -logits.detach(), ids, mask)
    (slopes,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and slopes.isfinite().all()

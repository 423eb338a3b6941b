"""Inverse preference learning (Hejna & Sadigh 2023, arXiv:2305.15363), over the tokens of a language model.

    Q(s, a) = beta (logit_a(s) - log ref(a|s)),     V(s) = beta log sum_a ref(a|s) exp(Q(s, a) / beta)
    r_t = Q(s_t, a_t) - gamma V(s_t+1), V = 0 after the last token;      z = sum of r_t over a completion
    L = -log sigmoid(z_w - z_l) + lam mean of r_t^2 over the pair's tokens

Q is written so that the policy optimal for it, ref exp((Q - V) / beta), is the model's own softmax. gamma = 1
telescopes: z = beta log pi/ref + V(s_0), so the first term is DPO's; so is gamma = 0 with completions of one token.
Only the second term knows the scale of the logits. gamma < 1 lets an early token count for more than what follows
from it. The paper's alpha is beta; its defaults (lam from 0.5 to 3) are for control tasks, with an expectile in place
of V where actions are continuous. The lecture notes' V is a "Z" and their preference sums leave gamma out.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from fiducial.core.method import Method, Range


def implied_rewards(q_sa: Tensor, v_next: Tensor, done: Tensor, gamma: float) -> Tensor:
    """The inverse soft Bellman operator, r = Q(s, a) - gamma V(s'), V = 0 where the episode is done: [B, H] each."""
    return q_sa - gamma * torch.where(done, 0.0, v_next)


def next_trained(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of each position the next that the policy writes, and whether there is none (then 0): [B, L] -> two [B, L].

    >>> next_trained(torch.tensor([[False, True, False, True]]))
    (tensor([[1, 3, 3, 0]]), tensor([[False, False, False,  True]]))
    """
    length = mask.shape[-1]
    places = torch.where(mask, torch.arange(length, device=mask.device), length)
    after = pad(places, (0, 1), value=length)[:, 1:].flip(-1).cummin(-1).values.flip(-1)
    return torch.where(after == length, 0, after), after == length


def ipl(
    logits: Tensor,
    ref_logits: Tensor,
    input_ids: Tensor,
    mask: Tensor,
    *,
    gamma: float = 0.99,
    beta: float = 0.33,
    lam: float = 0.5,
) -> Tensor:
    """Loss per pair from rows of all chosen, then all rejected completions: two [2 N, L, V], two [2 N, L] -> [N]."""
    taken, ref_taken = (x.gather(-1, input_ids[..., None]).squeeze(-1) for x in (logits, ref_logits))
    q_sa = beta * (taken - (ref_taken - ref_logits.logsumexp(-1)))
    after, done = next_trained(mask)
    v_next = beta * logits.logsumexp(-1).gather(-1, after)
    rewards = torch.where(mask, implied_rewards(q_sa, v_next, done, gamma), 0.0)
    (chosen, rejected), tokens = rewards.sum(-1).chunk(2), mask.sum(-1).view(2, -1).sum(0).clamp(min=1)
    return -logsigmoid(chosen - rejected) + lam * rewards.square().sum(-1).view(2, -1).sum(0) / tokens


METHOD = Method(
    title="Inverse preference learning",
    family="direct alignment",
    paper="arXiv:2305.15363",
    feed="pairs",
    loss=ipl,
    per="row",
    target="tree_optimum",
    ranges={"gamma": Range(0, 1), "beta": Range(0, open="low"), "lam": Range(0)},
)

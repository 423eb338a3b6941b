"""Rewards to advantages. All take rewards [N] and the group number of each row [N]; rows of a group share a prompt.

Whoever calls has already dropped completions that could not be scored, so a group may be smaller than it was sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fiducial.core.method import Running

ZERO_STD = 1e-8  # a group with less spread than this, relative to its rewards, agrees: dividing would blow up noise


def group_sum(x: Tensor, group: Tensor) -> Tensor:
    """Sum of x over each row's group, at every row: [N], [N] -> [N].

    >>> group_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([7, 7, 9]))
    tensor([3., 3., 5.])
    """
    _, index = group.unique(return_inverse=True)
    return torch.zeros(int(index.max()) + 1 if len(index) else 0, dtype=x.dtype).index_add(0, index, x)[index]


def group_mean(x: Tensor, group: Tensor) -> Tensor:
    """Mean of x over each row's group, at every row: [N], [N] -> [N]."""
    return group_sum(x, group) / group_sum(torch.ones_like(x), group)


def leave_one_out(rewards: Tensor, group: Tensor, *, normalize_adv: bool = False) -> Tensor:
    """Reward minus the mean reward of the *other* completions of its prompt (Kool et al. 2019): k/(k-1) (R - mean).

    A completion left alone in its group has no baseline and gets no credit. `normalize_adv` divides by the standard
    deviation over the whole step.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]))
    tensor([ 1.0000, -0.5000, -0.5000])
    """
    exact = rewards.double()
    size = group_sum(torch.ones_like(exact), group)
    others = (group_sum(exact, group) - exact) / (size - 1).clamp(min=1)
    advantages = torch.where(size > 1, exact - others, 0.0)
    if normalize_adv:
        std = advantages.std(unbiased=False) if len(advantages) else advantages.sum()
        advantages = torch.where(std < ZERO_STD, 0.0, advantages / std.clamp(min=ZERO_STD))
    return advantages.to(rewards.dtype)


def group_normalized(rewards: Tensor, group: Tensor, *, std: str = "population", std_epsilon: float = 1e-4) -> Tensor:
    """Reward centred on its group's mean and divided by a standard deviation (Shao et al. 2024).

    std: "population" (divides by G), "sample" (by G - 1), "batch" (one population deviation for the whole step), or
    "none" (Dr. GRPO: centred only). A group without spread gets exactly 0.

    >>> group_normalized(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long), std_epsilon=0.0)
    tensor([ 1.7321, -0.5774, -0.5774, -0.5774])
    """
    exact = rewards.double()  # in float32 seven rewards of 7.3 have a mean that is none of them
    mean = group_mean(exact, group)
    centred = exact - mean
    size = group_sum(torch.ones_like(exact), group)
    own = (group_sum(centred.square(), group) / size).sqrt()
    if std == "none":
        spread, std_epsilon = torch.ones_like(exact), 0.0
    elif std == "batch":
        spread = (exact - exact.mean()).square().mean().sqrt().expand_as(exact)
    else:
        spread = own if std == "population" else own * (size / (size - 1).clamp(min=1)).sqrt()
    agrees = own <= ZERO_STD * mean.abs().clamp(min=1)
    return torch.where(agrees, 0.0, centred / (spread + std_epsilon).clamp(min=ZERO_STD)).to(rewards.dtype)


def group_centred(rewards: Tensor, group: Tensor) -> Tensor:
    """Reward minus the mean of its group, not divided by a deviation (Liu et al. 2025, arXiv:2503.20783)."""
    return group_normalized(rewards, group, std="none")


def to_go(token_rewards: Tensor) -> Tensor:
    """Sum of this and all later rewards of a row: [N, L] -> [N, L].

    >>> to_go(torch.tensor([[0.0, -1.0, 3.0]]))
    tensor([[2., 2., 3.]])
    """
    return token_rewards.flip(-1).cumsum(-1).flip(-1)


def step_normalized(
    token_rewards: Tensor,
    kl_penalty: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    baseline: bool = False,
    reward_clip: float = 10.0,
) -> Tensor:
    """Rewards to go, centred and divided by one deviation over all tokens of the step (Hu 2025, arXiv:2501.03262).

    What was earned is first held within `reward_clip` of 0, a KL penalty is not. `baseline` subtracts the group's mean
    reward before.

    >>> earned, ones = torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.ones(2, 2)
    >>> step_normalized(earned, 0 * ones, torch.tensor([0, 1]), ones.bool())  # of 1 1 3 3: mean 2, deviation sqrt(4/3)
    tensor([[-0.8660, -0.8660],
            [ 0.8660,  0.8660]])
    """
    earned = (token_rewards + kl_penalty).clamp(-reward_clip, reward_clip)
    found = to_go(earned - kl_penalty)
    if baseline:
        found = found - group_mean(earned.sum(-1), group)[:, None]
    return whiten(found, mask)


def soft_baseline(rewards: Tensor, group: Tensor, *, baseline: str = "mean", tau: float = 0.1) -> Tensor:
    """Reward minus tau log Z of its group (Kimi Team 2025, arXiv:2501.12599).

    baseline "log_partition" is tau log mean exp(r / tau), "mean" its limit for large tau.

    >>> rewards, group = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])  # log((e + 1) / 2) = 0.6201
    >>> soft_baseline(rewards, group, baseline="log_partition", tau=1.0)
    tensor([ 0.3799, -0.6201])
    """
    exact = rewards.double()
    if baseline == "mean":
        return (exact - group_mean(exact, group)).to(rewards.dtype)
    _, index = group.unique(return_inverse=True)
    highest = torch.full_like(exact, -torch.inf).scatter_reduce(0, index, exact, "amax")[index]
    level = highest + tau * group_mean(((exact - highest) / tau).exp(), group).log()
    return (exact - level).to(rewards.dtype)


def above_greedy(token_rewards: Tensor, greedy_rewards: Tensor) -> Tensor:
    """Rewards to go minus what the prompt's greedy completion earned (Li et al. 2024, arXiv:2310.10505): [N, L]."""
    return to_go(token_rewards) - greedy_rewards[:, None]


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Centred and divided by the standard deviation over the masked entries (n - 1), [N, L] -> [N, L], 0 elsewhere.

    `shift_mean` False adds the mean back. Fewer than two entries, or entries that agree, are only centred.

    >>> whiten(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[True, True, False]]))
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    live = x[mask].double()
    if len(live) == 0:
        return torch.zeros_like(x)
    mean = live.mean()
    spread = (live.var() + 1e-8).sqrt() if len(live) > 1 else torch.ones_like(mean)
    whitened = (x.double() - mean) / spread + (0.0 if shift_mean else mean)
    return torch.where(mask, whitened, 0.0).to(x.dtype)


def gae(
    token_rewards: Tensor, old_values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438): advantages and returns, [N, L] each.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   return_t = A_t + V_t

    V and A are 0 after a row's last masked token. Tokens in between that the policy did not write (a tool's output) are
    passed over; a reward that stands on one goes to the policy's last token before it.

    >>> advantages, returns = gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[9.0, 0.5, 0.25]]),
    ...                           torch.tensor([[False, True, True]]), lam=1.0)
    >>> advantages, returns
    (tensor([[0.0000, 0.5000, 0.7500]]), tensor([[0., 1., 1.]]))
    """
    advantages, returns = torch.zeros_like(token_rewards), torch.zeros_like(token_rewards)
    ahead, value, stray = (torch.zeros_like(token_rewards[:, 0]) for _ in range(3))
    for t in reversed(range(token_rewards.shape[1])):
        live, reward = mask[:, t], token_rewards[:, t] + stray
        now = torch.where(live, old_values[:, t], 0.0)
        gain = reward + gamma * value - now + gamma * lam * ahead
        advantages[:, t] = torch.where(live, gain, 0.0)
        returns[:, t] = torch.where(live, gain + now, 0.0)
        ahead, value = torch.where(live, gain, ahead), torch.where(live, now, value)
        stray = torch.where(live, 0.0, reward)
    return advantages, returns


def gae_credit(
    token_rewards: Tensor,
    old_values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten_rewards: bool = False,
    whiten_adv: bool = True,
) -> dict[str, Tensor]:
    """`gae` as PPO uses it: rewards scaled to deviation 1 (not centred) if asked, advantages whitened over the step."""
    if whiten_rewards:
        token_rewards = whiten(token_rewards, mask, shift_mean=False)
    advantages, returns = gae(token_rewards, old_values, mask, gamma, lam)
    return {"advantages": whiten(advantages, mask) if whiten_adv else advantages, "returns": returns}


def _reinforce(
    state: dict[str, float],
    rewards: Tensor,
    token_rewards: Tensor,
    group: Tensor,
    greedy_rewards: Tensor | None = None,
    *,
    baseline: str = "running",
    action_level: str = "sequence",
    momentum: float = 0.9,
) -> tuple[Tensor, dict[str, float]]:
    if baseline == "none":
        level = torch.zeros_like(rewards)
    elif baseline == "batch_mean":
        level = rewards.mean().expand_as(rewards)
    elif baseline == "group_loo":
        level = rewards - leave_one_out(rewards, group)
    elif baseline == "greedy":
        assert greedy_rewards is not None
        level = greedy_rewards
    else:  # running: before the first step there is no average yet, so nothing is subtracted
        level = torch.full_like(rewards, state["mean"])
        if len(rewards):
            mean = float(rewards.mean())
            state = {"mean": momentum * state["mean"] + (1 - momentum) * mean if state["steps"] else mean}
            state["steps"] = 1.0
    if action_level == "sequence":
        return rewards - level, state
    return to_go(token_rewards) - level[:, None], state


reinforce = Running(init=lambda: {"mean": 0.0, "steps": 0.0}, update=_reinforce)
"""Reward minus a baseline (Williams 1992): none, running (an average, updated after use), batch_mean, group_loo,
greedy (the prompt's greedy completion).

action_level "token" credits each token with the rewards from it on (they differ only when a KL penalty sits in the
reward), "sequence" credits all tokens with the whole.
"""

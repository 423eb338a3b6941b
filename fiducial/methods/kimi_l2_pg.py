"""Policy gradient with a squared log-ratio (Kimi k1.5, Kimi Team 2025, arXiv:2501.12599), section 2.3.2.

    L = -(A l - tau / 2 l^2),   l = log pi(y | x) / pi_old(y | x),   A = r - tau log Z

pi_old is the policy at the start of the step, which maximises E r - tau KL(pi || pi_old): at the optimum
r - tau log Z = tau l, and L is the square of the gap between the two sides, over 2 tau, less a constant. tau log Z is
estimated by the group's mean reward, the paper's choice, or by tau log mean exp(r / tau), `baseline` "log_partition".
As in the paper the optimizer starts anew at each step.
"""

from torch import Tensor

from fiducial.core import credit
from fiducial.core.method import Method, Range
from fiducial.core.tokens import sequence_sum


def kimi_l2_pg(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, tau: float = 0.1) -> Tensor:
    """Loss per completion: four [B, L] -> [B].

    >>> import torch
    >>> old, mask = torch.tensor([[-2.0, -1.0]]), torch.ones(1, 2).bool()
    >>> kimi_l2_pg(old + 0.5, old, torch.full((1, 2), 2.0), mask)  # l = 1: -(2 - 0.1 / 2)
    tensor([-1.9500])
    """
    moved = sequence_sum(logprobs - old_logprobs, mask)
    advantage = sequence_sum(advantages, mask) / mask.sum(-1).clamp(min=1)  # the same at each token
    return -(advantage * moved - tau / 2 * moved.square())


def each_step(step: int, steps: int, *, reset_optimizer: bool = True) -> bool:
    """The optimizer forgets before every step, unless told not to."""
    return reset_optimizer


METHOD = Method(
    title="Policy gradient with a squared log-ratio",
    family="policy optimisation",
    paper="arXiv:2501.12599",
    feed="groups",
    loss=kimi_l2_pg,
    per="row",
    credit=credit.soft_baseline,
    fresh_optimizer=each_step,
    min_group=2,
    target="kimi_optimum",
    choices={"baseline": ("mean", "log_partition")},
    ranges={"tau": Range(0, open="low")},
)

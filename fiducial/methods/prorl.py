"""Prolonged RL, ProRL (Liu et al. 2025, arXiv:2505.24864): group advantages for long runs that go on exploring.

    L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) + weight x KL(pi || ref)      averaged over all tokens
    ref <- pi, and the optimizer forgets, every `reset_every` steps, after `reset_stalled` evaluations without a better
           one, or when the KL exceeds `reset_kl` nats a completion; 0: not for this reason

DAPO's loss with a clip that lets rare tokens rise further still (0.4 above), a KL that keeps the entropy up, and
references that are reset when they have become what holds the policy back. With resets after each exact solve the
policy is ref_0 exp(n r / beta) / Z after n rounds, where beta / n would be needed without. The paper also samples at
temperature 1.2 and leaves out prompts whose completions agree: the recipe's [sampling] table.
"""

from torch import Tensor

from fiducial.core import anchors, credit
from fiducial.core.method import KL, Method, Range
from fiducial.methods.grpo import METHOD as GRPO
from fiducial.methods.grpo import grpo


def prorl(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.4
) -> Tensor:
    """Clipped surrogate per token: three [B, L] -> [B, L].

    >>> import torch
    >>> prorl(torch.tensor([[0.0]]), torch.tensor([[-1.0]]), torch.tensor([[2.0]]))  # rho = e, clipped at 1.4
    tensor([[-2.8000]])
    """
    return grpo(logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high)


METHOD = Method(
    title="Prolonged reinforcement learning",
    family="policy optimisation",
    paper="arXiv:2505.24864",
    feed="groups",
    loss=prorl,
    per="token",
    credit=credit.group_normalized,
    anchors={"ref": anchors.reference_reset},
    fresh_optimizer=anchors.reference_reset,
    kl=KL(weight=0.001, estimator="k2", place="loss"),
    min_group=2,
    target="success_gradient",
    choices={"std": GRPO.choices["std"]},
    ranges={**GRPO.ranges, "reset_every": Range(0), "reset_stalled": Range(0), "reset_kl": Range(0)},
)

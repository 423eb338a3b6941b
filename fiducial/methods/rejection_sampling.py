"""Rejection sampling, or best-of-N fine-tuning (for language models Touvron et al. 2023, arXiv:2307.09288).

    sample N completions, keep the best-scored, imitate them:    L = -log pi(y_t | x, y_<t)

The best of N is drawn from pi_N(y) = F(y)^N - F(y-)^N, F the distribution function in the order of the rewards, at
most log N - (N - 1) / N from the policy in KL; repeated, it converges to the best answer. N is sampling.n (10 to 30
is usual). `keep` takes more than one of a prompt; `min_reward` drops completions below it, so that with verified
answers and keep = sampling.n every right one trains (rejection-sampling fine-tuning, Yuan et al. 2023,
arXiv:2308.01825).
"""

from torch import Tensor

from fiducial.core import selection
from fiducial.core.method import Method, Range


def rejection_sampling(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of the kept completions, per token: [B, L] -> [B, L].

    >>> import torch
    >>> rejection_sampling(torch.tensor([[0.0, -1.5]]))
    tensor([[-0.0000, 1.5000]])
    """
    return -logprobs


METHOD = Method(
    title="Rejection sampling",
    family="online alignment",
    paper="arXiv:2307.09288",
    feed="demos",
    loss=rejection_sampling,
    per="token",
    select=selection.best,
    target="best_of_n",
    ranges={"keep": Range(1), "min_reward": Range()},
)

"""DPO read token by token (Rafailov et al. 2024, arXiv:2404.12358).

    beta log pi*(a|s)/ref(a|s) = Q*(s, a) - V*(s) = r(s, a) + V*(s') - V*(s)
    V*(s) = beta log sum_a ref(a|s) exp(Q*(s, a) / beta)
    q_t = sum of the first t token rewards beta log pi/ref;       L = -log sigmoid(q_end(y_w) - q_end(y_l))

Q* leaves out beta log ref, which the paper folds in. The sum over a completion is DPO's log-ratio, so the loss is
DPO's and the optimum too; what is new is the credit: a step that ends with token t and begins after s earns
q_t - q_s, exactly its own tokens (the lecture notes' sum runs over one too many). At the optimum q_t + V*(s_0) is the
soft value of the prefix.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    """beta log pi/ref of each token: [B, L], [B, L] -> [B, L]."""
    return beta * (logprobs - ref_logprobs)


def prefix_sums(rewards: Tensor, mask: Tensor) -> Tensor:
    """q_t, what the trained tokens up to and with t earn: [B, L], [B, L] bool -> [B, L].

    >>> prefix_sums(torch.tensor([[9.0, 1.0, -2.0, 9.0, 0.5]]), torch.tensor([[False, True, True, False, True]]))
    tensor([[ 0.0000,  1.0000, -1.0000, -1.0000, -0.5000]])
    """
    return torch.where(mask, rewards, 0.0).cumsum(-1)


def token_dpo(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float = 0.1) -> Tensor:
    """Loss per pair, from the rows of all chosen and then all rejected completions: three [2 N, L] -> [N].

    >>> token_dpo(torch.tensor([[0.0, -10.0], [0.0, -11.0]]), torch.tensor([[0.0, -10.5], [0.0, -10.0]]),
    ...           torch.tensor([[False, True], [False, True]]))
    tensor([0.6210])
    """
    chosen, rejected = prefix_sums(token_rewards(logprobs, ref_logprobs, beta), mask)[:, -1].chunk(2)
    return -logsigmoid(chosen - rejected)


METHOD = Method(
    title="Token-level DPO",
    family="direct alignment",
    paper="arXiv:2404.12358",
    feed="pairs",
    loss=token_dpo,
    per="row",
    target="tree_optimum",
    ranges={"beta": Range(0, open="low")},
)

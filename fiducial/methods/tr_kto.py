"""Trust-region KTO (Gorbatovski et al. 2024, arXiv:2404.09656): KTO's loss against a reference that follows the policy.

    L = lambda_y - v                                            v as in KTO, rho and z0 against the present reference
    ref <- alpha pi + (1 - alpha) ref                           weights, before every `sync_steps`-th step

See `tr_dpo` for the update and `kto` for the options of the loss. Just after a hard update (`alpha` 1) rho and z0 are 0
and the loss is lambda_y / 2.
"""

from torch import Tensor

from fiducial.core import anchors
from fiducial.core.method import Method, Range
from fiducial.methods.kto import kto


def tr_kto(
    completion_logprobs: Tensor,
    ref_completion_logprobs: Tensor,
    desirable: Tensor,
    batch_kl: Tensor,
    *,
    beta: float = 0.1,
    lambda_d: float = 1.0,
    lambda_u: float = 1.0,
) -> Tensor:
    """Loss per completion: [B], [B], [B] bool, [] -> [B].

    >>> import torch
    >>> tr_kto(torch.tensor([-10.0]), torch.tensor([-10.5]), torch.tensor([True]), torch.tensor(0.2))
    tensor([0.4925])
    """
    row = (completion_logprobs, ref_completion_logprobs, desirable, batch_kl)
    return kto(*row, beta=beta, lambda_d=lambda_d, lambda_u=lambda_u)


METHOD = Method(
    title="Trust-region KTO",
    family="direct alignment",
    paper="arXiv:2404.09656",
    feed="labels",
    loss=tr_kto,
    per="row",
    anchors={"ref": anchors.trust_region},
    ranges={
        "beta": Range(0, open="low"),
        "lambda_d": Range(0),
        "lambda_u": Range(0),
        "alpha": Range(0, 1),
        "sync_steps": Range(1),
    },
)

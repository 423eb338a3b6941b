"""Trust-region DPO (Gorbatovski et al. 2024, arXiv:2404.09656): DPO's loss against a reference that follows the policy.

    L = -log sigmoid(beta h)                                    h as in DPO, against the present reference
    ref <- alpha pi + (1 - alpha) ref                           weights, before every `sync_steps`-th step

`alpha` 1 is the hard update. Just after it the policy is the reference and the loss is log 2. With a hard update
after each exact solve the policy is ref_0 exp(n r / beta) / Z after n rounds: the constraint is relaxed along a path.
alpha 0 is DPO. The defaults are those of public code; the paper also updates softly at every step, which is
`sync_steps` 1 with a small alpha.
"""

from torch import Tensor

from fiducial.core import anchors
from fiducial.core.method import Method, Range
from fiducial.methods.dpo import dpo


def tr_dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss per pair: four [B] -> [B].

    >>> import torch
    >>> tr_dpo(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]))
    tensor([0.6210])
    """
    pair = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return dpo(*pair, beta=beta, label_smoothing=label_smoothing)


METHOD = Method(
    title="Trust-region DPO",
    family="direct alignment",
    paper="arXiv:2404.09656",
    feed="pairs",
    loss=tr_dpo,
    per="row",
    target="moving_reference",
    anchors={"ref": anchors.trust_region},
    ranges={
        "beta": Range(0, open="low"),
        "label_smoothing": Range(0, 0.5, open="high"),
        "alpha": Range(0, 1),
        "sync_steps": Range(1),
    },
)

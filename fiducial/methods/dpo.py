"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), eq. 7.

    h = log pi(y_w)/pi(y_l) - gamma_ref log ref(y_w)/ref(y_l)
    L = -log sigmoid(beta h)                                    gradient -beta sigmoid(-beta h) grad log pi(y_w)/pi(y_l)

With exact Bradley-Terry preferences the minimiser is ref exp(r / beta) / Z. `label_smoothing` e is conservative DPO
(Mitchell 2023), -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h); with `robust` the mixture is debiased for
labels that flip at rate e (Chowdhury et al. 2024, arXiv:2403.00409). `gamma_ref` scales the reference (Chen et al.
2024, arXiv:2405.19534); 0 is reference-free, and no reference is loaded. `length_average` divides each log-ratio by
the tokens of its completion. A certain pair has no optimum: its loss goes to 0 as h grows, and both answers may lose
mass to others. The slopes in the ratios x = pi/ref differ by x_l/x_w, which is below 1 only where h > 0, not for any
pair.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor | None = None,
    ref_rejected_logprobs: Tensor | None = None,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    robust: bool = False,
    gamma_ref: float = 1.0,
    length_average: bool = False,
) -> Tensor:
    """Loss per pair; log-probs are sums over the completion: [B] each -> [B].

    >>> import torch
    >>> dpo(torch.tensor([-10.0]), torch.tensor([-11.0]), torch.tensor([-10.5]), torch.tensor([-10.0]))
    tensor([0.6210])
    """
    chosen, rejected = chosen_logprobs, rejected_logprobs
    if gamma_ref:
        assert ref_chosen_logprobs is not None and ref_rejected_logprobs is not None
        chosen, rejected = chosen - gamma_ref * ref_chosen_logprobs, rejected - gamma_ref * ref_rejected_logprobs
    if length_average:
        assert chosen_lengths is not None and rejected_lengths is not None
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    h = chosen - rejected
    right, flipped = -logsigmoid(beta * h), -logsigmoid(-beta * h)
    if robust:
        return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * flipped


METHOD = Method(
    title="Direct Preference Optimization",
    family="direct alignment",
    paper="arXiv:2305.18290",
    feed="pairs",
    loss=dpo,
    per="row",
    target="rlhf_optimum",
    ranges={"beta": Range(0, open="low"), "label_smoothing": Range(0, 0.5, open="high"), "gamma_ref": Range(0)},
    idle={
        "ref_chosen_logprobs": ("gamma_ref", 0.0),
        "ref_rejected_logprobs": ("gamma_ref", 0.0),
        "chosen_lengths": ("length_average", False),
        "rejected_lengths": ("length_average", False),
    },
)

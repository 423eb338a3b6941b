"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), eq. 7.

    h = log pi(y_w)/pi(y_l) - gamma_ref log ref(y_w)/ref(y_l)
    L = -log sigmoid(beta h)

With exact Bradley-Terry preferences the minimiser is ref exp(r / beta) / Z. `label_smoothing` e is conservative DPO
(Mitchell 2023), -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h); with `robust` the mixture is debiased for labels
that flip at rate e (Chowdhury et al. 2024, arXiv:2403.00409). `gamma_ref` 0 is reference-free.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    robust: bool = False,
    gamma_ref: float = 1.0,
) -> Tensor:
    """Loss per pair; log-probs are sums over the completion: four [B] -> [B].

    >>> import torch
    >>> dpo(torch.tensor([-10.0]), torch.tensor([-11.0]), torch.tensor([-10.5]), torch.tensor([-10.0]))
    tensor([0.6210])
    """
    h = (chosen_logprobs - rejected_logprobs) - gamma_ref * (ref_chosen_logprobs - ref_rejected_logprobs)
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
)

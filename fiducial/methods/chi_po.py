"""Chi-squared preference optimisation (Huang et al. 2024, arXiv:2407.13399).

    L = -log sigmoid(clip(beta phi(x_w) - beta phi(x_l), -2 r_max, 2 r_max)),     phi(x) = x + log x,  x = pi/ref

The regulariser is KL plus chi-squared, so that an error on rarely seen answers costs little: the optimum keeps pi/ref
below 1 + R / beta, R the spread of the rewards, where DPO's may reach exp(R / beta). Without a clip (`r_max` None)
this is `f_dpo` of chi2_kl; a pair that is clipped has no gradient, and `clip_frac` is their share. As x -> 0 it is
DPO.

In float32 log x is cut at 20 before exp; `clamp_frac` is the share cut. (The paper's experiments smooth the link.)
"""

from torch import Tensor, float64
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range

LIMIT = 20.0


def phi(rho: Tensor) -> Tensor:
    """x + log x of a ratio x = exp(rho): [B] -> [B]."""
    return (rho if rho.dtype == float64 else rho.clamp(max=LIMIT)).exp() + rho


def chi_po(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.05,
    r_max: float | None = None,
) -> Tensor:
    """Loss per pair: four [B] -> [B].

    >>> import torch
    >>> chi_po(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]), beta=0.1)
    tensor([0.5637])
    """
    margin = beta * (phi(chosen_logprobs - ref_chosen_logprobs) - phi(rejected_logprobs - ref_rejected_logprobs))
    return -logsigmoid(margin if r_max is None else margin.clamp(-2 * r_max, 2 * r_max))


def measures(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float,
    r_max: float | None,
) -> dict[str, Tensor]:
    """Implicit rewards beta phi, whether the margin is clipped, and whether an exponent is cut, [B] each."""
    chosen, rejected = chosen_logprobs - ref_chosen_logprobs, rejected_logprobs - ref_rejected_logprobs
    good, bad = beta * phi(chosen), beta * phi(rejected)
    clipped = (good - bad).abs() > (float("inf") if r_max is None else 2 * r_max)
    cut = chosen.maximum(rejected) > LIMIT
    return {"rewards/chosen": good, "rewards/rejected": bad, "clip_frac": clipped.double(), "clamp_frac": cut.double()}


METHOD = Method(
    title="Chi-squared preference optimisation",
    family="direct alignment",
    paper="arXiv:2407.13399",
    feed="pairs",
    loss=chi_po,
    per="row",
    target="f_optimum",
    measures=measures,
    ranges={"beta": Range(0, open="low"), "r_max": Range(0, open="low")},
)

"""DPO under other divergences than the KL (Wang et al. 2023, arXiv:2309.16240), table 1.

    max E_pi r - beta D_f(pi, ref),  D_f(p, q) = E_q f(p / q);      rho = log pi/ref of a completion
    L = -log sigmoid(beta [g(rho_w) - g(rho_l)]),                   g(rho) = f'(exp rho) up to a constant

    reverse_kl  rho (DPO to the bit)      js     log sigmoid(rho)                    chi2_kl  exp(rho) + rho (chi-PO)
    forward_kl  -exp(-rho)                alpha  (1 - exp(-alpha rho)) / alpha, 0 < alpha < 1

With exact Bradley-Terry pairs the minimiser is ref (f')^-1((r - lambda) / beta), lambda additive; the lecture notes'
1/Z is right for reverse_kl only. alpha -> 0 is reverse_kl and alpha -> 1 forward_kl; code that writes
f'(u) = (u^(b - 1) - 1) / (b - 1) means b = 1 - alpha. total_variation and chi_squared are refused: where f' is finite
at 0 the optimum may give an answer no mass at all, and r = beta f'(pi/ref) + constant fails there.

In float32 what is exponentiated is cut at 40, beyond which squared slopes overflow; `clamp_frac` is the share cut.
"""

from torch import Tensor, expm1, float64
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range

FAMILIES, REFUSED = ("reverse_kl", "forward_kl", "js", "alpha", "chi2_kl"), ("total_variation", "chi_squared")
LIMIT = 40.0


def power(rho: Tensor, family: str, alpha: float) -> Tensor:
    """What the family exponentiates, [B]."""
    return rho * {"forward_kl": -1.0, "alpha": -alpha, "chi2_kl": 1.0}.get(family, 0.0)


def link(rho: Tensor, family: str, alpha: float = 0.5) -> Tensor:
    """g(rho), increasing in the log-ratio: [B] -> [B]. ValueError for a divergence that DPO cannot take."""
    if family in REFUSED:
        raise ValueError(f"hparams.family {family!r} can leave answers without mass: use one of {', '.join(FAMILIES)}")
    if family in ("reverse_kl", "js"):
        return rho if family == "reverse_kl" else logsigmoid(rho)
    x = power(rho, family, alpha)
    x = x if x.dtype == float64 else x.clamp(max=LIMIT)
    return -expm1(x) / alpha if family == "alpha" else -x.exp() if family == "forward_kl" else x.exp() + rho


def f_dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    family: str = "reverse_kl",
    alpha: float = 0.5,
) -> Tensor:
    """Loss per pair: four [B] -> [B]. `alpha` is read by the family of that name.

    >>> import torch
    >>> f_dpo(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]), family="js")
    tensor([0.6521])
    """
    chosen = link(chosen_logprobs - ref_chosen_logprobs, family, alpha)
    return -logsigmoid(beta * (chosen - link(rejected_logprobs - ref_rejected_logprobs, family, alpha)))


def measures(
    chosen_logprobs: Tensor, rejected_logprobs: Tensor, ref_chosen_logprobs: Tensor, ref_rejected_logprobs: Tensor,
    *, beta: float, family: str, alpha: float,
) -> dict[str, Tensor]:  # fmt: skip
    """Implicit rewards beta g(rho), and whether an exponent is beyond the limit, [B] each."""
    chosen, rejected = chosen_logprobs - ref_chosen_logprobs, rejected_logprobs - ref_rejected_logprobs
    cut = power(chosen, family, alpha).maximum(power(rejected, family, alpha)) > LIMIT
    rewards = {"chosen": beta * link(chosen, family, alpha), "rejected": beta * link(rejected, family, alpha)}
    return {**{f"rewards/{side}": reward for side, reward in rewards.items()}, "clamp_frac": cut.double()}


METHOD = Method(
    title="f-divergence DPO", family="direct alignment", paper="arXiv:2309.16240", feed="pairs", loss=f_dpo, per="row",
    target="f_optimum", measures=measures, choices={"family": FAMILIES},
    ranges={"beta": Range(0, open="low"), "alpha": Range(0, 1, open="both")},
)  # fmt: skip

"""Psi preference optimisation (Azar et al. 2023, arXiv:2310.12036), eq. 6, by regression on known preferences.

    max E psi(P(y beats mu)) - beta KL(pi || ref)       minimiser ref(y) exp(E_mu psi(P(y beats y')) / beta) / Z
    L = (h - [psi(p) - psi(1 - p)] / (2 beta))^2        h as in IPO, p the probability that y_w beats y_l (`pref_prob`)

`psi` "identity" is IPO, with less noise where p is known; "logit" is RLHF's optimum if P is of Bradley-Terry, and
DPO's. Both are antisymmetric about 1/2, so one pair says enough; other psi (log, any function) are exact only:
`exact.psi_optimum`. A certain preference is infinite under "logit" and refused: there beta could not hold the policy.
"""

from torch import Tensor, logit

from fiducial.core.method import Method, Range

PSI = {"identity": lambda p: p, "logit": logit}


def psi_po(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    pref_prob: Tensor,
    *,
    beta: float = 0.1,
    psi: str = "identity",
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> psi_po(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0], [0.6]]))  # (1.5 - (0.6 - 0.4) / 0.2)^2
    tensor([0.2500])
    """
    gain = PSI[psi](pref_prob) - PSI[psi](1 - pref_prob)
    if not gain.isfinite().all():
        raise ValueError(
            f"psi = {psi!r} is infinite for a preference of 0 or 1, and some rows have one: give pref_prob between "
            "them, or set hparams.psi = 'identity'"
        )
    h = (chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)
    return (h - gain / (2 * beta)).square()


METHOD = Method(
    title="Psi preference optimisation",
    family="direct alignment",
    paper="arXiv:2310.12036",
    feed="pairs",
    loss=psi_po,
    per="row",
    target="psi_optimum",
    choices={"psi": tuple(PSI)},
    ranges={"beta": Range(0, open="low")},
)

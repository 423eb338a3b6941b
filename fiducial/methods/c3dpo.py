"""DPO that controls how much mass a pair moves (Asadi et al. 2025, arXiv:2502.17507, later titled C2-DPO).

    K = phi(pi(y_w)) + phi(pi(y_l)) - phi(ref(y_w)) - phi(ref(y_l)),     phi "log" or "id" (the probability itself)
    L = -log sigmoid(beta h) + lam |K| (norm "l1")  or  + lam K^2 (norm "l2")        h as in DPO

Where K = 0 holds for "log", log pi(y_w)/ref(y_w) = h / 2, so that the chosen one does not fall below the reference;
for "id" the pair keeps its mass, and a certain pair ends at pi(y_w) = ref(y_w) + ref(y_l) with all others untouched.
A large lam comes near. The paper recommends no lam, so it must be given; 0 is DPO.

The probability of a whole completion is too small for "id" to weigh anything: there, set `length_average`, which
makes K of log-probs per token. It is computed in float64.
"""

from torch import Tensor

from fiducial.core.method import Method, Range
from fiducial.methods.dpo import dpo


def displacement(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    phi: str = "log",
    length_average: bool = False,
) -> dict[str, Tensor]:
    """K, [B] under the name of its metric."""
    chosen, rejected = (chosen_logprobs, ref_chosen_logprobs), (rejected_logprobs, ref_rejected_logprobs)
    if length_average:
        assert chosen_lengths is not None and rejected_lengths is not None
        chosen, rejected = [x / chosen_lengths for x in chosen], [x / rejected_lengths for x in rejected]
    if phi == "id":
        chosen, rejected = [x.double().exp() for x in chosen], [x.double().exp() for x in rejected]
    return {"c3dpo/displacement": ((chosen[0] - chosen[1]) + (rejected[0] - rejected[1])).to(chosen_logprobs.dtype)}


def c3dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    lam: float,
    beta: float = 0.1,
    phi: str = "log",
    norm: str = "l2",
    length_average: bool = False,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> c3dpo(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]), lam=1.0)  # K = 0.5 - 1: 0.6210 + 0.25
    tensor([0.8710])
    """
    pair = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    (k,) = displacement(*pair, chosen_lengths, rejected_lengths, phi=phi, length_average=length_average).values()
    return dpo(*pair, beta=beta) + lam * (k.abs() if norm == "l1" else k.square())


METHOD = Method(
    title="Constrained controlled DPO", family="direct alignment", paper="arXiv:2502.17507", feed="pairs", loss=c3dpo,
    per="row", measures=displacement, choices={"phi": ("log", "id"), "norm": ("l2", "l1")}, trial={"lam": 0.1},
    ranges={"lam": Range(0), "beta": Range(0, open="low")},
    idle={f"{side}_lengths": ("length_average", False) for side in ("chosen", "rejected")},
)  # fmt: skip

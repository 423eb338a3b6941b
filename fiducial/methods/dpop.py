"""DPO-Positive (Pal et al. 2024, arXiv:2402.13228).

    L = -log sigmoid(beta [h - lam max(0, log ref(y_w)/pi(y_w))])        h as in DPO

While the chosen completion is less likely than under the reference, the slope in its log-prob is 1 + lam times DPO's,
and that of the rejected one is not. At equality the penalty is off. The paper multiplies it by beta, as here; the
lecture notes print it outside the bracket, which is `penalty_inside_beta` false: the same with lam in place of beta
lam.
"""

from torch import Tensor, relu
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


def dpop(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.3,
    lam: float = 50.0,
    penalty_inside_beta: bool = True,
) -> Tensor:
    """Loss per pair: four [B] -> [B].

    >>> import torch
    >>> dpop(*torch.tensor([[-12.0], [-9.0], [-11.0], [-10.0]]))  # h = -2, penalty 50: 0.3 x 52
    tensor([15.6000])
    """
    h = (chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)
    penalty = lam * relu(ref_chosen_logprobs - chosen_logprobs)
    return -logsigmoid(beta * (h - penalty) if penalty_inside_beta else beta * h - penalty)


def measures(chosen_logprobs: Tensor, ref_chosen_logprobs: Tensor, *, lam: float) -> dict[str, Tensor]:
    """The penalty, in nats, and whether it is on, [B] each."""
    lost = relu(ref_chosen_logprobs - chosen_logprobs)
    return {"dpop/penalty": lam * lost, "dpop/active_frac": (lost > 0).double()}


METHOD = Method(
    title="DPO-Positive (Smaug)",
    family="direct alignment",
    paper="arXiv:2402.13228",
    feed="pairs",
    loss=dpop,
    per="row",
    measures=measures,
    ranges={"beta": Range(0, open="low"), "lam": Range(0)},
)

"""Self-Play Fine-Tuning (Chen et al. 2024, arXiv:2401.01335), eq. 4.7.

    y from the demonstrations, y' from the last round's policy pi_t, which is the reference too
    z = beta (log pi(y)/pi_t(y) - log pi(y')/pi_t(y'))
    L = log(1 + exp(-z))

An exact round ends at pi_t (data / pi_t)^(1 / beta) / Z: beta = 1 lands on the data, below 1/2 rounds diverge. At
pi = data the loss is log 2 and its gradient 0. (The paper raises beta from 0.1 to 5 in its last round.)

`loss` "hinge" is max(0, 1 - z). "linear" is -z, an integral probability metric: it has no minimum, so it is for
gradients that are clipped (optim.clip above 0) and few steps. Every demonstration meets sampling.n completions of the
reference, which takes over the policy at the start of each of `iterations` rounds.
"""

from torch import Tensor, relu
from torch.nn.functional import logsigmoid

from fiducial.core import anchors, selection
from fiducial.core.method import Method, Range


def spin(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    loss: str = "logistic",
) -> Tensor:
    """Loss per demonstration (chosen) and generated completion (rejected): four [B] -> [B].

    >>> import torch
    >>> spin(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]), loss="hinge")  # 1 - 0.1 x 1.5
    tensor([0.8500])
    """
    z = beta * ((chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs))
    if loss == "hinge":
        return relu(1 - z)
    return -z if loss == "linear" else -logsigmoid(z)


def measures(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> dict[str, Tensor]:
    """Implicit rewards of demonstrations and of generated completions, [B] each."""
    return {
        "rewards/real": beta * (chosen_logprobs - ref_chosen_logprobs),
        "rewards/generated": beta * (rejected_logprobs - ref_rejected_logprobs),
    }


METHOD = Method(
    title="Self-Play Fine-Tuning",
    family="demonstrations",
    paper="arXiv:2401.01335",
    feed="pairs",
    loss=spin,
    per="row",
    target="spin_step",
    select=selection.demo_over_samples,
    given="demos",
    sampled_by="ref",
    anchors={"ref": anchors.rounds},
    measures=measures,
    choices={"loss": ("logistic", "hinge", "linear")},
    ranges={"beta": Range(0, open="low"), "iterations": Range(1)},
)

"""Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036), eq. 17.

    L = (h - 1 / (2 beta))^2        h = log pi(y_w)/pi(y_l) - log ref(y_w)/ref(y_l);  the paper's tau is beta

Of pairs drawn from mu and labelled by any preferences P, transitive or not, the minimiser is
ref(y) exp(P(y beats mu) / beta) / Z. A certain pair stops at h = 1 / (2 beta), one that wins a share p of the time
at (2 p - 1) / (2 beta), and a pair that is further apart is pulled back.

`length_average` takes each log-ratio per token before the square, so that the target is a margin per token: a
convention of public code, which its maintainers ascribe to the authors, not in the paper. `scaled` is
(beta h - 1/2)^2, beta^2 times this loss, as papers on scaling laws have it. (The lecture notes write the target as
beta^-1 / 2.)
"""

from torch import Tensor

from fiducial.core.method import Method, Range


def ipo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    length_average: bool = False,
    scaled: bool = False,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> ipo(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]))  # (1.5 - 5)^2
    tensor([12.2500])
    """
    chosen, rejected = chosen_logprobs - ref_chosen_logprobs, rejected_logprobs - ref_rejected_logprobs
    if length_average:
        assert chosen_lengths is not None and rejected_lengths is not None
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    h = chosen - rejected
    return (beta * h - 0.5).square() if scaled else (h - 1 / (2 * beta)).square()


METHOD = Method(
    title="Identity preference optimisation",
    family="direct alignment",
    paper="arXiv:2310.12036",
    feed="pairs",
    loss=ipo,
    per="row",
    target="ipo_optimum",
    ranges={"beta": Range(0, open="low")},
    idle={"chosen_lengths": ("length_average", False), "rejected_lengths": ("length_average", False)},
)

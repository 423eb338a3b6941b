"""Sequence likelihood calibration (Zhao et al. 2023, arXiv:2305.10425).

    L = max(0, delta - log pi(y_w) + log pi(y_l)) - lam log pi(y_w)         the chosen one as the target of imitation

Past the margin a pair only has the second term. `with_reference` is the hinge of papers on scaling laws (Rafailov et
al. 2024, arXiv:2406.02900), max(0, delta - beta h) with DPO's h, where the reference regularises in lam's place: a
certain pair stops at h = delta / beta, and of one that wins a share p the majority's side does. `length_average`
takes log-probs per token. Without a reference beta is not read, with one lam is not.
"""

from torch import Tensor, relu

from fiducial.core.method import Method, Range


def slic(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor | None = None,
    ref_rejected_logprobs: Tensor | None = None,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    delta: float = 1.0,
    lam: float = 0.1,
    beta: float = 0.1,
    with_reference: bool = False,
    length_average: bool = False,
) -> Tensor:
    """Loss per pair: [B] each -> [B].

    >>> import torch
    >>> slic(torch.tensor([-10.0]), torch.tensor([-10.5]))  # (1 - 0.5) + 0.1 x 10
    tensor([1.5000])
    """
    chosen, rejected = chosen_logprobs, rejected_logprobs
    if with_reference:
        assert ref_chosen_logprobs is not None and ref_rejected_logprobs is not None
        chosen, rejected = beta * (chosen - ref_chosen_logprobs), beta * (rejected - ref_rejected_logprobs)
    if length_average:
        assert chosen_lengths is not None and rejected_lengths is not None
        chosen, rejected = chosen / chosen_lengths, rejected / rejected_lengths
    hinge = relu(delta - (chosen - rejected))
    return hinge if with_reference else hinge - lam * chosen


METHOD = Method(
    title="Sequence likelihood calibration",
    family="direct alignment",
    paper="arXiv:2305.10425",
    feed="pairs",
    loss=slic,
    per="row",
    ranges={"delta": Range(0, open="low"), "lam": Range(0), "beta": Range(0, open="low")},
    idle={
        "ref_chosen_logprobs": ("with_reference", False),
        "ref_rejected_logprobs": ("with_reference", False),
        "chosen_lengths": ("length_average", False),
        "rejected_lengths": ("length_average", False),
    },
)

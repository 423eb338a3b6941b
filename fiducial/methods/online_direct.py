"""Online direct alignment (Dong et al. 2024, arXiv:2405.07863): pairs of the policy's own samples.

    for each prompt sample N completions, score them, pair them by `pair_rule`;    L = a direct loss on the pair

`loss`: "sigmoid" is DPO's, "ipo" IPO's, "hinge" SLiC's with a reference. `pair_rule`: "best_worst", "best_random", or
"random_two_labelled", two at random with a winner drawn from Bradley-Terry, for which DPO still ends at
ref exp(r / beta) / Z. Labels by best and worst are certain, so DPO has no finite optimum there: give the run few steps,
a [kl] weight, or loss = "ipo". `ref_update` "fixed" compares with the first policy throughout, as in the paper; "hard"
takes over the policy at the start of each of `iterations` rounds. N is sampling.n (8 in the paper); optim.epochs 1 or
2 keeps pairs on-policy.
"""

from functools import partial

from torch import Tensor

from fiducial.core import anchors, selection
from fiducial.core.method import Method, Range
from fiducial.methods.dpo import dpo
from fiducial.methods.ipo import ipo
from fiducial.methods.slic import slic

LOSSES = {"sigmoid": dpo, "ipo": ipo, "hinge": partial(slic, with_reference=True)}


def online_direct(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    loss: str = "sigmoid",
) -> Tensor:
    """Loss per pair: four [B] -> [B].

    >>> import torch
    >>> online_direct(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0]]), loss="hinge")  # 1 - 0.1 x 1.5
    tensor([0.8500])
    """
    pair = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return LOSSES[loss](*pair, beta=beta)


def reference(step: int, steps: int, *, ref_update: str = "fixed", iterations: int = 3) -> float:
    """The share of the policy that enters the reference before a step."""
    return anchors.rounds(step, steps, iterations=iterations) if ref_update == "hard" else 0.0


METHOD = Method(
    title="Online direct alignment",
    family="online alignment",
    paper="arXiv:2405.07863",
    feed="pairs",
    loss=online_direct,
    per="row",
    select=selection.by_rule,
    anchors={"ref": reference},
    min_group=2,
    target="own_samples",
    choices={"loss": tuple(LOSSES), "pair_rule": selection.PAIR_RULES, "ref_update": ("fixed", "hard")},
    ranges={"beta": Range(0, open="low"), "iterations": Range(1), "skip_if_score_gap_below": Range(0)},
)

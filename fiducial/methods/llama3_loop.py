"""The DPO stage of Llama 3's post-training (Dubey et al. 2024, arXiv:2407.21783), section 4.1, one round of its loop.

    reward model on graded pairs -> rejection sampling (10 to 30 completions a prompt) -> SFT on the best of them and on
    curated data -> DPO on the latest pairs (this record) -> average the checkpoints -> next round; six in all

    L = -log sigmoid(beta h) - 0.2 log pi(y_w) / |y_w|        h as in DPO; beta 0.1, learning rate 1e-5

Pairs are the best and worst of the policy's own completions (`pair_rule`); graded pairs of people train with
`dpo_nll`, alpha = 0.2. The paper also leaves formatting tokens out of both log-probs: that is the data's business (a
message whose tokens do not train), and changes nothing where such a token's ratio to the reference is the same on
both sides.
"""

from torch import Tensor

from fiducial.core import selection
from fiducial.core.method import Method, Range
from fiducial.methods.dpo_nll import dpo_nll, measures


def llama3_loop(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.2,
) -> Tensor:
    """Loss per pair: four sums [B] and the chosen one's tokens [B] -> [B].

    >>> import torch
    >>> llama3_loop(*torch.tensor([[-10.0], [-11.0], [-10.5], [-10.0], [20.0]]))  # 0.6210 + 0.2 x 10 / 20
    tensor([0.7210])
    """
    pair = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return dpo_nll(*pair, chosen_lengths, beta=beta, alpha=alpha)


METHOD = Method(
    title="Llama 3's DPO round",
    family="online alignment",
    paper="arXiv:2407.21783",
    feed="pairs",
    loss=llama3_loop,
    per="row",
    select=selection.by_rule,
    measures=measures,
    min_group=2,
    choices={"pair_rule": selection.PAIR_RULES},
    ranges={"beta": Range(0, open="low"), "alpha": Range(0), "skip_if_score_gap_below": Range(0)},
    stages=("reward_model", "rejection_sampling", "sft", "dpo", "average"),
)

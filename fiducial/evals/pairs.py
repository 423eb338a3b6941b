"""A language model on preference pairs: how it ranks them, and beside a reference what training has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from fiducial.core.seeds import mix
from fiducial.core.tokens import align, collate, masked_logprobs, next_token_logits, sequence_sum, token_logprobs
from fiducial.core.types import Decoding, Encoded, Pair
from fiducial.data import Dataset, Item, open_rows
from fiducial.data.preferences.grading import Grading
from fiducial.evals import audit
from fiducial.evals.diagnostics import (
    BETAS,
    completion_kl,
    disputed_majorities,
    flips,
    idealised_ranking_accuracies,
    right,
)
from fiducial.evals.stats import Interval, effective_size, wilson
from fiducial.models.chat import encode
from fiducial.models.protocol import device_of
from fiducial.sampling.local import LocalSampler, eval_mode
from fiducial.sampling.policy import Policy

ROWS = 16  # completions in one pass
FULL_ROWS = 4  # where the scores of the whole vocabulary are kept


@dataclass(frozen=True)
class PairEvaluation:
    """What `evaluate_pairs` measured of n pairs. `intervals` hold 95 % ends; `notes` say what could not be measured."""

    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Likelihoods:
    """Summed log-probs and tokens of the two sides of N pairs: [N] each, float64."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """Of both sides."""
        return self.chosen_lengths, self.rejected_lengths


def read_pairs(
    policy: Policy, file: str, grading: Grading | None = None, fields: Mapping[str, str] | None = None
) -> Dataset:
    """The pairs of a file as a policy reads them; those longer than it reads are dropped and counted. ValueError names
    the file and what is wrong with it."""

    def sides(pair: Pair) -> list[Encoded]:
        return [encode(policy.tokenizer, pair.prompt, side) for side in (pair.chosen, pair.rejected)]

    limit = policy.model.config.max_length
    return Dataset(open_rows(file), "pairs", sides, max_length=limit, too_long="drop", grading=grading, fields=fields)


@torch.inference_mode()
def likelihoods(policy: Policy, items: Sequence[Item]) -> Likelihoods:
    """How likely a policy finds the two sides of pairs."""
    rows = [side for item in items for side in item.encoded]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].token_ids))  # rows of a pass are about as long
    summed = torch.zeros(len(rows), dtype=torch.float64)
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        batch = collate([rows[i] for i in places]).to(device_of(policy.model))
        with eval_mode(policy.model):
            hidden = policy.model.hidden(batch.input_ids)
            logprobs = masked_logprobs(hidden, policy.model.head, batch.input_ids, batch.mask)["logprobs"]
        summed[places] = sequence_sum(logprobs, batch.mask).double().cpu()
    lengths = torch.tensor([float(max(sum(row.mask[1:]), 1)) for row in rows], dtype=torch.float64)
    return Likelihoods(summed[::2], summed[1::2], lengths[::2], lengths[1::2])


def evaluate_pairs(
    policy: Policy,
    items: Sequence[Item],
    ref: Policy | None = None,
    *,
    beta: float = 1.0,
    seed: int = 0,
    decoding: Decoding | None = None,
) -> PairEvaluation:
    """How a policy ranks pairs by likelihood; with a reference also implicit rewards, flips, the KL on samples, and the
    idealised ranking accuracy. `beta` scales the implicit rewards.

    The KL is of one completion of each of at most `audit.PROMPTS` prompts, with the lengths and stops of `decoding`.
    ValueError for no pairs, or a reference of another vocabulary.
    """
    if not items:
        raise ValueError("there is nothing to evaluate: the list of pairs is empty")
    if ref is not None and ref.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError("the reference has another vocabulary than the model: log-probs do not compare")
    pairs: list[Pair] = [item.example for item in items]
    weights, found = torch.tensor([pair.weight for pair in pairs], dtype=torch.float64), likelihoods(policy, items)
    metrics, intervals = _weighted(ranking(found), weights)
    if ref is None:
        return PairEvaluation(len(items), metrics, intervals)
    theirs = likelihoods(ref, items)
    more, ends = _weighted(implicit(found, theirs, beta), weights)
    kl, kl_ends = sampled_kl(policy, ref, items, seed, decoding or Decoding())
    ideal, notes = idealised(theirs, pairs)
    return PairEvaluation(len(items), {**metrics, **more, **kl, **ideal}, {**intervals, **ends, **kl_ends}, notes)


def ranking(found: Likelihoods) -> dict[str, Tensor]:
    """Measures of each pair [N] from one model's likelihoods."""
    return {
        "ranking_accuracy": right(found.chosen, found.rejected),
        "ranking_accuracy_len_norm": right(
            found.chosen / found.chosen_lengths, found.rejected / found.rejected_lengths
        ),
        "ranking_ties": (found.chosen == found.rejected).double(),
        "logps/chosen": found.chosen,
        "logps/rejected": found.rejected,
        "length/chosen": found.chosen_lengths,
        "length/rejected": found.rejected_lengths,
    }


def implicit(found: Likelihoods, ref: Likelihoods, beta: float) -> dict[str, Tensor]:
    """Measures of each pair [N] from the likelihoods of a model and its reference."""
    chosen, rejected = beta * (found.chosen - ref.chosen), beta * (found.rejected - ref.rejected)
    before, after = right(ref.chosen, ref.rejected), right(found.chosen, found.rejected)
    return {
        "rewards/accuracies": right(chosen, rejected),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        **flips(before, after),
    }


SHARES = ("ranking_accuracy", "ranking_accuracy_len_norm", "rewards/accuracies")  # with an interval over pairs


def _weighted(values: Mapping[str, Tensor], weights: Tensor) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Weighted means, and intervals for shares of pairs."""
    size, whole = effective_size(weights.tolist()), float(weights.sum())
    means = {name: float((value * weights).sum()) / whole for name, value in values.items()}
    found = {name: wilson(min(means[name], 1.0) * size, size) for name in SHARES if name in means}
    return means, _ends(found)


def _ends(intervals: Mapping[str, Interval]) -> dict[str, tuple[float, float]]:
    return {name: (interval.low, interval.high) for name, interval in intervals.items()}


@torch.inference_mode()
def sampled_kl(
    policy: Policy, ref: Policy, items: Sequence[Item], seed: int, decoding: Decoding
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """KL(policy || reference) on completions that the policy draws, in nats a completion; and their mean length."""
    asked = audit.prompts_of(items, policy.model.config.max_length)
    if not asked:
        return {}, {}
    sampler = LocalSampler(policy.model, policy.tokenizer)
    drawn = audit.draw(sampler, asked, 1, mix(seed, "kl"), audit.of_the_policy(decoding))
    rollouts = [rollout for group in drawn for rollout in group]
    rows: list[dict[str, float]] = []
    for start in range(0, len(rollouts), FULL_ROWS):
        batch = collate([Encoded(r.token_ids, r.mask) for r in rollouts[start : start + FULL_ROWS]])
        batch = batch.to(device_of(policy.model))
        sides = []
        for model in (policy.model, ref.model):
            with eval_mode(model):
                logits = model(batch.input_ids)
            sides.append((token_logprobs(logits, batch.input_ids), align(next_token_logits(logits))))
        (ours, our_logits), (theirs, their_logits) = sides
        found = completion_kl(ours, theirs, batch.mask, our_logits, their_logits)
        rows += [{name: float(value[i]) for name, value in found.items()} for i in range(len(batch.input_ids))]
    metrics, intervals = audit.divergence(rows)
    return {**metrics, "completions/mean_length": fmean(r.num_tokens for r in rollouts)}, _ends(intervals)


def idealised(ref: Likelihoods, pairs: Sequence[Pair]) -> tuple[dict[str, float], list[str]]:
    """idealised_ranking_accuracy/min, median and max over the grid of betas, and the same normalised by length.

    From the pairs that a majority of raters, but not all of them everywhere, decided; a note where there are none.
    """
    places, shares = disputed_majorities(pairs)
    if not places:
        return {}, [
            "no idealised ranking accuracy: it needs how many raters agree, which pref_prob, ratings (--ratings soft "
            "--rating-scale) or several judgements of the same two completions say"
        ]
    chosen, rejected, *lengths = (x[places] for x in (ref.chosen, ref.rejected, *ref.lengths))
    plain = idealised_ranking_accuracies(chosen, rejected, shares)
    normal = idealised_ranking_accuracies(chosen, rejected, shares, (lengths[0], lengths[1]))
    told = f"idealised ranking accuracy: over {len(places)} majorities and beta from {BETAS[0]:g} to {BETAS[-1]:g}"
    names = {"idealised_ranking_accuracy": plain, "idealised_ranking_accuracy_len_norm": normal}
    return {f"{name}/{end}": value for name, found in names.items() for end, value in found.items()}, [told]

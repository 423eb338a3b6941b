"""The gold problems: what every policy of a pipeline is measured on, and how it compares with one of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from fiducial import models
from fiducial.config import Run
from fiducial.core.tokens import collate
from fiducial.core.types import Rollout
from fiducial.evals.audit import of_the_policy
from fiducial.evals.diagnostics import completion_kl
from fiducial.evals.evaluate import Evaluation, evaluate
from fiducial.evals.stats import Interval, mean_interval, proportion_interval
from fiducial.judges import judge
from fiducial.sampling.local import LocalSampler
from fiducial.train.feeds import trainable
from fiducial.train.learner import Learner
from fiducial.train.plan import Gold
from fiducial.train.runtime import Runtime
from fiducial.train.stages import prompts

ROWS_PER_PASS = 32  # completions whose scores over the whole vocabulary are held at once


class Measured(NamedTuple):
    """A policy and its completions of the gold problems."""

    model: Any
    tokenizer: Any
    found: Evaluation


def attempt(gold: Gold, folder: str | Path, runtime: Runtime) -> Measured:
    """The policy of a folder on the gold problems, with the seeds that every policy has."""
    model, tokenizer = models.load(folder, device=runtime.device)
    found = evaluate(
        LocalSampler(model, tokenizer),
        lambda prompt: models.encode_prompt(tokenizer, prompt),
        prompts(gold),
        judge(gold.reward or gold.task, gold.verdicts.timeout or None, gold.verdicts.trust_code),
        gold.sampling.decoding,
        gold.k,
        reward_of=Run(sampling=gold.sampling, verdicts=gold.verdicts).reward_of,
    )
    return Measured(model, tokenizer, found)


def measure(gold: Gold, folder: str | Path, runtime: Runtime, against: Measured | None = None) -> dict[str, float]:
    """A policy on the gold problems: the metrics of `fiducial eval` under gold/, with the ends of their intervals.

    Beside another policy also `gold/win_rate` over it, by the gold reward, and `gold/kl/exact`, the divergence from it
    in nats a completion; the latter where both have one vocabulary and the policy is sampled as it is (temperature 1,
    no top_k, top_p or min_p).
    """
    policy = attempt(gold, folder, runtime)
    metrics = {name.replace("eval/", "gold/", 1): value for name, value in policy.found.log().items()}
    if against is None:
        return metrics
    if shares := win_rates(policy.found.rollouts, against.found.rollouts):
        metrics |= _named("win_rate", proportion_interval(shares, samples=gold.k))
    same = policy.tokenizer.get_vocab() == against.tokenizer.get_vocab()
    if same and gold.sampling.decoding == of_the_policy(gold.sampling.decoding):
        metrics |= _named("kl/exact", mean_interval(divergences(policy, against.model)))
    return metrics


def _named(name: str, found: Interval) -> dict[str, float]:
    """The mean over problems and the ends of its interval, where it has any."""
    ends = {"low": found.low, "high": found.high} if isfinite(found.low) else {}
    return {f"gold/{name}": found.value, **{f"gold/{name}/{end}": value for end, value in ends.items()}}


def win_rates(ours: Sequence[Sequence[Rollout]], theirs: Sequence[Sequence[Rollout]]) -> list[float]:
    """For each problem how often one of our completions earns more than one of theirs, a tie being half, over every
    pair of the two sides. Problems without a reward on both sides are left out."""
    shares = []
    for one, other in zip(ours, theirs, strict=True):
        a = [r.reward for r in one if r.reward is not None]
        b = [r.reward for r in other if r.reward is not None]
        if a and b:
            shares.append(fmean(0.5 + 0.5 * ((x > y) - (x < y)) for x in a for y in b))
    return shares


@torch.no_grad()
def divergences(policy: Measured, reference: Any) -> list[float]:
    """For each problem KL(policy || reference) in nats a completion, over the policy's own: the divergence of the whole
    next-token distributions, summed along each."""
    rollouts = [r for group in policy.found.rollouts for r in group if any(r.mask)]
    device = next(policy.model.parameters()).device
    learners = [Learner(model) for model in (policy.model, reference)]
    values: dict[int, list[float]] = {}
    for start in range(0, len(rollouts), ROWS_PER_PASS):
        some = rollouts[start : start + ROWS_PER_PASS]
        batch = collate([trainable(r) for r in some]).to(device)
        own, other = (learner(batch, want_logits=True) for learner in learners)
        found = completion_kl(own["logprobs"], other["logprobs"], batch.mask, own["logits"], other["logits"])
        for rollout, value in zip(some, found["exact"].tolist(), strict=True):
            values.setdefault(rollout.group, []).append(value)
    return [fmean(mine) for mine in values.values()]

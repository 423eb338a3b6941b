"""A small audit of a policy's own completions of held-out prompts: how long and how different they are, what a gold
reward says of them, and how far the policy has moved from its reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean
from typing import Any, NamedTuple

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Problem, Prompt, Request, Reward, Rollout, Sampler
from fiducial.data import Item
from fiducial.data.dataset import prompt_length
from fiducial.evals.evaluate import Earns, diversity, flag_rates, judge, lengths
from fiducial.evals.stats import Interval, are_shares, mean_interval

PROMPTS = 16  # at most


class Asked(NamedTuple):
    """A prompt, and its token ids as training writes them."""

    problem: Problem
    ids: list[int]


def prompts_of(items: Iterable[Item], limit: int, most: int = PROMPTS) -> list[Asked]:
    """The first different prompts of examples, at most `most`: all before the first token that trains.

    Those that are empty, or that leave no room for a token within `limit`, are passed over.
    """
    found: dict[tuple[int, ...], Asked] = {}
    for item in items:
        if len(found) == most:
            break
        ids = item.encoded[0].token_ids[: prompt_length(item.encoded[0])]
        if 0 < len(ids) < limit:
            found.setdefault(tuple(ids), Asked(Problem(_prompt(item.example), {}, item.example.index), ids))
    return list(found.values())


def _prompt(example: Any) -> Prompt:
    """What a person is shown: of a chat without a prompt, the turns before the assistant's first."""
    turns = getattr(example, "completion", None)
    if example.prompt or not isinstance(turns, list):
        return example.prompt
    return list(takewhile(lambda message: message["role"] != "assistant", turns))


def draw(sampler: Sampler, asked: Sequence[Asked], k: int, seed: int, decoding: Decoding) -> list[list[Rollout]]:
    """k completions of each prompt; sample j of prompt i is drawn with `mix(seed, "audit", i, j)`, whatever else is."""
    requests = [
        Request(one.ids, mix(seed, "audit", i, j), one.problem.prompt, group=i)
        for i, one in enumerate(asked)
        for j in range(k)
    ]
    rollouts = sampler.sample(requests, decoding)
    return [rollouts[i : i + k] for i in range(0, len(rollouts), k)]


def of_the_policy(decoding: Decoding, temperature: float = 1.0) -> Decoding:
    """The same lengths and stops, drawn from the policy's own distribution: estimates of a KL are of no other."""
    return replace(decoding, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)


def described(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Length and diversity of k completions of each prompt."""
    return {**lengths([r for group in groups for r in group]), **diversity(groups)}


def divergence(rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, Interval]]:
    """Means over completions of `completion_kl`'s values, named kl/..., and the interval of kl/exact."""
    found = {f"kl/{name}": fmean(row[name] for row in rows) for name in rows[0]} if rows else {}
    several = len(rows) > 1 and "kl/exact" in found
    return found, {"kl/exact": mean_interval([row["exact"] for row in rows])} if several else {}


def gold(
    groups: Sequence[Sequence[Rollout]], problems: Sequence[Problem], reward: Reward, earns: Earns
) -> tuple[dict[str, float], dict[str, Interval]]:
    """What a reward that nothing trained on says of completions: `gold`, its mean over prompts of the mean over their
    completions, and `gold/unjudged`, the share that it failed on. A rollout's `group` is the number of its problem."""
    judged = [judge(group, problems, reward, earns) for group in groups]
    flat = [r for group in judged for r in group]
    failed = fmean(r.score is None or r.score.failed for r in flat)
    known = [[r.reward for r in group if r.reward is not None] for group in judged]
    means = [fmean(values) for values in known if values]
    found = {"gold/unjudged": failed, **{f"gold/{name}": rate for name, rate in flag_rates(flat).items()}}
    if not means:
        return found, {}
    bounds = (0.0, 1.0) if are_shares(means) else None
    return {**found, "gold": fmean(means)}, {"gold": mean_interval(means, bounds=bounds)} if len(means) > 1 else {}

"""Preference pairs that a verifier makes: a correct completion of a problem against a wrong one, both the policy's own
(as in iterative reasoning preference optimisation, Pang et al. 2024, arXiv:2404.19733)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import Any

from fiducial.config import Run
from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Problem, Prompt, Rollout, Sampler
from fiducial.data.feedback.writer import Made
from fiducial.data.preferences.record import Preference
from fiducial.evals.evaluate import Verify, evaluate


def verified_pairs(
    sampler: Sampler,
    encode_prompt: Callable[[Prompt], list[int]],
    problems: Sequence[Problem],
    verify: Verify,
    decoding: Decoding,
    k: int = 8,
    seed: int = 0,
    *,
    pairs_per_problem: int = 1,
    unparseable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Made:
    """Draw k completions of each problem and write up to `pairs_per_problem` pairs of a correct and a wrong one.

    `unparseable` takes completions without a readable answer for wrong ones. Completions that were cut short teach no
    ending and are never used, copies of a completion once. Counted are problems without a pair, by reason, and
    completions that could not serve. `metrics` are the shares of pass@1 and of problems that gave pairs.
    """
    if pairs_per_problem < 1:
        raise ValueError(f"pairs_per_problem must be at least 1; it is {pairs_per_problem}")
    if k < 2:
        raise ValueError(f"k must be at least 2 completions, one correct and one wrong; it is {k}")
    found = evaluate(
        sampler,
        encode_prompt,
        problems,
        verify,
        decoding,
        k,
        seed,
        greedy=False,
        reward_of=Run().reward_of,
        progress=progress,
    )
    rows: list[dict[str, Any]] = []
    counted: Counter[str] = Counter()
    for place, (problem, group) in enumerate(zip(problems, found.rollouts, strict=True)):
        correct, wrong = sides(group, unparseable, counted)
        if not (correct and wrong):
            counted["problem: " + ("no correct one" if wrong else "no wrong one" if correct else "none to use")] += 1
            continue
        every = list(product(correct, wrong))
        drawn = Random(mix(seed, "pairs", place)).sample(every, min(pairs_per_problem, len(every)))
        for chosen, rejected in drawn:
            record = Preference(
                problem.prompt, chosen, rejected, pref_prob=1.0, source="verifier", group_id=str(problem.index)
            )
            rows.append(record.to_row())
    paired = len({row["group_id"] for row in rows})
    metrics = {"pass@1": found.metrics["pass@1"], "problems_with_pairs": paired / len(problems)}
    return Made(rows, dict(counted.most_common()), metrics)


def sides(group: Sequence[Rollout], unparseable: bool, counted: Counter[str]) -> tuple[list[str], list[str]]:
    """The different correct and wrong completions of one problem, in order; what is no use is counted."""
    correct: dict[str, None] = {}
    wrong: dict[str, None] = {}
    for rollout in group:
        verdict = rollout.score.verdict if rollout.score else "skipped"
        right, bad = verdict == "correct", verdict == "wrong" or (unparseable and verdict == "unparseable")
        if rollout.finish != "stop":
            counted["completion: cut short"] += 1
        elif not rollout.completion.strip():
            counted["completion: empty"] += 1
        elif rollout.score and rollout.score.graded:
            counted["completion: a number, neither right nor wrong"] += 1
        elif not (right or bad):
            counted[f"completion: {verdict}"] += 1
        elif rollout.completion in (correct if right else wrong):
            counted["completion: a copy"] += 1
        else:
            (correct if right else wrong)[rollout.completion] = None
    return list(correct), list(wrong)

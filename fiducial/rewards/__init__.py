"""Rewards: verifiers with typed verdicts, users' own functions, weighted combinations.

A verifier says `correct`, `wrong`, `unparseable`, `timeout`, `crashed` or `skipped`. Only the first two carry a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fiducial.core.types import Reward
from fiducial.rewards.combine import Weighted
from fiducial.rewards.exact import Exact
from fiducial.rewards.format import Format
from fiducial.rewards.math import Math
from fiducial.rewards.numeric import Numeric
from fiducial.rewards.regex import Regex
from fiducial.rewards.user import UserReward
from fiducial.rewards.worker import RewardError

__all__ = ["VERIFIERS", "RewardError", "UserReward", "VerifierEntry", "Weighted", "build"]


@dataclass(frozen=True)
class VerifierEntry:
    """A built-in verifier: what it checks, in a line, and how to make one given seconds per row."""

    summary: str
    make: Callable[[float], Reward]


VERIFIERS: dict[str, VerifierEntry] = {
    "exact": VerifierEntry("the answer equals the row's `answer` as normalised text", lambda timeout: Exact()),
    "numeric": VerifierEntry("the answer is the same number as the row's `answer`", lambda timeout: Numeric()),
    "regex": VerifierEntry(
        "the row's `pattern` (or `answer`) matches the completion", lambda timeout: Regex(timeout=timeout)
    ),
    "math": VerifierEntry(
        "the answer is mathematically equal to the row's `answer`", lambda timeout: Math(timeout=timeout)
    ),
    "format": VerifierEntry("one <think> block, then one <answer> block", lambda timeout: Format()),
}


def build(spec: str | Mapping[str, float], timeout: float | None = None) -> Reward:
    """The reward that a recipe or a command names: a verifier's id, `file.py:function`, or {name: weight}.

    `timeout` is in seconds per row; None means 10 for a verifier and 30 for a user's function.
    """
    if isinstance(spec, str):
        if ":" in spec:
            return UserReward(spec, timeout=30.0 if timeout is None else timeout)
        if spec not in VERIFIERS:
            known = ", ".join(VERIFIERS)
            raise ValueError(
                f"there is no verifier {spec!r}; there are: {known}, and your own as path/file.py:function"
            )
        return VERIFIERS[spec].make(10.0 if timeout is None else timeout)
    if not spec:
        raise ValueError("reward: name at least one verifier and its weight")
    return Weighted({name: (build(name, timeout), weight) for name, weight in spec.items()})

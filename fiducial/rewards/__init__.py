"""Rewards: verifiers with typed verdicts, users' own functions, weighted combinations.

A verifier says `correct`, `wrong`, `unparseable`, `timeout`, `crashed` or `skipped`. Only the first two carry a number.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fiducial.core.types import Reward
from fiducial.rewards.code import Code
from fiducial.rewards.combine import Part, Weighted, combined
from fiducial.rewards.constraints import Constraints
from fiducial.rewards.exact import Exact
from fiducial.rewards.flex import Flex
from fiducial.rewards.format import Format
from fiducial.rewards.logic import LogicReward
from fiducial.rewards.math import Math
from fiducial.rewards.numeric import Numeric
from fiducial.rewards.proof import Proof
from fiducial.rewards.regex import Regex
from fiducial.rewards.shaping import LanguageConsistency, Overlong, Repetition
from fiducial.rewards.user import UserReward
from fiducial.rewards.worker import RewardError

__all__ = ["VERIFIERS", "Part", "RewardError", "UserReward", "VerifierEntry", "Weighted", "build", "combined", "named"]


@dataclass(frozen=True)
class VerifierEntry:
    """A built-in verifier: what it checks, in a line, and how to make one.

    Keyword parameters of `make` are the verifier's options; one called `timeout` is its limit in seconds per row.
    """

    summary: str
    make: Callable[..., Reward]

    @property
    def options(self) -> dict[str, Any]:
        """Name and default of each option."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in ("timeout", "workers")}


VERIFIERS: dict[str, VerifierEntry] = {
    "exact": VerifierEntry("the answer equals the row's `answer` as normalised text", Exact),
    "numeric": VerifierEntry("the answer is the same number as the row's `answer`", Numeric),
    "flex": VerifierEntry("any way of reading the completion gives the row's `answer`", Flex),
    "regex": VerifierEntry("the row's `pattern` (or `answer`) matches the completion", Regex),
    "math": VerifierEntry("the answer is mathematically equal to the row's `answer`", Math),
    "code": VerifierEntry("the program passes the row's `tests`, in a sandbox", Code),
    "format": VerifierEntry("one <think> block, then one <answer> block", Format),
    "logic_reward": VerifierEntry(
        "Logic-RL's sum of format and answer for knights and knaves: 3, -0.5, -1, -3", LogicReward
    ),
    "overlong": VerifierEntry("DAPO's penalty of completions near the length limit, in [-1, 0]", Overlong),
    "repetition": VerifierEntry("minus the share of n-grams that are repeats", Repetition),
    "language_consistency": VerifierEntry(
        "the share of the thought's words in the row's `language`", LanguageConsistency
    ),
    "proof": VerifierEntry("the completion proves the row's `statement` (propositional logic, Coq, Metamath)", Proof),
    "constraints": VerifierEntry("the row's instructions (IFEval's 25 kinds) are all followed", Constraints),
}


def named(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options that a text like `constraints(loose=True)` gives.

    >>> named("numeric(rel_tol=0.01)"), named("exact")
    (('numeric', {'rel_tol': 0.01}), ('exact', {}))
    """
    name, opened, _ = spec.partition("(")
    if not opened or not name.isidentifier():
        return spec, {}
    try:
        call = ast.parse(spec, mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return name, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ValueError(f"{spec!r} is not a verifier with options, such as numeric(rel_tol=0.01)") from error


def build(
    spec: str | Mapping[str, float | Mapping[str, Any]], timeout: float | None = None, trust: bool = False
) -> Reward:
    """The reward that a recipe or a command names: a verifier's id, with its options in parentheses where others than
    the defaults are wanted (`constraints(loose=True)`), `file.py:function`, or a table of parts (`combined`).

    `timeout` is in seconds per row; None means 10 for a verifier and 30 for a user's function. With `trust`, code that
    a model wrote may run without a sandbox where there is none; without, ValueError.
    """
    if not isinstance(spec, str):
        return combined(spec, lambda name: build(name, timeout, trust))
    name, options = named(spec)
    if name in VERIFIERS:
        entry = VERIFIERS[name]
        for option in options:
            if option not in entry.options:
                raise ValueError(f"{name} has no option {option!r}; it has {', '.join(entry.options) or 'none'}")
        if "timeout" in inspect.signature(entry.make).parameters:
            options["timeout"] = 10.0 if timeout is None else timeout
        if trust and "trust" in entry.options:
            options["trust"] = True
        return entry.make(**options)
    if ":" in spec:
        return UserReward(spec, timeout=30.0 if timeout is None else timeout)
    known = ", ".join(VERIFIERS)
    raise ValueError(f"there is no verifier {spec!r}; there are: {known}, and your own as path/file.py:function")

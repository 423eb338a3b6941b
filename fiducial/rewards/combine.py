"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fiducial.core.types import Reward, Score


class Weighted:
    """The weighted sum of rewards, R = sum_k w_k R_k, with its parts kept in `Score.parts` and
    their flags in `Score.flags`.

    The verdict is "correct" when every part with a positive weight is correct, else "wrong"; a graded part (a plain
    number) has a say only where all are, and then the whole is graded. A part that could not be scored makes the whole
    unscored, with that part's verdict and never as a zero; a part of weight 0 is only recorded.

    A `gate` names a part on which all depends: where its verdict is "wrong" the value is `gate_value` and the verdict
    "wrong", whatever the other parts say.

    >>> class Fixed:
    ...     def __init__(self, name, value): self.name, self.value = name, value
    ...     def __call__(self, completions, rows): return [Score(self.value, "correct") for _ in completions]
    >>> Weighted({"a": (Fixed("a", 1.0), 1.0), "b": (Fixed("b", 0.5), 0.2)})(["x"], [{}])[0].value
    1.1
    """

    def __init__(self, parts: Mapping[str, tuple[Reward, float]], *, gate: str | None = None, gate_value: float = 0.0):
        for name, (_, weight) in parts.items():
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"reward.{name}: the weight must be a finite number; it is {weight!r}")
        if not any(weight > 0 for _, weight in parts.values()):
            raise ValueError("reward: at least one weight must be above 0")
        if gate is not None and gate not in parts:
            raise ValueError(f"reward: the gate {gate!r} is not one of the parts: {', '.join(parts)}")
        self.rewards = dict(parts)
        self.gate, self.gate_value = gate, gate_value
        self.name = "+".join(parts)

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        scored = {name: reward(completions, rows) for name, (reward, _) in self.rewards.items()}
        return [self._combine({name: scores[i] for name, scores in scored.items()}) for i in range(len(completions))]

    def _combine(self, parts: dict[str, Score]) -> Score:
        flags = {name: value for part in parts.values() for name, value in part.flags.items()}
        return replace(self._value(parts), flags=flags) if flags else self._value(parts)

    def _value(self, parts: dict[str, Score]) -> Score:
        if self.gate and parts[self.gate].verdict == "wrong":
            return Score(self.gate_value, "wrong", f"gate {self.gate}: {parts[self.gate].why}", parts)
        value, judging = 0.0, []
        for name, (_, weight) in self.rewards.items():
            part = parts[name]
            if weight == 0 and name != self.gate:
                continue
            if part.value is None:
                return Score(None, part.verdict, f"{name}: {part.why}", parts)
            value += weight * part.value
            if weight > 0:
                judging.append(part)
        graded = all(part.graded for part in judging)
        right = all(part.verdict == "correct" for part in judging if graded or not part.graded)
        why = "; ".join(f"{name}: {part.why}" for name, part in parts.items() if part.why)
        return Score(value, "correct" if right else "wrong", why, parts, graded)

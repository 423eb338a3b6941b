"""Several rewards as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fiducial.core.types import Reward, Score


@dataclass(frozen=True)
class Part:
    """One source of a weighted reward. `clip` are the ends that its value is held within; `when` says which rows it is
    for, {field: value or list of values}: of other rows it is not asked, and has no part in their sum."""

    reward: Reward
    weight: float = 1.0
    clip: tuple[float, float] | None = None
    when: Mapping[str, Any] = field(default_factory=dict)

    def applies(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is one that this source is for."""
        return all(row.get(name) in (x if isinstance(x, list | tuple) else [x]) for name, x in self.when.items())

    def clipped(self, value: float) -> float:
        """The value within the ends."""
        return value if self.clip is None else min(max(value, self.clip[0]), self.clip[1])


class Weighted:
    """The weighted sum of rewards, R = sum_k w_k R_k, with its parts kept in `Score.parts` and their flags in
    `Score.flags`. A part is a `Part`, or a reward and its weight.

    The verdict is "correct" when every part with a positive weight is correct, else "wrong"; a graded part (a plain
    number) has a say only where all are, and then the whole is graded. A part that could not be scored makes the whole
    unscored, with that part's verdict and never as a zero; a part of weight 0 is only recorded, and a part that is not
    for a row is left out. A row that no part is for is "skipped".

    A `gate` names a part on which all depends: where its verdict is "wrong" the value is `gate_value` and the verdict
    "wrong", whatever the other parts say.

    >>> class Fixed:
    ...     def __init__(self, name, value): self.name, self.value = name, value
    ...     def __call__(self, completions, rows): return [Score(self.value, "correct") for _ in completions]
    >>> Weighted({"a": (Fixed("a", 1.0), 1.0), "b": (Fixed("b", 0.5), 0.2)})(["x"], [{}])[0].value
    1.1
    """

    def __init__(
        self, parts: Mapping[str, Part | tuple[Reward, float]], *, gate: str | None = None, gate_value: float = 0.0
    ):
        self.parts = {name: part if isinstance(part, Part) else Part(*part) for name, part in parts.items()}
        for name, part in self.parts.items():
            if (
                isinstance(part.weight, bool)
                or not isinstance(part.weight, int | float)
                or not math.isfinite(part.weight)
            ):
                raise ValueError(f"reward.{name}: the weight must be a finite number; it is {part.weight!r}")
            if part.clip is not None and not part.clip[0] <= part.clip[1]:
                raise ValueError(f"reward.{name}: clip must be the lower and the upper end; it is {list(part.clip)}")
        if not any(part.weight > 0 for part in self.parts.values()):
            raise ValueError("reward: at least one weight must be above 0")
        if gate is not None and gate not in parts:
            raise ValueError(f"reward: the gate {gate!r} is not one of the parts: {', '.join(parts)}")
        self.gate, self.gate_value = gate, gate_value
        self.name = "+".join(parts)

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        found: list[dict[str, Score]] = [{} for _ in completions]
        for name, part in self.parts.items():
            mine = [i for i, row in enumerate(rows) if part.applies(row)]
            scores = part.reward([completions[i] for i in mine], [rows[i] for i in mine]) if mine else []
            for i, score in zip(mine, scores, strict=True):
                found[i][name] = score
        return [self._with_marks(parts) for parts in found]

    def _with_marks(self, parts: dict[str, Score]) -> Score:
        """The whole, with what its parts carry beside a value."""
        flags = {name: raised for part in parts.values() for name, raised in part.flags.items()}
        isolation = next((part.isolation for part in parts.values() if part.isolation), "")
        return replace(self._combine(parts), flags=flags, isolation=isolation)

    def _combine(self, parts: dict[str, Score]) -> Score:
        if self.gate in parts and parts[self.gate].verdict == "wrong":
            return Score(self.gate_value, "wrong", f"gate {self.gate}: {parts[self.gate].why}", parts)
        value, judging = 0.0, []
        for name, score in parts.items():
            weight = self.parts[name].weight
            if weight == 0 and name != self.gate:
                continue
            if score.value is None:
                return Score(None, score.verdict, f"{name}: {score.why}", parts, own=score.own)
            value += weight * self.parts[name].clipped(score.value)
            if weight > 0:
                judging.append(score)
        if not judging:
            return Score(None, "skipped", "no part with a positive weight is for this row", parts)
        graded = all(part.graded for part in judging)
        right = all(part.verdict == "correct" for part in judging if graded or not part.graded)
        why = "; ".join(f"{name}: {part.why}" for name, part in parts.items() if part.why)
        return Score(value, "correct" if right else "wrong", why, parts, graded)


SETTINGS = ("verifier", "weight", "clip", "gate", "when")  # of a part, in a recipe's table


def combined(table: Mapping[str, float | Mapping[str, Any]], make: Callable[[str], Reward]) -> Weighted:
    """The weighted reward of a recipe's `[reward]` table: names with a weight, or with a table of

    verifier  what the part is, where its name is another
    weight    1 by default
    clip      [low, high]: the part's value is held within, before weighting
    gate      where this part is wrong the whole is worth this number
    when      {field = value or list of values}: only rows with this value in this field, as `source` = "gsm8k"

    `make` makes a reward of its name. ValueError for what is unknown or of a wrong type.
    """
    if not table:
        raise ValueError("reward: name at least one verifier and its weight")
    parts: dict[str, Part] = {}
    gates: dict[str, float] = {}
    for name, given in table.items():
        settings = given if isinstance(given, Mapping) else {"weight": given}
        for key in settings:
            if key not in SETTINGS:
                raise ValueError(f"reward.{name} has no setting {key!r}; it has {', '.join(SETTINGS)}")
        clip, when = settings.get("clip"), settings.get("when", {})
        if clip is not None and (not isinstance(clip, Sequence) or len(clip) != 2 or not all(map(_is_number, clip))):
            raise ValueError(f"reward.{name}.clip must be two numbers; it is {clip!r}")
        if not isinstance(when, Mapping):
            raise ValueError(f"reward.{name}.when must be a table of fields and values; it is {when!r}")
        if "gate" in settings:
            if not _is_number(settings["gate"]):
                raise ValueError(f"reward.{name}.gate must be the number that a failed gate is worth")
            gates[name] = settings["gate"]
        made = make(str(settings.get("verifier", name)))
        parts[name] = Part(made, settings.get("weight", 1.0), tuple(clip) if clip is not None else None, when)
    if len(gates) > 1:
        raise ValueError(f"reward: one part may be the gate; there are {', '.join(gates)}")
    gate = next(iter(gates), None)
    return Weighted(parts, gate=gate, gate_value=gates.get(gate, 0.0) if gate else 0.0)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)

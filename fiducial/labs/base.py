"""What a lab is: an experiment that anyone can repeat, with pictures and a verdict by criteria stated beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fiducial.evals.stats import Interval

Verdict = Literal["pass", "fail", "inconclusive"]
Series = Mapping[str, Sequence[Any] | Tensor]  # a table by column, all of one length
Relation = Literal["<", "<=", ">", ">="]

# Okabe & Ito's colours, which colour-blind readers tell apart; the first is for what the lab is about.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GOLD, GREY = COLORS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7"),
    *("#56b4e9", "#d55e00", "#b8a400", "#7f7f7f"),
)


@dataclass(frozen=True)
class Criterion:
    """`value` `relation` `bound`, as the claim has it. Of a statistical value `interval` says where it may lie: while
    that contains the bound, nothing is decided."""

    name: str
    value: float
    relation: Relation
    bound: float
    interval: Interval | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether it holds; False for NaN."""
        if self.interval is not None and self.interval.low <= self.bound <= self.interval.high:
            return "inconclusive"
        holds = {
            "<": self.value < self.bound,
            "<=": self.value <= self.bound,
            ">": self.value > self.bound,
            ">=": self.value >= self.bound,
        }
        return "pass" if holds[self.relation] else "fail"

    @property
    def passed(self) -> bool:
        return self.verdict == "pass"

    def to_json(self) -> dict[str, Any]:
        ends = {"interval": [self.interval.low, self.interval.high]} if self.interval is not None else {}
        stated = {"name": self.name, "value": self.value, "relation": self.relation, "bound": self.bound}
        return {**stated, **ends, "passed": self.passed, "verdict": self.verdict}


def above(name: str, estimate: Interval, bound: float) -> Criterion:
    """A statistical criterion: the estimate, with its interval, lies above the bound."""
    return Criterion(name, estimate.value, ">", bound, estimate)


@dataclass(frozen=True)
class Plot:
    """A picture of `panels` axes side by side: `draw` gets matplotlib's axes, one argument each, and labels them."""

    draw: Callable[..., None]
    panels: int = 1
    width: float = 4.8  # inches of a panel
    height: float = 3.5


@dataclass(frozen=True)
class Result:
    """What a run of a lab found: `series` become CSV files, `figures` PNG files, `metrics` are single numbers worth
    reporting that no criterion holds, `note` says in a sentence or two what is to be seen."""

    series: Mapping[str, Series]
    figures: Mapping[str, Plot]
    criteria: Sequence[Criterion]
    note: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """fail if any criterion fails, else inconclusive if any is."""
        found = {criterion.verdict for criterion in self.criteria}
        return "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"


@dataclass(frozen=True)
class Lab:
    """An experiment: `run(seed, fast)` is a function of both alone; `fast` takes less than a minute on one core.

    `claim` says what should be seen, `source` where that is claimed. An `observational` lab reports what papers found
    on large models or what depends on a simulation: it passes by its stated rule, which is weaker than the claim.
    """

    id: str  # "L2"
    name: str  # its file here, and the folder that it writes
    title: str
    claim: str
    source: str
    run: Callable[[int, bool], Result]
    observational: bool = False

    @property
    def number(self) -> int:
        """Of its id."""
        return int(self.id[1:])

    def to_json(self) -> dict[str, Any]:
        said = {"lab": self.id, "name": self.name, "title": self.title, "claim": self.claim, "source": self.source}
        return {**said, "observational": self.observational}

"""A look at a file of rows before anything trains on it: what the rows are, what is wrong with them, who judged."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fiducial.core.types import Label
from fiducial.data.dataset import JUDGED, SHOWN, Quantiles
from fiducial.data.files import RowSource
from fiducial.data.preferences import shapes
from fiducial.data.preferences.agreement import Votes
from fiducial.data.preferences.grading import Grading
from fiducial.data.preferences.record import Preference
from fiducial.data.rows import Kind, Steps, parse, shape
from fiducial.data.view import BadRow, Row, Side

Severity = Literal["error", "warning", "info"]
MAX_BAD = 0.05  # share of rows that training skips before it refuses a file
ONE_SIDED = 0.6  # a larger share of pairs with the longer side chosen is told
LOPSIDED = 0.8  # a larger share of labels on one side is told
LEARNT_FROM: tuple[Kind, ...] = (
    "pairs",
    "labels",
    "steps",
    "demos",
    "problems",
)  # what a row is read as: the first fit


@dataclass(frozen=True)
class Note:
    """Something worth knowing about the file: what it is, where it is seen first, and what to do."""

    severity: Severity
    what: str
    where: str
    advice: str


@dataclass
class Inspection:
    """What `inspect_rows` saw. `rows` is `used` and the sum of `counted`."""

    name: str
    rows: int = 0
    used: int = 0
    counted: Counter[str] = field(default_factory=Counter)  # rows that cannot train, by reason
    left_out: Counter[str] = field(default_factory=Counter)  # comparisons within rankings that give no pair
    first: dict[str, list[str]] = field(default_factory=dict)  # of each reason, where the first of them are
    shapes: Counter[str] = field(default_factory=Counter)  # rows by the fields that they are recognised by
    unit: str = "characters"
    quantiles: dict[str, dict[str, int]] = field(default_factory=dict)
    labels: dict[str, int] | None = None  # completions that are wanted and unwanted; None where no row labels any
    preferences: dict[str, Any] | None = None  # None where no row compares anything
    notes: list[Note] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        tallies = {name: dict(value) for name, value in vars(self).items() if isinstance(value, Counter)}
        return {**vars(self), **tallies, "notes": [asdict(note) for note in self.notes]}


def inspect_rows(
    source: RowSource,
    fields: Mapping[str, str] | None = None,
    grading: Grading | None = None,
    kind: Kind | None = None,
    measure: Callable[[Side], int] | None = None,
    unit: str = "characters",
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Read every row as training would, and say what the rows are and what looks wrong.

    Each row is read as the `kind` that is given, or as what its fields say. `measure` is the length of a text or of
    messages, by default in characters; `unit` names what it counts. No text of a row is kept or quoted.
    """
    look = _Look(source, fields or {}, grading or Grading(), measure or characters)
    for i in range(len(source)):
        look.row(i, kind)
        if progress:
            progress(i + 1, len(source))
    return look.finish(unit)


def characters(side: Side) -> int:
    """The length of a text, or of all messages together."""
    return len(side) if isinstance(side, str) else sum(len(message["content"]) for message in side)


class _Look:
    """What is counted on the way through the rows."""

    def __init__(self, source: RowSource, fields: Mapping[str, str], grading: Grading, measure: Callable[[Side], int]):
        self.source, self.fields, self.grading, self.measure = source, fields, grading, measure
        self.found = Inspection(source.name, rows=len(source))
        self.lengths: dict[str, array[int]] = {name: array("q") for name in ("prompt", "completion")}
        self.votes = Votes()
        self.ratings: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.judged = self.ties = self.pairs = self.longer = self.equally_long = self.contradicted = 0
        self.worst = ""  # where the first contradiction is

    def row(self, i: int, asked: Kind | None) -> None:
        """Count one row."""
        found = self.found
        try:
            row = Row(self.source[i], self.fields, i)
            kind = asked or kind_of(row)
            found.shapes[_described(row, kind)] += 1
            if kind in ("pairs", "costs"):
                self._compare(row, kind)
            left_out: Counter[str] = Counter()
            examples = parse(self.source[i], kind, self.fields, i, self.grading, left_out)
        except BadRow as bad:
            self._skip(bad, i)
            return
        found.used += 1
        found.left_out.update(left_out)
        self.labels.update("wanted" if e.desirable else "unwanted" for e in examples if isinstance(e, Label))
        self._measure(examples)

    def _skip(self, bad: BadRow, i: int) -> None:
        self.found.counted[bad.reason] += 1
        first = self.found.first.setdefault(bad.reason, [])
        if len(first) < SHOWN:
            first.append(self.source.where(i))

    def _compare(self, row: Row, kind: Kind) -> None:
        """The judgements of a row, those included that training would not use."""
        shown = not row.has("chosen") and not row.has("completions")
        by = "safer_response_id" if kind == "costs" else "better_response_id"
        for record in shapes.judgements(row, self.grading, by):
            self.judged += 1
            self.ties += record.lean == 0
            if record.source:
                self.sources[record.source] += 1
            if record.degree is not None and record.pref_prob is None:
                self.ratings[f"{record.degree:g}"] += 1
            self.votes.add(record, shown)
            self._lengths_of(record)

    def _lengths_of(self, record: Preference) -> None:
        if record.lean == 0:
            return
        better = record if record.lean > 0 else record.swapped()
        chosen, rejected = self.measure(better.response_a), self.measure(better.response_b)
        self.pairs += 1
        self.longer += chosen > rejected
        self.equally_long += chosen == rejected

    def _measure(self, examples: list[Any]) -> None:
        for example in examples[:1]:
            self.lengths["prompt"].append(self.measure(example.prompt))
        for side in {id(side): side for example in examples for side in _completions(example)}.values():
            self.lengths["completion"].append(self.measure(side))

    def finish(self, unit: str) -> Inspection:
        """Totals, and what they say."""
        found = self.found
        found.counted = Counter(dict(found.counted.most_common()))
        found.unit = unit
        found.quantiles = {name: asdict(Quantiles.of(lengths)) for name, lengths in self.lengths.items() if lengths}
        found.notes = [Note("info", note, found.name, "") for note in self.source.notes]
        found.notes += list(_row_notes(found))
        if self.labels:
            found.labels = {side: self.labels[side] for side in ("wanted", "unwanted")}
            found.notes += list(_label_notes(found, found.labels))
        if self.judged:
            found.preferences = self._preferences()
            found.notes += list(_judgement_notes(found, found.preferences))
        return found

    def _preferences(self) -> dict[str, Any]:
        votes = self.votes
        accuracy = votes.accuracy()
        raters: dict[str, dict[str, float]] = {
            name: {"n": h.n, "a": h.a, "b": h.b, "ties": h.ties} for name, h in votes.habits.items()
        }
        for name, (share, number) in accuracy.items():
            raters.setdefault(name, {}).update({"majority": share, "majority_n": number})
        return {
            "judgements": self.judged,
            "pairs": len(votes.pairs),
            "ties": self.ties,
            "ratings": dict(sorted(self.ratings.items(), key=lambda item: -float(item[0]))),
            "sources": dict(self.sources.most_common()),
            "chosen_longer": self.longer / self.pairs if self.pairs else None,
            "equally_long": self.equally_long / self.pairs if self.pairs else None,
            "repeated": votes.repeats(),
            "contradictory": votes.contradictions(),
            "disputed": votes.disputed(),
            "kappa": votes.kappa(),
            "raters": dict(sorted(raters.items(), key=lambda item: -item[1].get("n", 0))),
            "position_bias": [
                {"rater_id": h.rater_id, "share_a": h.a / (h.a + h.b), "n": h.a + h.b, "p": h.p_value}
                for h in votes.biased()
            ],
        }


def kind_of(row: Row) -> Kind:
    """What a row's fields say that it is, the most particular first."""
    for kind in LEARNT_FROM:
        if kind == "pairs" and row.has("completions") and not any(row.has(name) for name in shapes.ORDERS):
            continue  # a solution in steps
        if kind == "labels" and not row.has("completion"):
            continue  # a class of a text, perhaps
        try:
            shape(row, kind)
        except BadRow:
            continue
        return kind
    raise BadRow("unknown shape", f"its fields are {', '.join(row.names) or 'none'}: no kind of row has these")


def _described(row: Row, kind: Kind) -> str:
    """The fields that a row is recognised by, such as "prompt + chosen + rejected"."""
    name = shape(row, kind)
    if name == "completions":
        order = next((order for order in shapes.ORDERS if row.given(order)), "labels")
        return f"prompt + completions + {order}"
    others = {**dict(shapes.STYLES), "label": "completion"}
    fields = [*(["prompt"] if row.has("prompt") and name != "prompt" else []), name]
    return " + ".join([*fields, *([others[name]] if name in others else [])])


def _completions(example: Any) -> list[Side]:
    if isinstance(example, Steps):
        return ["".join(example.completions)]
    names = ("chosen", "rejected") if hasattr(example, "chosen") else ("completion",)
    return [getattr(example, name) for name in names if hasattr(example, name)]


def _row_notes(found: Inspection):
    bad = sum(n for reason, n in found.counted.items() if reason not in JUDGED)
    for reason, n in found.counted.items():
        advice = "not used, as data.ties and data.ratings say" if reason in JUDGED else "mend or remove them"
        yield Note("warning", f"{n:,} of {found.rows:,} rows are skipped: {reason}", found.first[reason][0], advice)
    if not found.used:
        yield Note("error", "no row can train", found.name, "see the reasons above")
    elif bad > MAX_BAD * found.rows:
        advice = "mend the file, or rename columns (data.prompt_field and its like)"
        what = f"{bad / found.rows:.0%} of the rows cannot train; above {MAX_BAD:.0%} a run is refused"
        yield Note("error", what, found.name, advice)
    if len(found.shapes) > 1:
        yield Note("info", f"rows of {len(found.shapes)} shapes: {', '.join(found.shapes)}", found.name, "")


def _label_notes(found: Inspection, labels: dict[str, int]):
    few, many = sorted(labels, key=lambda side: labels[side])
    whole = sum(labels.values())
    if not labels[few]:
        what = f"all {whole:,} completions are {many}"
        yield Note("warning", what, found.name, f"methods that learn from labels need both: add some that are {few}")
    elif labels[many] > LOPSIDED * whole:
        what = f"{labels[many] / whole:.0%} of the completions are {many} ({labels[few]:,} are not)"
        advice = "weigh the sides alike: fiducial doctor RECIPE names the weights hparams.lambda_d and lambda_u"
        yield Note("warning", what, found.name, advice)


def _judgement_notes(found: Inspection, seen: dict[str, Any]):
    name = found.name
    if seen["ties"] == seen["judgements"]:
        yield Note(
            "error", f"all {seen['ties']:,} judgements are ties", name, "nothing says what is better: collect more"
        )
    for habit in seen["position_bias"]:
        who = f"rater {habit['rater_id']!r}" if habit["rater_id"] else "who judged"
        share = max(habit["share_a"], 1 - habit["share_a"])
        side = "A" if habit["share_a"] > 0.5 else "B"
        often = "always" if share == 1 else f"in {share:.0%}"
        what = (
            f"{who} answers {side} {often} of {habit['n']:,} judgements (chance gives this with p = {habit['p']:.2g})"
        )
        advice = "leave this rater out, or show every pair in both orders" if habit["rater_id"] else "show both orders"
        yield Note("warning", what.replace(" always of", " in all"), name, advice)
    if seen["contradictory"]:
        what = f"{seen['contradictory']:,} pairs are judged both ways by the same rater"
        yield Note("warning", what, name, "all rows train, and pull against each other: keep one, or a pref_prob")
    if seen["repeated"]:
        yield Note("info", f"{seen['repeated']:,} judgements are there more than once", name, "each row trains")
    if seen["disputed"]:
        what = f"raters disagree on {seen['disputed']:,} of {seen['pairs']:,} pairs"
        yield Note("info", what, name, "all rows train, which is a soft preference")
    longer, equal = seen["chosen_longer"], seen["equally_long"]
    if longer is not None and max(longer, 1 - longer - equal) > ONE_SIDED:
        what = f"the chosen side is the longer one in {longer:.0%} of the pairs, equally long in {equal:.0%}"
        yield Note("warning", what, name, "a model may learn length instead: look at accuracy by length")

"""A data set that is checked before it trains: every row parsed, encoded, measured, and used or counted with a reason.

Only row numbers and lengths stay in memory (17 bytes an example); examples are read and encoded again when asked for.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

from fiducial.core.types import Demo, Encoded, Label
from fiducial.data.files import RowSource
from fiducial.data.preferences.grading import Grading
from fiducial.data.rows import Example, Kind, parse
from fiducial.data.view import BadRow

TooLong = Literal["refuse", "drop", "truncate"]
LONG = ("too long", "prompt too long")  # reasons of rows that `too_long` decides about
JUDGED = ("tie", "slight", "unwanted")  # reasons that say nothing against the file
UNKNOWN = 0.01  # a larger share of unknown tokens is a warning
SHOWN = 3  # examples kept of each reason, and of usable rows

Encode = Callable[[Any], list[Encoded]]
"""Token ids of an example: one `Encoded` for demos, labels and steps, [chosen, rejected] for pairs, and for problems
the prompt alone, of which nothing trains. BadRow skips the row, another ValueError stops."""


@dataclass(frozen=True)
class Item:
    """One example and its token ids, `cut` of which lost their end to `max_length`."""

    example: Any  # a Demo, Pair, Label, Problem or Steps, as the data set's kind says
    encoded: list[Encoded]
    cut: int = 0


@dataclass(frozen=True)
class Quantiles:
    """Lengths in tokens, by nearest rank: the smallest length that this share of rows does not exceed."""

    min: int = 0
    median: int = 0
    p90: int = 0
    p99: int = 0
    max: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Quantiles:
        """
        >>> Quantiles.of([3, 1, 2, 10])
        Quantiles(min=1, median=2, p90=10, p99=10, max=10)
        """
        if not len(lengths):
            return cls()
        ordered = torch.tensor(lengths, dtype=torch.int32).sort().values
        ranks = [max(math.ceil(share * len(ordered) / 100), 1) - 1 for share in (0, 50, 90, 99, 100)]
        return cls(*ordered[ranks].tolist())


@dataclass(frozen=True)
class DataReport:
    """What the preflight saw. `rows` is `used` and the sum of `counted`."""

    name: str
    kind: Kind
    rows: int
    used: int
    counted: dict[str, int]  # skipped rows by reason, the most frequent first
    first: dict[str, list[str]]  # of each reason, where and what the first of them were
    prompt: Quantiles  # tokens before the first that trains
    completion: Quantiles  # tokens from there on
    completions: int  # how many were measured: two for each pair
    truncated: int  # of them, those cut at max_length: they lose their stop token
    trained_tokens: int
    stop_trained: float | None  # share of completions whose stop token trains; None: no stop token, or problems
    max_length: int
    tokens: int = 0  # of the examples, what does not train included
    unknown: int = 0  # of them, those that stand for text which the tokenizer does not know
    left_out: dict[str, int] = field(default_factory=dict)  # comparisons within used rankings that give no pair
    labels: dict[str, float] = field(default_factory=dict)  # weight of wanted and unwanted completions; of labels only
    notes: list[str] = field(default_factory=list)  # what the file's reader passed over
    samples: list[Item] = field(default_factory=list)

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that stand for text which the tokenizer does not know."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in ("prompt", "completion", "samples")}
        return {**plain, "quantiles": {"prompt": asdict(self.prompt), "completion": asdict(self.completion)}}

    def render(self, console_colors: bool = False) -> str:
        """A short table for people."""

        def warn(text: str) -> str:
            return f"\x1b[33m{text}\x1b[0m" if console_colors else text

        lines = [f"{self.name} as {self.kind}: {self.used:,} of {self.rows:,} rows used"]
        lines += [warn(f"  skipped {n:,} {why}, first {self.first[why][0]}") for why, n in self.counted.items()]
        lines += [f"  left out {n:,} comparisons within rankings: {why}" for why, n in self.left_out.items()]
        lines += [f"  {note}" for note in self.notes]
        lines.append(f"  {'tokens':<12}" + "".join(f"{head:>8}" for head in ("min", "50 %", "90 %", "99 %", "max")))
        for name, lengths in (("prompt", self.prompt), ("completion", self.completion)):
            if lengths.max:
                lines.append(f"  {name:<12}" + "".join(f"{value:>8,}" for value in asdict(lengths).values()))
        if self.kind != "problems":
            lines.append(f"  {self.trained_tokens:,} tokens train")
        if self.labels:
            lines.append("  " + ", ".join(f"{weight:,.10g} {side}" for side, weight in self.labels.items()))
        if self.unknown:
            share = f"  {self.unknown:,} of {self.tokens:,} tokens ({self.unknown_share:.2%})"
            text = f"{share} are unknown to the tokenizer"
            lines.append(warn(f"{text}: what they stood for is lost") if self.unknown_share > UNKNOWN else text)
        if self.truncated:
            share = f"{self.truncated:,} of {self.completions:,} completions ({self.truncated / self.completions:.1%})"
            lines.append(warn(f"  {share} cut at {self.max_length:,} tokens: they lose their stop token"))
        if self.stop_trained == 0:
            lines.append(warn("  the stop token never trains: completions will not learn to end"))
        elif self.stop_trained is not None:
            lines.append(f"  the stop token trains in {self.stop_trained:.1%} of completions")
        return "\n".join(lines)


class Dataset:
    """Examples of one kind from rows, checked before the first step.

    `encode` turns an example into token ids. Rows that cannot train are counted and skipped up to the share `max_bad`
    of all rows. A row with more than `max_length` tokens follows `too_long`: "refuse" stops, "drop" skips and counts,
    "truncate" cuts completions at the end and counts; a prompt that leaves no room for a completion is never cut.
    Plain text has no end to lose: however long, it is read in blocks of `max_length`, each token training once.
    A row of several examples is used whole or not at all. What ratings and ties become is `grading`'s to say. The
    report counts the tokens `unk_id`, which stand for text that the tokenizer does not know. `progress(done, rows)` is
    called after every row.

    Raises ValueError for a file that cannot be read, too many bad rows, or rows that are too long under "refuse".
    """

    def __init__(
        self,
        source: RowSource,
        kind: Kind,
        encode: Encode,
        *,
        max_length: int,
        fields: Mapping[str, str] | None = None,
        grading: Grading | None = None,
        too_long: TooLong = "refuse",
        max_bad: float = 0.05,
        stop_id: int | None = None,
        unk_id: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1 token; it is {max_length}")
        if too_long not in ("refuse", "drop", "truncate"):
            raise ValueError(f'too_long must be "refuse", "drop" or "truncate"; it is {too_long!r}')
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad is a share of the rows, in [0, 1]; it is {max_bad}")
        self.source, self.encode, self.fields = source, encode, dict(fields or {})
        self.kind: Kind = kind
        self.grading = grading or Grading()
        self.max_length, self.too_long = max_length, too_long
        self._rows = array("q")  # row of the source that each example comes from
        self._parts = array("l")  # which of the row's examples it is
        self._lengths = array("q")  # tokens of its longest side
        tally = self._preflight(_Tally(stop_id, unk_id), progress)
        self._refuse_long(tally)
        self._refuse_bad(tally, max_bad)
        self.report = tally.report(source, kind, max_length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, j: int) -> Item:
        if not 0 <= j < len(self):
            raise IndexError(f"{self.source.name} gives {len(self)} examples; there is no example {j}")
        return self._items(self._rows[j])[self._parts[j]]

    def __iter__(self) -> Iterator[Item]:
        return (self[j] for j in range(len(self)))

    def row(self, j: int) -> int:
        """The number of the row that example `j` comes from."""
        return self._rows[j]

    def where(self, j: int) -> str:
        """The place in the file of example `j`."""
        return self.source.where(self._rows[j])

    @property
    def lengths(self) -> Tensor:
        """Tokens of each example, of a pair's longer side; [N] int64."""
        return torch.tensor(self._lengths, dtype=torch.int64)

    def _items(self, row: int, left_out: Counter[str] | None = None) -> list[Item]:
        """The examples of a row as they train. Raises BadRow."""
        examples = parse(self.source[row], self.kind, self.fields, row, self.grading, left_out)
        encoded = [self._encode(example, row) for example in examples]
        longest = max(len(side.token_ids) for sides in encoded for side in sides)
        if longest <= self.max_length:
            items = [Item(*pair) for pair in zip(examples, encoded, strict=True)]
        elif _is_plain_text(examples[0]):
            items = [Item(examples[0], [block]) for block in blocks(encoded[0][0], self.max_length)]
        else:
            items = [self._cut(*pair, longest) for pair in zip(examples, encoded, strict=True)]
        for item in items:
            self._check_trains(item)
        return items

    def _encode(self, example: Example, row: int) -> list[Encoded]:
        try:
            return self.encode(example)
        except BadRow:
            raise
        except ValueError as error:  # of the tokenizer or its chat template: no fault of the row, so not counted
            raise ValueError(f"{self.source.where(row)}: {error}") from error

    def _cut(self, example: Example, sides: list[Encoded], longest: int) -> Item:
        limit = self.max_length
        if any(prompt_length(side) >= limit for side in sides if len(side.token_ids) > limit):
            raise LongRow("prompt too long", "the prompt", longest, limit)
        if self.too_long != "truncate":
            raise LongRow("too long", "the row", longest, limit)
        cut = [Encoded(side.token_ids[:limit], side.mask[:limit]) for side in sides]
        return Item(example, cut, sum(len(side.token_ids) > limit for side in sides))

    def _check_trains(self, item: Item) -> None:
        if self.kind == "problems":
            return
        if not all(any(side.mask[1:]) for side in item.encoded):  # position 0 has no prediction
            raise BadRow("nothing to train", "none of its tokens trains")
        if self.kind in ("pairs", "costs") and item.encoded[0].token_ids == item.encoded[1].token_ids:
            raise BadRow("equal sides", "both sides are the same tokens" + " once cut" * bool(item.cut))

    def _preflight(self, tally: _Tally, progress: Callable[[int, int], None] | None) -> _Tally:
        rows = len(self.source)
        for row in range(rows):
            try:
                left_out: Counter[str] = Counter()
                items = self._items(row, left_out)
            except BadRow as bad:
                tally.skip(bad, self.source.where(row))
            else:
                for part, item in enumerate(items):
                    self._rows.append(row)
                    self._parts.append(part)
                    self._lengths.append(max(len(side.token_ids) for side in item.encoded))
                    tally.use(item)
                tally.used += 1
                tally.left_out.update(left_out)
            if progress:
                progress(row + 1, rows)
        return tally

    def _refuse_long(self, tally: _Tally) -> None:
        long = sum(tally.counted[reason] for reason in LONG)
        if self.too_long == "refuse" and long:
            raise ValueError(
                f"{self.source.name}: {long} of {len(self.source)} rows are longer than the {self.max_length:,} "
                f"tokens that fit, the longest {tally.longest:,} at {tally.longest_at}; raise data.max_length or take "
                'a model that reads more, or set data.too_long = "drop" (skip and count) or "truncate" (cut '
                "completions and count)"
            )

    def _refuse_bad(self, tally: _Tally, max_bad: float) -> None:
        excused = (*JUDGED, *LONG) if self.too_long == "drop" else JUDGED  # not broken
        bad = sum(count for reason, count in tally.counted.items() if reason not in excused)
        told = "; ".join(
            f"{count} {reason} (first {tally.first[reason][0]})" for reason, count in tally.counted.items()
        )
        place = f"{self.source.name}: {bad} of {len(self.source)} rows cannot train as {self.kind}"
        if bad / len(self.source) > max_bad:
            raise ValueError(f"{place}, more than the {max_bad:.0%} that may be skipped; repair or remove them: {told}")
        if not len(self):
            raise ValueError(f"{self.source.name}: no row is left to train as {self.kind}: {told}")


class LongRow(BadRow):
    """A row of more tokens than fit."""

    def __init__(self, reason: str, what: str, length: int, limit: int):
        super().__init__(reason, f"{what} does not fit in {limit} tokens; the whole is {length:,}")
        self.length = length


def _is_plain_text(example: Example) -> bool:
    return isinstance(example, Demo) and example.prompt == "" and isinstance(example.completion, str)


def blocks(encoded: Encoded, limit: int) -> list[Encoded]:
    """A long text in pieces of at most `limit` tokens, each beginning with what the text begins with untrained (bos).

    >>> [b.token_ids for b in blocks(Encoded([9, 1, 2, 3], [False, True, True, True]), 3)]
    [[9, 1, 2], [9, 3]]
    """
    head = prompt_length(encoded)
    size = limit - head
    start, body, mask = encoded.token_ids[:head], encoded.token_ids[head:], encoded.mask[head:]
    cuts = range(0, len(body), size)
    return [Encoded(start + body[i : i + size], [False] * head + mask[i : i + size]) for i in cuts]


def prompt_length(encoded: Encoded) -> int:
    """Tokens before the first that trains: all where none does."""
    return encoded.mask.index(True) if any(encoded.mask) else len(encoded.token_ids)


class _Tally:
    """What the preflight counts on its way through the rows."""

    def __init__(self, stop_id: int | None, unk_id: int | None):
        self.unk_id, self.tokens, self.unknown = unk_id, 0, 0
        self.stop_id, self.used, self.cut, self.trained, self.stopped = stop_id, 0, 0, 0, 0
        self.counted: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.labels: dict[str, float] = {}
        self.first: dict[str, list[str]] = {}
        self.prompts, self.completions = array("i"), array("i")
        self.samples: list[Item] = []
        self.longest, self.longest_at = 0, ""

    def skip(self, bad: BadRow, where: str) -> None:
        self.counted[bad.reason] += 1
        first = self.first.setdefault(bad.reason, [])
        if len(first) < SHOWN:
            first.append(f"{where}: {bad.detail}")
        if isinstance(bad, LongRow) and bad.length > self.longest:
            self.longest, self.longest_at = bad.length, where

    def use(self, item: Item) -> None:
        for side in item.encoded:
            prompt = prompt_length(side)
            trained = [token for token, trains in zip(side.token_ids[1:], side.mask[1:], strict=True) if trains]
            self.prompts.append(prompt)
            self.completions.append(len(side.token_ids) - prompt)
            self.trained += len(trained)
            self.tokens += len(side.token_ids)
            self.unknown += 0 if self.unk_id is None else side.token_ids.count(self.unk_id)
            self.stopped += self.stop_id in trained
        self.cut += item.cut
        if isinstance(item.example, Label):
            self.labels = self.labels or {"wanted": 0.0, "unwanted": 0.0}
            self.labels["wanted" if item.example.desirable else "unwanted"] += item.example.weight
        if len(self.samples) < SHOWN:
            self.samples.append(item)

    def report(self, source: RowSource, kind: Kind, max_length: int) -> DataReport:
        measured = len(self.prompts)
        asked = self.stop_id is not None and kind != "problems"
        return DataReport(
            name=source.name,
            kind=kind,
            rows=len(source),
            used=self.used,
            counted=dict(self.counted.most_common()),
            first=self.first,
            prompt=Quantiles.of(self.prompts),
            completion=Quantiles.of(self.completions),
            completions=measured,
            truncated=self.cut,
            trained_tokens=self.trained,
            stop_trained=self.stopped / measured if asked and measured else None,
            max_length=max_length,
            tokens=self.tokens,
            unknown=self.unknown,
            left_out=dict(self.left_out.most_common()),
            labels=self.labels,
            notes=list(source.notes),
            samples=self.samples,
        )


def colour_sample(
    decode: Callable[[list[int]], str], encoded: Encoded, console_colors: bool = True, limit: int | None = None
) -> str:
    """The text of a row with what trains marked: on green, and the context dim; without colours in [[ ]].

    Of a stretch of more than `limit` characters the middle is left out, so that what trains is in sight.

    >>> colour_sample(lambda ids: "".join(map(chr, ids)), Encoded([97, 98, 99], [False, True, True]), False)
    'a[[bc]]'
    """
    trains = [i > 0 and trained for i, trained in enumerate(encoded.mask)]  # position 0 has no prediction
    parts = []
    for marked, run in groupby(zip(trains, encoded.token_ids, strict=True), key=itemgetter(0)):
        text = _without_middle(decode([token for _, token in run]), limit)
        if console_colors:
            parts.append(f"\x1b[30;42m{text}\x1b[0m" if marked else f"\x1b[2m{text}\x1b[0m")
        else:
            parts.append(f"[[{text}]]" if marked else text)
    return "".join(parts)


def _without_middle(text: str, limit: int | None) -> str:
    """
    >>> _without_middle("abcdefghij", 4)
    'ab ... (6 characters) ... ij'
    """
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[len(text) - half :]}"

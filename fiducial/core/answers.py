r"""Finding the answer in a completion, and reading it as an exact number. Standard library only.

A completion states its answer in one of a few ways. The extractors try them in order and the first hit wins:
`<answer>..</answer>` (last complete pair), the last balanced `\boxed{..}`, the last `#### number`, the last
"the answer is ..", the last number. Within one way the last statement counts, so that a model may correct itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, Literal

MAX_SCAN = 100_000  # characters; an answer stands at the end, so of a longer text only the end is read
MAX_NUMBER = 500  # characters of a number; no task needs more, and reading digits takes quadratic time

Percent = Literal["either", "hundredth"]


@dataclass(frozen=True)
class Extracted:
    """An answer and where it stands: `source[span[0]:span[1]] == text`."""

    text: str
    span: tuple[int, int]
    extractor: str


Span = tuple[int, int]

# --------------------------------------------------------------------------- numbers, as text

_SIGN = r"[-+−]"
# Thousands in groups of three, or plain digits. Atomic, so that "15km" is never read as "1" followed by something.
_DECIMAL = r"(?>(?:\d{1,3}(?:,\d{3}){1,12}(?!\d)|\d{1,400})(?:\.\d{1,400})?|\.\d{1,400})"
_EXPONENT = rf"{_SIGN}?\d{{1,4}}"
_POWER = rf"(?:[eE]{_EXPONENT}|\s?(?:\\times|\\cdot|×|\*)\s?10\s?\^\s?(?:\{{\s?{_EXPONENT}\s?\}}|{_EXPONENT}))"
# No single letters: "2m" is as likely two times m. In `\text{m}` they are units.
_UNITS = (
    "km/h|m/s|km|cm|mm|nm|kg|mg|lbs?|oz|mL|ml|hrs?|mins?|secs?|ms|mph|kph|kHz|MHz|Hz|keV|MeV|eV|Pa|mol|°C|°F|°|ft|yd"
    "|cents?|dollars?|degrees?|years?|days?|hours?|minutes?|seconds?"
)
_NUMBER_TEXT = re.compile(
    rf"(?:(?<![\w)\]}}]){_SIGN})?(?<!\w)(?<!\d,)\\?\$?{_SIGN}?{_DECIMAL}{_POWER}?(?:/{_DECIMAL})?"
    rf"(?:(?!\w)|(?=(?:{_UNITS})(?!\w)))(?:\s?\\?%)?"
)
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN}?)\s?\$?\s?(?P<sign2>{_SIGN}?)\s?(?P<number>{_DECIMAL})(?P<power>{_POWER})?"
    rf"(?:\s?/\s?(?P<denominator>{_DECIMAL}))?\s?(?P<percent>%|percent|per cent)?(?:\s?(?:{_UNITS}))?\$?"
)

# Words around a lone number that change its value or make it part of a formula.
_NOT_PROSE = frozenset(
    "negative minus plus times over half third quarter dozen hundred thousand million billion trillion percent cent"
    " sqrt pi sin cos tan cot sec csc arcsin arccos arctan log ln exp mod choose"
    " not or and infinity squared cubed".split()
)
_PROSE = re.compile(r"(?:[A-Za-z\s.,;:?()\"“”'’]|(?<=[A-Za-z])-(?=[A-Za-z]))*")


def _tidy_number(text: str) -> str:
    """Strip what LaTeX and typography put around a number."""
    text = text.replace("−", "-").replace("\u00a0", " ").replace("\u202f", " ").replace("\u2009", " ")
    text = re.sub(r"\\[,!;: ]|\{,\}", lambda m: "," if m[0] == "{,}" else "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox|textrm)\s?\{([^{}]*)\}", _without_unit, text)
    text = re.sub(r"\^\s?(?:\\circ|\{\s?\\circ\s?\})", "°", text)
    text = re.sub(r"(?<![\d.}])\\[dt]?frac\s?\{([^{}]+)\}\s?\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"(?<![\d.}])\\[dt]?frac\s?(\d)\s?(\d)", r"\1/\2", text)
    text = re.sub(r"(\d)\.(?=\s?/)", r"\1", text)  # "1./3", as Python writes it
    text = re.sub(r"\s+", " ", text.replace("\\$", "$").replace("\\%", "%"))
    return text.strip(" *`").rstrip(".").rstrip()


def _without_unit(match: re.Match[str]) -> str:
    r"""What remains of `\text{..}`: words that name a unit go, words or digits that change the value stay."""
    words = match[1].replace("~", " ").strip()
    harmless = re.fullmatch(r"[A-Za-zµ°. /]*", words) and not _NOT_PROSE.intersection(words.lower().split())
    return "" if harmless else f" {words}"


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number, else None.

    Understands thousands separators, currency signs, percent (a hundredth), fractions `a/b` and `\frac{a}{b}`,
    scientific notation (`4.5e33`, `4.5 \times 10^{33}`), the unicode minus, a trailing period and common units.

    >>> parse_number("$1,250.50"), parse_number("-3/4"), parse_number("50%"), parse_number("2x")
    (Fraction(2501, 2), Fraction(-3, 4), Fraction(1, 2), None)
    """
    if len(text) > MAX_NUMBER:
        return None
    match = _NUMBER.fullmatch(_tidy_number(text))
    if match is None or (match["sign"] and match["sign2"]):
        return None
    value = Fraction(match["number"].replace(",", ""))
    if match["power"]:
        value *= Fraction(10) ** int(_exponent(match["power"]))
    if match["denominator"]:
        denominator = Fraction(match["denominator"].replace(",", ""))
        if denominator == 0:
            return None
        value /= denominator
    if match["percent"]:
        value /= 100
    return -value if "-" in match["sign"] + match["sign2"] else value


def _exponent(power: str) -> str:
    """The digits of `e33`, `\\times 10^{33}`."""
    return re.sub(r"[{}\s]", "", re.split(r"\^|[eE](?=[-+\d])", power.replace("−", "-"))[-1])


def read_number(text: str) -> Fraction | None:
    """The value of a number that stands alone in prose, or after the last equals sign; else None.

    Two numbers are two candidates and give None, and so does a number that is part of a formula.

    >>> read_number("72 clips"), read_number("3 * 4 = 12 eggs"), read_number("3 or 4"), read_number("x + 2")
    (Fraction(72, 1), Fraction(12, 1), None, None)
    """
    if len(text) > MAX_NUMBER:
        return None
    whole = parse_number(text)
    if whole is not None:
        return whole
    text = _tidy_number(text.rsplit("=", 1)[-1])
    found = list(_NUMBER_TEXT.finditer(text))
    if len(found) != 1:
        return parse_number(text)
    start, end = found[0].span()
    before, after = text[:start], text[end:]
    words = re.findall(r"[A-Za-z]+", f"{before} {after}".lower())
    lone = [word for word in words if len(word) == 1 and word not in ("a", "i")]
    if lone or _NOT_PROSE.intersection(words) or not (_PROSE.fullmatch(before) and _PROSE.fullmatch(after)):
        return None
    return parse_number(found[0][0])


def readings(text: str, percent: Percent = "either") -> tuple[Fraction, ...]:
    """The values a text may stand for: none, one, or with `percent="either"` two, as "50%" may mean 1/2 or 50.

    >>> readings("50%"), readings("50%", percent="hundredth"), readings("none")
    ((Fraction(1, 2), Fraction(50, 1)), (Fraction(1, 2),), ())
    """
    value = read_number(text)
    if value is None:
        return ()
    if percent == "either" and re.search(r"%|per ?cent", text):
        return value, value * 100
    return (value,)


# --------------------------------------------------------------------------- extractors: text -> span of the answer


def _tag(text: str) -> Span | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    if start < 0:
        return None
    start += len("<answer>")
    inner = _boxed(text[start:end])
    return (start + inner[0], start + inner[1]) if inner else (start, end)


_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,5}\{|\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> Span | None:
    r"""Inside of the `\boxed{}` that starts last among the balanced ones. One pass; escaped braces do not count."""
    opened: list[tuple[int, bool]] = []
    last: Span | None = None
    for match in _BRACE.finditer(text):
        token = match[0]
        if token == "{" or len(token) > 2:  # longer than an escape: a box
            opened.append((match.end(), len(token) > 2))
        elif token == "}" and opened:
            start, box = opened.pop()
            if box and (last is None or start > last[0]):
                last = (start, match.start())
    return last


_HASH = re.compile(rf"####[ \t]*(?P<answer>{_NUMBER_TEXT.pattern})[ \t.]*(?=$|\n|\r|<)")


def _hash(text: str) -> Span | None:
    found = [match.span("answer") for match in _HASH.finditer(text)]
    return found[-1] if found else None


_SENTENCE = re.compile(r"\banswer(?:\s{1,3}is\b|\**\s?[:=])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?:[.?]|(?<![\d)}])!)(?=\s|$)|\n|\r")  # "5!" is a number


def _sentence(text: str) -> Span | None:
    for match in reversed(list(_SENTENCE.finditer(text))):
        start = match.end()
        while start < len(text) and (text[start].isspace() or text[start] in ":*"):
            start += 1
        stop = _SENTENCE_END.search(text, start)
        end = stop.start() if stop else len(text)
        if end > start:
            return start, end
    return None


def _number(text: str) -> Span | None:
    last = None
    for match in _NUMBER_TEXT.finditer(text):
        last = match.span()
    return last


_FUNCTION = re.compile(r"\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi)\b|\\text\s?\{[^{}]*\}")


def _expression(text: str) -> Span | None:
    """A completion that is nothing but one short formula, or a last `$formula$` that no number follows."""
    bare = text.strip()
    if bare and len(bare) <= 200 and "\n" not in bare and not re.search(r"[A-Za-z]{2}", _FUNCTION.sub("", bare)):
        return 0, len(text)
    number, formula = _number(text), _last_formula(text)
    return formula if formula and (number is None or number[1] <= formula[1]) else None


def _last_formula(text: str) -> Span | None:
    spans = []
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        end = text.rfind(closing)
        start = text.rfind(opening, 0, end) + len(opening) if end > 0 else -1
        if len(opening) <= start < end:
            spans.append((start, end))
    return max(spans, key=lambda span: span[1], default=None)


EXTRACTORS: dict[str, Callable[[str], Span | None]] = {
    "tag": _tag,
    "boxed": _boxed,
    "hash": _hash,
    "sentence": _sentence,
    "expression": _expression,
    "number": _number,
}
ORDER = ("tag", "boxed", "hash", "sentence", "number")  # the default
MARKED = ("tag", "boxed", "hash", "sentence")  # what says in words or marks that it is the answer
MATH = ("tag", "boxed", "hash", "sentence", "expression", "number")

_LEFT = re.compile(r"(?:[\s*$`]|\\[(\[]|\\\$)*")
_RIGHT = re.compile(r"(?:[\s*$`,;:]|\.(?!thgir\\)|[)\]]\\|\$\\)*")  # on the reversed text


def _trim(text: str, start: int, end: int) -> Span:
    """Shrink a span past white space, math delimiters, bold marks and a trailing period."""
    inner = text[start:end]
    start += _LEFT.match(inner).end()  # type: ignore[union-attr]
    inner = text[start:end]
    return start, max(start, end - _RIGHT.match(inner[::-1]).end())  # type: ignore[union-attr]


def extract_answer(text: str, order: Sequence[str] = ORDER) -> Extracted | None:
    r"""The answer that a completion states, by the first extractor of `order` that finds one; None when none does.

    >>> extract_answer(r"First \boxed{1}. No: \boxed{\frac{1}{2}}.").text
    '\\frac{1}{2}'
    >>> extract_answer("48 + 24 = 72\n#### 72").extractor
    'hash'
    """
    cut = max(0, len(text) - MAX_SCAN)
    tail = text[cut:]
    for name in order:
        span = EXTRACTORS[name](tail)
        if span is None:
            continue
        start, end = _trim(tail, *span)
        if end > start:
            return Extracted(tail[start:end], (cut + start, cut + end), name)
    return None


# --------------------------------------------------------------------------- gold answers and plain equality


def gold_text(answer: Any) -> str | None:
    r"""A row's gold answer as text; None when it holds none. A worked solution is cut down to the answer that it marks.

    >>> gold_text(27.0), gold_text("Sum: 72.\n#### 72"), gold_text(r"so $\boxed{\pi}$"), gold_text("  ")
    ('27', '72', '\\pi', None)
    """
    if isinstance(answer, bool):
        return None
    if isinstance(answer, Integral):  # numpy's numbers too, as parquet files give them
        return str(int(answer))
    if isinstance(answer, Real):
        number = float(answer)
        return str(int(number)) if number.is_integer() else repr(number)
    if not isinstance(answer, str):
        return None
    marked = extract_answer(answer, ("tag", "boxed", "hash"))
    return marked.text if marked else answer.strip() or None


def normalize_answer(text: str, ignore_case: bool = True) -> str:
    r"""The text without what does not change an answer: case, outer quotes and marks, trailing period, runs of space.

    Applied twice it gives the same as once.

    >>> normalize_answer(" **The  Eiffel Tower.** ")
    'the eiffel tower'
    """
    while (tidied := _normalize_once(text, ignore_case)) != text:
        text = tidied
    return text


def _normalize_once(text: str, ignore_case: bool) -> str:
    text = unicodedata.normalize("NFC", text.casefold() if ignore_case else text)
    text = " ".join(text.replace("−", "-").split()).strip("\"'`*$“”‘’ ").rstrip(". ")
    wrapped = re.fullmatch(r"\\(?:boxed|text|mathrm|textbf|mathbf)\s?\{([^{}]*)\}", text)
    text = wrapped[1] if wrapped else text
    return text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text) else text

"""Rewards for how a completion is written, beside one for what it says: its length, its repetitions, its language.

They are grades, so beside a verdict they have no say in what counts as correct.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from fiducial.core.shaping import overlong_penalty
from fiducial.core.types import Score
from fiducial.rewards import language as detector
from fiducial.rewards.instructions import count_words
from fiducial.rewards.repetition import repetition
from fiducial.rewards.verdicts import Verifier, score


def grade(value: float, why: str) -> Score:
    """A number that calls nothing right or wrong."""
    return Score(value, "correct" if value >= 1 else "wrong", why, graded=True)


class Overlong(Verifier):
    """DAPO's penalty of length in [-1, 0]: 0 up to `max_length` - `cache` tokens, -1 from `max_length` on.

    The row's `num_tokens` is the completion's length; the training loop and evaluations fill it in.

    >>> Overlong(max_length=20, cache=4)(["..."], [{"num_tokens": 18}])[0].value
    -0.5
    """

    name = "overlong"

    def __init__(self, *, max_length: int = 20480, cache: int = 4096):
        overlong_penalty(0, max_length, cache)  # refuses what makes no sense
        self.max_length, self.cache = max_length, cache

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        length = row.get("num_tokens")
        if isinstance(length, bool) or not isinstance(length, int | float):
            return score("skipped", "the row has no number in the field 'num_tokens'")
        allowed = self.max_length - self.cache
        return grade(
            overlong_penalty(int(length), self.max_length, self.cache),
            f"{int(length)} tokens; no penalty up to {allowed}",
        )


class Repetition(Verifier):
    """`penalty` times the share of n-grams of words that are repeats, 1 - distinct / all: 0 where none is.

    >>> round(Repetition()(["a a a a a"], [{}])[0].value, 3)
    -0.667
    """

    name = "repetition"

    def __init__(self, *, n: int = 3, penalty: float = -1.0):
        if n < 1 or penalty > 0:
            raise ValueError(f"n must be at least 1 and penalty 0 or less; they are {n} and {penalty}")
        self.n, self.penalty = n, penalty

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        share = repetition(completion.split(), self.n)
        return grade(self.penalty * share if share else 0.0, f"{share:.0%} of its {self.n}-grams are repeats")


class LanguageConsistency(Verifier):
    """The share of the thought's words that are in the wanted language, in [0, 1] (DeepSeek-R1, arXiv:2501.12948).

    The language is the row's `language` (an ISO 639-1 code), else the option's. The thought is the think block, or all
    of a completion without one; code, formulas and numbers do not count. `by="script"` tells languages apart by their
    letters and needs nothing; `by="detector"` asks langdetect of each sentence, which tells German from English too.
    A thought without words is unparseable.

    >>> LanguageConsistency()(["<think>first 首先 then 然后</think>"], [{"language": "en"}])[0].value
    0.5
    """

    name = "language_consistency"

    def __init__(self, *, language: str = "en", by: Literal["script", "detector"] = "script"):
        if by not in ("script", "detector"):
            raise ValueError(f"by must be 'script' or 'detector'; it is {by!r}")
        self.language, self.by = language, by

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        wanted = row.get("language") or self.language
        begun = completion.partition("<think>")[2] if "<think>" in completion else completion
        thought = prose(begun.partition("</think>")[0])
        try:
            share = script_share(thought, wanted) if self.by == "script" else detected_share(thought, wanted)
        except (ValueError, detector.NoDetector) as error:
            return score("skipped", str(error))
        if share is None:
            return score("unparseable", "the thought has no words")
        return grade(share, f"{share:.0%} of the thought's words are in {wanted!r}")


_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$[^$]*\$\$|\$[^$\n]*\$|\\\[[^\[\]]*\\\]|\\\([^()]*\\\)|\\boxed\{[^{}]*\}|\\[A-Za-z]+"
    r"|</?[a-z]+>|https?://\S+",
    re.DOTALL,
)


def prose(text: str) -> str:
    """The text without code, formulas, tags and addresses."""
    return _NOT_PROSE.sub(" ", text)


LATIN, CYRILLIC, ARABIC, DEVANAGARI = ({name} for name in ("LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI"))
SCRIPTS: dict[str, set[str]] = {  # the first word of a letter's Unicode name, by language
    **dict.fromkeys(
        "en de fr es it pt nl sv no da fi pl cs sk sl hr hu ro et lv lt sq tr vi id tl sw so af ca cy".split(), LATIN
    ),
    **dict.fromkeys("ru uk bg mk".split(), CYRILLIC),
    **dict.fromkeys("ar fa ur".split(), ARABIC),
    **dict.fromkeys("hi mr ne".split(), DEVANAGARI),
    "zh": {"CJK"}, "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}, "ko": {"HANGUL"}, "el": {"GREEK"},
    "he": {"HEBREW"}, "th": {"THAI"}, "bn": {"BENGALI"}, "gu": {"GUJARATI"}, "pa": {"GURMUKHI"}, "kn": {"KANNADA"},
    "ml": {"MALAYALAM"}, "ta": {"TAMIL"}, "te": {"TELUGU"},
}  # fmt: skip
UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "THAI"}  # two letters count as a word


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0]


def script_share(text: str, wanted: str) -> float | None:
    """The share of words written in the scripts of a language; None for a text without words.

    Where words are not set apart by spaces, every two letters count as one. ValueError for a language without an entry.

    >>> script_share("well 好吧 x2", "zh")
    0.3333333333333333
    """
    scripts = SCRIPTS.get(wanted.lower().split("-")[0])
    if scripts is None:
        raise ValueError(
            f"there is no script known for the language {wanted!r}; there are {', '.join(sorted(SCRIPTS))}"
        )
    words: dict[bool, float] = {True: 0.0, False: 0.0}
    for run in re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text)):
        letters = [(script, script in scripts) for script in map(_script, run)]
        dense = [inside for script, inside in letters if script in UNSPACED]
        spaced = [inside for script, inside in letters if script not in UNSPACED]
        for inside in dense:
            words[inside] += 0.5
        if spaced:  # a word of mixed letters is in the language of most of them
            words[2 * sum(spaced) > len(spaced)] += 1
    total = words[True] + words[False]
    return words[True] / total if total else None


def detected_share(text: str, wanted: str, detect: Callable[[str], str | None] = detector.detect) -> float | None:
    """The share of words that stand in sentences of a language, as the detector tells it; None where it tells nothing.

    A sentence in which it finds nothing counts as none. ValueError for a language that the detector does not know.
    """
    if not any(detector.same_language(code, wanted) for code in detector.languages()):
        raise ValueError(f"langdetect does not know the language {wanted!r}: {', '.join(sorted(detector.languages()))}")
    inside = total = 0
    for sentence in re.split(r"(?<=[.!?。！？।])\s+|\n+", text):
        found = detect(sentence) if sentence.strip() else None
        if found is not None:
            total += count_words(sentence)
            inside += count_words(sentence) if detector.same_language(found, wanted) else 0
    return inside / total if total else None

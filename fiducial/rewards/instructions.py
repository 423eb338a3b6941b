r"""The 25 kinds of verifiable instruction of IFEval (Zhou et al. 2023, arXiv:2311.07911), one function each.

A function takes the completion and the instruction's own arguments and returns (followed, what it saw). All take time
in proportion to the text, whatever is in it. Where the published checker can be satisfied by writing nothing to the
point, this one is stricter: a text that is in no language is not in the asked one, and an empty title is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Literal

from fiducial.rewards import language

Relation = Literal["less than", "at least", "at most", "more than", "exactly"]  # IFEval has the first two
Seen = tuple[bool, str]

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "less than": int.__lt__,
    "at least": int.__ge__,
    "at most": int.__le__,
    "more than": int.__gt__,
    "exactly": int.__eq__,
}


def _counted(count: int, what: str, relation: Relation, wanted: int) -> Seen:
    return _COMPARE[relation](count, wanted), f"{what}: {count}, {relation} {wanted} wanted"


# --------------------------------------------------------------------------- units of a text

_WORD = re.compile(r"\w+")
# A word with its inner hyphens, apostrophes and full stops: "well-known", "IT'S", "U.S." are one each.
_WHOLE_WORD = re.compile(r"[^\W_]+(?:[-'’.&][^\W_]+)*")
_STOP = ".!?。！？।؟۔…"
_END = re.compile(rf"(?<![{_STOP}])[{_STOP}]++[\"'”’»)\]*_]*+(?=\s|$|[^\x00-\u024f])")
_NEXT = re.compile(r"\s*(\S)")
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof sr jr st vs etc e.g i.e cf al no vol fig dept gov gen col capt lt sgt rev hon inc ltd co corp"
    " jan feb mar apr jun jul aug sep sept oct nov dec a.m p.m u.s u.k p.s p.p.s ph.d approx est".split()
)
ENDS_TOO = frozenset(
    {"etc", "a.m", "p.m", "no", "inc", "ltd", "co", "corp", "u.s", "u.k"}
)  # of these, what a capital after it ends


def count_words(text: str) -> int:
    r"""Runs of letters, digits and underscores, so that "well-known" is two words.

    >>> count_words("A well-known fact.")
    4
    """
    return len(_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Stretches that end in a full stop, question or exclamation mark, and what is left at the end.

    Abbreviations, initials and the numbers of a list do not end a sentence; neither does a new line by itself.

    >>> count_sentences("Dr. J. Doe paid 3.50. Why? No idea")
    3
    """
    count = start = 0
    for match in _END.finditer(text):
        if match[0] not in (".", "...", "…") or not _goes_on(text, match):
            count += bool(_WORD.search(text, start, match.start()))
            start = match.end()
    return count + bool(_WORD.search(text, start))


def _goes_on(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence goes on after this full stop or ellipsis."""
    following = _NEXT.match(text, match.end())
    after = following[1] if following else ""
    if match[0] != ".":
        return after.islower()  # "well... perhaps"
    before = text[max(0, match.start() - 20) : match.start()]
    line = before.rpartition("\n")[2]
    if re.fullmatch(r"[ \t*#>_-]*(?:[^\W\d_]|\d{1,3})", line) and (line != before or match.start() <= 20):
        return bool(after)  # "1." at the start of a line
    last = re.split(r"[^\w.]", line)[-1]
    if len(last) == 1 and last.isupper() and last != "I":
        return bool(after)  # an initial
    ends_too = ENDS_TOO if after.isupper() else set()
    return bool(after) and last.lower() in ABBREVIATIONS - ends_too


def _parts(text: str, divider: str) -> list[str] | None:
    """What stands between dividers; nothing before the first and after the last is allowed, None where one is empty."""
    parts = text.split(divider)
    inner = [part for i, part in enumerate(parts) if part.strip() or 0 < i < len(parts) - 1]
    return inner if all(part.strip() for part in inner) else None


# --------------------------------------------------------------------------- keywords


def existence(completion: str, *, keywords: list[str]) -> Seen:
    """Every keyword occurs, in whatever case, also inside a word."""
    text = completion.lower()
    missing = [word for word in keywords if word.lower() not in text]
    return not missing, f"missing: {', '.join(missing)}" if missing else "all keywords occur"


def frequency(completion: str, *, keyword: str, frequency: int, relation: Relation) -> Seen:
    """How often the keyword occurs, in whatever case, also inside a word."""
    return _counted(completion.lower().count(keyword.lower()), f"times {keyword!r}", relation, frequency)


def forbidden_words(completion: str, *, forbidden_words: list[str]) -> Seen:
    """None of the words occurs as a word of its own."""
    found = [w for w in forbidden_words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", completion, re.IGNORECASE)]
    return not found, f"it has {', '.join(found)}" if found else "none of the forbidden words"


def letter_frequency(completion: str, *, letter: str, let_frequency: int, let_relation: Relation) -> Seen:
    """How often a character occurs, in whatever case."""
    if len(letter) != 1:
        raise ValueError(f"'letter' must be one character; it is {letter!r}")
    return _counted(completion.lower().count(letter.lower()), f"times {letter!r}", let_relation, let_frequency)


# --------------------------------------------------------------------------- language


def response_language(completion: str, *, language: str) -> Seen:
    """The text is in the language with this ISO 639-1 code."""
    return _in_language(completion, language)


def _in_language(text: str, wanted: str) -> Seen:
    if not any(language.same_language(code, wanted) for code in language.languages()):
        raise ValueError(f"'language' must be one of {', '.join(sorted(language.languages()))}; it is {wanted!r}")
    found = language.detect(text)
    if found is None:
        return False, f"no language is told from it, {wanted} wanted"
    return language.same_language(found, wanted), f"it reads as {found}, {wanted} wanted"


# --------------------------------------------------------------------------- length


def number_sentences(completion: str, *, num_sentences: int, relation: Relation) -> Seen:
    """How many sentences there are."""
    return _counted(count_sentences(completion), "sentences", relation, num_sentences)


def number_words(completion: str, *, num_words: int, relation: Relation) -> Seen:
    """How many words there are."""
    return _counted(count_words(completion), "words", relation, num_words)


def number_paragraphs(completion: str, *, num_paragraphs: int) -> Seen:
    """Exactly so many paragraphs, divided by `***`."""
    parts = _parts(completion, "***")
    if parts is None:
        return False, "an empty paragraph between two ***"
    return _counted(len(parts), "paragraphs", "exactly", num_paragraphs)


def nth_paragraph_first_word(completion: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> Seen:
    """Exactly so many paragraphs, divided by blank lines, of which the n-th (from 1) starts with the word."""
    paragraphs = [part for part in re.split(r"\n\n", completion) if part.strip()]
    if len(paragraphs) != num_paragraphs:
        return False, f"paragraphs: {len(paragraphs)}, exactly {num_paragraphs} wanted"
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"'nth_paragraph' must be from 1 to {num_paragraphs}; it is {nth_paragraph}")
    start = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"“‘*_")
    found = re.split(r"[.,?!'\"”’:;*_]", start)[0].lower()
    return found == first_word.lower(), f"paragraph {nth_paragraph} starts with {found!r}, {first_word!r} wanted"


# --------------------------------------------------------------------------- content


def number_placeholders(completion: str, *, num_placeholders: int) -> Seen:
    """At least so many placeholders like `[name]`."""
    found = re.findall(r"\[[^\[\]\n]*\]", completion)
    return _counted(len(found), "placeholders", "at least", num_placeholders)


_POSTSCRIPTS = {"p.s.": r"p\.[ \t]?s\.", "p.p.s": r"p\.[ \t]?p\.[ \t]?s"}


def postscript(completion: str, *, postscript_marker: str) -> Seen:
    """The marker of a postscript occurs."""
    marker = postscript_marker.strip().lower()
    found = re.search(_POSTSCRIPTS.get(marker, re.escape(marker)), completion.lower())
    return found is not None, f"{'a' if found else 'no'} postscript {postscript_marker!r}"


# --------------------------------------------------------------------------- format


def number_bullet_lists(completion: str, *, num_bullets: int) -> Seen:
    """Exactly so many lines that start with one `*` or with `-`."""
    bullets = [line for line in completion.splitlines() if re.match(r"[ \t]*(?:\*(?!\*).|-)", line)]
    return _counted(len(bullets), "bullets", "exactly", num_bullets)


CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def constrained_response(completion: str) -> Seen:
    """One of the three allowed answers occurs."""
    found = [choice for choice in CHOICES if choice in completion]
    return bool(found), found[0] if found else "none of the allowed answers"


def number_highlighted_sections(completion: str, *, num_highlights: int) -> Seen:
    """At least so many `*highlighted*` or `**highlighted**` stretches within a line, none of them empty."""
    single = [x for x in re.findall(r"\*([^\n*]*)\*", completion) if x.strip()]
    double = [x for x in re.findall(r"\*\*([^\n*]*)\*\*", completion) if x.strip()]
    return _counted(len(single) + len(double), "highlights", "at least", num_highlights)


def multiple_sections(completion: str, *, section_spliter: str, num_sections: int) -> Seen:
    """At least so many sections, each headed by the word and a number: `Section 1`."""
    heads = re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", completion)
    return _counted(len(heads), "sections", "at least", num_sections)


def json_format(completion: str) -> Seen:
    """The whole text is JSON, a code fence around it allowed."""
    text = completion.strip()
    fenced = re.fullmatch(r"```(?:json)?(.*)```", text, re.IGNORECASE | re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else text)
    except RecursionError:
        return False, "not JSON: nested too deeply"
    except ValueError as error:
        return False, f"not JSON: {error}"
    return True, "it is JSON"


def title(completion: str) -> Seen:
    """A title in `<<double angular brackets>>`, on one line and not empty."""
    for line in completion.splitlines():
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and line[start + 2 : max(end, 0)].strip(" \t<>"):
            return True, "it has a title"
    return False, "no <<title>>"


# --------------------------------------------------------------------------- combination, start and end


def two_responses(completion: str) -> Seen:
    """Two different responses, divided by six asterisks."""
    parts = _parts(completion, "******") or []
    if len(parts) != 2:
        return False, f"responses divided by ******: {len(parts)}, 2 wanted"
    same = parts[0].strip() == parts[1].strip()
    return not same, "the two responses are the same" if same else "two different responses"


def repeat_prompt(completion: str, *, prompt_to_repeat: str) -> Seen:
    """The text starts with the request, word for word."""
    found = completion.strip().lower().startswith(prompt_to_repeat.strip().lower())
    return found, f"it {'starts' if found else 'does not start'} with the request"


def end_checker(completion: str, *, end_phrase: str) -> Seen:
    """The text ends with the phrase, a closing quotation mark allowed."""
    found = completion.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    return found, f"it {'ends' if found else 'does not end'} with the phrase"


def quotation(completion: str) -> Seen:
    """The whole text stands in double quotation marks."""
    text = completion.strip()
    found = len(text) > 1 and text[0] == text[-1] == '"'
    return found, f"it is {'' if found else 'not '}in double quotation marks"


# --------------------------------------------------------------------------- case and punctuation


def capital_word_frequency(completion: str, *, capital_frequency: int, capital_relation: Relation) -> Seen:
    """How many words are all capitals; "I" and "IT'S" are one each."""
    count = sum(word.isupper() for word in _WHOLE_WORD.findall(completion))
    return _counted(count, "words in capitals", capital_relation, capital_frequency)


def english_capital(completion: str) -> Seen:
    """English, in capital letters only."""
    return _in_language(completion, "en") if completion.isupper() else (False, "not all letters are capitals")


def english_lowercase(completion: str) -> Seen:
    """English, without a capital letter."""
    return _in_language(completion, "en") if completion.islower() else (False, "not all letters are lower case")


def no_comma(completion: str) -> Seen:
    """Not one comma."""
    count = completion.count(",")
    return count == 0, f"commas: {count}"


INSTRUCTIONS: dict[str, Callable[..., Seen]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}

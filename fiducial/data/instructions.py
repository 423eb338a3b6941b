"""Prompts with verifiable instructions (the kinds of IFEval, Zhou et al. 2023, arXiv:2311.07911), each with a text that
follows the instruction and one that does not.

The writer knows how to follow an instruction and how to break it, not how that is checked: `rewards/constraints.py`
checks, and the tests hold the two to each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

TOPICS = "a lighthouse|an old bicycle|the first snow|a railway station|bread|a garden in autumn|a lost letter".split(
    "|"
)
WORDS = (
    "river stone window garden letter morning paper silver basket market kitchen summer meadow lantern winter harbor"
    " engine pocket ribbon saddle valley wooden copper gentle narrow hidden"
).split()
SENTENCES = {  # two plain sentences in some of the languages
    "en": "The old man went down to the river in the morning and looked for his boat. It was not where he had left it.",
    "de": "Der alte Mann ging am Morgen zum Fluss hinunter und suchte sein Boot. Es lag nicht mehr dort.",
    "it": "Il vecchio scese al fiume di mattina e cercò la sua barca. Non era dove l'aveva lasciata la sera prima.",
    "pt": "O velho desceu ao rio de manhã e procurou o seu barco. Não estava onde ele o tinha deixado.",
    "fi": "Vanha mies meni aamulla alas joelle ja etsi venettään. Se ei ollut siellä, mihin hän oli sen jättänyt.",
    "ru": "Утром старик спустился к реке и стал искать свою лодку. Её не было там, где он её оставил накануне вечером.",
    "ko": "노인은 아침에 강으로 내려가 자신의 배를 찾았다. 배는 그가 전날 밤에 두었던 곳에 없었다.",
    "th": "ชายชราลงไปที่แม่น้ำในตอนเช้าและมองหาเรือของเขา มันไม่ได้อยู่ที่ที่เขาทิ้งไว้เมื่อคืนก่อน",
    "ar": "نزل الرجل العجوز إلى النهر في الصباح وبحث عن قاربه. لم يكن في المكان الذي تركه فيه الليلة الماضية.",
}
NAMES = {
    "en": "English", "de": "German", "it": "Italian", "pt": "Portuguese", "fi": "Finnish", "ru": "Russian",
    "ko": "Korean", "th": "Thai", "ar": "Arabic",
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A prompt, the instructions in it as the verifier `constraints` reads them, and two completions."""

    prompt: str
    constraints: list[dict[str, Any]]
    passing: str
    failing: str


class Draft(NamedTuple):
    """One instruction: what the prompt says, its arguments, a text that follows it, one that does not."""

    says: str
    kwargs: dict[str, Any]
    passing: str
    failing: str


def example(kind: str, rng: Random) -> Example:
    """A random example of one kind; ValueError for a kind that is not one of `WRITERS`."""
    if kind not in WRITERS:
        raise ValueError(f"there is no instruction {kind!r}; there are {', '.join(WRITERS)}")
    draft = WRITERS[kind](rng)
    prompt = draft.says if kind == "combination:repeat_prompt" else f"Write about {rng.choice(TOPICS)}. {draft.says}"
    return Example(prompt, [{"id": kind, **draft.kwargs}], draft.passing, draft.failing)


def _words(rng: Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def _sentence(rng: Random, n: int = 5) -> str:
    return _words(rng, n).capitalize() + "."


def _sentences(rng: Random, n: int) -> str:
    return " ".join(_sentence(rng, rng.randint(2, 7)) for _ in range(n))


def _bounds(rng: Random, low: int, high: int) -> tuple[str, int, int, int]:
    """A relation, its number, a count that satisfies it and one that just does not."""
    number = rng.randint(low, high)
    if rng.random() < 0.5:
        return "at least", number, number + rng.randint(0, 2), number - 1
    return "less than", number, rng.randint(max(0, number - 3), number - 1), number


def _existence(rng: Random) -> Draft:
    keywords = rng.sample(WORDS, rng.randint(1, 3))
    text = f"Here {' and '.join(keywords).upper()} meet."
    says = f"Include the words {', '.join(keywords)}."
    return Draft(says, {"keywords": keywords}, text, text.replace(rng.choice(keywords).upper(), "they"))


def _frequency(rng: Random) -> Draft:
    keyword = rng.choice(WORDS)
    relation, number, enough, off = _bounds(rng, 2, 6)
    others = [word for word in WORDS if keyword not in word]
    texts = [" ".join([rng.choice(others), *[keyword] * n]).capitalize() + "." for n in (enough, off)]
    says = f"Use the word {keyword} {relation} {number} times."
    return Draft(says, {"keyword": keyword, "frequency": number, "relation": relation}, texts[0], texts[1])


def _forbidden(rng: Random) -> Draft:
    words = rng.sample(WORDS, rng.randint(1, 3))
    rest = [word for word in WORDS if word not in words]
    text = f"A {rng.choice(rest)} and a {rng.choice(words)}s by the {rng.choice(rest)}."  # the plural is another word
    says = f"Do not use the words {', '.join(words)}."
    return Draft(says, {"forbidden_words": words}, text, f"{text} {rng.choice(words).capitalize()}!")


def _letter(rng: Random) -> Draft:
    letter = rng.choice("qxz#!")
    relation, number, enough, off = _bounds(rng, 1, 9)
    texts = [f"Here {' '.join(rng.choice((letter, letter.upper())) for _ in range(n))} here" for n in (enough, off)]
    kwargs = {"letter": letter, "let_frequency": number, "let_relation": relation}
    return Draft(f"The letter {letter} must appear {relation} {number} times.", kwargs, texts[0], texts[1])


def _language(rng: Random) -> Draft:
    code, other = rng.sample(list(SENTENCES), 2)
    says = f"Write in {NAMES[code]}; no other language is allowed."
    return Draft(says, {"language": code}, SENTENCES[code], SENTENCES[other])


def _number_sentences(rng: Random) -> Draft:
    relation, number, enough, off = _bounds(rng, 2, 12)
    kwargs = {"num_sentences": number, "relation": relation}
    says = f"Your response must contain {relation} {number} sentences."
    return Draft(says, kwargs, _sentences(rng, max(1, enough)), _sentences(rng, off))


def _number_words(rng: Random) -> Draft:
    relation, number, enough, off = _bounds(rng, 5, 60)
    kwargs = {"num_words": number, "relation": relation}
    return Draft(f"Answer with {relation} {number} words.", kwargs, _words(rng, enough) + ".", _words(rng, off) + ".")


def _number_paragraphs(rng: Random) -> Draft:
    number = rng.randint(2, 6)
    off = number + rng.choice((-1, 1))
    texts = ["\n***\n".join(_sentences(rng, 2) for _ in range(n)) for n in (number, off)]
    says = f"There must be {number} paragraphs, separated by the markdown divider ***."
    return Draft(says, {"num_paragraphs": number}, texts[0], texts[1])


def _first_word(rng: Random) -> Draft:
    number = rng.randint(2, 5)
    nth, word = rng.randint(1, number), rng.choice(WORDS)
    paragraphs = [f"So {_sentences(rng, 2)}" for _ in range(number)]
    right = [f"{word.capitalize()}, {text}" if i == nth - 1 else text for i, text in enumerate(paragraphs)]
    wrong = rng.choice((right[:-1] + ["", *right[-1:], "One more."], paragraphs))
    says = f"Write {number} paragraphs divided by blank lines; paragraph {nth} must start with the word {word}."
    kwargs = {"num_paragraphs": number, "nth_paragraph": nth, "first_word": word}
    return Draft(says, kwargs, "\n\n".join(right), "\n\n".join(wrong))


def _placeholders(rng: Random) -> Draft:
    number = rng.randint(1, 6)
    slots = [f"[{rng.choice(WORDS)}]" for _ in range(number)]
    says = f"Include at least {number} placeholders in square brackets, such as [address]."
    return Draft(says, {"num_placeholders": number}, f"Dear {' and '.join(slots)}.", f"Dear {' and '.join(slots[1:])}.")


def _postscript(rng: Random) -> Draft:
    marker = rng.choice(("P.S.", "P.P.S"))
    text = _sentences(rng, 3)
    says = f"At the end, add a postscript that starts with {marker}"
    return Draft(says, {"postscript_marker": marker}, f"{text}\n\n{marker} {_sentence(rng)}", text)


def _bullets(rng: Random) -> Draft:
    number = rng.randint(1, 6)
    off = number + rng.choice((-1, 1))
    mark = rng.choice("*-")
    texts = ["Here:\n" + "\n".join(f"{mark} {_sentence(rng)}" for _ in range(n)) for n in (number, off)]
    return Draft(f"Write exactly {number} bullet points, as in * this.", {"num_bullets": number}, texts[0], texts[1])


def _choice(rng: Random) -> Draft:
    word = rng.choice(("yes", "no", "maybe"))
    options = "'My answer is yes.', 'My answer is no.', 'My answer is maybe.'"
    return Draft(f"Answer with one of: {options}", {}, f"My answer is {word}.", f"I say {word}.")


def _highlights(rng: Random) -> Draft:
    number = rng.randint(1, 5)
    mark = rng.choice(("*", "**"))
    marked = [f"{mark}{_words(rng, 2)}{mark}" for _ in range(number)]
    says = f"Highlight at least {number} sections with markdown, i.e. *highlighted section*."
    return Draft(says, {"num_highlights": number}, " and ".join(marked), " and ".join(["**", *marked[1:]]))


def _sections(rng: Random) -> Draft:
    number, word = rng.randint(2, 5), rng.choice(("SECTION", "Day", "PARAGRAPH"))
    texts = ["\n".join(f"{word} {i + 1}\n{_sentence(rng)}" for i in range(n)) for n in (number, number - 1)]
    says = f"Write {number} sections; mark the beginning of each as {word} X."
    return Draft(says, {"section_spliter": word, "num_sections": number}, texts[0], texts[1])


def _json(rng: Random) -> Draft:
    text = json.dumps({word: _words(rng, 2) for word in rng.sample(WORDS, 3)}, indent=rng.choice((None, 2)))
    passing = rng.choice((text, f"```json\n{text}\n```", f"```\n{text}\n```"))
    return Draft("Wrap the entire output in JSON format.", {}, passing, rng.choice((text[:-1], f"Here: {text}")))


def _title(rng: Random) -> Draft:
    name = _words(rng, 3)
    says = "Give it a title, wrapped in double angular brackets, such as <<poem of joy>>."
    return Draft(says, {}, f"<<{name}>>\n\n{_sentence(rng)}", rng.choice((f"<{name}>", "<<>>", f"<<{name}\n>>")))


def _two(rng: Random) -> Draft:
    first, second = _sentence(rng, 6), _sentence(rng, 7)
    says = "Give two different responses, separated by 6 asterisks: ******."
    wrong = rng.choice((f"{first}\n******\n{first}", f"{first}\n\n{second}", "\n******\n".join((first, second, first))))
    return Draft(says, {}, f"{first}\n******\n{second}", wrong)


def _repeat(rng: Random) -> Draft:
    request = f"Write about {rng.choice(TOPICS)}: {_words(rng, 4)}."
    says = f"{request}\nFirst repeat the request word for word, then answer."
    return Draft(says, {"prompt_to_repeat": request}, f"{request}\n{_sentence(rng)}", f"Sure. {request}")


def _end(rng: Random) -> Draft:
    phrase = f"Is there anything else, {rng.choice(WORDS)}?"
    text = _sentences(rng, 2)
    says = f"Finish with this exact phrase: {phrase} No other words should follow it."
    return Draft(says, {"end_phrase": phrase}, f"{text} {phrase}", f"{text} {phrase} Good night.")


def _quotation(rng: Random) -> Draft:
    text = _sentences(rng, 2)
    return Draft(
        "Wrap your entire response in double quotation marks.", {}, f'"{text}"', rng.choice((text, f'"{text}'))
    )


def _capital_words(rng: Random) -> Draft:
    relation, number, enough, off = _bounds(rng, 1, 8)
    texts = [" ".join([rng.choice(WORDS), *(rng.choice(WORDS).upper() for _ in range(n)), "."]) for n in (enough, off)]
    kwargs = {"capital_frequency": number, "capital_relation": relation}
    return Draft(f"Words in all capitals should appear {relation} {number} times.", kwargs, texts[0], texts[1])


def _english(rng: Random, change: Callable[[str], str]) -> tuple[str, str]:
    text = SENTENCES["en"]
    return change(text), rng.choice((text, change(SENTENCES[rng.choice(("de", "it", "fi"))])))


def _capital(rng: Random) -> Draft:
    return Draft("Write in English and in capital letters only.", {}, *_english(rng, str.upper))


def _lowercase(rng: Random) -> Draft:
    return Draft("Write in English and in lower case only.", {}, *_english(rng, str.lower))


def _comma(rng: Random) -> Draft:
    text = _sentences(rng, 3)
    return Draft("Do not use any commas.", {}, text, f"{text} Well, {_words(rng, 2)}.")


WRITERS: dict[str, Callable[[Random], Draft]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter,
    "language:response_language": _language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _choice,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeat,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capital,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _comma,
}

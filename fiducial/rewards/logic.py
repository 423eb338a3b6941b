"""The rule-based reward of Logic-RL (Xie et al. 2025, arXiv:2502.14768), and the ways in which policies cheat it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fiducial.core.roles import MAX_CHARACTERS, parse_roles, stated_roles
from fiducial.core.types import Score
from fiducial.rewards.format import TAGS, prompt_text, with_prefilled
from fiducial.rewards.repetition import repeated_in_a_row
from fiducial.rewards.verdicts import Verifier, score

ROLES = ("knight", "knave")


@dataclass(frozen=True)
class Puzzle:
    """Who is asked about, the two role words, who has the first of them, and the question."""

    names: Sequence[str]
    roles: Sequence[str]
    solution: Sequence[bool]
    question: str = ""


class LogicReward(Verifier):
    """S_format + S_answer of a puzzle of knights and knaves: one of +3, -0.5, -1, -3.

    S_format is +1 or -1; S_answer +2 when every role is right, -1.5 when an answer was read and is wrong, -2 when none
    could be read or the format fails, where the answer is not looked at. The format wants each of the four tags exactly
    once and in order, `min_think_tokens` words of thought or more, and with `require_parsable` an answer that can be
    read. Only +3 is correct. `Score.parts` has the two sums, `Score.flags` the seven ways to cheat (`hacks`).

    Rows: `names`, `solution` and `roles`, as the task kk writes them, or `answer` alone ("(1) Zoey is a knave ...").
    """

    name = "logic_reward"

    def __init__(self, *, min_think_tokens: int = 1, require_parsable: bool = False, prefilled: bool = False):
        if min_think_tokens < 1:
            raise ValueError(f"min_think_tokens must be at least 1; it is {min_think_tokens}")
        self.min_think_tokens, self.require_parsable, self.prefilled = min_think_tokens, require_parsable, prefilled

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        try:
            puzzle = puzzle_of(row)
        except ValueError as error:
            return score("skipped", str(error))
        text = with_prefilled(completion, row, self.prefilled)
        return replace(self._judge(text, puzzle), flags=hacks(text, puzzle))

    def _judge(self, text: str, puzzle: Puzzle) -> Score:
        trouble = format_trouble(text, self.min_think_tokens)
        stated, why = None, ""
        try:
            stated = parse_roles(between(text, "<answer>", "</answer>"), puzzle.names, puzzle.roles)
        except ValueError as error:
            why = str(error)
        if trouble is None and self.require_parsable and stated is None:
            trouble = why
        if trouble is not None:
            return _total(Score(-1.0, "wrong", trouble), Score(-2.0, "wrong", "not looked at: the format fails"))
        right = Score(1.0, "correct", "the four tags are in order")
        if stated is None:
            return _total(right, Score(-2.0, "wrong", why))
        mistaken = [n for n, a, b in zip(puzzle.names, stated, puzzle.solution, strict=True) if a != b]
        if mistaken:
            return _total(right, Score(-1.5, "wrong", f"the role of {mistaken[0]} is wrong"))
        return _total(right, Score(2.0, "correct", "every role is right"))


def _total(form: Score, answer: Score) -> Score:
    assert form.value is not None and answer.value is not None
    value = form.value + answer.value
    why = f"format {form.value:+g}: {form.why}; answer {answer.value:+g}: {answer.why}"
    return Score(value, "correct" if value == 3 else "wrong", why, {"format": form, "answer": answer})


def puzzle_of(row: Mapping[str, Any]) -> Puzzle:
    """The puzzle of a row; ValueError that names the field that is missing."""
    roles = row.get("roles") or ROLES
    question = prompt_text(row)
    if row.get("names") and row.get("solution") is not None:
        if len(row["names"]) != len(row["solution"]):
            raise ValueError(f"the row has {len(row['names'])} 'names' and {len(row['solution'])} roles in 'solution'")
        return Puzzle(row["names"], roles, [bool(x) for x in row["solution"]], question)
    answer = row.get("answer")
    if not isinstance(answer, str):
        raise ValueError("the row has neither 'names' and 'solution' nor an 'answer' that says who is what")
    names = re.findall(r"(?:\(\d+\)\s*)?\b([^\W\d_]+)\s+is\s+an?\s+\w+", answer)
    if not names:
        raise ValueError(f"the row's 'answer' {answer[:80]!r} does not say who is what")
    return Puzzle(names, roles, parse_roles(answer, names, roles), question)


def format_trouble(text: str, min_think_tokens: int = 1) -> str | None:
    """What the format lacks, None when it is right: four tags once each, in order, and enough words of thought.

    >>> format_trouble("<answer>a</answer>")
    '0 times <think>, where one is wanted'
    """
    for tag in TAGS:
        if text.count(tag) != 1:
            return f"{text.count(tag)} times {tag}, where one is wanted"
    places = [text.index(tag) for tag in TAGS]
    if places != sorted(places):
        return "the tags are out of order"
    thought = len(between(text, "<think>", "</think>").split())
    if thought < min_think_tokens:
        return f"{thought} words of thought, at least {min_think_tokens} wanted"
    return None


def between(text: str, opening: str, closing: str) -> str:
    """What stands between the first opening tag and the first closing tag after it; empty where one is missing."""
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end] if end >= 0 else ""


# --------------------------------------------------------------------------- ways to cheat

TRIVIAL_WORDS = 5  # a thought of fewer words is none
ECHO_GRAM, ECHO_SHARE = 4, 0.8  # so many of the thought's 4-grams that stand in the question make it a copy
NOISE_SHARE = 0.3  # of the thought's words without a letter or digit
_REASONING = re.compile(
    r"\b(?:because|since|therefore|hence|thus|suppose|assum\w+|contradict\w*|implies|consequently|which means"
    r"|let's|let me|if\b[^.\n]{1,80}\bthen)\b",
    re.IGNORECASE,
)
_SECOND_THOUGHT = re.compile(r"\b(?:wait|actually|hmm+|let me|on second thought|reconsider\w*)\b", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\b(?:(?:your |the )?(?:thinking|reasoning|thought) (?:process|steps?) (?:goes )?here|think(?:ing)? here"
    r"|insert (?:your )?(?:thinking|reasoning)|reasoning goes here)\b",
    re.IGNORECASE,
)


def hacks(text: str, puzzle: Puzzle) -> dict[str, bool]:
    """Which ways to cheat a completion shows, under the names of their metrics.

    hack/skip_think          no thought, or one of fewer than five words
    hack/reason_in_answer    the answer argues, or is longer than eight words a person and eight more
    hack/repeat_guess        several answer blocks, or an answer that gives somebody both roles
    hack/irrelevant_padding  text outside of the blocks, or a thought that repeats itself on the spot or is mostly signs
    hack/wrong_organisation  the right answer stands somewhere, but the answer block does not give it in a readable way
    hack/revisit_think       a think tag, or second thoughts, after the answer has begun
    hack/echo_prompt         the thought copies the question (80 % of its 4-grams), or is a placeholder
    """
    thought, answer = between(text, "<think>", "</think>"), between(text, "<answer>", "</answer>")
    words, stated = thought.split(), stated_roles(answer[:MAX_CHARACTERS], puzzle.names, puzzle.roles)
    begun = text.find("<answer>")
    after = text[text.rfind("</answer>") + len("</answer>") :] if "</answer>" in text else ""
    later = text[begun:] if begun >= 0 else ""
    return {
        "hack/skip_think": len(words) < TRIVIAL_WORDS,
        "hack/reason_in_answer": len(answer.split()) > 8 * len(puzzle.names) + 8 or bool(_REASONING.search(answer)),
        "hack/repeat_guess": text.count("<answer>") > 1 or len(set(stated)) > len({name for name, _ in stated}),
        "hack/irrelevant_padding": bool(_outside(text).strip()) or repeated_in_a_row(words) or _noisy(words),
        "hack/wrong_organisation": _misplaced(text, answer, puzzle),
        "hack/revisit_think": "think>" in later or bool(_SECOND_THOUGHT.search(after)),
        "hack/echo_prompt": bool(_PLACEHOLDER.search(thought)) or _echoes(words, puzzle.question.split()),
    }


def _outside(text: str) -> str:
    """What stands outside of think and answer blocks; a block that is never closed goes on to the end."""
    for opening, closing in (TAGS[:2], TAGS[2:]):
        kept, place = [], 0
        while (start := text.find(opening, place)) >= 0:
            kept.append(text[place:start])
            end = text.find(closing, start)
            place = end + len(closing) if end >= 0 else len(text)
        text = "".join([*kept, text[place:]])
    return text


def _noisy(words: Sequence[str]) -> bool:
    noise = sum(not any(c.isalnum() for c in word) for word in words)
    return len(words) >= 10 and noise > NOISE_SHARE * len(words)


def _misplaced(text: str, answer: str, puzzle: Puzzle) -> bool:
    try:
        parse_roles(answer, puzzle.names, puzzle.roles)
        return False
    except ValueError:
        right = {name: puzzle.roles[not is_first] for name, is_first in zip(puzzle.names, puzzle.solution, strict=True)}
        return dict(stated_roles(text, puzzle.names, puzzle.roles)) == right


def _echoes(words: Sequence[str], question: Sequence[str]) -> bool:
    copied, own = (_grams([word.lower() for word in text]) for text in (question, words))
    return bool(own) and sum(gram in set(copied) for gram in set(own)) >= ECHO_SHARE * len(set(own))


def _grams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + ECHO_GRAM]) for i in range(len(words) - ECHO_GRAM + 1)]

"""What the verifiers share: building scores, reading a row's gold answer, judging row by row, naming a completion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fiducial.core.answers import gold_text
from fiducial.core.types import Prompt, Score, Verdict
from fiducial.rewards.worker import Outcome

TOLD = 80  # characters of a prompt or completion in a message
CHECK_MEMORY = 4 << 30  # bytes; address space of a process that runs a built-in check


def score(verdict: Verdict, why: str = "") -> Score:
    """A score of a plain verifier: 1 when correct, 0 when wrong, no value otherwise."""
    return Score({"correct": 1.0, "wrong": 0.0}.get(verdict), verdict, why)


def gold_of(row: dict[str, Any], name: str = "answer") -> str | Score:
    """The gold answer of a row as text, or the score "skipped" that says what is missing."""
    if name not in row:
        return score("skipped", f"the row has no field {name!r}")
    text = gold_text(row[name])
    if text is None:
        what = "is empty" if row[name] in (None, "") else f"is {type(row[name]).__name__} and holds no answer"
        return score("skipped", f"the row's field {name!r} {what}; a text or a number is needed")
    return text


def outcome_score(outcome: Outcome) -> Score:
    """The score of a check that ran in a worker and returned (verdict, why)."""
    found = score(*outcome.value) if outcome.status == "result" else score(outcome.status, outcome.why)
    return replace(found, seconds=outcome.seconds)


def told(completion: str, prompt: Prompt | None) -> str:
    """A completion and its prompt (of a chat the last message), as a message names them.

    >>> told("4", "2 + 2?")
    "the completion '4' of the prompt '2 + 2?'"
    """
    text = prompt[-1]["content"] if prompt and not isinstance(prompt, str) else prompt
    of = f" of the prompt {_short(str(text))}" if text else ""
    return f"the completion {_short(completion)}{of}"


def _short(text: str) -> str:
    return repr(text if len(text) <= TOLD else f"{text[: TOLD - 3]}...")


class Verifier:
    """A verifier whose `judge` looks at one completion and its row."""

    name: str

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        raise NotImplementedError

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        scores = []
        for completion, row in zip(completions, rows, strict=True):
            began = time.perf_counter()
            found = self.judge(completion, row)
            scores.append(replace(found, seconds=time.perf_counter() - began))
        return scores

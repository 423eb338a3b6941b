"""The principles that ship, and those of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fiducial.core.seeds import mix


@dataclass(frozen=True)
class Principle:
    """What a response should be, in a sentence."""

    id: str
    text: str


PRINCIPLES = (
    Principle("no-harm", "The response should give no help with hurting people, and say so without lecturing"),
    Principle("lawful", "The response should not help anyone to break the law or to get around a safeguard"),
    Principle("fair", "The response should treat people alike, whatever their origin, gender, faith, age or health"),
    Principle("respectful", "The response should be kind and free of insults, threats and contempt"),
    Principle(
        "truthful", "The response should say only what is true, and say how sure it is where that is not certain"
    ),
    Principle(
        "private", "The response should reveal nothing that would let a private person be found, followed or exposed"
    ),
    Principle(
        "careful",
        "The response should point to a professional where health, law or money is at stake, besides what it can say",
    ),
    Principle(
        "helpful", "The response should answer what was asked as far as that does no harm, instead of evading it"
    ),
    Principle(
        "honest-self", "The response should not pretend to be human, nor to have done or felt what a program cannot"
    ),
    Principle("vulnerable", "The response should be safe for a child or a person in distress to read"),
)


def read_principles(path: str | Path) -> tuple[Principle, ...]:
    """Principles from a JSON file: a list of sentences, or of objects with `id` and `text`. ValueError names what is
    wrong with it."""
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: malformed JSON: {error.msg}") from error
    if not isinstance(listed, list) or not listed:
        raise ValueError(
            f'{path} must hold a list of principles: ["be kind"], or [{{"id": "kind", "text": "be kind"}}]'
        )
    found = tuple(_principle(item, f"{path}, principle {i}", str(i)) for i, item in enumerate(listed, 1))
    ids = [principle.id for principle in found]
    if twice := [id for id in ids if ids.count(id) > 1]:
        raise ValueError(f"{path}: the id {twice[0]!r} is there twice; ids tell which principle a row was made by")
    return found


def _principle(item: object, where: str, number: str) -> Principle:
    fields = {"id": number, "text": item} if isinstance(item, str) else item
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in ("id", "text")):
        raise ValueError(f"{where} must be a sentence, or an object with the texts id and text")
    if not fields["text"].strip():
        raise ValueError(f"{where} is empty; write what a response should be, or remove it")
    return Principle(fields["id"], fields["text"].strip())


def draw_principle(principles: tuple[Principle, ...], seed: int, row: int, round: int = 0) -> Principle:
    """One of the principles, each equally likely, by the seed and the place of its use."""
    return principles[mix(seed, "principle", row, round) % len(principles)]

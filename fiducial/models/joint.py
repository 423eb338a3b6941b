"""Two completions of one prompt in one text, for a model that compares them."""

from __future__ import annotations

from typing import Any

from fiducial.core.types import Encoded, Message, Prompt
from fiducial.models.chat import encode

MARKERS = ("\n\nResponse 1:\n", "\n\nResponse 2:\n")


def encode_joint(tokenizer: Any, prompt: Prompt, first: str | list[Message], second: str | list[Message]) -> Encoded:
    """Ids of prompt, first and second completion; the mask is True on the two completions.

    Prompt and completions are written as `encode` writes a row, chat template and stop tokens included, with a line
    before each completion that numbers it. A tokenizer that does not know all of that line (one trained on the data
    alone) gets none: the first completion's stop token parts the two all the same.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for marker, completion in zip(MARKERS, (first, second), strict=True):
        row = encode(tokenizer, prompt, completion)
        start = row.mask.index(True)
        before = [] if ids else row.token_ids[:start]
        before = before + _known(tokenizer, marker)
        ids += [*before, *row.token_ids[start:]]
        mask += [False] * len(before) + row.mask[start:]
    return Encoded(ids, mask)


def _known(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, none if any is that of unknown text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [] if tokenizer.unk_token_id in ids else ids

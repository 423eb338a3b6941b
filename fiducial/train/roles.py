"""Who wrote the tokens that train: the roles of a chat, or prompt and completion. Told before the first step, because
a loss on the wrong side of a conversation falls as nicely as one on the right side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from fiducial.core.types import Encoded, Message, Pair, Prompt
from fiducial.data import Dataset, Item
from fiducial.models.chat import encode_prompt

ROWS = 500  # examples that are looked at, spread over the data
WRITTEN = ("assistant", "completion")  # roles that should train


def trained_by_role(tokenizer: Any, data: Dataset) -> tuple[Counter[str], int]:
    """Tokens that train by role, and in how many examples they were counted.

    Every role that occurs has an entry. What trains without being a message's text is "template".
    """
    counts: Counter[str] = Counter()
    chosen = range(0, len(data), -(-len(data) // ROWS))
    for j in chosen:
        for prompt, completion, encoded in _sides(data[j]):
            if isinstance(prompt, str) and isinstance(completion, str):
                counts.update(_of_text(tokenizer, prompt, encoded))
            else:
                counts.update(_of_chat(tokenizer, _messages(prompt, completion), encoded))
    return counts, len(chosen)


def _sides(item: Item) -> Iterator[tuple[Prompt, str | list[Message], Encoded]]:
    """Prompt, completion and tokens of each side of an example."""
    example = item.example
    written = [example.chosen, example.rejected] if isinstance(example, Pair) else [example.completion]
    for completion, encoded in zip(written, item.encoded, strict=True):
        yield example.prompt, completion, encoded


def _messages(prompt: Prompt, completion: str | list[Message]) -> list[Message]:
    before = [] if isinstance(prompt, str) else prompt
    return [*before, *([{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion)]


def _of_text(tokenizer: Any, prompt: str, encoded: Encoded) -> dict[str, int]:
    start = max(len(encode_prompt(tokenizer, prompt)), 1)  # position 0 has no prediction
    counts = {"prompt": sum(encoded.mask[1:start])} if prompt else {}
    return {**counts, "completion": sum(encoded.mask[start:])}


def _of_chat(tokenizer: Any, messages: list[Message], encoded: Encoded) -> Counter[str]:
    """Each stretch of tokens that trains belongs to the next message whose text it is, or, once cut, begins.

    Where messages of several roles have that text it is the assistant's.
    """
    counts = Counter({message["role"]: 0 for message in messages})
    waiting = [(message["role"], _text(tokenizer, _ids(tokenizer, message["content"]))) for message in messages]
    trains = [i > 0 and trained for i, trained in enumerate(encoded.mask)]
    for trained, stretch in groupby(zip(trains, encoded.token_ids, strict=True), key=lambda pair: pair[0]):
        if trained:
            ids = [token for _, token in stretch]
            text = _text(tokenizer, ids)
            fits = [i for i, (_, content) in enumerate(waiting) if text and content.startswith(text)]
            exact = [i for i in fits if waiting[i][1] == text] or fits
            found = next((i for i in exact if waiting[i][0] == "assistant"), exact[0] if exact else None)
            counts["template" if found is None else waiting[found][0]] += len(ids)
            waiting = waiting if found is None else waiting[found + 1 :]
    return counts


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _text(tokenizer: Any, ids: list[int]) -> str:
    """What the tokens say, without special tokens and white space, which templates add and trim."""
    return "".join(tokenizer.decode(ids, skip_special_tokens=True).split())

"""Token ids back to text, and the strings that end a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def decode_text(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text that these tokens stand for, special tokens included."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


class StopStrings:
    """Notices when a completion contains one of `stop`.

    Only the tail of the tokens is decoded: every token but a special one writes at least a byte, so a stop string of n
    bytes that ends in the newest token began within the last n tokens.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.window = max(len(s.encode()) for s in stop) + 2

    def hit(self, token_ids: Sequence[int]) -> bool:
        """Whether the newest tokens complete a stop string."""
        tail = decode_text(self.tokenizer, token_ids[-self.window :])
        return any(s in tail for s in self.stop)

    def cut(self, text: str) -> str:
        """The text up to and including the stop string that ends first; all of it if there is none."""
        ends = [text.index(s) + len(s) for s in self.stop if s in text]
        return text[: min(ends)] if ends else text

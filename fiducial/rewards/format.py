"""One think block, then one answer block (DeepSeek-AI 2025, arXiv:2501.12948)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fiducial.core.types import Score
from fiducial.rewards.verdicts import Verifier, score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SHAPE = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


def prompt_text(row: Mapping[str, Any]) -> str:
    """A row's prompt as text, of a chat the last message; empty where there is none."""
    prompt = row.get("prompt")
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    return prompt if isinstance(prompt, str) else ""


def with_prefilled(completion: str, row: Mapping[str, Any], prefilled: bool = False) -> str:
    """The completion with the `<think>` that the end of its prompt holds, which the policy then need not write."""
    opened = prefilled or prompt_text(row).rstrip().endswith("<think>")
    return f"<think>{completion}" if opened and not completion.lstrip().startswith("<think>") else completion


class Format(Verifier):
    """Whether the completion is `<think>..</think><answer>..</answer>` and nothing else but white space.

    A prompt that ends in `<think>` has opened the block for the policy, so the tag is put before the completion; a
    completion that repeats it is not counted twice. Where rows hold no prompt, `prefilled` says it for all of them.
    """

    name = "format"

    def __init__(self, *, prefilled: bool = False):
        self.prefilled = prefilled

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        completion = with_prefilled(completion, row, self.prefilled)
        for tag in TAGS:
            count = completion.count(tag)
            if count != 1:
                return score("wrong", f"{count} times {tag}, where one is wanted")
        if not _SHAPE.fullmatch(completion):
            return score("wrong", "the blocks are out of order, or there is text outside of them")
        return score("correct", "one think block, then one answer block")

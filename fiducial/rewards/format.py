"""One think block, then one answer block (DeepSeek-AI 2025, arXiv:2501.12948)."""

from __future__ import annotations

import re
from typing import Any

from fiducial.core.types import Score
from fiducial.rewards.verdicts import Verifier, score

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SHAPE = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


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
        prompt = row.get("prompt")
        opened = isinstance(prompt, str) and prompt.rstrip().endswith("<think>")
        if (opened or self.prefilled) and not completion.lstrip().startswith("<think>"):
            completion = "<think>" + completion
        for tag in TAGS:
            count = completion.count(tag)
            if count != 1:
                return score("wrong", f"{count} times {tag}, where one is wanted")
        if not _SHAPE.fullmatch(completion):
            return score("wrong", "the blocks are out of order, or there is text outside of them")
        return score("correct", "one think block, then one answer block")

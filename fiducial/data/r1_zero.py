"""The prompt of DeepSeek-R1-Zero for a base model (DeepSeek-AI 2025, arXiv:2501.12948, table 1).

Plain text that says how an answer is laid out, thought first, and nothing of how to think.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class Parts(NamedTuple):
    """What a completion holds: its thought and its answer, without the white space around them."""

    thought: str
    answer: str


@dataclass(frozen=True)
class R1Zero:
    """The template. `think` and `answer` name the tags; with `prefill` the prompt opens the thought for the policy.

    >>> template = R1Zero(prefill=True)
    >>> template.render("What is 1 + 1?").splitlines()[-2:]
    ['User: What is 1 + 1?', 'Assistant: <think>']
    >>> template.parse("One and one.</think> <answer>2</answer>")
    Parts(thought='One and one.', answer='2')
    """

    think: str = "think"
    answer: str = "answer"
    prefill: bool = False

    def __post_init__(self):
        for name in (self.think, self.answer):
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"a tag's name must be letters, digits and underscores; it is {name!r}")
        if self.think == self.answer:
            raise ValueError(f"thought and answer need different tags; both are {self.think!r}")

    def render(self, question: str) -> str:
        """The prompt that asks a question."""
        think, answer = (f"<{name}> {what} here </{name}>" for name, what in self._blocks())
        opening = f" <{self.think}>" if self.prefill else ""
        return (
            "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
            "assistant first thinks about the reasoning process in the mind and then provides the user with the "
            f"answer. The reasoning process and answer are enclosed within <{self.think}> </{self.think}> and "
            f"<{self.answer}> </{self.answer}> tags, respectively, i.e., {think} {answer}.\n"
            f"User: {question}\nAssistant:{opening}"
        )

    def completion(self, thought: str, answer: str) -> str:
        """The completion of this thought and answer, after the prompt."""
        opening = "" if self.prefill else f"<{self.think}>"
        return f"{opening}{thought}</{self.think}> <{self.answer}>{answer}</{self.answer}>"

    def parse(self, completion: str) -> Parts | None:
        """Thought and answer of a completion that is one block of each, in order, and nothing else; None of others."""
        opened = f"<{self.think}>"
        text = completion.strip()
        text = opened + text if self.prefill and not text.startswith(opened) else text
        tags = [f"<{name}>" for block in (self.think, self.answer) for name in (block, f"/{block}")]
        if any(text.count(tag) != 1 for tag in tags):
            return None
        pieces = re.split("|".join(re.escape(tag) for tag in tags), text)
        places = [text.index(tag) for tag in tags]
        if places != sorted(places) or any(piece.strip() for piece in (pieces[0], pieces[2], pieces[4])):
            return None
        return Parts(pieces[1].strip(), pieces[3].strip())

    def _blocks(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.think, "reasoning process"), (self.answer, "answer")

"""What feedback needs of a model that writes; templates, transcripts, and what it wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fiducial.core.types import Decoding, Message, Prompt, Rollout, Score

Side = str | list[Message]
Fits = Callable[[Prompt, int], bool]  # whether a prompt leaves room for so many more tokens
Progress = Callable[[int, int], None]  # done, total

PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Writer(Protocol):
    """A model that completes prompts; `fiducial.load(folder)` gives one."""

    def sample(self, prompts: Sequence[Prompt], n: int = 1, seed: int = 0, **decoding: Any) -> list[Rollout]:
        """n completions of each prompt, prompt by prompt; `decoding` are the fields of `core.types.Decoding`."""
        ...


class Chooser(Writer, Protocol):
    """A model that also says how likely it is to begin with one or another text."""

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> Sequence[list[float] | Score]:
        """For each prompt the log-probability of each option; a score, which says why, where a server failed."""
        ...


@dataclass
class Made:
    """Rows that were made, what was left out by reason, what was measured, and what a person should know."""

    rows: list[dict[str, Any]]
    counted: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def always_fits(prompt: Prompt, tokens: int) -> bool:
    """For writers without a limit."""
    return True


def transcript(text: Side) -> str:
    """Text as it is; messages as a dialogue to read.

    >>> transcript([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}])
    'User: 2 + 2?\\n\\nAssistant: 4'
    """
    if isinstance(text, str):
        return text.strip()
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)


def fill(template: str, values: dict[str, str]) -> str:
    """The template with its placeholders replaced, all at once: braces inside a value stay as they are.

    >>> fill("{a} or {b}", {"a": "{b}", "b": "2"})
    '{b} or 2'
    """
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def read_template(path: str | Path, needs: Sequence[str]) -> str:
    """A prompt template from a file. ValueError if a placeholder that it needs is missing."""
    text = Path(path).read_text(encoding="utf-8")
    missing = [f"{{{name}}}" for name in needs if f"{{{name}}}" not in text]
    if missing:
        raise ValueError(f"{path}: the template has no {' and no '.join(missing)}; write it where the text belongs")
    return text


def asked(text: str, chat: bool) -> Prompt:
    """A text to complete, or what a user says to a chat model."""
    return [{"role": "user", "content": text}] if chat else text


def write(writer: Writer, prompts: Sequence[Prompt], seed: int, decoding: Decoding, n: int = 1) -> list[Rollout]:
    """n completions of each prompt, prompt by prompt; none for no prompts."""
    return writer.sample(list(prompts), n, seed, **asdict(decoding)) if prompts else []


def written(rollout: Rollout, decoding: Decoding) -> str:
    """The text of a rollout without surrounding white space and without the stop string that ended it."""
    text = rollout.completion
    if rollout.finish == "stop":
        for stop in decoding.stop:
            text = text.removesuffix(stop)
    return text.strip()

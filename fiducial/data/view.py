"""One row under the standard names, its fields read with their types, and the prompt that two dialogues share."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fiducial.core.types import Message

Side = str | list[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
ASSISTANT = "\n\nAssistant:"  # opens the assistant's turns in the dialogues of Bai et al. 2022 (arXiv:2204.05862)
FIELDS = (
    "prompt completion messages text chosen rejected response_a response_b response_0 response_1 rating pref_prob tied "
    "margin edited criteria source rater_id group_id better_response_id safer_response_id chosen_safe rejected_safe "
    "response_a_safe response_b_safe is_response_0_safe is_response_1_safe weight label answer tests entry_point "
    "constraints rubric completions labels ranks ratings scores"
).split()


class BadRow(ValueError):
    """A row that cannot train. `reason` is a short key to count by, `detail` says what is wrong with this row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Row:
    """A row under the standard names, with typed reading; errors call a field by the name that the file gives it.

    `left_out` counts, by reason, the parts of the row that its reader found no use for.
    """

    def __init__(self, row: Mapping[str, Any], fields: Mapping[str, str], index: int):
        self.index, self.names = index, list(row)
        self.left_out: Counter[str] = Counter()
        self.renamed = {name: source for name, source in fields.items() if name != source}
        for name, source in self.renamed.items():
            if name not in FIELDS:
                raise ValueError(f"there is no field {name!r} to rename {source!r} to; there are {', '.join(FIELDS)}")
            if source not in row:
                raise BadRow("missing field", f"{source!r} ({name}) is missing; the row has {', '.join(row)}")
        kept = {name: value for name, value in row.items() if name not in self.renamed.values()}
        self.values = {**kept, **{name: row[source] for name, source in self.renamed.items()}}

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def given(self, name: str) -> bool:
        """Whether an optional field has a value; an empty cell of a CSV has none."""
        return self.has(name) and self.values[name] != ""

    def label(self, name: str) -> str:
        return f"{self.renamed[name]!r} ({name})" if name in self.renamed else repr(name)

    def raw(self, name: str) -> Any:
        if not self.has(name):
            raise BadRow("missing field", f"{self.label(name)} is missing; the row has {', '.join(self.values)}")
        if self.values[name] in ("", []):
            raise BadRow("empty field", f"{self.label(name)} is empty")
        return self.values[name]

    def text(self, name: str) -> str:
        return read_text(self.raw(name), self.label(name))

    def side(self, name: str) -> Side:
        """Text or messages."""
        return read_side(self.raw(name), self.label(name))

    def prompt(self) -> Side:
        value = self.side("prompt")
        if isinstance(value, list) and value[-1]["role"] == "assistant":
            raise BadRow("wrong type", f"{self.label('prompt')} ends with the assistant's turn; leave it to answer")
        return value

    def listed(self, name: str) -> list[Any]:
        """A list, or the JSON of one."""
        return self._parsed(name, list, "a list")

    def table(self, name: str) -> dict[str, Any]:
        """An object, or the JSON of one."""
        return self._parsed(name, dict, "an object")

    def _parsed(self, name: str, kind: type, what: str) -> Any:
        value = self.raw(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise BadRow(
                    "wrong type", f"{self.label(name)} must be {what}; it is the text {value[:40]!r}"
                ) from None
        if not isinstance(value, kind):
            raise BadRow("wrong type", f"{self.label(name)} must be {what}; it is {describe(value)}")
        return value

    def number(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        if not self.given(name):
            return default
        return read_number(self.values[name], self.label(name), low, high)

    def flag(self, name: str) -> bool | None:
        """True, false, or None where the row does not say."""
        return read_boolean(self.values[name], self.label(name)) if self.given(name) else None

    def name(self, name: str) -> str:
        """What an optional field of a name or a number says, as text; "" where there is none."""
        return str(self.values[name]) if self.given(name) else ""

    def weight(self) -> float:
        weight = self.number("weight", 1.0, low=0.0)
        if weight == 0:
            raise BadRow("out of range", f"{self.label('weight')} is 0: the row trains nothing")
        return weight


def read_text(value: Any, label: str) -> str:
    """Text that is not blank and can be tokenized; `label` names it in errors, here and below."""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{label} must be text; it is {describe(value)}")
    if not value.strip():
        raise BadRow("empty field", f"{label} is empty")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise BadRow("broken text", f"{label} holds half a surrogate pair, which no tokenizer can read")
    return value


def read_side(value: Any, label: str) -> Side:
    """Text or messages."""
    return read_messages(value, label) if isinstance(value, list) else read_text(value, label)


def read_messages(value: list[Any], label: str) -> list[Message]:
    """Validated messages with their text-valued keys."""
    if not value:
        raise BadRow("empty field", f"{label} is empty")
    return [_message(message, f"{label}, message {i}") for i, message in enumerate(value, 1)]


def _message(value: Any, label: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise BadRow("wrong type", f"{label} must be an object with role and content; it is {describe(value)}")
    if value["role"] not in ROLES:
        raise BadRow("wrong type", f"{label} has the role {value['role']!r}; roles are {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise BadRow("wrong type", f"{label} calls tools; write the call into its content")
    if value["role"] == "system" and value["content"] == "":
        return {"role": "system", "content": ""}
    content = read_text(value["content"], f"{label}, content")
    others = {key: text for key, text in value.items() if isinstance(text, str)}
    return {**others, "content": content}


def read_number(value: Any, label: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high, perhaps spelt as text."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("wrong type", f"{label} must be a number; it is {describe(value)}")
    if not low <= number <= high:
        raise BadRow("out of range", f"{label} must lie in [{low:g}, {high:g}]; it is {number:g}")
    return number


def describe(value: Any) -> str:
    """The beginning of a value and its type, for messages."""
    return f"{value!r:.60} ({type(value).__name__})"


def read_boolean(value: Any, label: str) -> bool:
    """True or false, perhaps spelt as 1 and 0 or as text."""
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, str | int | float) or key not in known:
        raise BadRow("wrong type", f"{label} must be true or false; it is {describe(value)}")
    return known[key]


def joined(prompt: Side, sides: list[Side]) -> tuple[Side, list[Side]]:
    """Prompt and completions in one style. Where any is messages, a text prompt is a user's turn and a text completion
    an assistant's, and completions that repeat the prompt (as UltraFeedback's do) lose it."""
    if isinstance(prompt, str) and all(isinstance(side, str) for side in sides):
        return prompt, sides
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return turns, [_turns_after(turns, side) for side in sides]


def _turns_after(turns: list[Message], side: Side) -> list[Message]:
    if isinstance(side, str):
        return [{"role": "assistant", "content": side}]
    rest = side[len(turns) :] if side[: len(turns)] == turns else side
    if not rest or rest[0]["role"] != "assistant":
        raise BadRow("no assistant turn", "what follows the prompt must begin with the assistant")
    return rest


def split_prompt(sides: list[Side]) -> tuple[Side, list[Side]]:
    """The prompt that all sides begin with, and what follows it in each."""
    texts = [side for side in sides if isinstance(side, str)]
    if len(texts) == len(sides):
        cut = _common_text(texts)
        rests = [text[cut:] for text in texts]
        if not all(rest.strip() for rest in rests):
            raise BadRow("empty field", "nothing follows the common prompt on one side")
        return texts[0][:cut], list(rests)
    chats = [side for side in sides if not isinstance(side, str)]
    if texts:
        raise BadRow("wrong type", "one side is text and another messages")
    cut = _common_turns(chats)
    return chats[0][:cut], [chat[cut:] for chat in chats]


def _common_text(texts: list[str]) -> int:
    """Where the common prompt ends: after the last common "\\n\\nAssistant:"; in texts without turns before the last
    common white space, so that no word is cut (where exactly does not matter to a difference of log-probabilities)."""
    common = os.path.commonprefix(texts)
    if any(ASSISTANT in text for text in texts):
        cut = common.rfind(ASSISTANT) + len(ASSISTANT) if ASSISTANT in common else 0
    else:
        space = re.search(r"\s\S*$", common)
        cut = space.start() if space else 0
    if not common[:cut].strip():
        raise BadRow("no common prompt", "the sides do not begin with the same prompt; add a field 'prompt'")
    return cut


def _common_turns(chats: list[list[Message]]) -> int:
    """How many turns the common prompt has: it ends where every side goes on with an assistant's turn."""
    length = min(len(chat) for chat in chats)
    while any(chat[:length] != chats[0][:length] for chat in chats):
        length -= 1
    while length and not all(chat[length:] and chat[length]["role"] == "assistant" for chat in chats):
        length -= 1
    if not length:
        raise BadRow("no common prompt", "the sides share no turns that an assistant's turn follows; add a 'prompt'")
    return length

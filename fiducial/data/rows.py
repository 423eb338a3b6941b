"""Rows of data to what methods learn from: every shape in the field's use, recognised by its fields.

| kind     | fields of a row                                                                                         |
|----------|---------------------------------------------------------------------------------------------------------|
| demos    | `prompt`+`completion`; `messages`; `text`; any row of pairs (its best completion)                       |
| pairs    | `prompt`+`chosen`+`rejected`; `chosen`+`rejected` (the prompt is what both begin with);                 |
|          | `prompt`+`response_a`+`response_b` with `rating` (above 0: a is better) or `pref_prob` (that a is)      |
| labels   | `prompt`+`completion`+`label`; any row of pairs (one wanted, one unwanted)                              |
| problems | `prompt` and whatever the verifier reads (`answer`, `tests`, ...); any row of pairs (its prompt)        |
| steps    | `prompt`+`completions`+`labels`, a solution in steps                                                    |

`prompt`, `completion`, `chosen`, `rejected`, `response_a`, `response_b` and `edited` may each be text or chat messages.
Rows of pairs may add `pref_prob`, `margin`, `edited` (a third completion that is better than both) and `source`; rows
of demos, pairs and labels may add `weight`. Numbers, and lists in JSON, may be spelt as text, as CSV must. A null (as
parquet and `datasets` put where rows lack a column) is no field.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fiducial.core.types import Demo, Label, Message, Pair, Problem, Prompt

Kind = Literal["demos", "pairs", "labels", "problems", "steps"]
Side = str | list[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
ASSISTANT = "\n\nAssistant:"  # opens the assistant's turns in the dialogues of Bai et al. 2022 (arXiv:2204.05862)
FIELDS = (
    "prompt completion messages text chosen rejected response_a response_b rating pref_prob margin edited source "
    "weight label answer tests entry_point constraints rubric completions labels"
).split()


@dataclass(frozen=True)
class Steps:
    """One solution cut into steps, each labelled: 1 right, 0 wrong, or between them the share of continuations that end
    right (Wang et al. 2023, arXiv:2312.08935). `completions` and `labels` are equally long."""

    prompt: Prompt
    completions: list[str]
    labels: list[float]
    index: int = 0


Example = Demo | Pair | Label | Problem | Steps


class BadRow(ValueError):
    """A row that cannot train. `reason` is a short key to count by, `detail` says what is wrong with this row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def parse(row: Mapping[str, Any], kind: Kind, fields: Mapping[str, str] | None = None, index: int = 0) -> list[Any]:
    """What one row gives: a list of `Demo`, `Pair`, `Label`, `Problem` or `Steps`, as `kind` says.

    Mostly one; several where a preference is soft, has an edited third side, or becomes labels. The weights of a row's
    examples add up to its `weight` (1), of labels to twice that: every preference becomes two.

    `fields` renames: {"prompt": "question", "completion": "answer"} reads GSM8K. Where a row has several shapes, a
    renamed one goes first, then the order of the table above. Raises BadRow.

    >>> parse({"question": "2 + 2?", "answer": "4"}, "demos", {"prompt": "question", "completion": "answer"})
    [Demo(prompt='2 + 2?', completion='4', weight=1.0, index=0)]
    """
    if kind not in _SHAPES:
        raise ValueError(f"rows are read as {', '.join(_SHAPES)}; not as {kind!r}")
    view = _Row(row, fields or {}, index)
    shapes = _SHAPES[kind]
    for name in sorted(shapes, key=lambda name: name not in view.renamed):
        if view.has(name):
            return list(shapes[name](view))
    raise BadRow("missing field", f"{kind} need {_NEEDS[kind]}; the row has {', '.join(row) or 'no fields'}{_RENAME}")


class _Row:
    """A row under the standard names, with typed reading; errors call a field by the name that the file gives it."""

    def __init__(self, row: Mapping[str, Any], fields: Mapping[str, str], index: int):
        self.index = index
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
        return _text(self.raw(name), self.label(name))

    def side(self, name: str) -> Side:
        """Text or messages."""
        value = self.raw(name)
        return _messages(value, self.label(name)) if isinstance(value, list) else _text(value, self.label(name))

    def prompt(self) -> Side:
        value = self.side("prompt")
        if isinstance(value, list) and value[-1]["role"] == "assistant":
            raise BadRow("wrong type", f"{self.label('prompt')} ends with the assistant's turn; leave it to answer")
        return value

    def listed(self, name: str) -> list[Any]:
        """A list, or the JSON of one."""
        value = self.raw(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise BadRow(
                    "wrong type", f"{self.label(name)} must be a list; it is the text {value[:40]!r}"
                ) from None
        if not isinstance(value, list):
            raise BadRow("wrong type", f"{self.label(name)} must be a list; it is {_describe(value)}")
        return value

    def number(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        if not self.given(name):
            return default
        return _number(self.values[name], self.label(name), low, high)

    def weight(self) -> float:
        weight = self.number("weight", 1.0, low=0.0)
        if weight == 0:
            raise BadRow("out of range", f"{self.label('weight')} is 0: the row trains nothing")
        return weight


def _text(value: Any, label: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{label} must be text; it is {_describe(value)}")
    if not value.strip():
        raise BadRow("empty field", f"{label} is empty")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise BadRow("broken text", f"{label} holds half a surrogate pair, which no tokenizer can read")
    return value


def _messages(value: list[Any], label: str) -> list[Message]:
    """Validated messages with their text-valued keys."""
    if not value:
        raise BadRow("empty field", f"{label} is empty")
    return [_message(message, f"{label}, message {i}") for i, message in enumerate(value, 1)]


def _message(value: Any, label: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise BadRow("wrong type", f"{label} must be an object with role and content; it is {_describe(value)}")
    if value["role"] not in ROLES:
        raise BadRow("wrong type", f"{label} has the role {value['role']!r}; roles are {', '.join(ROLES)}")
    if value.get("tool_calls"):
        raise BadRow("wrong type", f"{label} calls tools; write the call into its content")
    if value["role"] == "system" and value["content"] == "":
        return {"role": "system", "content": ""}
    content = _text(value["content"], f"{label}, content")
    others = {key: text for key, text in value.items() if isinstance(text, str)}
    return {**others, "content": content}


def _number(value: Any, label: str, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("wrong type", f"{label} must be a number; it is {_describe(value)}")
    if not low <= number <= high:
        raise BadRow("out of range", f"{label} must lie in [{low:g}, {high:g}]; it is {number:g}")
    return number


def _describe(value: Any) -> str:
    return f"{value!r:.60} ({type(value).__name__})"


def _boolean(value: Any, label: str) -> bool:
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, str | int | float) or key not in known:
        raise BadRow("wrong type", f"{label} must be true or false; it is {_describe(value)}")
    return known[key]


def _joined(prompt: Side, sides: list[Side]) -> tuple[Side, list[Side]]:
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


def _split_prompt(sides: list[Side]) -> tuple[Side, list[Side]]:
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


@dataclass(frozen=True)
class _Ranking:
    """Completions of one prompt, best first: [chosen, rejected] or [edited, chosen, rejected]."""

    prompt: Side
    sides: list[Side]
    certainty: float = 1.0  # that chosen is better than rejected


def _ranking(row: _Row) -> _Ranking:
    names, certainty = _order(row)
    names = ["edited", *names] if row.given("edited") else names
    sides = [row.side(name) for name in names]
    if any(sides[i] == sides[j] for j in range(len(sides)) for i in range(j)):
        raise BadRow("equal sides", " and ".join(row.label(name) for name in names) + " are the same")
    if row.has("prompt"):
        prompt, sides = _joined(row.prompt(), sides)
    else:
        prompt, sides = _split_prompt(sides)
    return _Ranking(prompt, sides, certainty)


def _order(row: _Row) -> tuple[list[str], float]:
    """The names of the better and the worse side, and how certain that is."""
    soft = row.number("pref_prob", 1.0, 0.0, 1.0)
    if row.has("chosen"):
        return ["chosen", "rejected"], soft
    if not row.given("pref_prob"):
        rating = _number(row.raw("rating"), row.label("rating"))
        if rating == 0:
            raise BadRow("tie", "the rating is 0: neither is better")
        soft = float(rating > 0)
    return (["response_a", "response_b"], soft) if soft >= 0.5 else (["response_b", "response_a"], 1 - soft)


def _pairs(row: _Row) -> list[Pair]:
    """One pair. A soft preference p is two of weights p and 1 - p; an edited side makes three pairs that share the
    row's weight."""
    rank, source = _ranking(row), str(row.values["source"]) if row.given("source") else ""
    margin = row.number("margin", 0.0)
    weight = row.weight() / math.comb(len(rank.sides), 2)
    *edited, chosen, rejected = rank.sides

    def pair(better: Side, worse: Side, margin: float, share: float) -> list[Pair]:
        made = Pair(rank.prompt, better, worse, margin, weight * share, source, row.index)
        return [made] if share else []

    # r(chosen) - r(rejected) - margin is the logit of "chosen is better"; of the opposite it is the negative.
    judged = pair(chosen, rejected, margin, rank.certainty) + pair(rejected, chosen, -margin, 1 - rank.certainty)
    return [*judged, *(p for best in edited for worse in (chosen, rejected) for p in pair(best, worse, 0.0, 1.0))]


def _demo_of_ranking(row: _Row) -> list[Example]:
    rank = _ranking(row)
    return [Demo(rank.prompt, rank.sides[0], row.weight(), row.index)]


def _labels_of_ranking(row: _Row) -> list[Example]:
    labels: list[Example] = []
    for pair in _pairs(row):
        labels.append(Label(pair.prompt, pair.chosen, True, pair.weight, pair.index))
        labels.append(Label(pair.prompt, pair.rejected, False, pair.weight, pair.index))
    return labels


def _problem_of_ranking(row: _Row) -> list[Example]:
    return [Problem(_ranking(row).prompt, row.values, row.index)]


def _completion(row: _Row) -> tuple[Side, Side]:
    prompt, (completion,) = _joined(row.prompt(), [row.side("completion")])
    return prompt, completion


def _demo(row: _Row) -> list[Example]:
    if row.given("label") and not _boolean(row.raw("label"), row.label("label")):
        raise BadRow("unwanted", f"{row.label('label')} is false: an unwanted completion is not imitated")
    return [Demo(*_completion(row), row.weight(), row.index)]


def _chat(row: _Row) -> list[Example]:
    messages = _messages(row.listed("messages"), row.label("messages"))
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn", f"{row.label('messages')} holds no assistant's turn to learn")
    return [Demo("", messages, row.weight(), row.index)]


def _plain(row: _Row) -> list[Example]:
    return [Demo("", row.text("text"), row.weight(), row.index)]


def _label(row: _Row) -> list[Example]:
    desirable = _boolean(row.raw("label"), row.label("label"))
    return [Label(*_completion(row), desirable, row.weight(), row.index)]


def _problem(row: _Row) -> list[Example]:
    if row.has("answer"):
        row.raw("answer")  # an empty answer verifies nothing
    rest = {name: value for name, value in row.values.items() if name != "prompt"}
    return [Problem(row.prompt(), rest, row.index)]


def _steps(row: _Row) -> list[Example]:
    steps, labels = row.listed("completions"), row.listed("labels")
    if len(steps) != len(labels):
        raise BadRow("unequal lists", f"there are {len(steps)} steps in 'completions' and {len(labels)} labels")
    texts = [_text(step, f"{row.label('completions')}, step {i}") for i, step in enumerate(steps, 1)]
    values = [_number(label, f"{row.label('labels')}, label {i}", 0.0, 1.0) for i, label in enumerate(labels, 1)]
    return [Steps(row.prompt(), texts, values, row.index)]


# What is read when a row has the field, in this order.
_SHAPES: dict[str, dict[str, Callable[[_Row], Sequence[Example]]]] = {
    "demos": {
        "completion": _demo,
        "messages": _chat,
        "text": _plain,
        "chosen": _demo_of_ranking,
        "response_a": _demo_of_ranking,
    },
    "pairs": {"chosen": _pairs, "response_a": _pairs},
    "labels": {"label": _label, "chosen": _labels_of_ranking, "response_a": _labels_of_ranking},
    "problems": {"prompt": _problem, "chosen": _problem_of_ranking, "response_a": _problem_of_ranking},
    "steps": {"completions": _steps},
}
_RENAME = " (prompt_field and its like rename)"
_NEEDS = {
    "demos": "prompt and completion, messages, text, or chosen and rejected",
    "pairs": "chosen and rejected, or response_a and response_b with a rating",
    "labels": "prompt, completion and label, or chosen and rejected",
    "problems": "a prompt",
    "steps": "prompt, completions and labels",
}

"""Rows of data to what methods learn from: every shape in the field's use, recognised by its fields.

| kind     | fields of a row                                                                                         |
|----------|---------------------------------------------------------------------------------------------------------|
| demos    | `prompt`+`completion`; `messages`; `text`; any row of pairs (its best completion)                       |
| pairs    | `prompt`+`chosen`+`rejected`; `chosen`+`rejected` (the prompt is what both begin with);                 |
|          | `prompt`+`response_a`+`response_b` with `rating` (+2 a is better .. -2 b is), `pref_prob` (that a is),  |
|          | `criteria` or `tied`; `prompt`+`response_0`+`response_1` with `better_response_id`;                     |
|          | `prompt`+`completions` with `ranks` (1 is best), `ratings` or `scores`: all pairs of the ranking        |
| costs    | a pair of the above (not a ranking), the more harmful side first, with `chosen_safe`+`rejected_safe` or |
|          | `is_response_0_safe`+`is_response_1_safe`, and `safer_response_id`                                      |
| labels   | `prompt`+`completion`+`label`; any row of pairs (one wanted, one unwanted of each pair)                 |
| problems | `prompt` and whatever the verifier reads (`answer`, `tests`, ...); any row of pairs (its prompt)        |
| steps    | `prompt`+`completions`+`labels`, a solution in steps                                                    |

Prompts and completions may be text or chat messages. Rows of pairs may add `rating`, `pref_prob`, `margin`, `edited` (a
third completion that is better than both), `source`, `rater_id` and `group_id`; rows of demos, pairs and labels may add
`weight`. What a rating, or a tie, becomes is the `Grading`'s to say. Numbers, and lists and objects in JSON, may be
spelt as text, as CSV must. A null (as parquet and `datasets` put where rows lack a column) is no field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fiducial.core.types import Demo, Label, Pair, Problem, Prompt
from fiducial.data.preferences import shapes
from fiducial.data.preferences.grading import Grading
from fiducial.data.view import BadRow, Row, Side, joined, read_boolean, read_messages, read_number, read_text

Kind = Literal["demos", "pairs", "costs", "labels", "problems", "steps"]


@dataclass(frozen=True)
class Steps:
    """One solution cut into steps, each labelled: 1 right, 0 wrong, or between them the share of continuations that end
    right (Wang et al. 2023, arXiv:2312.08935). `completions` and `labels` are equally long."""

    prompt: Prompt
    completions: list[str]
    labels: list[float]
    index: int = 0


Example = Demo | Pair | Label | Problem | Steps


def parse(
    row: Mapping[str, Any],
    kind: Kind,
    fields: Mapping[str, str] | None = None,
    index: int = 0,
    grading: Grading | None = None,
    left_out: Counter[str] | None = None,
) -> list[Any]:
    """What one row gives: a list of `Demo`, `Pair`, `Label`, `Problem` or `Steps`, as `kind` says.

    Mostly one; several where a preference is soft, has an edited third side, ranks several completions, or becomes
    labels. The weights of a row's examples add up to its `weight` (1), of labels to twice that: every preference
    becomes two.

    `fields` renames: {"prompt": "question", "completion": "answer"} reads GSM8K. Where a row has several shapes, a
    renamed one goes first, then the order of the table above. `grading` says what ratings and ties become, by default
    their sign and nothing. `left_out` counts the comparisons within a used ranking that give no pair, such as ties.
    Raises BadRow.

    >>> parse({"question": "2 + 2?", "answer": "4"}, "demos", {"prompt": "question", "completion": "answer"})
    [Demo(prompt='2 + 2?', completion='4', weight=1.0, index=0)]
    """
    view = Row(row, fields or {}, index)
    name = shape(view, kind)
    examples = list(_SHAPES[kind][name](view, grading or Grading()))
    if left_out is not None:
        left_out.update(view.left_out)
    return examples


def shape(row: Row, kind: Kind) -> str:
    """The field by which a row is recognised as of this kind. BadRow if it has none."""
    if kind not in _SHAPES:
        raise ValueError(f"rows are read as {', '.join(_SHAPES)}; not as {kind!r}")
    shapes = _SHAPES[kind]
    for name in sorted(shapes, key=lambda name: name not in row.renamed):
        if row.has(name):
            return name
    has = ", ".join(row.names) or "no fields"
    raise BadRow("missing field", f"{kind} need {_NEEDS[kind]}; the row has {has}{_RENAME}")


def _completion(row: Row) -> tuple[Side, Side]:
    prompt, (completion,) = joined(row.prompt(), [row.side("completion")])
    return prompt, completion


def _demo(row: Row, grading: Grading) -> list[Example]:
    if row.given("label") and not read_boolean(row.raw("label"), row.label("label")):
        raise BadRow("unwanted", f"{row.label('label')} is false: an unwanted completion is not imitated")
    return [Demo(*_completion(row), row.weight(), row.index)]


def _chat(row: Row, grading: Grading) -> list[Example]:
    messages = read_messages(row.listed("messages"), row.label("messages"))
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no assistant turn", f"{row.label('messages')} holds no assistant's turn to learn")
    return [Demo("", messages, row.weight(), row.index)]


def _plain(row: Row, grading: Grading) -> list[Example]:
    return [Demo("", row.text("text"), row.weight(), row.index)]


def _label(row: Row, grading: Grading) -> list[Example]:
    desirable = read_boolean(row.raw("label"), row.label("label"))
    return [Label(*_completion(row), desirable, row.weight(), row.index)]


def _problem(row: Row, grading: Grading) -> list[Example]:
    if row.has("answer"):
        row.raw("answer")  # an empty answer verifies nothing
    rest = {name: value for name, value in row.values.items() if name != "prompt"}
    return [Problem(row.prompt(), rest, row.index)]


def _steps(row: Row, grading: Grading) -> list[Example]:
    steps, labels = row.listed("completions"), row.listed("labels")
    if len(steps) != len(labels):
        raise BadRow("unequal lists", f"there are {len(steps)} steps in 'completions' and {len(labels)} labels")
    texts = [read_text(step, f"{row.label('completions')}, step {i}") for i, step in enumerate(steps, 1)]
    values = [read_number(label, f"{row.label('labels')}, label {i}", 0.0, 1.0) for i, label in enumerate(labels, 1)]
    return [Steps(row.prompt(), texts, values, row.index)]


_JUDGED = ("chosen", "response_a", "response_0")
_COMPARED = (*_JUDGED, "completions")
# What is read when a row has the field, in this order.
_SHAPES: dict[str, dict[str, Callable[[Row, Grading], Sequence[Example]]]] = {
    "demos": {"completion": _demo, "messages": _chat, "text": _plain, **dict.fromkeys(_COMPARED, shapes.demos)},
    "pairs": dict.fromkeys(_COMPARED, shapes.pairs),
    "costs": dict.fromkeys(_JUDGED, shapes.costs),
    "labels": {"label": _label, **dict.fromkeys(_COMPARED, shapes.labels)},
    "problems": {"prompt": _problem, **dict.fromkeys(_COMPARED, shapes.problem)},
    "steps": {"completions": _steps},
}
_RENAME = " (data.prompt_field and its like rename)"
_NEEDS = {
    "demos": "prompt and completion, messages, text, or chosen and rejected",
    "pairs": "chosen and rejected, response_a and response_b with a rating, or ranked completions",
    "costs": "chosen and rejected, or response_0 and response_1 with safer_response_id",
    "labels": "prompt, completion and label, or chosen and rejected",
    "problems": "a prompt",
    "steps": "prompt, completions and labels",
}

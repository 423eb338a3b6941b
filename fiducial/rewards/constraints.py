"""Verifiable instructions (IFEval, Zhou et al. 2023, arXiv:2311.07911): whether a completion does what it was told."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args

from fiducial.core.types import Score
from fiducial.rewards.instructions import INSTRUCTIONS, Relation
from fiducial.rewards.language import NoDetector
from fiducial.rewards.verdicts import Verifier, score

Asked = tuple[str, dict[str, Any]]  # an instruction's id and its arguments


class Constraints(Verifier):
    """Whether the completion follows all instructions of its row; `Score.parts` has each one's verdict and why.

    A row names its instructions as IFEval does (`instruction_id_list`, and `kwargs` in the same order) or in the field
    `constraints`, a list of {"id": ..., and the instruction's own arguments}. `loose` also tries the completion without
    its first line, without its last line, and without asterisks, as the paper's loose accuracy does. The value is 1 or
    0 with `value="all"`, the share of instructions followed with `value="fraction"`; the verdict is the same.

    >>> row = {"constraints": [{"id": "punctuation:no_comma"}, {"id": "keywords:existence", "keywords": ["sea"]}]}
    >>> Constraints()(["The sea, again."], [row])[0].why
    '1 of 2 instructions followed; not punctuation:no_comma: commas: 1'
    """

    name = "constraints"

    def __init__(self, *, loose: bool = False, value: Literal["all", "fraction"] = "all"):
        if value not in ("all", "fraction"):
            raise ValueError(f"value must be 'all' or 'fraction'; it is {value!r}")
        self.loose, self.value = loose, value

    def judge(self, completion: str, row: dict[str, Any]) -> Score:
        """The score of one completion."""
        try:
            asked = instructions_of(row)
        except ValueError as error:
            return score("skipped", str(error))
        texts = variants(completion) if self.loose else [completion]
        parts: dict[str, Score] = {}
        for id, kwargs in asked:
            name, copy = id, 2
            while name in parts:
                name, copy = f"{id} {copy}", copy + 1
            parts[name] = follow(texts, id, kwargs)
        return self._together(parts)

    def _together(self, parts: dict[str, Score]) -> Score:
        followed = sum(part.verdict == "correct" for part in parts.values())
        broken = [name for name, part in parts.items() if part.verdict == "wrong"]
        skipped = [name for name, part in parts.items() if part.verdict == "skipped"]
        if skipped and (self.value == "fraction" or not broken):  # a broken one settles whether all are followed
            return Score(None, "skipped", f"{skipped[0]}: {parts[skipped[0]].why}", parts)
        why = f"{followed} of {len(parts)} instructions followed"
        if broken:
            why += f"; not {broken[0]}: {parts[broken[0]].why}"
        value = followed / len(parts) if self.value == "fraction" else float(not broken)
        return Score(value, "wrong" if broken else "correct", why, parts)


def follow(texts: Sequence[str], id: str, kwargs: Mapping[str, Any]) -> Score:
    """Whether one of the texts follows one instruction; an empty one follows none."""
    seen = "the completion is empty"
    for text in texts:
        if not text.strip():
            continue
        try:
            followed, why = INSTRUCTIONS[id](text, **kwargs)
        except (NoDetector, ValueError) as error:
            return score("skipped", str(error))
        if followed:
            return score("correct", why)
        seen = why if text is texts[0] else seen
    return score("wrong", seen)


def variants(completion: str) -> list[str]:
    """The eight texts that loose judging tries: with and without the first line, the last line, all asterisks.

    >>> variants("Sure:\\n*a*")[:4]
    ['Sure:\\n*a*', '*a*', 'Sure:', '']
    """
    lines = completion.split("\n")
    cuts = [completion, *("\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1]))]
    return cuts + [text.replace("*", "") for text in cuts]


def instructions_of(row: Mapping[str, Any]) -> list[Asked]:
    """The instructions that a row names, checked. Raises a ValueError that names the field and what is wrong."""
    if "constraints" in row:
        given = row["constraints"]
        if not isinstance(given, Sequence) or not all(isinstance(x, Mapping) and "id" in x for x in given):
            raise ValueError("the field 'constraints' must be a list of {\"id\": ..., and its arguments}")
        asked = [(x["id"], {name: value for name, value in x.items() if name != "id"}) for x in given]
    elif "instruction_id_list" in row:
        ids, kwargs = row["instruction_id_list"], row.get("kwargs")
        kwargs = [{}] * len(ids) if kwargs is None else kwargs
        if not all(isinstance(x, Sequence) and not isinstance(x, str) for x in (ids, kwargs)):
            raise ValueError("the fields 'instruction_id_list' and 'kwargs' must be lists")
        if len(ids) != len(kwargs):
            raise ValueError(f"the row has {len(ids)} instructions in 'instruction_id_list' and {len(kwargs)} 'kwargs'")
        asked = [(id, x or {}) for id, x in zip(ids, kwargs, strict=True)]
    else:
        raise ValueError("the row has no field 'constraints' (or 'instruction_id_list' and 'kwargs')")
    if not asked:
        raise ValueError("the row names no instruction")
    return [(id, arguments_of(id, kwargs)) for id, kwargs in asked]


def arguments_of(id: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of one instruction, of the right types. None stands for an argument of another kind (as in tables
    with one column for each) and is left out. ValueError for what is unknown, missing or of a wrong type."""
    if not isinstance(id, str) or id not in INSTRUCTIONS:
        near = get_close_matches(str(id), INSTRUCTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(INSTRUCTIONS)}"
        raise ValueError(f"there is no instruction {id!r}{hint}")
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"the arguments of {id} must be a table of names and values; they are {kwargs!r}")
    given = {name: value for name, value in kwargs.items() if value is not None}
    wanted = _parameters(id)
    for name in given:
        if name not in wanted:
            raise ValueError(f"{id} has no argument {name!r}; it has {', '.join(wanted) or 'none'}")
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ValueError(f"{id} needs the argument {missing[0]!r}")
    return {name: _typed(f"{id}: {name!r}", given[name], kind) for name, kind in wanted.items()}


@cache
def _parameters(id: str) -> dict[str, Any]:
    """Name and type of each argument of an instruction."""
    parameters = inspect.signature(INSTRUCTIONS[id], eval_str=True).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as an argument of this type; numbers of tables may come as floats."""
    if kind is int:
        if isinstance(value, bool) or not hasattr(value, "__index__") and not (_is_whole(value)):
            raise ValueError(f"{name} must be a whole number; it is {value!r}")
        return int(value)
    if kind is str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} must be a text; it is {value!r}")
        return value
    if kind is Relation:
        if value not in get_args(Relation):
            raise ValueError(f"{name} must be one of {', '.join(get_args(Relation))}; it is {value!r}")
        return value
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not values or not all(isinstance(x, str) and x for x in values):
        raise ValueError(f"{name} must be a list of texts; it is {value!r}")
    return values


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()

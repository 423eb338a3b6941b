"""Every offline generator of reasoning-gym (arXiv:2505.24760) as a task, `rg/<name>`.

Answers are judged by the generator's own `score_answer`: 1 is correct, anything less is wrong and keeps its value.
Where that function is known to accept a wrong answer, or to run the answer as code, a stricter check comes first.
All the same it is other people's code at work on a model's text: these tasks say `isolate`.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from fractions import Fraction
from functools import cache, partial
from importlib.util import find_spec
from random import Random
from typing import Any

from fiducial.core.answers import EXTRACTORS, MAX_SCAN, parse_number, read_number
from fiducial.core.types import CORRECT, Problem, Score
from fiducial.data.tasks.base import Setting, Task, marked_answer

PREFIX = "rg/"
NO_STORED_ANSWER = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour")  # judged all the same
UNUSABLE = {"composite": "it mixes other generators; name those instead"}
# These iterate over sets of strings, whose order Python draws anew in every process.
ORDER_OF_SETS = (
    "intermediate_integration isomorphic_strings knight_swap polynomial_multiplication ransom_note word_ladder".split()
)
JSON_OF_ANY_SHAPE = ("boxnet", "game_of_life")  # their scorers trip over JSON of another shape
TUPLES = ("arc_agi", "rearc")  # their scorers compare with tuples, which JSON turns into lists


def installed() -> bool:
    """Whether reasoning-gym can be imported."""
    return find_spec("reasoning_gym") is not None


def names() -> list[str]:
    """The generators that can be used, in alphabetical order, without the prefix. Needs reasoning-gym."""
    return [name for name in sorted(_registry()) if name not in UNUSABLE]


def task(name: str) -> Task:
    """The task of the generator `name`. Its settings are the generator's numeric ones, with their defaults."""
    if name in UNUSABLE:
        raise ValueError(f"{PREFIX}{name} cannot be a task: {UNUSABLE[name]}")
    generator, config = _registry()[name]
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(config) if f.name not in ("size", "seed")}
    return Task(
        id=PREFIX + name,
        summary=f"reasoning-gym, {generator.__module__.split('.')[1]}: {name.replace('_', ' ')}",
        make=partial(_make, name),
        judge=partial(_judge, name),
        guess=_unknown,
        extract=answer_between_tags,
        needs=("answer", "question", "metadata", "settings"),
        difficulty={key: Setting(value) for key, value in defaults.items() if type(value) in (int, float)},
        source="reasoning-gym",
        isolate=True,
    )


@cache
def _registry() -> dict[str, tuple[type, type]]:
    if not installed():
        raise ValueError("tasks named rg/... need reasoning-gym: pip install fiducial[tasks]")
    with warnings.catch_warnings():  # of a package that it imports, told once when that is first compiled
        warnings.simplefilter("ignore", SyntaxWarning)
        from reasoning_gym.factory import DATASETS

    return DATASETS


def _unknown(**_: Any) -> None:
    """Nobody has worked out the chance of a blind guess."""


def answer_between_tags(completion: str) -> str | None:
    """The answer as written: for these generators a full stop or a star may be part of it, and it may be empty."""
    tail = completion[-MAX_SCAN:]
    span = EXTRACTORS["tag"](tail)
    return tail[slice(*span)].strip() if span else marked_answer(completion)


def _dataset(name: str, settings: Mapping[str, Any], seed: int) -> Any:
    from reasoning_gym import create_dataset

    try:
        return create_dataset(name, size=1, seed=seed, **settings)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{PREFIX}{name} refuses its settings: {str(error) or 'they do not go together'}") from error


def _draw(name: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    with redirect_stdout(sys.stderr):
        return _dataset(name, settings, seed)[0]


def _has_answer(name: str, entry: Mapping[str, Any], settings: Mapping[str, Any], seed: int) -> bool:
    """Whether the problem has a right answer at all; two generators also draw some that have none."""
    if name == "codeio":  # some of its programs draw unseeded random numbers
        return entry == _draw(name, settings, seed)
    if name == "intermediate_integration":  # sympy left the integral unsolved
        return "Integral(" not in entry["answer"]
    return True


def _make(name: str, rng: Random, **settings: Any) -> Problem:
    if name in ORDER_OF_SETS and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ValueError(
            f"{PREFIX}{name} draws other problems in every process: set PYTHONHASHSEED=0 before Python starts"
        )
    seed = rng.getrandbits(31)
    while not _has_answer(name, entry := _draw(name, settings, seed), settings, seed):
        seed = rng.getrandbits(31)
    fields = {
        "answer": entry["answer"],
        "key": hashlib.sha256(f"{name}: {entry['question']}".encode()).hexdigest(),
        "question": entry["question"],
        "metadata": json.loads(json.dumps(entry["metadata"], default=str)),  # as it will be when read from a file
        "settings": settings,
    }
    return Problem(entry["question"], fields)


def _judge(name: str, text: str, fields: Mapping[str, Any]) -> Score:
    entry = {key: fields[key] for key in ("question", "answer", "metadata")}
    if name in TUPLES:
        entry["metadata"] = _tuples(entry["metadata"])
    scorer = _scorer(name, tuple(sorted(fields["settings"].items())))
    # What int, float, Fraction and json raise on a text or a size that they cannot read.
    unreadable: tuple[type[Exception], ...] = (ValueError, OverflowError)
    if name in JSON_OF_ANY_SHAPE:
        unreadable += (TypeError, LookupError, AttributeError)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # some scorers print what they think of the answer
            warnings.simplefilter("ignore")
            if fault := GUARDS.get(name, _no_guard)(text, entry):
                return Score(0.0, "wrong", fault)
            value = float(scorer(text, entry))
    except unreadable as error:
        return Score(None, "unparseable", f"{PREFIX}{name} cannot read the answer {text[:40]!r}: {str(error)[:80]}")
    except Exception as error:  # other people's code; a typed verdict, never a number
        return Score(
            None, "crashed", f"{PREFIX}{name} failed on {text[:40]!r}: {type(error).__name__}: {str(error)[:80]}"
        )
    return (
        CORRECT if value >= 1 else Score(value, "wrong", f"{PREFIX}{name} scores the answer {value:.3g}; 1 is correct")
    )


@cache
def _scorer(name: str, settings: tuple[tuple[str, Any], ...]) -> Callable[[str, dict[str, Any]], float]:
    return _dataset(name, dict(settings), seed=0).score_answer


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


# --------------------------------------------------------------------------- what a scorer must not be shown


def _no_guard(text: str, entry: Mapping[str, Any]) -> str:
    return ""


def _evaluated_as_python(text: str, entry: Mapping[str, Any]) -> str:
    """These scorers call `eval` on an answer that is not the stored text."""
    harmless = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.USub)
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""  # `eval` cannot run it either
    return "" if all(isinstance(node, harmless) for node in nodes) else "the answer is code, not a value"


FUNCTIONS = frozenset("sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs pi E".split())


def _evaluated_by_sympy(text: str, entry: Mapping[str, Any]) -> str:
    """sympy's parser runs an answer as Python: only formulas with the usual functions and modest powers may pass.

    Among what may not is `Integral(...)`, which the integration scorers accept as its own solution.
    """
    words = re.findall(r"[A-Za-z_]\w*", text)
    formula = re.fullmatch(r"[\w\s+\-*/^().,]*", text, re.ASCII) and not re.search(r"\.\s*[A-Za-z_]", text)
    if not formula or any(len(word) > 1 and word not in FUNCTIONS for word in words):
        return "the answer is not a plain formula"
    if re.search(r"(\*\*|\^)[\s(]*-?\d{4}|(\*\*|\^)[^+\-*/^]*(\*\*|\^)", text):
        return "the answer has a power of a power or an exponent above 999"
    return ""


def _four_numbers(text: str, entry: Mapping[str, Any]) -> str:
    """`puzzle24` scores any four numbers that make 24."""
    used, given = sorted(map(int, re.findall(r"\d+", text[:200]))), sorted(entry["metadata"]["numbers"])
    return _evaluated_by_sympy(text, entry) or ("" if used == given else f"the answer must use {given}, each once")


def _finite(text: str, entry: Mapping[str, Any]) -> str:
    """`complex_arithmetic` scores 'nan' as correct."""
    return "the answer is not a finite number" if re.search(r"nan|inf", text, re.IGNORECASE) else ""


def _same_word(text: str, entry: Mapping[str, Any]) -> str:
    """`game_of_life_halting` scores every text that is not empty as 'True'."""
    return "" if text.strip().lower() == entry["answer"].lower() else f"the answer is {entry['answer']}"


def _same_probability(text: str, entry: Mapping[str, Any]) -> str:
    """`coin_flip` scores '0' as correct for any probability that begins with 0."""
    number = parse_number(text)
    close = number is not None and abs(number - Fraction(entry["answer"])) <= Fraction(1, 10_000)
    return "" if close else f"the answer is {entry['answer']}"


def _one_number(text: str, entry: Mapping[str, Any]) -> str:
    """`gsm_symbolic` reads the first number in the text, without its sign."""
    return "" if read_number(text) == read_number(entry["answer"]) else f"the answer is {entry['answer']}"


GUARDS: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), _evaluated_as_python),
    **dict.fromkeys(
        ("countdown", "intermediate_integration", "polynomial_multiplication", "simple_integration"),
        _evaluated_by_sympy,
    ),
    "coin_flip": _same_probability,
    "complex_arithmetic": _finite,
    "game_of_life_halting": _same_word,
    "gsm_symbolic": _one_number,
    "puzzle24": _four_numbers,
}

"""What a task is, and how its problems fall into train, dev and test.

A task draws problems, writes worked solutions of them and judges completions. The split of a problem is a function of
the problem alone, the hash of its canonical key, so no problem of the test split can turn up in training, whatever the
seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

from fiducial.core.answers import MARKED, extract_answer
from fiducial.core.seeds import mix
from fiducial.core.types import Problem, Score

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class Setting:
    """One knob of a task's difficulty. Numbers are from `low` to `high` (None: no bound), texts one of `choices`."""

    default: int | float | bool | str
    low: float | None = None
    high: float | None = None
    doc: str = ""
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raise a ValueError unless `value` is in range and of the default's type (an int passes for a float)."""
        kinds = (int, float) if isinstance(self.default, float) else (type(self.default),)
        if type(value) not in kinds:
            raise ValueError(f"{name} must be of type {type(self.default).__name__}; it is {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{name} must be one of {', '.join(self.choices)}; it is {value!r}")
        if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
            raise ValueError(f"{name} must be from {self.low} to {self.high}; it is {value!r}")


def marked_answer(completion: str) -> str | None:
    """The answer that a completion marks as such by tags, a box, `####` or "the answer is".

    The last number of an unfinished thought is not an answer, or a policy learns to stop there.
    """
    found = extract_answer(completion, MARKED)
    return found.text if found else None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One family of verifiable problems. The callables are what a task's file writes; users call the methods."""

    id: str
    summary: str
    make: Callable[..., Problem]  # make(rng, **settings): one problem; `fields` has `answer`, `key` and all of `needs`
    judge: Callable[[str, Mapping[str, Any]], Score]  # judge(answer text, fields)
    guess: Callable[..., float | None]  # guess(**settings): see `chance`
    think: Callable[[Problem, Random], str] | None = None  # think(problem, rng): the worked solution without the answer
    slip: Callable[..., str] | None = None  # slip(problem, rng, **teacher): a completion that may go wrong
    extract: Callable[[str], str | None] = marked_answer  # completion -> answer text
    needs: tuple[str, ...] = ("answer",)  # the fields that `judge` reads
    difficulty: Mapping[str, Setting] = field(default_factory=dict)
    source: Literal["built-in", "reasoning-gym"] = "built-in"
    isolate: bool = False  # `verify` runs other people's code, which may hang: give it a worker with a time limit

    def settings(self, **difficulty: Any) -> dict[str, Any]:
        """Every setting of the task: those given, checked, and the defaults of the others."""
        for name, value in difficulty.items():
            if name not in self.difficulty:
                known = ", ".join(self.difficulty) or "none"
                raise ValueError(f"{self.id} has no setting {name!r}; its settings: {known}")
            self.difficulty[name].check(f"{self.id}.{name}", value)
        return {name: difficulty.get(name, setting.default) for name, setting in self.difficulty.items()}

    def generate(self, rng: Random, **difficulty: Any) -> Problem:
        """One problem, of any split."""
        return self.make(rng, **self.settings(**difficulty))

    def chance(self, **difficulty: Any) -> float | None:
        """The chance that a blind guess of the right form is correct; None where nobody has worked it out."""
        return self.guess(**self.settings(**difficulty))

    def answer_text(self, problem: Problem) -> str:
        """The stored solution, as it stands between the answer tags."""
        answer = problem.fields["answer"]
        if answer is None:
            raise ValueError(f"{self.id} checks answers but stores none: it cannot give solutions to imitate")
        return str(answer)

    def trace(self, problem: Problem, rng: Random) -> str:
        """A worked solution as a full completion, `<think>...</think><answer>...</answer>`.

        Tasks that come without a method of solution leave the thought empty.
        """
        answer = self.answer_text(problem)
        return completion(self.think(problem, rng) if self.think else "", answer)

    def sloppy_trace(self, problem: Problem, rng: Random, **teacher: Any) -> str:
        """A worked solution by an imperfect teacher, whose knobs are `teacher`."""
        if self.slip is None:
            raise ValueError(f"{self.id} has no imperfect teacher: use its exact solutions, or the task arith")
        return self.slip(problem, rng, **teacher)

    def verify(self, completion: str, fields: Mapping[str, Any]) -> Score:
        """Judge a completion by the answer that it marks; without one it is unparseable."""
        missing = [name for name in self.needs if name not in fields]
        if missing:
            return Score(None, "skipped", f"the row has no field {missing[0]!r}, which {self.id} needs")
        answer = self.extract(completion)
        if answer is None:
            return Score(None, "unparseable", "no answer is marked, for example by <answer>...</answer>")
        return self.judge(answer, fields)


def completion(thought: str, answer: str) -> str:
    """A completion in the one format that all tasks teach.

    >>> completion("1 + 1 = 2.", "2")
    '<think>1 + 1 = 2.</think><answer>2</answer>'
    """
    return f"<think>{thought}</think><answer>{answer}</answer>"


def join_digits(text: str) -> str:
    """Undo the spaces between single digits that a tokenizer of digits and words leaves when it decodes.

    >>> join_digits("( 1 7 + 8 ) * 2"), join_digits("12 7")
    ('( 17 + 8 ) * 2', '12 7')
    """
    return re.sub(r"(?<!\d)\d(?: \d(?!\d))+", lambda run: run.group().replace(" ", ""), text)


def split_of(key: str) -> Split:
    """The split of the problem with this canonical key: 80 % train, 10 % dev, 10 % test.

    >>> [split_of(f"{n} + 1") for n in range(12)].count("train")
    9
    """
    place = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
    return "train" if place < 80 else "dev" if place < 90 else "test"


def problems(task: Task, n: int, split: Split, seed: int, **difficulty: Any) -> list[Problem]:
    """`n` different problems of one split, the same for the same task, split, seed and difficulty.

    A shorter call gives the beginning of a longer one. Raises a ValueError when the split holds fewer than `n`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; it is {split!r}")
    settings = task.settings(**difficulty)
    rng = Random(mix(seed, task.id, split, *(f"{name}={settings[name]}" for name in sorted(settings))))
    found: dict[str, Problem] = {}
    idle = 0  # draws since the last new problem
    while len(found) < n:
        problem = task.make(rng, **settings)
        key = problem.fields["key"]
        idle += 1
        if key not in found and split_of(key) == split:
            found[key] = replace(problem, index=len(found))
            idle = 0
        elif idle > 500 + 200 * len(found):  # 20 draws per problem of a 10 % split: to miss one, equally likely, e^-20
            shown = ", ".join(f"{name} {value}" for name, value in settings.items())
            raise ValueError(
                f"{task.id} was asked for {n} different {split} problems, but only {len(found)} turn up "
                f"at these settings ({shown}): ask for fewer or widen a setting"
            )
    return list(found.values())

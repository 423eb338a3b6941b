"""A pipeline: rounds of stages, each a recipe or a small job between two. TOML in, checked before anything runs.

    rounds = 3
    start = "models/base"                  # {start}; or a stage of that name

    [[stage]]
    name = "answers"
    kind = "sample"                        # completions of prompts, scored: pairs.jsonl, demos.jsonl, ...
    model.path = "{dpo|start}"
    task = "arith"

    [[stage]]
    name = "both"
    kind = "mix"                           # rows of files and tasks in one: rows.jsonl
    sources = [{ path = "{answers}/demos.jsonl" }, { task = "arith", rows = 100 }]

    [[stage]]
    name = "dpo"                           # kind = "train" is what a stage is if it does not say: the table is a recipe
    method = "dpo"
    model.path = "{dpo|start}"
    data.path = "{answers}/pairs.jsonl"

`{name}` is what the newest stage of that name made: its model's folder, or a sample or mix stage's folder of rows.
`{a|b}` is the first of these that any stage has made by then, so `{dpo|start}` is the last round's model, and the start
in the first round. `{round}` counts from 1; alone in a string it is a number.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fiducial.config import (
    Data,
    Model,
    RecipeError,
    Run,
    Sampling,
    Verdicts,
    from_table,
    merge,
    read_toml,
    without_rivals,
)

PairRule = Literal["best_worst", "best_random", "random_two_labelled"]
Dtype = Literal["float32", "bfloat16", "float64"]
NAME = re.compile(r"[a-z][a-z0-9_]*")
REFERENCE = re.compile(r"\{([a-z][a-z0-9_]*(?:\|[a-z][a-z0-9_]*)*)\}")


@dataclass(frozen=True)
class Sample:
    """Completions of prompts by a model, scored by a reward, and the rows that they make.

    Each stage takes prompts that no earlier sample stage with the same source took; a file begins again at its end.
    """

    model: Model = Model()  # who writes: model.path
    seed: int = 0  # of the prompts and of what is drawn
    task: str = ""  # problems of a task, or of data.path
    data: Data = Data()
    prompts: int = 256  # taken by one stage
    batch: int = 64  # prompts between two savings: a stage that was killed goes on behind the last
    sampling: Sampling = Sampling(n=10)
    reward: str | dict[str, float | dict[str, Any]] = ""  # as in a recipe; empty: the task's
    verdicts: Verdicts = Verdicts()
    copies: Literal["drop", "keep"] = (
        "drop"  # the same completion drawn again: once, or as often as the policy writes it
    )
    keep: int = 1  # demos: so many of a prompt, the best first
    min_reward: float | None = None  # demos: only completions that earn at least this
    only_correct: bool = False  # demos: only completions that every part of the reward calls correct
    pair_rule: PairRule = "best_worst"  # pairs: one of each prompt, as in online_direct
    skip_if_score_gap_below: float = 0.0  # pairs: no pair of completions whose rewards are closer
    slight_below: float = 0.0  # pairs: a smaller difference in reward is rated 1 (slightly better), a larger one 2
    harm_below: float | None = None  # pairs: completions that earn less do harm, others are safe; as a cost model reads
    wanted_from: float = 1.0  # labels: completions that earn at least this are wanted, others are not

    def check(self) -> None:
        """RecipeError for settings that cannot be."""
        s = self.sampling
        _ = s.decoding
        for fine, message in (
            (bool(self.model.path), 'it has no model: give model.path, such as "{start}"'),
            (bool(self.task) != bool(self.data.path), "name a task or data.path, and not both"),
            (bool(self.task or self.reward), 'prompts of a file need a reward: reward = "math", or "{reward}"'),
            (self.prompts >= 1, f"prompts must be at least 1; it is {self.prompts}"),
            (self.batch >= 1, f"batch must be at least 1; it is {self.batch}"),
            (s.n >= 1, f"sampling.n must be at least 1; it is {s.n}"),
            (s.temperature > 0 or s.n == 1, f"sampling.temperature = 0 draws the same completion {s.n} times"),
            (self.keep >= 1, f"keep must be at least 1; it is {self.keep}"),
            (self.skip_if_score_gap_below >= 0, "skip_if_score_gap_below must be 0 or more"),
        ):
            if not fine:
                raise RecipeError(message)

    @property
    def source(self) -> str:
        """What the prompts are taken from: stages with the same source do not take the same ones."""
        return json.dumps([self.task, self.data.path, self.data.split, self.data.difficulty, self.seed], sort_keys=True)


@dataclass(frozen=True)
class Source:
    """Rows of a file, or problems of a task."""

    name: str = ""  # what its rows say as `source`, which a reward's `when` can ask for; empty: the task or file's name
    path: str = ""  # rows of a file
    split: str = ""  # of a saved DatasetDict
    task: str = ""  # or problems of a task
    rows: int = 0  # so many: the first ones; of a file 0 takes all
    difficulty: dict[str, Any] = field(default_factory=dict)  # of the task
    solved: bool = True  # a task's worked solutions, to imitate; false: its problems, with all that a verifier reads
    teacher: dict[str, Any] = field(default_factory=dict)  # how the solutions slip; empty: they do not
    tags: bool = True  # solutions in think and answer tags; false: as plain text that ends in "The answer is ..."

    @property
    def called(self) -> str:
        """The name that its rows have."""
        return self.name or self.task or Path(self.path).stem

    def check(self) -> None:
        """RecipeError for settings that cannot be."""
        for fine, message in (
            (bool(self.task) != bool(self.path), "a source has a task or a path, and not both"),
            (
                self.rows >= 0 and (self.rows > 0 or not self.task),
                "rows must be at least 1 of a task, 0 or more of a file",
            ),
            (bool(self.task) or not (self.difficulty or self.teacher), "difficulty and teacher are a task's"),
            (self.solved or not self.teacher, "solved = false has no solutions that a teacher could write"),
        ):
            if not fine:
                raise RecipeError(f"sources: {self.called or 'a source without a name'}: {message}")


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources in one file, rows.jsonl, in an order that is drawn."""

    sources: tuple[Source, ...] = ()  # files and tasks
    seed: int = 0  # of problems, teachers and the order

    def check(self) -> None:
        """RecipeError for settings that cannot be."""
        if not self.sources:
            raise RecipeError("it has no sources: add [[stage.sources]] tables with a path or a task")
        for source in self.sources:
            source.check()


@dataclass(frozen=True)
class Average:
    """The weighted mean of models of one architecture, weight by weight (Wortsman et al. 2022, arXiv:2203.05482)."""

    models: tuple[str, ...] = ()  # their folders
    weights: tuple[float, ...] = ()  # what each counts; empty: all the same
    dtype: Dtype = "float32"  # they are read, averaged and saved in

    def check(self) -> None:
        """RecipeError for settings that cannot be."""
        number, weights = len(self.models), self.weights
        if not number:
            raise RecipeError('it has no models: give their folders, models = ["{sft}", "{dpo}"]')
        if weights and (len(weights) != number or min(weights) < 0 or sum(weights) <= 0):
            raise RecipeError(f"weights are {number} numbers of 0 or more, one for each model; they are {weights}")


@dataclass(frozen=True)
class Gold:
    """What every policy is measured on when its stage is done: the same problems with the same seeds each time."""

    task: str = ""  # problems of a task, or of data.path
    data: Data = Data()
    split: Literal["dev", "test"] = "dev"  # of a task: nothing trains on either
    reward: str | dict[str, float | dict[str, Any]] = ""  # the gold reward; empty: the task's
    n: int = 100  # problems
    k: int = 4  # completions of each
    sampling: Sampling = Sampling()
    verdicts: Verdicts = Verdicts()
    against: str = ""  # a stage's name, or start: win rate over its (first) policy and divergence from it

    def __bool__(self) -> bool:
        return bool(self.task or self.data.path)

    def check(self) -> None:
        """RecipeError for settings that cannot be."""
        for fine, message in (
            (bool(self.task) != bool(self.data.path), "name a task or data.path, and not both"),
            (bool(self.task or self.reward), "problems of a file need a reward"),
            (self.n >= 1 and self.k >= 1, "n and k must be at least 1"),
        ):
            if not fine:
                raise RecipeError(f"[gold]: {message}")


@dataclass(frozen=True)
class Pipeline:
    """Rounds of stages. A stage's table has a `name`, a `kind` (train, sample, mix or average), `once = true` if
    only the first round has it, and the settings of its kind; `seed` is that of the pipeline where the stage has none.
    """

    rounds: int = 1  # how often the stages run, one after the other
    seed: int = 0  # of every stage that names none
    start: str = ""  # a model's folder: what {start} stands for
    gold: Gold = Gold()  # measures every policy on the same problems
    stage: tuple[dict[str, Any], ...] = field(default=())

    @property
    def names(self) -> list[str]:
        """The stages of a round, in order."""
        return [stage["name"] for stage in self.stage]

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


Work = Run | Sample | Mixture | Average
KINDS: dict[str, Any] = {"train": Run, "sample": Sample, "mix": Mixture, "average": Average}


@dataclass(frozen=True)
class Place:
    """One stage of one round: where it runs, what it does, and what others get when they name it."""

    round: int
    name: str
    kind: str
    folder: Path
    work: Work
    skip: int = 0  # prompts of a sample stage's source that earlier stages take

    @property
    def made(self) -> Path:
        """The model's folder, or that of the rows."""
        return self.folder if self.kind in ("sample", "mix") else self.folder / "model"

    @property
    def makes_policy(self) -> bool:
        """Whether a language model comes out that the gold reward can measure."""
        return isinstance(self.work, Average) or (isinstance(self.work, Run) and self.work.record().learns == "policy")


def read_pipeline(path: str | Path, over: dict[str, Any] | None = None) -> Pipeline:
    """The pipeline that a TOML file describes, `over` in place of the file's settings: {"rounds": 2, "dpo": {...}} sets
    its own and those of the stage dpo. RecipeError names the stage and the key."""
    table = read_toml(path)
    stages = [dict(stage) for stage in table.get("stage", [])]
    names = [str(stage.get("name", "")) for stage in stages]
    own: dict[str, Any] = {}  # what `over` says of the pipeline itself
    try:
        _check_names(names)
        for name, settings in (over or {}).items():
            if name in names and isinstance(settings, dict):  # first: a stage may be called start, as a setting is
                i = names.index(name)
                stages[i] = merge(without_rivals(stages[i], settings), settings)
            elif name in PIPELINE:
                own[name] = settings
            else:
                raise RecipeError(f"{name!r} is no setting of a pipeline and none of its stages, {', '.join(names)}")
        pipeline = from_table(Pipeline, {**merge(table, own), "stage": stages})
        plan(pipeline, Path("OUT"))  # whatever is wrong with a stage is told now
    except RecipeError as error:
        raise RecipeError(f"pipeline {path}: {error}") from error
    return pipeline


PIPELINE = {f.name for f in dataclasses.fields(Pipeline)} - {"stage"}


def _check_names(names: list[str]) -> None:
    """Each stage needs a name of its own that a reference, a folder and a flag can have."""
    if not names:
        raise RecipeError("it has no stages: add [[stage]] tables")
    for name, number in Counter(names).items():
        if not NAME.fullmatch(name):
            raise RecipeError(f"a stage's name is small letters, digits and _, beginning with a letter; not {name!r}")
        if number > 1:
            raise RecipeError(f"{number} stages are called {name!r}: give each a name of its own")
        if name in PIPELINE - {"start"} or name == "round":
            raise RecipeError(f"a stage cannot be called {name!r}: that is a word of the pipeline's own")


def plan(pipeline: Pipeline, out: Path) -> list[Place]:
    """Every stage of every round, in order, with its references filled in. RecipeError says what is wrong where."""
    if pipeline.rounds < 1:
        raise RecipeError(f"rounds must be at least 1; it is {pipeline.rounds}")
    if pipeline.start and "start" in pipeline.names:
        raise RecipeError("{start} is both a stage and the setting `start`: keep one")
    if pipeline.gold != Gold():
        pipeline.gold.check()
    known: dict[str, str] = {"start": pipeline.start} if pipeline.start else {}
    taken: Counter[str] = Counter()
    places = []
    for number in range(1, pipeline.rounds + 1):
        for table in pipeline.stage:
            if table.get("once") is True and number > 1:
                continue
            try:
                place = _place(pipeline, table, number, out, known)
            except RecipeError as error:
                raise RecipeError(f"stage {table['name']!r}: {error}") from error
            work = place.work
            if isinstance(work, Sample):
                place = replace(place, skip=taken[work.source])
                taken[work.source] += work.prompts
            places.append(place)
            known[place.name] = str(place.made)
    policies = {place.name for place in places if place.makes_policy} | ({"start"} if pipeline.start else set())
    if pipeline.gold.against and pipeline.gold.against not in policies:
        there = ", ".join(sorted(policies)) or "there are none"
        raise RecipeError(f"[gold]: against = {pipeline.gold.against!r} is no stage that makes a policy ({there})")
    return places


def _place(pipeline: Pipeline, table: dict[str, Any], number: int, out: Path, known: dict[str, str]) -> Place:
    table = dict(table)
    name, kind, once = table.pop("name"), table.pop("kind", "train"), table.pop("once", False)
    if kind not in KINDS:
        raise RecipeError(f"kind must be one of {', '.join(KINDS)}; it is {kind!r}")
    if not isinstance(once, bool):
        raise RecipeError(f"once must be true or false; it is {once!r}")
    if kind != "average":
        table = {"seed": pipeline.seed, **table}
    work = from_table(KINDS[kind], refer(table, known, number))
    if isinstance(work, Run):
        work.resolved()
    else:
        work.check()
    return Place(number, name, kind, out / f"{number}-{name}", work)


def refer(value: Any, known: dict[str, str], number: int) -> Any:
    """`value` with the references in its strings, and in the names of its tables, filled in. RecipeError for one that
    nothing made.

    >>> refer({"path": "{dpo|sft}/rows.jsonl", "seed": "{round}"}, {"sft": "out/1-sft"}, 2)
    {'path': 'out/1-sft/rows.jsonl', 'seed': 2}
    """
    if isinstance(value, dict):
        return {refer(key, known, number): refer(inner, known, number) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [refer(inner, known, number) for inner in value]
    if not isinstance(value, str):
        return value
    if value == "{round}":
        return number

    def fill(found: re.Match[str]) -> str:
        for name in found[1].split("|"):
            if name in known or name == "round":
                return known.get(name, str(number))
        there = ", ".join(known) or "nothing yet"
        raise RecipeError(
            f"{value!r} refers to {found[0]}, which no stage before it has made in round {number} (there is {there}); "
            'what only later rounds have needs another name to begin with, such as "{average|start}"'
        )

    return REFERENCE.sub(fill, value)


def is_pipeline(path: str | Path) -> bool:
    """Whether a TOML file describes stages rather than one run."""
    return "stage" in read_toml(path)

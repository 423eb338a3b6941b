"""A judge in a TOML file: its kind, the model that is asked, and how. Paths are as in a recipe: from where the command
runs."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fiducial.config import RecipeError, from_table
from fiducial.core.types import Decoding, Reward
from fiducial.data.feedback.comparing import PairJudge
from fiducial.data.feedback.spec import Spec
from fiducial.data.feedback.writer import read_template
from fiducial.judges import ai_judge, rubric
from fiducial.judges.ai_judge import AIJudge
from fiducial.judges.asking import LMJudge
from fiducial.judges.ratings import AIScore, AIYesNo
from fiducial.judges.rubric import Criterion, Rubric
from fiducial.judges.spec import SpecJudge
from fiducial.judges.tournament import Ordered, Tournament
from fiducial.sampling.endpoint import is_endpoint, open_policy
from fiducial.sampling.http import KEY

Opens = Callable[[str], Reward]  # what a name stands for, as a reward


@dataclass(frozen=True)
class ServerSettings:
    """How a server is asked; a model's folder has no use for it."""

    parallel: int = 16  # requests at once
    retries: int = 5  # of a request that met a busy server, a broken connection or silence
    timeout: float = 120.0  # seconds of silence
    api_key_env: str = KEY  # the environment variable that holds the key


@dataclass(frozen=True)
class JudgeSettings:
    """What every kind of judge is told."""

    kind: str  # pairwise, score, yes_no, rubric or spec
    model: str  # a Hugging Face folder, or http://HOST:PORT/v1#MODEL
    template: str = ""  # a text file to ask by; empty: the kind's own
    mode: Literal["logprobs", "text"] = "logprobs"  # the verdict by its probability, or read from what is written
    reasoning: bool = False  # reasons before the verdict
    n_votes: int = 1  # how often it is asked; the mean counts
    temperature: float = 0.0  # of what it writes; several votes need one above 0
    tau: float = 1.0  # temperature of the probabilities of the verdicts
    max_new_tokens: int = 256  # of what it writes
    chat: bool | None = None  # ask as a user does; left out: if the model has a chat template, and a server always
    reads: Literal["whole", "answer"] = "whole"  # of a completion; "answer": what follows its thoughts
    seed: int = 0  # of what it writes
    server: ServerSettings = ServerSettings()

    def shared(self) -> dict[str, Any]:
        """The settings of `LMJudge`, its model opened."""
        server = vars(self.server).copy()
        key = {"key_from": server.pop("api_key_env")}
        writer = open_policy(self.model, **server, **key) if is_endpoint(self.model) else open_policy(self.model)
        return {
            "writer": writer,
            "mode": self.mode,
            "reasoning": self.reasoning,
            "chat": writer.chats if self.chat is None else self.chat,
            "decoding": Decoding(self.max_new_tokens, self.temperature),
            "n_votes": self.n_votes,
            "tau": self.tau,
            "seed": self.seed,
            "fits": writer.fits,
        }

    def asked_by(self, needs: tuple[str, ...]) -> dict[str, Any]:
        """The template, if there is one of one's own."""
        return {"template": read_template(self.template, needs)} if self.template else {}


@dataclass(frozen=True)
class Pairwise(JudgeSettings):
    """Which of two completions is better."""

    criterion: str = ai_judge.CRITERION  # what is judged: "Judge ..."
    options: tuple[str, str] = ("A", "B")  # what the first and the second response are called
    swap_positions: bool = True  # ask in both orders
    disagreement: Literal["average", "tie"] = "average"  # of the two orders

    def build(self, name: str, opens: Opens) -> Ordered:
        """The judge."""
        more = {"options": self.options, "criterion": self.criterion, **self.asked_by(ai_judge.PLACES)}
        return Ordered(
            AIJudge(**self.shared(), **more, reads=self.reads, name=name), self.swap_positions, self.disagreement
        )


@dataclass(frozen=True)
class Rating(JudgeSettings):
    """A rating of one completion."""

    criterion: str = AIScore.criterion  # what it is rated by
    scale: tuple[int, int] = (1, 10)  # whole numbers
    range: tuple[float, float] = (-1.0, 1.0)  # what the ends of the scale become

    def build(self, name: str, opens: Opens) -> AIScore:
        """The judge."""
        more = {"criterion": self.criterion, "scale": self.scale, "range": self.range, **self.asked_by(("response",))}
        return AIScore(**self.shared(), **more, reads=self.reads, name=name)


@dataclass(frozen=True)
class YesNo(JudgeSettings):
    """A question about one completion."""

    criterion: str = AIYesNo.criterion  # the question

    def build(self, name: str, opens: Opens) -> AIYesNo:
        """The judge."""
        more = {"criterion": self.criterion, **self.asked_by(("response",))}
        return AIYesNo(**self.shared(), **more, reads=self.reads, name=name)


@dataclass(frozen=True)
class RubricSettings(JudgeSettings):
    """Criteria, each rated by itself."""

    model: str = ""  # empty where every criterion names its own judge
    criteria: tuple[Criterion, ...] = ()  # [[criteria]]; none where every row has a `rubric`
    strict: bool = False  # no reward where a rating is missing

    def build(self, name: str, opens: Opens) -> Rubric:
        """The judge."""
        own = LMJudge(**self.shared(), name=name) if self.model else None
        wanted = {c.judge for c in self.criteria if c.judge}
        others = {ref: _rater(ref, opens) for ref in sorted(wanted)}
        template = self.asked_by(("criterion", "response")).get("template", rubric.TEMPLATE)
        return Rubric(
            own,
            self.criteria,
            others=others,
            template=template,
            strict=self.strict,
            reads=self.reads,
            name=name,
        )


@dataclass(frozen=True)
class SpecSettings(JudgeSettings):
    """How well an output keeps to a specification."""

    reads: Literal["whole", "answer"] = "answer"  # never the thoughts
    scale: tuple[int, int] = (1, 10)  # whole numbers; the reward is from 0 to 1
    spec: dict[str, str] | str = field(default_factory=dict)  # [spec]: category = "text"; or a TOML file of that

    def build(self, name: str, opens: Opens) -> SpecJudge:
        """The judge."""
        spec = read_spec(self.spec) if isinstance(self.spec, str) else Spec(self.spec)
        more = {"scale": self.scale, "spec": spec, **self.asked_by(("spec", "response"))}
        return SpecJudge(**self.shared(), **more, reads=self.reads, name=name)


KINDS: dict[str, type[JudgeSettings]] = {
    "pairwise": Pairwise,
    "score": Rating,
    "yes_no": YesNo,
    "rubric": RubricSettings,
    "spec": SpecSettings,
}


def is_judge_file(name: str) -> bool:
    """Whether a name is that of a judge's file."""
    return name.endswith(".toml")


@dataclass(frozen=True)
class JudgeFile:
    """What a judge's file says. `opens` is what names inside it stand for."""

    path: Path
    settings: Any
    opens: Opens

    @cached_property
    def built(self) -> Any:
        """The judge, its model loaded. ValueError names the file and what is wrong with it."""
        try:
            return self.settings.build(self.path.stem, self.opens)
        except (ValueError, OSError) as error:
            raise ValueError(f"judge {self.path}: {error}") from error

    def reward(self) -> Reward:
        """The judge as a reward: one that compares is worth its win rates."""
        return Tournament(self.built) if isinstance(self.built, Ordered) else self.built

    def pair_judge(self) -> PairJudge | None:
        """The judge if it compares."""
        return self.built if isinstance(self.built, Ordered) else None


def read_judge(path: str | Path, opens: Opens) -> JudgeFile:
    """A judge's file, read and checked; its model is loaded when it is used. ValueError names the file and the key."""
    path = Path(path)
    table = _toml(path, "judge")
    kind = table.get("kind")
    if kind not in KINDS:
        raise ValueError(f"judge {path}: kind must be one of {', '.join(KINDS)}; it is {kind!r}")
    if "model" not in table and kind != "rubric":
        raise ValueError(f'judge {path} names no model: add model = "FOLDER" or "http://HOST:PORT/v1#MODEL"')
    try:
        return JudgeFile(path, from_table(KINDS[kind], table), opens)
    except RecipeError as error:
        said = str(error).replace("a recipe has", f"a {kind} judge has")
        raise ValueError(f"judge {path}: {said}") from error


def read_spec(path: str | Path) -> Spec:
    """A specification from a TOML file: category = "text". ValueError names what is wrong."""
    try:
        return Spec(_toml(Path(path), "specification"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{what} {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} {path} is not valid TOML: {error}") from error


def _rater(name: str, opens: Opens) -> LMJudge | Reward:
    """What rates a criterion: the model of a judge's file, asked as that says, or a reward."""
    if not is_judge_file(name):
        return opens(name)
    built = read_judge(name, opens).built
    if isinstance(built, Ordered):
        raise ValueError(f"{name} compares two completions and rates no criterion")
    return built

"""The data types that everything shares.

Plain data (lists and strings: what samplers return and files hold) are frozen dataclasses. Tensors travel in one type,
`Tokens`. Three conventions, without exceptions: everything per-token is [B, L] and aligned to the token it is about;
there is no prompt/completion split in tensors, the mask says it; pairs are rows, chosen first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Message = dict[str, str]  # {"role": "user", "content": "..."}
Prompt = str | list[Message]
Verdict = Literal["correct", "wrong", "unparseable", "timeout", "crashed", "skipped"]
VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "unparseable", "timeout", "crashed", "skipped")
FAILED: tuple[Verdict, ...] = ("timeout", "crashed", "skipped")  # the verifier's: they say nothing of the completion


@dataclass(frozen=True)
class Score:
    """What a verifier or reward says of one completion.

    `value` is a number only when the verdict is "correct" or "wrong"; every other verdict has no value (None), and the
    recipe states what becomes of it. `why` says in a sentence what the checker saw.
    """

    value: float | None
    verdict: Verdict
    why: str = ""
    parts: dict[str, Score] = field(default_factory=dict)  # the sources of a weighted combination
    graded: bool = False  # the value is a plain number, which nobody called right or wrong: see `of_number`
    own: bool = False  # a timeout or crash is the completion's own doing: its program's, not the verifier's
    isolation: str = ""  # how code that the completion holds was contained while it ran; empty: none ran
    seconds: float = field(default=0.0, compare=False)  # that judging took
    flags: dict[str, float] = field(
        default_factory=dict
    )  # what was looked for, yes (1) or no (0) or how often, by metric

    def __post_init__(self):
        judged = self.verdict in ("correct", "wrong")
        if judged != (self.value is not None):
            raise ValueError(f"a score that is {self.verdict!r} cannot have the value {self.value!r}")

    @property
    def failed(self) -> bool:
        """Whether it is the verifier that failed, which says nothing of the completion."""
        return self.verdict in FAILED and not self.own

    @staticmethod
    def of_number(value: float) -> Score:
        """What a function's number says: 1 is correct and 0 is wrong; any other number is `graded`, and its verdict
        says only whether it is full marks, 1 or more.

        >>> score = Score.of_number(0.75)
        >>> score.value, score.verdict, score.graded
        (0.75, 'wrong', True)
        """
        return Score(value, "correct" if value >= 1 else "wrong", graded=value not in (0, 1))


CORRECT, WRONG = Score(1.0, "correct"), Score(0.0, "wrong")


class Reward(Protocol):
    """Scores completions; rows hold the other fields of each problem (`prompt`, `answer`, ...).

    >>> class Brevity:
    ...     name = "brevity"
    ...     def __call__(self, completions, rows):
    ...         return [Score(1.0 / (1 + len(c)), "correct") for c in completions]
    >>> Brevity()(["four"], [{"prompt": "2 + 2"}])[0].value
    0.2
    """

    @property
    def name(self) -> str: ...

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]: ...


@dataclass(frozen=True)
class Rollout:
    """One sampled completion with everything known about it. Tokens are written once: these ids are trained on."""

    prompt: Prompt
    completion: str
    token_ids: list[int]  # [L] prompt and completion together
    mask: list[bool]  # [L] True where the policy wrote the token
    sampler_logprobs: list[float]  # [L] as reported by the sampler, 0 where mask is False
    group: int = 0  # rollouts of one prompt share a number
    seed: int = 0
    policy_version: int = 0  # that wrote its last token
    versions: list[int] = field(default_factory=list)  # [L] that wrote each token; empty: all by policy_version
    finish: Literal["stop", "length", "unfinished", "error"] = "stop"
    reward: float | None = None  # None: could not be scored
    cost: float | None = None  # None: not asked for, or could not be told
    score: Score | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens the policy wrote."""
        return sum(self.mask)


@dataclass(frozen=True)
class Request:
    """What a sampler is asked for: one completion of `prompt_ids`, drawn with `seed` alone.

    The last `written` of these tokens are the beginning of the completion, drawn before with the same seed; at most
    `budget` more are drawn now (0: up to the completion's limit), and what is not at its end then is "unfinished".
    """

    prompt_ids: list[int]
    seed: int
    prompt: Prompt = ""
    group: int = 0
    written: int = 0
    budget: int = 0


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn. temperature 0 is greedy. Truncations apply after the temperature."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()  # the completion ends with (and includes) the first of these strings

    def __post_init__(self):
        for name, ok, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
        ):
            if not ok:
                raise ValueError(f"sampling.{name} must be {wanted}; it is {getattr(self, name)}")


class Sampler(Protocol):
    """Where rollouts come from. A request's tokens depend on its own seed only, not on its neighbours in the batch."""

    def sample(self, requests: Sequence[Request], decoding: Decoding) -> list[Rollout]: ...

    def update(self, weights: dict[str, Tensor] | None, version: int) -> None:
        """Take new weights (None: they are shared and already in place) and count them as `version`."""
        ...


@dataclass(frozen=True)
class Demo:
    """A completion to imitate. Plain text is an empty prompt; a chat is an empty prompt and all its messages, of which
    the assistant's turns train."""

    prompt: Prompt
    completion: str | list[Message]
    weight: float = 1.0
    index: int = 0  # which row of the data it came from; likewise below


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, the first preferred. A soft preference p is two pairs of weight p and 1 - p.

    For a cost model chosen is the more harmful one.
    """

    prompt: Prompt
    chosen: str | list[Message]
    rejected: str | list[Message]
    margin: float = 0.0
    weight: float = 1.0
    source: str = ""
    index: int = 0
    pref_prob: float = 1.0  # how likely chosen is the better one
    tied: bool = False  # the two were judged equally good
    chosen_harm: float = 0.0  # 1 it does harm, -1 it is safe, 0 nobody said; likewise below
    rejected_harm: float = 0.0
    rating: float | None = None  # the degree as it was given, of chosen over rejected: 2, 1, 0, -1, -2


@dataclass(frozen=True)
class Label:
    """One completion and whether it is wanted."""

    prompt: Prompt
    completion: str | list[Message]
    desirable: bool
    weight: float = 1.0
    index: int = 0


@dataclass(frozen=True)
class Problem:
    """A prompt whose completions a verifier can judge; `fields` is what the verifier reads (`answer`, ...)."""

    prompt: Prompt
    fields: dict[str, Any] = field(default_factory=dict)
    index: int = 0


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row and which of them train. Both have length L."""

    token_ids: list[int]
    mask: list[bool]


@dataclass
class Tokens:
    """A batch of rows, right-padded.

    input_ids [B, L] int64; mask [B, L] bool, True on tokens that train; weight [B], 1 unless the row stands for more or
    less than one example; group [B] int64, rows with the same number share a prompt. `extra` holds per-token [B, L] and
    per-row [B] tensors under glossary names. With `pairs`, rows 0..N-1 are chosen and N..2N-1 their rejected partners.
    `mismatched` has each row's prompt with another row's completion, for methods that ask how far the policy has moved.
    """

    input_ids: Tensor
    mask: Tensor
    weight: Tensor
    group: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)
    pairs: bool = False
    mismatched: Tokens | None = None

    @property
    def num_units(self) -> int:
        """How many examples: rows, or pairs of rows."""
        return len(self.input_ids) // (2 if self.pairs else 1)

    def select(self, units: Tensor) -> Tokens:
        """The examples `units` [U], partners kept together and columns that hold only padding cut off.

        A token that is not masked may still be context, so `extra["lengths"]` [B] says where each row ends.
        """
        rows = torch.cat([units, units + self.num_units]) if self.pairs else units
        lengths = self.extra["lengths"][rows]
        width = int(lengths.max()) if len(rows) else 1
        size, length = self.input_ids.shape

        def cut(x: Tensor) -> Tensor:
            x = x[rows] if x.ndim and x.shape[0] == size else x
            return x[:, :width] if x.ndim >= 2 and x.shape[1] == length else x

        return replace(
            self,
            input_ids=cut(self.input_ids),
            mask=cut(self.mask),
            weight=cut(self.weight),
            group=cut(self.group),
            extra={name: cut(x) for name, x in self.extra.items()},
        )

    def to(self, device: torch.device | str) -> Tokens:
        """The same batch on `device`."""
        moved = {name: x.to(device) for name, x in self.extra.items()}
        parts = (self.input_ids, self.mask, self.weight, self.group)
        return Tokens(*(x.to(device) for x in parts), extra=moved, pairs=self.pairs)

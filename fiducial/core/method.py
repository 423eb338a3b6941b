"""The record of a published method: where rows come from, how credit is assigned, the loss, what is averaged.

The signature is the contract. A loss's positional parameters are tensors under glossary names, and the trainer supplies
what they name: a loss that asks for `ref_chosen_logprobs` makes it load a reference model. Keyword-only parameters are
hyperparameters, with the paper's defaults; they become the recipe's `[hparams]` table. A keyword without a default must
be given; a positional parameter whose default is None is supplied only when the hyperparameters ask (`Method.idle`).
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fiducial.core.total import Per

Feed = Literal["demos", "pairs", "labels", "groups"]

GLOSSARY: dict[str, str] = {
    "logprobs": "[B, L] log-prob of each token under the policy, with gradient",
    "old_logprobs": "[B, L] the same at the sampling weights, recomputed by the trainer",
    "sampler_logprobs": "[B, L] the same as the sampler reported it",
    "ref_logprobs": "[B, L] the same under the frozen reference",
    "chosen_logprobs": "[B] sum over the chosen completion",
    "rejected_logprobs": "[B] sum over the rejected completion",
    "ref_chosen_logprobs": "[B] the same under the reference",
    "ref_rejected_logprobs": "[B] the same under the reference",
    "completion_logprobs": "[B] sum over a single completion",
    "ref_completion_logprobs": "[B] the same under the reference",
    "completion_lengths": "[B] its tokens that train",
    "chosen_lengths": "[B] tokens of the chosen completion that train",
    "rejected_lengths": "[B] tokens of the rejected completion that train",
    "chosen_scores": "[B] reward model's score of the chosen completion",
    "rejected_scores": "[B] reward model's score of the rejected completion",
    "margin": "[B] by how much the chosen completion should win, 0 unless the data says",
    "pref_prob": "[B] how likely chosen is better, 1 unless the data says; a soft p is two rows of weights p and 1 - p",
    "tied": "[B] bool, whether the two completions are equally good",
    "chosen_harm": "[B] 1 if the chosen completion does harm, -1 if it is safe",
    "rejected_harm": "[B] the same of the rejected completion",
    "desirable": "[B] bool, whether the completion is wanted",
    "batch_kl": "[] mean of log policy / reference over mismatched completions of the whole step, at least 0, detached",
    "input_ids": "[B, L] the tokens themselves",
    "mask": "[B, L] bool, tokens that train",
    "weight": "[B] how many examples a row stands for",
    "rewards": "[B] reward of each completion, a KL penalty included where the recipe puts it there",
    "token_rewards": "[B, L] the same placed on tokens: the outcome on the last one, a KL penalty on each",
    "group": "[B] rows with the same number share a prompt",
    "advantages": "[B, L] credit per token",
    "reward_advantages": "[B, L] the reward's part of it, in methods that also have costs",
    "cost_advantages": "[B, L] the cost's part, which is subtracted",
    "values": "[B, L] the critic's forecast of the rewards to come, made before the token is written",
    "old_values": "[B, L] the same at the sampling weights",
    "returns": "[B, L] what the critic is to forecast",
    "cost_values": "[B, L] the cost critic's forecast; likewise below",
    "old_cost_values": "[B, L]",
    "cost_returns": "[B, L]",
    "costs": "[B] cost of each completion: the recipe's `cost`",
    "token_costs": "[B, L] the same placed on the last token",
    "kl_penalty": "[B, L] what a KL in the reward takes from each token's reward, 0 without one",
    "greedy_rewards": "[B] reward of the prompt's greedy completion",
    "preferences": "[N, N] within one prompt: how likely completion i is better than j",
    "draws": "[N + 1] within one prompt: uniform numbers in [0, 1), one for each completion and one more",
    "logits": "[B, L, V] the policy's scores that token t was drawn from; position 0 is 0",
    "ref_logits": "[B, L, V] the reference's",
}
OF_CREDIT = (  # what a credit function may ask for
    *("rewards", "token_rewards", "costs", "token_costs", "kl_penalty", "greedy_rewards"),
    *("old_values", "old_cost_values", "group", "mask"),
)
OF_SELECTION = ("rewards", "preferences", "draws")  # what a selection may ask for, of one prompt
KL_ESTIMATORS = ("k1", "k2", "k3", "k1+", "k3+", "full")


@dataclass(frozen=True)
class KL:
    """Strength and form of the divergence to the reference. weight 0: none, and no reference model is loaded.

    place "loss" adds weight x estimator to the loss of each token; "reward" subtracts it, detached, from the reward.
    """

    weight: float = 0.0
    estimator: Literal["k1", "k2", "k3", "k1+", "k3+", "full"] = "k3"
    place: Literal["loss", "reward"] = "loss"
    target: float = 0.0  # nats a completion that the weight is steered to (Ziegler et al. 2019); 0: it stays
    horizon: float = 10_000.0  # completions in which it may change by a fifth

    def __post_init__(self):
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"kl.weight must be 0 or more; it is {self.weight}")
        if self.estimator not in KL_ESTIMATORS:
            raise ValueError(f"kl.estimator must be one of {', '.join(KL_ESTIMATORS)}; it is {self.estimator!r}")
        if not (self.target >= 0 and self.horizon > 0):
            raise ValueError("kl.target must be 0 (the weight stays) or more nats, and kl.horizon positive")
        if self.target and not self.weight:
            raise ValueError("kl.target steers kl.weight, which must begin above 0")
        if self.place not in ("loss", "reward"):
            raise ValueError(f"kl.place must be 'loss' or 'reward'; it is {self.place!r}")


Credit = Tensor | dict[str, Tensor]  # advantages, or several tensors by name: also `returns`, for a critic


@dataclass(frozen=True)
class Running:
    """Credit with memory, as two pure functions. The trainer keeps the state in its checkpoints.

    init() -> state; update(state, <glossary tensors>, <hyperparameters>) -> (credit, new state). `shown` names numbers
    of the state that are logged at each step.
    """

    init: Callable[[], dict[str, Any]]
    update: Callable[..., tuple[Credit, dict[str, Any]]]
    shown: tuple[str, ...] = ()


class Choice(NamedTuple):
    """An example made of one prompt's completions: the numbers of (chosen, rejected), or of the one that is kept."""

    members: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Range:
    """The values a hyperparameter may take: from low to high, ends included unless `open`."""

    low: float = -math.inf
    high: float = math.inf
    open: str = ""  # "low", "high" or "both": these ends are excluded

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.open in ("low", "both") or math.isinf(self.low) else "["
        right = ")" if self.open in ("high", "both") or math.isinf(self.high) else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published method. `loss` is unreduced: [B, L] for per-token methods, [B] with per = "row".

    What trains comes from rows of a file, or is sampled while training:

    - `credit` turns the rewards of a prompt's completions into advantages (feed "groups" only), [B] or [B, L], or into
      {"advantages": .., "returns": ..};
    - `select` makes pairs, demonstrations or labels of them: (tensors of one prompt) -> [Choice], feed as named. With
      `given` "demos" the first completion is the row's own, and the others are sampled.

    `sampled_by` says who samples, the policy or its reference. `anchors` says how frozen networks move: a schedule
    (step, steps, *, hyperparameters) -> the share of the policy that enters the anchor before that step. With a third
    parameter it is told what has been `seen`: "kl" of the last step, nats a completion, and "stalled", evaluations
    since the best one.
    `measures` gives metrics of its own, [B] each, from the tensors and hyperparameters that it names, like the loss.
    `critics` are networks that are trained beside the policy: {the tensor that one forecasts: its unreduced loss}.
    `rows` "joint": a pair's rows are both completions in one text, chosen first and rejected first.
    `target` names the closed form in `exact` that the method claims to reach; `fiducial prove` holds it to that.
    `choices` and `ranges` say which values hyperparameters may take, `trial` what `prove` tries those with that have no
    default. `idle` says when an optional tensor is not supplied: {tensor: (hyperparameter, its value or values)}.
    `min_updates` is how many updates of a step the method is about; `fresh_optimizer` says before which steps the
    optimizer forgets: (step, steps, *, hyperparameters) -> bool. `stages` are those of the pipeline that the method is
    a part of.
    """

    paper: str
    feed: Feed
    loss: Callable[..., Tensor]
    per: Per
    credit: Callable[..., Credit] | Running | None = None
    select: Callable[..., list[Choice]] | None = None
    given: Literal["problems", "demos"] = "problems"
    sampled_by: Literal["policy", "ref"] = "policy"
    anchors: dict[str, Callable[..., float]] = field(default_factory=dict)
    measures: Callable[..., dict[str, Tensor]] | None = None
    critics: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    fresh_optimizer: Callable[..., float] | None = None
    rows: Literal["separate", "joint"] = "separate"
    kl: KL = KL()
    min_group: int = 1  # completions of a prompt that credit or selection needs
    min_updates: int = 1
    target: str | None = None
    title: str = ""
    family: str = ""
    ranges: dict[str, Range] = field(default_factory=dict)
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    idle: dict[str, tuple[str, Any]] = field(default_factory=dict)
    stages: tuple[str, ...] = ()

    def __post_init__(self):
        self._check_names()
        self._check_roles()

    def _check_names(self) -> None:
        """Every tensor that a function of the record asks for is one that somebody supplies."""
        always = set(GLOSSARY) - (set(OF_CREDIT) - {"group", "mask"}) - set(OF_SELECTION)
        forecasts = {f"{p}{name}" for name in self.critics for p in ("", "old_")}
        of_critics = forecasts | {name.replace("values", "returns") for name in self.critics} | {"mask"}
        of_losses = [(_positional(loss), of_critics, "critic's loss") for loss in self.critics.values()]
        for names, given, asker in (
            (self.needs, always, "loss"),
            (self.credit_needs, {*OF_CREDIT}, "credit function"),
            (self.select_needs, {*OF_SELECTION}, "selection"),
            *of_losses,
        ):
            for name in names:
                if name not in GLOSSARY:
                    near = difflib.get_close_matches(name, GLOSSARY, 1)
                    hint = f"perhaps {near[0]!r}" if near else f"known are {', '.join(GLOSSARY)}"
                    raise ValueError(f"{self.name} asks for the tensor {name!r}, which no one supplies: {hint}")
                if name not in given:
                    raise ValueError(f"{self.name}: no one gives a {asker} {name!r}; it may ask for {sorted(given)}")
        from_rows = _GIVEN_BY[self.feed] | _GIVEN_ALWAYS
        if missing := [name for name in self.needs if name not in from_rows]:
            raise ValueError(
                f"{self.name}: its rows are {self.feed}, which give no {missing[0]!r}; they give "
                f"{', '.join(sorted(from_rows))}"
            )

    def _check_roles(self) -> None:
        """The record's parts go together."""
        for tensor, (hparam, _) in self.idle.items():
            if tensor not in (*self.needs, *self.credit_needs) or hparam not in self.hparams:
                raise ValueError(
                    f"{self.name}: idle says when {tensor!r} is left out by {hparam!r}; it has no such thing"
                )
        if (self.feed == "groups") != (self.credit is not None):
            raise ValueError(f"{self.name}: feed 'groups' and a credit function go together")
        if self.select is not None and self.feed == "groups":
            raise ValueError(f"{self.name}: a selection makes pairs, demos or labels; its feed cannot be 'groups'")
        if self.critics and self.feed != "groups":
            raise ValueError(f"{self.name}: a critic forecasts rewards, so its feed must be 'groups'")
        for name in self.credit_needs:
            if name.startswith("old_") and name.removeprefix("old_") not in self.critics:
                raise ValueError(f"{self.name}: its credit asks for {name!r}, which needs a critic for it in `critics`")
        if self.sampled_by == "ref" and "ref" not in self.anchors:
            raise ValueError(f"{self.name}: it samples from the reference, so anchors must say how 'ref' moves")

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the tensors that the loss takes, in order."""
        return _positional(self.loss)

    def needs_with(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """Names of the tensors that the loss takes with these hyperparameters."""
        return tuple(name for name in self.needs if not self._idles(name, hparams))

    def credit_needs_with(self, hparams: dict[str, Any]) -> tuple[str, ...]:
        """Names of the tensors that the credit function takes with these hyperparameters."""
        return tuple(name for name in self.credit_needs if not self._idles(name, hparams))

    def _idles(self, tensor: str, hparams: dict[str, Any]) -> bool:
        if tensor not in self.idle:
            return False
        hparam, values = self.idle[tensor]
        return hparams[hparam] in (values if isinstance(values, tuple) else (values,))

    @property
    def select_needs(self) -> tuple[str, ...]:
        """Names of the tensors that the selection takes, in order."""
        return _positional(self.select) if self.select else ()

    @property
    def samples(self) -> bool:
        """Whether completions are sampled while training."""
        return self.feed == "groups" or self.select is not None

    @property
    def kind(self) -> Literal["demos", "pairs", "costs", "labels", "problems"]:
        """What its rows are read as."""
        if self.feed == "groups":
            return "problems"
        if "chosen_harm" in self.needs:
            return "costs"
        return self.given if self.select else self.feed

    @property
    def judged(self) -> bool:
        """Whether the sampled completions are scored."""
        return self.feed == "groups" or bool({"rewards", "preferences"} & set(self.select_needs))

    @property
    def costed(self) -> bool:
        """Whether the sampled completions are given a cost beside their reward."""
        return bool({"costs", "token_costs"} & set(self.credit_needs))

    @property
    def credit_needs(self) -> tuple[str, ...]:
        """Names of the tensors that the credit function takes, in order."""
        if isinstance(self.credit, Running):
            return _positional(self.credit.update)[1:]
        return _positional(self.credit) if self.credit else ()

    @property
    def learns(self) -> Literal["policy", "reward_model"]:
        """What is trained: a reward model if the loss asks for scores, else a policy."""
        return "reward_model" if "chosen_scores" in self.needs else "policy"

    @property
    def hparams(self) -> dict[str, Any]:
        """Hyperparameters with their defaults: the loss's, then those of credit, critics, selection and anchors.

        One without a default is None here and in `required`.
        """
        found: dict[str, Any] = {}
        for function in self._functions:
            found |= {name: default for name, default in _keywords(function).items() if name not in found}
        return {name: None if default is inspect.Parameter.empty else default for name, default in found.items()}

    @property
    def required(self) -> tuple[str, ...]:
        """Hyperparameters that have no default and must be given."""
        empty = inspect.Parameter.empty
        return tuple(name for f in self._functions for name, default in _keywords(f).items() if default is empty)

    @property
    def _functions(self) -> list[Callable[..., Any]]:
        credit = self.credit.update if isinstance(self.credit, Running) else self.credit
        schedules = (*self.anchors.values(), self.fresh_optimizer)
        return [f for f in (self.loss, credit, *self.critics.values(), self.select, *schedules) if f is not None]

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """All hyperparameters, `given` over defaults. ValueError on an unknown name or a value out of range."""
        defaults = self.hparams
        for name, value in given.items():
            if name not in defaults:
                has = f"it has {', '.join(defaults)}" if defaults else "it has none"
                raise ValueError(f"{self.name} has no setting {name!r}; {has}")
            self._check(name, value)
        if missing := [name for name in self.required if given.get(name) is None]:
            raise ValueError(
                f"{self.name} needs hparams.{missing[0]}: its paper gives no default that would do for all"
            )
        return {**defaults, **given}

    def _check(self, name: str, value: Any) -> None:
        if name in self.choices and value not in self.choices[name]:
            allowed = ", ".join(map(str, self.choices[name]))
            raise ValueError(f"hparams.{name} must be one of {allowed}; it is {value!r}")
        default = self.hparams[name]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
            raise ValueError(f"hparams.{name} must be a finite number, like its default {default!r}; it is {value!r}")
        if name in self.ranges and value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"hparams.{name} must be a number in {self.ranges[name]}; it is {value!r}")
            if value not in self.ranges[name]:
                raise ValueError(f"hparams.{name} must lie in {self.ranges[name]}; it is {value}")

    def call_loss(self, tensors: dict[str, Tensor], hparams: dict[str, Any]) -> Tensor:
        """The loss on the tensors it names, with those of `hparams` that it knows."""
        given = {name: tensors[name] for name in self.needs_with(hparams)}
        loss = self.loss(*(given.get(name) for name in self.needs), **_known(self.loss, hparams))
        if loss.ndim == 0:
            raise ValueError(f"{self.name} returned one number; a loss is unreduced, [B, L] or [B]: `per` averages it")
        return loss

    def call_critic(self, name: str, tensors: dict[str, Tensor], hparams: dict[str, Any]) -> Tensor:
        """The loss of the critic of this name, unreduced."""
        loss = self.critics[name]
        return loss(*(tensors[needed] for needed in _positional(loss)), **_known(loss, hparams))

    def call_measures(self, tensors: dict[str, Tensor], hparams: dict[str, Any]) -> dict[str, Tensor]:
        """The method's own metrics, [B] each."""
        if self.measures is None:
            return {}
        idle = set(self.needs) - set(self.needs_with(hparams))
        named = [None if name in idle else tensors[name] for name in _positional(self.measures)]
        return self.measures(*named, **_known(self.measures, hparams))

    def make_choices(self, tensors: dict[str, Tensor], hparams: dict[str, Any]) -> list[Choice]:
        """The examples that the selection makes of one prompt's completions."""
        assert self.select is not None
        return self.select(*(tensors[name] for name in self.select_needs), **_known(self.select, hparams))

    def share_moved(
        self, anchor: str, step: int, steps: int, hparams: dict[str, Any], seen: dict[str, float] | None = None
    ) -> float:
        """The share of the policy that enters the anchor before this step."""
        return _scheduled(self.anchors[anchor], step, steps, hparams, seen)

    def forgets(self, step: int, steps: int, hparams: dict[str, Any], seen: dict[str, float] | None = None) -> bool:
        """Whether the optimizer starts anew before this step."""
        return self.fresh_optimizer is not None and bool(_scheduled(self.fresh_optimizer, step, steps, hparams, seen))

    def assign_credit(
        self, tensors: dict[str, Tensor], hparams: dict[str, Any], state: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Credit of the completions by name, "advantages" among them, [B] or [B, L], and the function's next state."""
        assert self.credit is not None
        wanted = self.credit_needs_with(hparams)
        named = [tensors[name] if name in wanted else None for name in self.credit_needs]
        if isinstance(self.credit, Running):
            update = self.credit.update
            found, state = update(state or self.credit.init(), *named, **_known(update, hparams))
        else:
            found = self.credit(*named, **_known(self.credit, hparams))
        return found if isinstance(found, dict) else {"advantages": found}, state


_PAIRED = {
    f"{p}{side}_{what}" for side in ("chosen", "rejected") for p, what in (("", "logprobs"), ("ref_", "logprobs"))
}
_GIVEN_ALWAYS = {"logprobs", "ref_logprobs", "logits", "ref_logits", "input_ids", "mask", "weight", "group"}
_GIVEN_BY: dict[str, set[str]] = {  # what the rows of each feed let the trainer supply
    "demos": {"completion_logprobs", "ref_completion_logprobs", "completion_lengths"},
    "pairs": _PAIRED
    | {"chosen_lengths", "rejected_lengths", "chosen_scores", "rejected_scores", "margin", "pref_prob", "tied"}
    | {"chosen_harm", "rejected_harm"},
    "labels": {"completion_logprobs", "ref_completion_logprobs", "completion_lengths", "desirable", "batch_kl"},
    "groups": {"old_logprobs", "sampler_logprobs", "advantages", "reward_advantages", "cost_advantages"}
    | {"completion_logprobs", "completion_lengths"},
}


def _scheduled(
    schedule: Callable[..., Any], step: int, steps: int, hparams: dict[str, Any], seen: dict[str, float] | None
) -> Any:
    """What a schedule says of a step; one with a third parameter is also told what has been seen so far."""
    told = (step, steps, seen or {}) if len(_positional(schedule)) == 3 else (step, steps)
    return schedule(*told, **_known(schedule, hparams))


def _known(function: Callable[..., Any], hparams: dict[str, Any]) -> dict[str, Any]:
    """Those of `hparams` that the function takes."""
    keys = _keywords(function)
    return {name: value for name, value in hparams.items() if name in keys}


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds)


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _where(error: BaseException, path: Path) -> str:
    """file:line of an error that came while a file was imported: the file's own last line on the way to it."""
    if isinstance(error, SyntaxError):  # it may be in a file that this one imports
        return f"{error.filename}:{error.lineno}"
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path.absolute())]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def method_from_file(path: str | Path) -> Method:
    """The METHOD record of a user's Python file. ValueError, with file and line, where it cannot be had."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"method file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises, in one sentence with its place
        raise ValueError(f"{_where(error, path)}: {_what(error)}") from error
    record = getattr(module, "METHOD", None)
    if not isinstance(record, Method):
        raise ValueError(f"{path} has no METHOD record: end it with METHOD = Method(paper=..., feed=..., loss=...)")
    return record

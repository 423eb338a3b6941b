"""The record of a published method: where rows come from, how credit is assigned, the loss, what is averaged.

The signature is the contract. A loss's positional parameters are tensors under glossary names, and the trainer supplies
what they name: a loss that asks for `ref_chosen_logprobs` makes it load a reference model. Keyword-only parameters are
hyperparameters, with the paper's defaults; they become the recipe's `[hparams]` table.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    "chosen_lengths": "[B] tokens of the chosen completion that train",
    "rejected_lengths": "[B] tokens of the rejected completion that train",
    "chosen_scores": "[B] reward model's score of the chosen completion",
    "rejected_scores": "[B] reward model's score of the rejected completion",
    "margin": "[B] by how much the chosen completion should win, 0 unless the data says",
    "desirable": "[B] bool, whether the completion is wanted",
    "mask": "[B, L] bool, tokens that train",
    "weight": "[B] how many examples a row stands for",
    "rewards": "[B] reward of each completion, a KL penalty included where the recipe puts it there",
    "token_rewards": "[B, L] the same placed on tokens: the outcome on the last one, a KL penalty on each",
    "group": "[B] rows with the same number share a prompt",
    "advantages": "[B, L] credit per token",
    "logits": "[B, L, V] policy's scores; row t predicts token t + 1",
    "ref_logits": "[B, L, V] the reference's",
}
KL_ESTIMATORS = ("k1", "k2", "k3", "k1+", "k3+", "full")


@dataclass(frozen=True)
class KL:
    """Strength and form of the divergence to the reference. weight 0: none, and no reference model is loaded.

    place "loss" adds weight x estimator to the loss of each token; "reward" subtracts it, detached, from the reward.
    """

    weight: float = 0.0
    estimator: Literal["k1", "k2", "k3", "k1+", "k3+", "full"] = "k3"
    place: Literal["loss", "reward"] = "loss"

    def __post_init__(self):
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"kl.weight must be 0 or more; it is {self.weight}")
        if self.estimator not in KL_ESTIMATORS:
            raise ValueError(f"kl.estimator must be one of {', '.join(KL_ESTIMATORS)}; it is {self.estimator!r}")
        if self.place not in ("loss", "reward"):
            raise ValueError(f"kl.place must be 'loss' or 'reward'; it is {self.place!r}")


@dataclass(frozen=True)
class Running:
    """Credit with memory, as two pure functions. The trainer keeps the state in its checkpoints.

    init() -> state; update(state, <glossary tensors>, <hyperparameters>) -> (advantages, new state).
    """

    init: Callable[[], dict[str, float]]
    update: Callable[..., tuple[Tensor, dict[str, float]]]


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

    `credit` turns rewards into advantages (feed "groups" only), [B] or [B, L]. `target` names the closed form in
    `exact` that the method claims to reach; `fiducial prove` holds it to that. `choices` and `ranges` say which values
    hyperparameters may take.
    """

    paper: str
    feed: Feed
    loss: Callable[..., Tensor]
    per: Per
    credit: Callable[..., Tensor] | Running | None = None
    kl: KL = KL()
    min_group: int = 1  # completions of a prompt that the credit function needs
    target: str | None = None
    title: str = ""
    family: str = ""
    ranges: dict[str, Range] = field(default_factory=dict)
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self):
        for name in (*self.needs, *self.credit_needs):
            if name not in GLOSSARY:
                near = difflib.get_close_matches(name, GLOSSARY, 1)
                hint = f"perhaps {near[0]!r}" if near else f"known are {', '.join(GLOSSARY)}"
                raise ValueError(f"{self.name} asks for the tensor {name!r}, which no one supplies: {hint}")
        for needs, given, asker in (
            (self.needs, set(GLOSSARY) - {"rewards", "token_rewards"}, "loss"),
            (self.credit_needs, {"rewards", "token_rewards", "group"}, "credit function"),
        ):
            if missing := [name for name in needs if name not in given]:
                raise ValueError(f"{self.name}: no one gives a {asker} {missing[0]!r}; it may ask for {sorted(given)}")
        if (self.feed == "groups") != (self.credit is not None):
            raise ValueError(f"{self.name}: feed 'groups' and a credit function go together")

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the tensors that the loss takes, in order."""
        return _positional(self.loss)

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
        """Hyperparameters of the loss and of the credit function with their defaults, in that order."""
        credit = self.credit.update if isinstance(self.credit, Running) else self.credit
        return {**_keywords(self.loss), **(_keywords(credit) if credit else {})}

    def settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """All hyperparameters, `given` over defaults. ValueError on an unknown name or a value out of range."""
        defaults = self.hparams
        for name, value in given.items():
            if name not in defaults:
                has = f"it has {', '.join(defaults)}" if defaults else "it has none"
                raise ValueError(f"{self.name} has no setting {name!r}; {has}")
            self._check(name, value)
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
        keys = _keywords(self.loss)
        loss = self.loss(*(tensors[name] for name in self.needs), **{k: v for k, v in hparams.items() if k in keys})
        if loss.ndim == 0:
            raise ValueError(f"{self.name} returned one number; a loss is unreduced, [B, L] or [B]: `per` averages it")
        return loss

    def assign_credit(
        self, tensors: dict[str, Tensor], hparams: dict[str, Any], state: dict[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """Advantages of the completions, [B] or [B, L], and the credit function's next state."""
        credit = self.credit
        assert credit is not None
        named = [tensors[name] for name in self.credit_needs]
        if isinstance(credit, Running):
            keys = _keywords(credit.update)
            return credit.update(state or credit.init(), *named, **{k: v for k, v in hparams.items() if k in keys})
        keys = _keywords(credit)
        return credit(*named, **{k: v for k, v in hparams.items() if k in keys}), state


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds)


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def method_from_file(path: str | Path) -> Method:
    """The METHOD record of a user's Python file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"method file {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    record = getattr(module, "METHOD", None)
    if not isinstance(record, Method):
        raise ValueError(f"{path} has no METHOD record: end it with METHOD = Method(paper=..., feed=..., loss=...)")
    return record

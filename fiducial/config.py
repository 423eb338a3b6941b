"""A run as frozen dataclasses. TOML is written by hand, JSON by the machine; flags win over the file.

Every setting must earn its place: a test counts them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union

from fiducial.core.method import KL, Method
from fiducial.core.types import Decoding, Score
from fiducial.data.preferences.grading import Grading
from fiducial.methods import lookup

RECIPES = Path(__file__).with_name("recipes")  # those that ship; in a checkout a link to the folder beside the package


class RecipeError(ValueError):
    """A recipe, flag or piece of data is wrong; the message says which and what to do."""


@dataclass(frozen=True)
class NewModel:
    """A fresh decoder with random weights, and a tokenizer trained on the run's own data."""

    hidden: int = 128  # width
    layers: int = 4  # blocks
    mlp: int = 0  # width of the feed-forward layers; 0: 4 x hidden
    heads: int = 4  # of attention; hidden / heads is best at 32 or more
    max_length: int = 1024  # tokens that it reads
    tie: bool = False  # the head reuses the embedding
    tokenizer: Literal["bpe", "char", "word"] = "bpe"  # trained on the run's own data
    vocab_size: int = 512  # at most


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021) through PEFT; rank 0 trains all weights."""

    rank: int = 0  # 0: off
    alpha: float = 16.0  # the adapter is scaled by alpha / rank
    targets: tuple[str, ...] = ()  # names of linear layers; empty: all of attention and MLP


@dataclass(frozen=True)
class Model:
    """The policy (or the reward model), and the reference."""

    path: str = ""  # a Hugging Face folder
    new: NewModel | None = None  # or fresh weights: the table below
    ref: str = ""  # the frozen reference; empty: the policy as the run starts
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"  # of the weights
    autocast: bool = False  # train and sample in bfloat16, keep weights and optimizer in dtype
    gradient_checkpointing: bool = False  # recompute activations: less memory, slower
    lora: Lora = Lora()


@dataclass(frozen=True)
class Data:
    """Rows from a file, or problems and demonstrations of a task."""

    path: str = ""  # rows: JSONL, JSON, CSV, parquet, text, or a saved `datasets` folder
    eval_path: str = ""  # rows to evaluate on; empty: eval.n of path's rows, drawn by lot, at most a fifth of them
    split: str = ""  # of a saved DatasetDict
    prompt_field: str = "prompt"  # how the data spells a column; likewise below
    completion_field: str = "completion"  # text to imitate, or that is labelled
    chosen_field: str = "chosen"  # preferred completion
    rejected_field: str = "rejected"  # the other one
    answer_field: str = "answer"  # what a verifier compares with
    text_field: str = "text"  # plain text
    label_field: str = "label"  # whether a completion is wanted
    messages_field: str = "messages"  # a chat
    ratings: Literal["hard", "soft", "margin", "filter_slight"] = "hard"  # what a rating from +2 to -2 becomes
    rating_scale: float = 0.0  # soft: sigmoid(scale x rating) is how likely the better is; margin: scale x |rating|
    ties: Literal["drop", "half", "keep"] = "drop"  # a rating of 0: unused, both orders at half weight, or a tied pair
    too_long: Literal["refuse", "drop", "truncate"] = "refuse"  # rows of more than max_length tokens
    max_length: int = 0  # tokens of prompt and completion; 0: what the model takes
    rows: int = 2000  # problems drawn from a task
    difficulty: dict[str, Any] = field(default_factory=dict)  # of the task
    teacher: dict[str, Any] = field(default_factory=dict)  # how a task's demonstrations slip; empty: they do not

    @property
    def grading(self) -> Grading:
        """What a rating and a tie become. ValueError where the settings do not fit together."""
        return Grading(self.ratings, self.rating_scale, self.ties)


@dataclass(frozen=True)
class Optim:
    """AdamW, and how a step's examples are cut into updates and passes."""

    lr: float = 1e-3  # peak learning rate of AdamW
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up
    warmup: int = 0  # steps
    final: float = 0.0  # share of lr that a schedule ends at
    weight_decay: float = 0.0  # of matrices; vectors are not decayed
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW's averages
    clip: float = 1.0  # norm that gradients are clipped to; 0: off
    batch: int = 32  # examples a step: rows, pairs, or prompts
    rows_per_pass: int = 64  # examples in one forward and backward: a matter of memory, never of the result
    epochs: int = 1  # passes over a step's batch
    minibatches: int = 1  # updates in each pass
    target_kl: float = 0.0  # nats a token from the sampling policy at which a step's updates end; 0: off


@dataclass(frozen=True)
class Entropy:
    """A bonus for the entropy of the policy's next-token distributions, over the whole vocabulary."""

    weight: float = 0.0  # of the entropy, subtracted from the loss of each token; 0: off
    target: float = 0.0  # nats a token: the weight is steered to it; 0: it stays
    step: float = 0.005  # that the weight moves by, each step
    max: float = 0.05  # that it may come to


@dataclass(frozen=True)
class Correction:
    """Importance weights for samples that another policy drew than the one that is trained: an older one, or the same
    in another engine's arithmetic. The weight is that of the policy at the step's start over the sampler."""

    mode: Literal["off", "truncate", "mask"] = "off"  # weights above cap: cut to it, or to 0 (and those below floor)
    level: Literal["token", "sequence"] = "token"  # a weight for each token, or the completion's product
    cap: float = 2.0  # largest weight
    floor: float = 0.0  # smallest weight that mode = "mask" keeps
    renormalise: bool = False  # what is masked does not count in averages either
    bypass: bool = False  # no weights: the sampler's log-probs stand in for old_logprobs


@dataclass(frozen=True)
class Critic:
    """Networks that forecast rewards, of methods that train some (`fiducial methods ID` names them)."""

    path: str | dict[str, str] = ""  # a reward model's folder, or one by critic's name; empty: the policy's trunk
    lr_scale: float = 5.0  # its learning rate as a multiple of optim.lr
    warmup: int = 0  # first steps in which critics train and the policy stands still


@dataclass(frozen=True)
class Mix:
    """Demonstrations that the policy goes on imitating while it learns from rewards (PPO-ptx, Ouyang et al. 2022)."""

    path: str = ""  # their file
    weight: float = 0.0  # of their negative log-likelihood per token, beside the method's own loss; 0: off
    batch: int = 32  # of them in each step


@dataclass(frozen=True)
class Shaping:
    """What becomes of rewards before credit, within the completions of one prompt."""

    each: bool = False  # normalise each source of a [reward] table within the group, so that its weight is its say
    length: float = 0.0  # weight of Kimi k1.5's length reward: short and correct is better; 0: off
    length_after: int = 0  # steps without it at the start
    clip: float = 0.0  # rewards are held within -clip and clip; 0: off


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn, in training and in evaluation."""

    n: int = 8  # completions of each prompt
    temperature: float = 1.0  # the trained log-probs are taken at it too
    top_k: int = 0  # draw from the k likeliest tokens; 0: all
    top_p: float = 1.0  # draw from the smallest set with this much probability
    min_p: float = 0.0  # draw from tokens with this share of the likeliest one's probability
    stop: tuple[str, ...] = ()  # texts that end a completion
    max_new_tokens: int = 128  # a completion's limit
    truncated: Literal["score", "mask", "penalise"] = "score"  # completions that ended by length
    filter_groups: bool = False  # leave out groups whose rewards are all equal
    refill: int = 0  # rounds of further prompts that take the place of such groups (DAPO's dynamic sampling); 0: none
    ahead: int = 0  # steps that completions are drawn before they train, beside the training
    segment: int = 0  # tokens a completion may grow by before it waits for a later step; 0: it is written whole
    max_staleness: int = 4  # weights' versions that an unfinished completion may be behind before it is begun anew

    @property
    def decoding(self) -> Decoding:
        names = [f.name for f in fields(Decoding)]
        return Decoding(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Verdicts:
    """What becomes of completions that are neither correct nor wrong, and when the run stops."""

    unparseable: float | Literal["drop"] = 0.0  # the completion's own fault: its reward; a program's endless loop too
    failed: float | Literal["drop"] = "drop"  # timeout, crashed, skipped: the verifier's
    max_failed: float = 0.25  # a larger share of failures in one step stops the run
    penalty: float = -1.0  # reward of a truncated completion under sampling.truncated = "penalise"
    timeout: float = 0.0  # seconds for each call; 0: 10 for verifiers, 30 for a user's function
    trust_code: bool = False  # where there is no sandbox, run code that the model wrote all the same

    def reward(self, score: Score) -> float | None:
        """What a score is worth, in training and in evaluation alike; None leaves the completion out."""
        if score.value is not None:
            return score.value
        worth = self.failed if score.failed else self.unparseable
        return None if isinstance(worth, str) else worth


@dataclass(frozen=True)
class Eval:
    """Measurement on what never trains."""

    every: int = 0  # steps; 0: only before the first and after the last (completions of fresh weights: only after)
    n: int = 100  # problems of a task, or rows of a file: of data.path's own rows at most a fifth
    k: int = 4  # completions of each problem; of at most 16 prompts of rows; 0: nothing is sampled
    gold: str = ""  # judges held-out samples and never trains: what `reward` takes; empty: the task, beside a reward


@dataclass(frozen=True)
class Checkpoint:
    """When to save what --resume goes on from."""

    every: int = 0  # steps; 0: only at the end
    keep: int = 2  # newest checkpoints that stay


@dataclass(frozen=True)
class Run:
    """One run. `fiducial train RECIPE` reads it from TOML; flags such as --optim.lr 3e-4 win over the file."""

    method: str = ""  # an id of `fiducial methods`, or the path of a .py file
    steps: int = 100  # batches
    seed: int = 0  # of everything that is drawn
    task: str = ""  # an id of `fiducial tasks`, or empty for data.path
    per: Literal["", "token", "sequence", "sequence_sum", "constant", "row"] = ""  # empty: the method's own
    constant: float = 0.0  # tokens that per = "constant" divides by; 0: sampling.max_new_tokens
    model: Model = Model()
    data: Data = Data()
    hparams: dict[str, Any] = field(default_factory=dict)  # the method's own: `fiducial methods ID`
    kl: dict[str, Any] | KL = field(default_factory=dict)  # weight, estimator, place: over the method's own
    optim: Optim = Optim()
    entropy: Entropy = Entropy()
    correction: Correction = Correction()
    critic: Critic = Critic()
    mix: Mix = Mix()
    sampling: Sampling = Sampling()
    reward: str | dict[str, float | dict[str, Any]] = ""  # an id, file.py:function, judge.toml or parts; empty: task's
    cost: str | dict[str, float | dict[str, Any]] = ""  # likewise, of methods that keep a cost at 0 or below
    shaping: Shaping = Shaping()
    verdicts: Verdicts = Verdicts()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    tensorboard: bool = False  # also write event files

    def record(self) -> Method:
        """The method's record."""
        return lookup(self.method)

    @property
    def penalty(self) -> KL:
        """The KL term of a resolved run."""
        assert isinstance(self.kl, KL)
        return self.kl

    def reward_of(self, score: Score, finish: str) -> float | None:
        """What a completion with this score and finish earns; None leaves it out."""
        cut = finish == "length" and self.sampling.truncated == "penalise"
        return self.verdicts.penalty if cut else self.verdicts.reward(score)

    def resolved(self) -> Run:
        """The same run with the method's own settings filled in. RecipeError says what is wrong with it."""
        if not self.method:
            raise RecipeError('the recipe names no method: add method = "sft" (fiducial methods lists them)')
        try:
            method = self.record()
            run = replace(
                self,
                hparams=method.settings(self.hparams),
                kl=self.kl if isinstance(self.kl, KL) else from_table(KL, {**vars(method.kl), **self.kl}, "kl"),
                per=self.per or method.per,
                constant=self.constant or float(self.sampling.max_new_tokens),
            )
            _check(run, method)
        except RecipeError:
            raise
        except ValueError as error:
            raise RecipeError(str(error)) from error
        return run

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _check(run: Run, method: Method) -> None:
    o, s, v = run.optim, run.sampling, run.verdicts
    _ = s.decoding, run.data.grading  # check their own ranges
    rules: list[tuple[bool, str]] = [
        (run.steps >= 1, f"steps must be at least 1; it is {run.steps}"),
        (o.lr > 0 and math.isfinite(o.lr), f"optim.lr must be positive; it is {o.lr}"),
        (o.batch >= 1, f"optim.batch must be at least 1; it is {o.batch}"),
        (o.rows_per_pass >= 1, f"optim.rows_per_pass must be at least 1; it is {o.rows_per_pass}"),
        (o.epochs >= 1, f"optim.epochs must be at least 1; it is {o.epochs}"),
        (o.minibatches >= 1, f"optim.minibatches must be at least 1; it is {o.minibatches}"),
        (o.warmup >= 0, f"optim.warmup must be 0 or more steps; it is {o.warmup}"),
        (0 <= o.final <= 1, f"optim.final is a share of lr, in [0, 1]; it is {o.final}"),
        (o.weight_decay >= 0, f"optim.weight_decay must be 0 or more; it is {o.weight_decay}"),
        (run.critic.lr_scale > 0, f"critic.lr_scale must be positive; it is {run.critic.lr_scale}"),
        (run.critic.warmup >= 0, f"critic.warmup must be 0 or more steps; it is {run.critic.warmup}"),
        (
            bool(method.critics) or run.critic == Critic(),
            f"{method.name} trains no critic: leave out the [critic] table",
        ),
        (run.mix.weight >= 0 and run.mix.batch >= 1, "mix.weight must be 0 (off) or more, and mix.batch at least 1"),
        (bool(run.mix.path) == bool(run.mix.weight), "the [mix] table needs both, mix.path and a positive mix.weight"),
        (
            not run.mix.weight or method.learns == "policy",
            f"{method.name} trains no policy: [mix] does not apply",
        ),
        (method.costed or not run.cost, f"{method.name} knows no costs: leave out `cost`"),
        (
            bool(run.cost) or not method.costed,
            f"{method.name} keeps a cost down: name what says it, cost = a cost model's folder or a verifier",
        ),
        (o.clip >= 0, f"optim.clip must be 0 (off) or more; it is {o.clip}"),
        (all(0 <= b < 1 for b in o.betas), f"optim.betas must lie in [0, 1); they are {o.betas}"),
        (0 <= v.max_failed <= 1, f"verdicts.max_failed is a share, in [0, 1]; it is {v.max_failed}"),
        (run.eval.n >= 1 and run.eval.k >= 0, "eval.n must be at least 1, and eval.k at least 0 (nothing is sampled)"),
        (
            not run.eval.gold or (method.learns == "policy" and run.eval.k > 0),
            f"eval.gold judges samples, and {method.name} with eval.k = {run.eval.k} draws none: leave it out",
        ),
        (run.eval.every >= 0, f"eval.every must be 0 (only before and after) or more steps; it is {run.eval.every}"),
        (run.checkpoint.every >= 0, f"checkpoint.every must be 0 or more steps; it is {run.checkpoint.every}"),
        (run.checkpoint.keep >= 1, f"checkpoint.keep must be at least 1; it is {run.checkpoint.keep}"),
        (not (run.task and run.data.path), "the recipe names both a task and data.path: keep one"),
        (
            run.data.ties != "keep" or "tied" in method.needs,
            f'data.ties = "keep" is for a method that models ties, which {method.name} does not: set "drop" or "half"',
        ),
        (bool(run.task or run.data.path), "the recipe has nothing to train on: name a task or data.path"),
        (not (run.model.path and run.model.new), "the recipe has both model.path and [model.new]: keep one"),
        (
            bool(run.model.path or run.model.new),
            "the recipe has no model: give model.path, or [model.new] for fresh weights",
        ),
        (not run.penalty.weight or method.learns == "policy", f"{method.name} trains no policy: [kl] does not apply"),
        (
            not run.penalty.weight or method.feed == "groups" or run.penalty.place == "loss",
            f"{method.name} has no rewards to put a KL in: set kl.place = 'loss'",
        ),
        (method.judged or not run.reward, f"{method.name} judges no completions and takes no reward"),
        (
            method.rows != "joint" or run.data.too_long != "truncate",
            f"{method.name} reads both completions in one text: data.too_long = 'truncate' would cut the second only",
        ),
        (
            "batch_kl" not in method.needs or o.batch >= 2,
            f"{method.name} takes a mean over mismatched completions: set optim.batch to 2 or more; it is {o.batch}",
        ),
        (method.per == "row" or run.per != "row", f"{method.name}'s loss is per token: per = 'row' does not fit"),
        (method.per != "row" or run.per == "row", f"{method.name}'s loss is one number a row: per must stay 'row'"),
    ]
    if run.model.lora.rank and run.model.ref:
        rules.append((False, "with model.lora the reference is the base model itself: leave model.ref empty"))
    for fine, message in [*rules, *_sampling_rules(run, method), *_loss_rules(run, method)]:
        if not fine:
            raise RecipeError(message)


def _loss_rules(run: Run, method: Method) -> list[tuple[bool, str]]:
    """What must hold of the terms beside a method's own loss."""
    e, c = run.entropy, run.correction
    weighs = c.mode != "off" or c.bypass
    return [
        (e.weight >= 0 and e.target >= 0, "entropy.weight and entropy.target must be 0 (off) or more"),
        (e.step >= 0 and e.max >= e.weight, "entropy.step must be 0 or more, and entropy.max at least entropy.weight"),
        (
            (not e.weight and not e.target) or method.learns == "policy",
            f"{method.name} trains no policy: [entropy] does not apply",
        ),
        (
            run.shaping == Shaping() or method.judged,
            f"{method.name} judges no completions: [shaping] does not apply",
        ),
        (
            not run.shaping.each or (isinstance(run.reward, dict) and len(run.reward) > 1),
            "shaping.each normalises the sources of a [reward] table: name at least two",
        ),
        (
            min(run.shaping.clip, run.shaping.length, run.shaping.length_after) >= 0,
            "shaping.clip, length and length_after must be 0 (off) or more",
        ),
        (run.optim.target_kl >= 0, f"optim.target_kl must be 0 (off) or more; it is {run.optim.target_kl}"),
        (
            not (run.optim.target_kl or run.penalty.target) or method.feed == "groups",
            f"{method.name} samples nothing by policy gradient: optim.target_kl and kl.target do not apply",
        ),
        (not weighs or method.feed == "groups", f"{method.name} weighs no samples: [correction] does not apply"),
        (c.cap > 0 and 0 <= c.floor < c.cap, f"correction needs 0 <= floor < cap; they are {c.floor} and {c.cap}"),
        (not c.bypass or c.mode == "off", "correction.bypass is in place of weights: leave correction.mode off"),
        (c.mode == "mask" or not c.renormalise, 'correction.renormalise goes with correction.mode = "mask"'),
        (
            c.mode == "off" or c.level == "sequence" or method.per != "row",
            f"{method.name}'s loss is one number a completion: set correction.level = 'sequence'",
        ),
    ]


def _sampling_rules(run: Run, method: Method) -> list[tuple[bool, str]]:
    """What must hold of a step's examples and of completions."""
    o, s = run.optim, run.sampling
    examples = o.batch * (s.n if method.samples else 1)
    product = "optim.batch x sampling.n" if method.samples else "optim.batch"
    few = f"optim.minibatches = {o.minibatches} is more than the {examples} examples of a step ({product}): lower it"
    if method.samples:
        return [
            (s.n >= method.min_group, f"{method.name} needs sampling.n of at least {method.min_group}; it is {s.n}"),
            (
                o.epochs * o.minibatches >= method.min_updates,
                f"{method.name} is about several updates on one batch: set optim.epochs x optim.minibatches to "
                f"{method.min_updates} or more; it is {o.epochs * o.minibatches}",
            ),
            (
                min(s.refill, s.ahead, s.segment, s.max_staleness) >= 0,
                "sampling.refill, ahead, segment and max_staleness must be 0 or more",
            ),
            (
                not (s.refill or s.segment) or method.feed == "groups",
                f"{method.name} selects from what is sampled: sampling.refill and sampling.segment do not apply",
            ),
            (
                (s.ahead > 0) + (s.segment > 0) + (s.refill > 0) <= 1,
                "sampling.ahead, sampling.segment and sampling.refill exclude each other: keep one",
            ),
            (
                not (s.ahead or s.segment) or method.sampled_by == "policy",
                f"{method.name} samples from its reference: sampling.ahead and sampling.segment do not apply",
            ),
            (s.temperature > 0, "sampling.temperature must be positive in training: greedy samples teach nothing"),
            (o.minibatches <= examples, few),
        ]
    same = f"sampling.temperature = 0 would draw the same completion eval.k = {run.eval.k} times: set eval.k = 1"
    return [(o.minibatches <= examples, few), (s.temperature > 0 or run.eval.k <= 1 or not run.task, same)]


def read_recipe(path: str | Path, over: dict[str, Any] | None = None) -> Run:
    """The run that a TOML file describes, `over` in place of the file's settings. RecipeError names the key."""
    table, over = read_toml(path), over or {}
    if "stage" in table:
        raise RecipeError(f"{path} is a pipeline of several stages: `fiducial train {path}` runs it")
    from_table(Run, over)  # a wrong flag is told as a flag, before the file is blamed
    try:
        return from_table(Run, merge(without_rivals(table, over), over))
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """What a recipe's file says, or that of the shipped recipe with this id. RecipeError if there is none."""
    path = recipe_file(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist; `fiducial recipes` lists those that ship") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {error}") from error


def recipe_file(name: str | Path) -> Path:
    """The file that a recipe's path, or the id of a shipped one, stands for."""
    path, shipped = Path(name), RECIPES / f"{name}.toml"
    return shipped if not path.exists() and path.name == str(name) and shipped.is_file() else path


# Settings of which a run has one: where a flag names the one, the file's other gives way.
RIVALS: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("model", "path"): (("model", "new"),),
    ("model", "new"): (("model", "path"),),
    ("task",): (("data", "path"), ("data", "eval_path"), ("data", "split")),
    ("data", "path"): (("task",), ("data", "difficulty"), ("data", "teacher")),
}


def without_rivals(table: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`table` without the settings that cannot stand beside those of `over`.

    >>> without_rivals({"model": {"new": {"layers": 2}, "dtype": "float32"}}, {"model": {"path": "runs/sft/model"}})
    {'model': {'dtype': 'float32'}}
    """
    for wins, losers in RIVALS.items():
        if _lookup(over, wins):
            for key in losers:
                table = _without(table, key)
    return table


def _lookup(table: Any, key: tuple[str, ...]) -> Any:
    for part in key:
        table = table.get(part) if isinstance(table, dict) else None
    return table


def _without(table: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    head, *rest = key
    if head not in table:
        return table
    if rest and isinstance(table[head], dict):
        return {**table, head: _without(table[head], tuple(rest))}
    return {name: value for name, value in table.items() if name != head}


def merge(table: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`table` with what `over` says instead; tables inside are merged.

    >>> merge({"optim": {"lr": 1, "clip": 2}}, {"optim": {"lr": 3}})
    {'optim': {'lr': 3, 'clip': 2}}
    """
    out = dict(table)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


def from_table(cls: Any, table: dict[str, Any], where: str = "") -> Any:
    """A dataclass from nested dictionaries (TOML or JSON). Unknown keys and wrong types are RecipeErrors."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where or 'the recipe'} must be a table")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in table.items():
        key = f"{where}.{name}" if where else name
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            hint = f"perhaps {near[0]!r}" if near else f"{where or 'a recipe'} has {', '.join(hints)}"
            raise RecipeError(f"unknown key {key!r}: {hint}")
        values[name] = _convert(hints[name], value, key)
    try:
        return cls(**values)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type `kind`, or a RecipeError that names the key."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return from_table(kind, value, key)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, key)
    if origin is Literal:
        if value in args:
            return value
        raise RecipeError(f"{key} must be one of {', '.join(map(repr, args))}; it is {value!r}")
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[0]
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise RecipeError(f"{key} takes {len(args)} values; it has {len(value)}")
        return tuple(_convert(inner, v, key) for v in value)
    if origin is dict and isinstance(value, dict):
        return {k: v if args[1] is Any else _convert(args[1], v, f"{key}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if kind is Any or (isinstance(value, plain) and not (isinstance(value, bool) and kind is not bool)):
        return value
    raise RecipeError(f"{key} must be {_spoken(kind, plain)}; it is {value!r}")


def _spoken(kind: Any, plain: Any) -> str:
    """A type as a recipe writes it: TOML knows no tuples.

    >>> _spoken(tuple[str, ...], tuple), _spoken(int, int)
    ('a list of strings', 'a whole number')
    """
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "a table"}
    if plain is tuple:
        inner = typing.get_args(kind)[0]
        return f"a list of {'strings' if inner is str else 'tables' if is_dataclass(inner) else 'numbers'}"
    return names.get(plain, str(plain))


def _convert_union(options: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in options:
        return None
    problems = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, key)
        except RecipeError as error:
            problems.append(str(error))
    raise RecipeError(problems[0] if len(problems) == 1 else f"{key} = {value!r} fits none of: {'; '.join(problems)}")

"""Puts a run together from its recipe: model, tokenizer, data, feed, sampler, reward, held-out evaluation."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, cast

import torch

from fiducial import models
from fiducial.config import Data, RecipeError, Run
from fiducial.core.method import Method
from fiducial.core.seeds import mix
from fiducial.core.types import Demo, Encoded, Label, Pair, Problem, Reward, Sampler
from fiducial.data import BadRow, Dataset, Example, ListRows, RowSource, open_rows, tasks
from fiducial.judges import judge
from fiducial.methods import METHODS
from fiducial.models.chat import encode, encode_prompt
from fiducial.sampling.local import LocalSampler
from fiducial.train.anchors import Anchor
from fiducial.train.feeds import GroupFeed, RowFeed
from fiducial.train.learner import Learner
from fiducial.train.parts import Parts
from fiducial.train.runtime import Runtime
from fiducial.train.selected import SelectFeed
from fiducial.train.start import Start

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LOOKED_AT = 1_000  # rows in which harm labels or ties must turn up, for methods about them
TOKENIZER_ROWS = 20_000  # rows that a fresh tokenizer is trained on


@dataclass
class Assembly:
    """A run's parts, and what is needed around the loop."""

    run: Run
    method: Method
    parts: Parts
    model: Any  # the module that was loaded, before any wrapping: what is saved
    tokenizer: Any
    data: Dataset
    start: Start  # the weights as they are now, before any checkpoint
    held_out: Dataset | None  # rows, or problems, that never train
    held_out_rows: list[int] = field(default_factory=list)  # which of them
    sampler: Sampler | None = None
    verify: Any = None  # what judges completions in evaluation
    gold: Reward | None = None  # what judges them too, and never trains
    hand_over: Callable[[int], None] = lambda version: None  # to the sampler, unless the loop does: before evaluation


def assemble(
    run: Run, runtime: Runtime, tokenizer_folder: Path | None = None, tell: Callable[[str], None] = print
) -> Assembly:
    """Everything that a resolved run needs. RecipeError (or ValueError) says what is wrong, before the first step.

    `tokenizer_folder` is where a fresh tokenizer is kept, so that a resumed run reads with the same one.
    """
    method = run.record()
    if run.optim.batch < runtime.world:
        raise RecipeError(f"optim.batch = {run.optim.batch}: {runtime.world} processes need an example each")
    source, held_source = sources(run, method, "train"), sources(run, method, "dev")
    model, tokenizer = load_model(run, method, source, tokenizer_folder, runtime)
    data = read(run, method, source, tokenizer, model)
    tell(data.report.render())
    _says_enough(method, data)
    keep, out = split(run, data, held_source is not None)
    _enough(run, data, keep)
    if held_source is None:
        tell(_held_out(run, data, out))
    held = read(run, method, held_source, tokenizer, model) if held_source is not None else data
    held_rows = list(range(min(len(held), run.eval.n))) if held_source is not None else out
    critics = make_critics(run, method, model, tokenizer, runtime)
    trained = wrap(run, method, model)
    temperature = run.sampling.temperature if method.feed == "groups" else 1.0
    learner = Learner(trained, method.learns, temperature, run.model.autocast).to(runtime.device)
    anchors = reference(run, method, learner, tokenizer, runtime)
    sampler, hand_over = None, nothing_to_hand_over
    if method.samples or (run.eval.k and method.learns == "policy"):
        apart = method.samples and run.sampling.ahead > 0  # it draws while the weights change
        sampler, hand_over = make_sampler(trained, tokenizer, learner, runtime, everywhere=method.samples, apart=apart)
    verify, cost = make_reward(run) if method.judged else None, make_cost(run, method)
    for network in (learner, *critics.values()):
        runtime.shard(network)
    if method.samples:
        writer = sampler
        if method.sampled_by == "ref":
            writer = LocalSampler(anchors["ref"].learner.model, tokenizer, autocast=learner.autocast)
        assert writer
        feed: Any = (SelectFeed if method.select else GroupFeed)(run, method, data, writer, verify, runtime, keep, cost)
        hand_over = after(feed.source.settle, hand_over)
    else:
        feed = RowFeed(run, method, data, runtime, keep)
    mixed = make_mixed(run, tokenizer, model, runtime)
    parts = Parts(
        learner, feed, anchors, critics, mixed, hand_over if method.samples else nothing_to_hand_over, runtime
    )
    return Assembly(
        run,
        method,
        parts,
        trained,
        tokenizer,
        data,
        Start(learner),
        held if held_rows else None,
        held_rows,
        sampler,
        verify,
        gold=make_gold(run, method),
        hand_over=nothing_to_hand_over if method.samples else hand_over,
    )


# -- data --------------------------------------------------------------------------------------------------------------


def sources(run: Run, method: Method, part: str) -> RowSource | None:
    """Rows to train on ("train") or a source of its own to evaluate on ("dev"), None without one."""
    if not run.task:
        path = run.data.path if part == "train" else run.data.eval_path
        return open_rows(path, run.data.split) if path else None
    task = tasks.get(run.task)
    number = run.data.rows if part == "train" else run.eval.n
    found = tasks.problems(task, number, cast(Any, part), run.seed, **run.data.difficulty)
    if method.kind == "problems":
        return ListRows([{"prompt": p.prompt, **p.fields} for p in found], f"{task.id} ({part})")
    if method.kind != "demos":
        raise RecipeError(
            f"{method.name} learns from {method.kind}; the task {task.id} gives problems and demonstrations"
        )
    rows = []
    for place, problem in enumerate(found):
        rng = Random(mix(run.seed, "teacher", part, place))
        sloppy = bool(run.data.teacher) and part == "train"
        trace = task.sloppy_trace(problem, rng, **run.data.teacher) if sloppy else task.trace(problem, rng)
        rows.append({"prompt": problem.prompt, "completion": trace})
    return ListRows(rows, f"{task.id} ({part})")


def renamed(data: Data) -> dict[str, str]:
    """The recipe's `*_field` settings that differ from the usual names."""
    pairs = {f.name.removesuffix("_field"): getattr(data, f.name) for f in fields(Data) if f.name.endswith("_field")}
    return {usual: given for usual, given in pairs.items() if usual != given}


def read(run: Run, method: Method, source: RowSource | None, tokenizer: Any, model: Any) -> Dataset:
    """The rows as what the method learns from, checked and measured."""
    assert source is not None
    limit = model.config.max_length
    if run.data.max_length > limit:
        raise RecipeError(f"data.max_length = {run.data.max_length} is more than the model reads ({limit} tokens)")
    longest = run.data.max_length or limit
    if method.kind == "problems":
        longest = min(longest, limit - run.sampling.max_new_tokens)
        if longest < 1:
            raise RecipeError(
                f"sampling.max_new_tokens = {run.sampling.max_new_tokens} leaves no room for a prompt: the model reads "
                f"{limit} tokens in all"
            )
    return Dataset(
        source,
        method.kind,
        encoder(tokenizer, source.whole, method.rows == "joint"),
        max_length=longest,
        fields=renamed(run.data),
        grading=run.data.grading,
        too_long=run.data.too_long,
        stop_id=tokenizer.eos_token_id if source.whole else None,
        unk_id=unknown_id(tokenizer),
    )


def unknown_id(tokenizer: Any) -> int | None:
    """The token of text that the tokenizer does not know. None where it knows all, and lends a special token's id."""
    unknown = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown


def encoder(tokenizer: Any, whole: bool = True, joint: bool = False) -> Callable[[Example], list[Encoded]]:
    """Example -> token ids, as `data.Dataset` wants it. Texts that are not `whole` get no stop token at their end.

    `joint` writes both sides of a pair into one text, in either order.
    """

    def encode_example(example: Example) -> list[Encoded]:
        if joint and isinstance(example, Pair):
            sides = (example.chosen, example.rejected)
            return [models.encode_joint(tokenizer, example.prompt, *both) for both in (sides, sides[::-1])]
        if isinstance(example, Pair):
            return [encode(tokenizer, example.prompt, side) for side in (example.chosen, example.rejected)]
        if isinstance(example, Demo | Label):
            row = encode(tokenizer, example.prompt, example.completion)
            return [row if whole else Encoded(row.token_ids[:-1], row.mask[:-1])]
        if isinstance(example, Problem):
            ids = encode_prompt(tokenizer, example.prompt)
            return [Encoded(ids, [False] * len(ids))]
        raise BadRow("wrong type", "no method learns from labelled steps yet")

    return encode_example


def split(run: Run, data: Dataset, own_source: bool) -> tuple[list[int] | None, list[int]]:
    """Which examples train (None: all) and which are held out: those of `eval.n` rows, at most a fifth of the file.

    A row's lot is drawn from the seed and its number in the file alone, and the smallest are held out, so a reward
    model, say, is measured on rows that the policy it began as never saw either, if both runs hold out from one file
    with one seed; more of them with a larger `eval.n`, and never others. Rows that cannot train by this method keep
    their place among them: to take the next lot instead would hold out what another method trains on.
    """
    if own_source or data.report.used < 5:
        return None, []
    lots = [mix(run.seed, "held out", row) for row in range(len(data.source))]
    rows = set(nsmallest(asked(run, data), range(len(lots)), key=lots.__getitem__))
    if not rows & {data.row(j) for j in range(len(data))}:
        rows = {min((data.row(j) for j in range(len(data))), key=lots.__getitem__)}  # at least one
    places = range(len(data))
    return [j for j in places if data.row(j) not in rows], [j for j in places if data.row(j) in rows]


def asked(run: Run, data: Dataset) -> int:
    """How many rows of a file are held out."""
    return max(min(run.eval.n, len(data.source) // 5), 1)


def _says_enough(method: Method, data: Dataset) -> None:
    """Refuse comparisons that lack what the method is about, harm or ties, in all the rows that are looked at."""
    if not {"chosen_harm", "tied"} & set(method.needs):
        return
    pairs = [cast(Pair, data[j].example) for j in range(0, len(data), max(len(data) // LOOKED_AT, 1))]
    if "chosen_harm" in method.needs and not any(pair.chosen_harm or pair.rejected_harm for pair in pairs):
        raise RecipeError(
            f"{data.source.name}: no row says whether a response does harm (chosen_safe, rejected_safe), which "
            f"{method.name} learns; for plain comparisons use bt_reward_model"
        )
    if "tied" in method.needs and not any(pair.tied for pair in pairs):
        raise RecipeError(
            f"{data.source.name}: no row is a tie (rating 0, kept by data.ties = 'keep'), which {method.name} learns; "
            "without ties use bt_reward_model"
        )


def _enough(run: Run, data: Dataset, keep: list[int] | None) -> None:
    """Refuse a step that is larger than the data: it would train on one row several times at once."""
    there = len(data) if keep is None else len(keep)
    if run.optim.batch > there:
        held = f" ({len(data) - there} of {len(data)} are held out)" if keep is not None else ""
        raise RecipeError(
            f"optim.batch = {run.optim.batch} is more than the {there} examples that {data.source.name} gives to train "
            f"on{held}: set it to {there} or less, or one step would train on the same example twice"
        )


def _held_out(run: Run, data: Dataset, out: list[int]) -> str:
    """What a person should know of the examples that never train."""
    if not out:
        rows = data.report.used
        return f"  {rows} rows are too few to hold any out: nothing is evaluated; name a data.eval_path"
    number, rows = asked(run, data), len({data.row(j) for j in out})
    told = f"  {len(out):,} of {len(data):,} examples held out: those of {rows:,} rows"
    if rows < number:
        told += f" ({number - rows:,} more drawn that cannot train)"
    if number < run.eval.n:
        told += f"; eval.n = {run.eval.n} asked, at most a fifth is: data.eval_path can name more"
    return told


# -- models ------------------------------------------------------------------------------------------------------------


def load_model(
    run: Run, method: Method, source: RowSource | None, folder: Path | None, runtime: Runtime, tokenizer: Any = None
) -> tuple[Any, Any]:
    """The model as the run starts, and its tokenizer: the one given, that in `folder`, or a new one for new weights."""
    reads: Any = "pair" if method.rows == "joint" else "completion"
    dtype = DTYPES[run.model.dtype]
    if run.model.path:
        if method.learns == "reward_model":
            backbone, tokenizer = models.load(run.model.path, dtype, runtime.device)
            return models.RewardModel(backbone, seed=mix(run.seed, "head"), reads=reads), tokenizer
        return models.load(run.model.path, dtype, runtime.device)
    new = run.model.new
    assert new is not None and source is not None
    if tokenizer is not None:
        pass
    elif folder is not None and folder.is_dir():
        tokenizer = models.load_tokenizer(folder)
    else:
        with under("model.new"):
            tokenizer = models.train_tokenizer(texts(source), new.tokenizer, new.vocab_size)
        if folder is not None and runtime.first:  # at once: a run that is killed here must find all of it or nothing
            beside = folder.with_name(f".{folder.name}")
            shutil.rmtree(beside, ignore_errors=True)
            tokenizer.save_pretrained(str(beside))
            beside.rename(folder)
    with under("model.new"):
        config = models.DecoderConfig(
            vocab_size=len(tokenizer),
            hidden=new.hidden,
            layers=new.layers,
            heads=new.heads,
            mlp=new.mlp or None,
            max_length=new.max_length,
            tie=new.tie,
            pad_id=tokenizer.pad_token_id,
            bos_id=tokenizer.bos_token_id,
            eos_ids=(tokenizer.eos_token_id,),
        )
    model = models.new(config, seed=mix(run.seed, "weights")).to(dtype)
    if method.learns == "reward_model":
        model = models.RewardModel(model, seed=mix(run.seed, "head"), reads=reads)
    return model.to(runtime.device), tokenizer


@contextmanager
def under(table: str) -> Iterator[None]:
    """A wrong setting is named as the recipe writes it; what `models` says of it begins with its name."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(f"{table}.{error}") from error


def texts(source: RowSource) -> Iterable[str]:
    """All text in the rows that a fresh tokenizer learns from."""

    def inside(value: Any) -> Iterable[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for key in value:
                yield from inside(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                yield from inside(item)

    for row in islice(iter(source), TOKENIZER_ROWS):
        yield from inside(row)


def wrap(run: Run, method: Method, model: Any) -> Any:
    """The model with what the recipe adds: LoRA, gradient checkpointing. In eval mode, so dropout stays off."""
    model.eval()
    if run.model.lora.rank:
        if method.learns == "reward_model":
            raise RecipeError(
                "model.lora trains policies; a reward model trains all its weights: set model.lora.rank = 0"
            )
        lora = run.model.lora
        with under("model.lora"):
            model = models.add_lora(model, lora.rank, lora.alpha, targets=lora.targets)
    if run.model.gradient_checkpointing:
        model.set_gradient_checkpointing(True)
    return model


def reference(run: Run, method: Method, policy: Learner, tokenizer: Any, runtime: Runtime) -> dict[str, Anchor]:
    """The reference, if loss, KL or schedule ask for one: the policy as it starts, or the recipe's `model.ref`."""
    asked = any(name.startswith("ref_") for name in method.needs_with(run.hparams))
    moves = "ref" in method.anchors
    if not (run.penalty.weight > 0 or asked or moves):
        return {}
    if run.model.lora.rank and not moves:
        # The base model is inside: no second copy, and spread over ranks as the policy is.
        return {"ref": Anchor(policy, off=models.disabled_adapter)}
    if run.model.lora.rank:
        _hard_only(run, method)
    if run.model.ref:
        frozen, ref_tokenizer = models.load(run.model.ref, DTYPES[run.model.dtype], runtime.device)
        if ref_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise RecipeError(
                f"model.ref {run.model.ref} has another vocabulary than the policy: log-probs do not compare"
            )
        learner = Learner(frozen, "policy", policy.temperature, policy.autocast).to(runtime.device)
        learner.requires_grad_(False)
    else:
        learner = copy.deepcopy(policy).requires_grad_(False)
    return {"ref": Anchor(learner, moves)}


def make_critics(run: Run, method: Method, policy: Any, tokenizer: Any, runtime: Runtime) -> dict[str, Learner]:
    """The method's critics: each a reward model's network, or the policy's own with a head that forecasts 0."""
    paths = run.critic.path
    if isinstance(paths, dict) and (unknown := set(paths) - set(method.critics)):
        raise RecipeError(f"critic.path names {sorted(unknown)[0]!r}; {method.name} trains {', '.join(method.critics)}")
    found = {}
    for name in method.critics:
        path = paths.get(name, "") if isinstance(paths, dict) else paths
        if path:
            network, theirs = models.load_reward_model(path, DTYPES[run.model.dtype], runtime.device)
            if theirs.get_vocab() != tokenizer.get_vocab():
                raise RecipeError(f"critic.path: {path} has another vocabulary than the policy")
        else:
            network = models.RewardModel(copy.deepcopy(policy))
            torch.nn.init.zeros_(network.score.weight)
        if run.model.gradient_checkpointing:
            network.set_gradient_checkpointing(True)
        network.eval()
        found[name] = Learner(network, "critic", autocast=run.model.autocast).to(runtime.device)
    return found


def _hard_only(run: Run, method: Method) -> None:
    """A share of two adapters' factors is no share of their products, so an adapter's reference moves whole."""
    shares = {method.share_moved("ref", step, run.steps, run.hparams) for step in range(run.steps)}
    if not shares <= {0.0, 1.0}:
        raise RecipeError(
            f"with model.lora the reference moves as a whole or not at all; {method.name} would move it by "
            f"{max(shares - {1.0}):g}: set hparams.alpha = 1, or model.lora.rank = 0"
        )


# -- sampling and rewards ----------------------------------------------------------------------------------------------


def nothing_to_hand_over(version: int) -> None:
    """There is no sampler that waits for weights."""


def make_sampler(
    policy: Any, tokenizer: Any, learner: Learner, runtime: Runtime, everywhere: bool, apart: bool = False
) -> tuple[Sampler | None, Callable[[int], None]]:
    """The sampler, and what hands it the weights of a new version, at which all ranks take part.

    In one process it shares the policy's weights. With several each rank samples from a whole copy of its own, since
    ranks draw different numbers of tokens and must not wait for each other inside a forward pass; not `everywhere`
    leaves the copy, and the sampling, to the first. `apart` has a copy in one process too.
    """
    if runtime.world == 1 and not apart:
        sampler = LocalSampler(policy, tokenizer, autocast=learner.autocast)
        return sampler, lambda version: sampler.update(None, version)
    copied = None
    if everywhere or runtime.first:
        copied = LocalSampler(copy.deepcopy(policy).to(runtime.device), tokenizer, autocast=learner.autocast)

    def hand_over(version: int) -> None:
        state = runtime.full_state(learner)
        if copied:
            copied.update({name.removeprefix("model."): x for name, x in state.items()}, version)

    return copied, hand_over


def after(first: Callable[[], None], then: Callable[[int], None]) -> Callable[[int], None]:
    """Hand weights over when nothing is being drawn with those of before."""

    def hand_over(version: int) -> None:
        first()
        then(version)

    return hand_over


def make_reward(run: Run) -> Reward:
    """What scores completions: the recipe's reward, or the task's own verifier."""
    if not run.reward and not run.task:
        raise RecipeError('problems from a file need a reward: reward = "math", or "file.py:function"')
    return judge(run.reward or run.task, run.verdicts.timeout or None, run.verdicts.trust_code)


def make_cost(run: Run, method: Method) -> Reward | None:
    """What says how much harm completions do, for methods that keep costs down."""
    try:
        return judge(run.cost, run.verdicts.timeout or None) if method.costed else None
    except ValueError as error:
        raise RecipeError(f"cost: {error}") from error


def make_mixed(run: Run, tokenizer: Any, model: Any, runtime: Runtime) -> RowFeed | None:
    """Demonstrations that are trained on beside the method's own examples."""
    if not run.mix.weight:
        return None
    sft = METHODS["sft"]
    aside = replace(run, data=Data(path=run.mix.path, too_long="drop"), optim=replace(run.optim, batch=run.mix.batch))
    data = read(aside, sft, open_rows(run.mix.path), tokenizer, model)
    _enough(aside, data, None)
    return RowFeed(aside, sft, data, runtime)


def make_gold(run: Run, method: Method) -> Reward | None:
    """What judges held-out samples and never trains: eval.gold, or the task's verifier where another reward trains."""
    own = run.task if method.judged and run.reward not in ("", run.task) and run.eval.k else ""
    try:
        name, verdicts = run.eval.gold or own, run.verdicts
        return judge(name, verdicts.timeout or None, verdicts.trust_code) if name else None
    except ValueError as error:
        raise RecipeError(f"eval.gold: {error}") from error

"""The loop, one for all methods.

    for each step:  get a batch -> what must be known before any gradient (reference, old policy, credit)
                    for each update: count over the whole update and all ranks -> forward, loss, backward -> optimizer

`steps` is a generator: it yields after each step, and whoever drives it logs, evaluates, saves, or stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.divergence import full_kl, kl_estimate
from fiducial.core.method import Method
from fiducial.core.seeds import mix
from fiducial.core.tokens import sequence_sum
from fiducial.core.total import Counts, count, total
from fiducial.core.types import Tokens
from fiducial.train.anchors import Anchor
from fiducial.train.learner import Learner, named_tensors
from fiducial.train.measure import Meter, measure, measured
from fiducial.train.runtime import Runtime, number


class TrainingError(RuntimeError):
    """The run cannot go on; the message says at which step, why, and what to try."""


class Feed(Protocol):
    """Where a step's batch comes from: files, or a sampler and rewards."""

    def batch(self, step: int, meter: Meter) -> Tokens:
        """This rank's examples of one step. A function of the step alone, so nothing is saved to resume."""
        ...


@dataclass
class Parts:
    """What a run is made of, put together by `train.assemble` or by hand."""

    learner: Learner
    feed: Feed
    anchors: dict[str, Anchor] = field(default_factory=dict)  # frozen networks by name: "ref"
    hand_over: Callable[[int], None] = lambda version: None  # gives the weights of a new version to the sampler
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def ref(self) -> Anchor | None:
        """The reference, if the run has one."""
        return self.anchors.get("ref")


@dataclass
class State:
    """Everything that changes while training, besides the learner's weights."""

    optimizer: torch.optim.Optimizer
    step: int = 0
    credit: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """What a step did: metrics for people, and the evidence that `fiducial replay` compares."""

    step: int
    metrics: dict[str, float]
    batch: Tokens
    row_logprobs: list[float]  # sum of log-probs (or score) of each of this rank's rows, before the first update
    grad_norms: list[float]  # of each parameter tensor, in the last update, before clipping


def lr_at(run: Run, step: int) -> float:
    """Learning rate of a step: linear warm-up, then the schedule down to `final` of its peak."""
    o = run.optim
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    if o.schedule == "constant":
        return o.lr
    done = (step - o.warmup) / max(run.steps - o.warmup, 1)
    level = 1 - done if o.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return o.lr * (o.final + (1 - o.final) * level)


def make_optimizer(run: Run, learner: Learner) -> torch.optim.Optimizer:
    """AdamW. Vectors (norms, biases) are not decayed."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": run.optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=run.optim.lr, betas=run.optim.betas)


def steps(run: Run, method: Method, parts: Parts, state: State) -> Iterator[Report]:
    """Train from `state.step` to `run.steps`, yielding after each step. `run` is resolved."""
    runtime = parts.runtime
    while state.step < run.steps:
        step, meter, began = state.step, Meter(), time.perf_counter()
        torch.manual_seed(mix(run.seed, "step", step, runtime.rank))
        move_anchors(run, method, parts, step)
        batch = parts.feed.batch(step, meter)
        prepare(run, method, parts, state, batch, meter)
        rows: list[float] = []
        norms: list[float] = []
        started = time.perf_counter()
        for units in updates(run, batch, step):
            row_logprobs, norms = update(run, method, parts, state, batch, units, meter)
            rows = rows or row_logprobs
        state.step += 1
        parts.hand_over(state.step)
        meter.seconds("train", time.perf_counter() - started)
        metrics = meter.reduce(runtime)
        metrics["seconds"] = time.perf_counter() - began
        metrics["lr"] = lr_at(run, step)
        yield Report(step, metrics, batch, rows, norms)


def move_anchors(run: Run, method: Method, parts: Parts, step: int) -> None:
    """Let the policy into its anchors where their schedules say so."""
    for name in method.anchors:
        share = method.share_moved(name, step, run.steps, run.hparams)
        if share:
            parts.anchors[name].move(parts.learner, share, parts.runtime)


def passes(parts: Parts, batch: Tokens, units: Tensor, size: int) -> Iterator[tuple[Tensor, Tokens]]:
    """Cut the examples `units` into micro-batches of similar length. Every rank gets equally many.

    A rank with fewer goes through an example of weight 0, since the others wait for it in each collective.
    """
    order = units[batch.extra["lengths"][units].argsort(descending=True, stable=True)]
    chunks = list(order.split(size)) if len(order) else []
    for _ in range(parts.runtime.most(len(chunks)) - len(chunks)):
        chunks.append(order[:0])
    for chunk in chunks:
        idle = len(chunk) == 0
        micro = batch.select(torch.zeros(1, dtype=torch.long) if idle else chunk)
        if idle:
            micro.weight = micro.weight * 0
        yield chunk, micro.to(parts.runtime.device)


@torch.no_grad()
def prepare(run: Run, method: Method, parts: Parts, state: State, batch: Tokens, meter: Meter) -> None:
    """Add to the batch what must be known before any gradient: reference and old log-probs, then advantages."""
    kl, needs = run.penalty, method.needs_with(run.hparams)
    in_reward = kl.weight > 0 and kl.place == "reward" and method.feed == "groups"
    several = run.optim.epochs * run.optim.minibatches > 1
    want_old = (several and "old_logprobs" in needs) or in_reward
    want_ref = any(name.startswith("ref_") for name in needs) or kl.weight > 0
    full = in_reward and kl.estimator == "full"
    began = time.perf_counter()
    per_token: dict[str, Tensor] = {}

    def put(name: str, units: Tensor, values: Tensor) -> None:
        if name not in per_token:
            per_token[name] = torch.zeros(batch.input_ids.shape, dtype=values.dtype)
        rows = torch.cat([units, units + batch.num_units]) if batch.pairs else units
        if len(rows):
            per_token[name][rows, : values.shape[1]] = values.cpu()

    if want_old or want_ref:
        everything = torch.arange(batch.num_units)
        for units, micro in passes(parts, batch, everything, run.optim.rows_per_pass):
            old = parts.learner(micro, full) if want_old else {}
            ref = parts.ref(micro, full) if want_ref and parts.ref else {}
            if want_old:
                put("old_logprobs", units, old["logprobs"])
            if want_ref:
                put("ref_logprobs", units, ref["logprobs"])
            if in_reward:
                put("kl", units, token_kl(kl.estimator, old, ref, micro))
    batch.extra.update({name: x for name, x in per_token.items() if name != "kl"})
    if "batch_kl" in needs and batch.mismatched is not None:
        batch.extra["batch_kl"] = mean_log_ratio(run, parts, batch.mismatched).clamp(min=0)
    meter.seconds("score", time.perf_counter() - began)
    if method.feed == "groups":
        penalty = kl.weight * torch.where(batch.mask, per_token["kl"], 0.0) if in_reward else None
        batch.extra["advantages"] = advantages(method, run, parts.runtime, state, batch, penalty)
        if in_reward:
            meter.mean("kl", torch.where(batch.mask, per_token["kl"], 0.0), batch.mask * batch.weight[:, None])


def mean_log_ratio(run: Run, parts: Parts, batch: Tokens) -> Tensor:
    """Mean of log policy / reference over the rows of all ranks, []: one number for the whole step."""
    assert parts.ref
    ratio, weight, dtype = 0.0, 0.0, torch.float32
    for units, micro in passes(parts, batch, torch.arange(batch.num_units), run.optim.rows_per_pass):
        logprobs = parts.learner(micro)["logprobs"] - parts.ref(micro)["logprobs"]
        if len(units):
            ratio += float((sequence_sum(logprobs, micro.mask).double() * micro.weight).sum())
            weight += float(micro.weight.sum())
            dtype = logprobs.dtype
    shares = parts.runtime.gather((ratio, weight))
    return torch.tensor(sum(r for r, _ in shares) / sum(w for _, w in shares), dtype=dtype)


def token_kl(estimator: str, out: dict[str, Tensor], ref: dict[str, Tensor], batch: Tokens) -> Tensor:
    """The divergence to the reference at each token, [B, L]."""
    if estimator != "full":
        return kl_estimate(out["logprobs"], ref["logprobs"], estimator)
    return full_kl(out["logits"], ref["logits"])


def advantages(
    method: Method, run: Run, runtime: Runtime, state: State, batch: Tokens, penalty: Tensor | None
) -> Tensor:
    """Credit per token [N, L] from the rewards of all ranks, so that baselines see the whole step."""
    outcome = batch.extra["rewards"]
    last = batch.extra["lengths"] - 1
    token_rewards = torch.zeros(batch.mask.shape, dtype=outcome.dtype)
    token_rewards[torch.arange(len(outcome)), last] = outcome
    if penalty is not None:
        token_rewards = token_rewards - penalty
    if not bool((batch.weight > 0).any()):  # this rank has nothing: a stand-in must not enter the others' baselines
        token_rewards, batch = token_rewards[:0], replace(batch, group=batch.group[:0])
    shares = runtime.gather((token_rewards, batch.group))
    width = max(share[0].shape[1] for share in shares)
    tokens = torch.cat([torch.nn.functional.pad(share[0], (0, width - share[0].shape[1])) for share in shares])
    together = {"token_rewards": tokens, "rewards": tokens.sum(-1), "group": torch.cat([share[1] for share in shares])}
    credit, state.credit = method.assign_credit(together, run.hparams, state.credit)
    before = sum(len(share[0]) for share in shares[: runtime.rank])
    mine = credit[before : before + len(token_rewards)]
    if len(mine) == 0:
        return torch.zeros(batch.mask.shape, dtype=outcome.dtype)
    return mine[:, : batch.mask.shape[1]] if mine.ndim == 2 else mine[:, None].expand(batch.mask.shape).clone()


def updates(run: Run, batch: Tokens, step: int) -> Iterator[Tensor]:
    """The examples of each optimizer update of a step: `epochs` passes, each cut into `minibatches` at random.

    An example's minibatch follows from its place in the whole step, so it is the same on any number of ranks.
    """
    everything = torch.arange(batch.num_units)
    for epoch in range(run.optim.epochs):
        if run.optim.minibatches == 1:
            yield everything
            continue
        draw = torch.Generator().manual_seed(mix(run.seed, "minibatches", step, epoch))
        size = int(batch.extra["step_size"])
        shuffled = torch.randperm(size, generator=draw)[batch.extra["place"][: batch.num_units]]
        for minibatch in range(run.optim.minibatches):
            yield everything[shuffled * run.optim.minibatches // size == minibatch]


def update(
    run: Run, method: Method, parts: Parts, state: State, batch: Tokens, units: Tensor, meter: Meter
) -> tuple[list[float], list[float]]:
    """One optimizer step on the examples `units`. Returns each row's log-prob and each parameter's gradient norm."""
    runtime, learner = parts.runtime, parts.learner
    counts = runtime.add(count(batch.select(units)) if len(units) else Counts(0, 0, 0))
    if counts.rows == 0 or (method.per != "row" and counts.tokens == 0):
        meter.total("skipped_updates", int(runtime.first))  # nothing to learn from: no step, no decay, no momentum
        return [], []
    state.optimizer.zero_grad(set_to_none=True)
    rows = torch.zeros(len(batch.input_ids), dtype=torch.float64)
    for chunk, micro in passes(parts, batch, units, run.optim.rows_per_pass):
        loss, out, tensors = objective(run, method, parts, micro, counts)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {state.step + 1}: the loss is {float(loss.detach())}. The weights or the data hold numbers "
                "that are not finite, or the step before was too large: try a lower optim.lr, or optim.clip = 1.0"
            )
        (loss * runtime.world).backward()  # FSDP averages over ranks; our counts are already global
        if len(chunk):  # else a stand-in
            measure(run, method, tensors, out, micro, loss, meter)
            where = torch.cat([chunk, chunk + batch.num_units]) if batch.pairs else chunk
            value = out["scores"] if "scores" in out else sequence_sum(out["logprobs"], micro.mask)
            rows[where] = value.detach().double().cpu()
    meter.add("loss", 0.0, 1.0 / runtime.world)
    for group in state.optimizer.param_groups:
        group["lr"] = lr_at(run, state.step)
    norms = [number(p.grad.norm()) for p in learner.parameters() if p.grad is not None]
    norm = runtime.clip(learner.parameters(), run.optim.clip)
    if not math.isfinite(norm):
        raise TrainingError(f"step {state.step + 1}: the gradient is not finite (norm {norm}); try a lower optim.lr")
    meter.add("grad_norm", norm / runtime.world, 1.0 / runtime.world)
    state.optimizer.step()
    return rows.tolist(), norms


def objective(
    run: Run, method: Method, parts: Parts, micro: Tokens, counts: Counts
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """This micro-batch's part of the step's scalar loss, the learner's output, and the tensors that the loss saw."""
    kl, needs = run.penalty, method.needs_with(run.hparams)
    in_loss = kl.weight > 0 and kl.place == "loss"
    full = in_loss and kl.estimator == "full"
    out = parts.learner(micro, full or "logits" in needs)
    tensors = named_tensors(out, micro, {*needs, *measured(method)})
    if full or "ref_logits" in needs:
        assert parts.ref
        with torch.no_grad():
            tensors["ref_logits"] = parts.ref(micro, True)["logits"]
    loss = method.call_loss(tensors, run.hparams)
    per, constant = run.per or method.per, run.constant
    weight = micro.weight[: len(loss)]
    scalar = total(loss, micro.mask, weight, per, counts, constant)
    if in_loss:
        ref = {"logprobs": tensors["ref_logprobs"], "logits": tensors.get("ref_logits", loss)}
        kl_tokens = token_kl(kl.estimator, out, ref, micro)
        tensors["kl"] = kl_tokens.detach()
        kl_per = "sequence_sum" if per == "row" else per
        scalar = scalar + kl.weight * total(kl_tokens, micro.mask, micro.weight, kl_per, counts, constant)
    return scalar, out, tensors

"""The loop, one for all methods.

    for each step:  get a batch -> what must be known before any gradient (`prepare`)
                    for each update: count over the whole update and all ranks -> forward, loss, backward -> optimizer

`steps` is a generator: it yields after each step, and whoever drives it logs, evaluates, saves, or stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.method import Method
from fiducial.core.seeds import mix
from fiducial.core.tokens import sequence_sum
from fiducial.core.total import Counts, count, total
from fiducial.core.types import Tokens
from fiducial.train.learner import Learner, named_tensors
from fiducial.train.measure import Meter, measure, measure_critic, measured
from fiducial.train.parts import Parts, Report, State, TrainingError, lr_at
from fiducial.train.prepare import passes, prepare, token_kl
from fiducial.train.runtime import number


def steps(run: Run, method: Method, parts: Parts, state: State) -> Iterator[Report]:
    """Train from `state.step` to `run.steps`, yielding after each step. `run` is resolved."""
    runtime = parts.runtime
    while state.step < run.steps:
        step, meter, began = state.step, Meter(), time.perf_counter()
        torch.manual_seed(mix(run.seed, "step", step, runtime.rank))
        move_anchors(run, method, parts, step)
        if method.forgets(step, run.steps, run.hparams):
            state.optimizer.state.clear()
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
    """One optimizer step, of the policy and of each critic, on the examples `units`.

    Returns each row's log-prob (or score) and each parameter's gradient norm.
    """
    runtime = parts.runtime
    counts = runtime.add(count(batch.select(units)) if len(units) else Counts(0, 0, 0))
    if counts.rows == 0 or (method.per != "row" and counts.tokens == 0):
        meter.total("skipped_updates", int(runtime.first))  # nothing to learn from: no step, no decay, no momentum
        return [], []
    rows = torch.zeros(len(batch.input_ids), dtype=torch.float64)
    norms: list[float] = []
    for name, (learner, optimizer) in state.optimizers(parts).items():
        if name == "policy" and state.step < run.critic.warmup:
            continue
        optimizer.zero_grad(set_to_none=True)
        for chunk, micro in passes(parts, batch, units, run.optim.rows_per_pass):
            if name == "policy":
                loss, out, tensors = objective(run, method, parts, micro, counts)
            else:
                loss, out, tensors = critic_objective(run, method, name, learner, micro, counts)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"step {state.step + 1}: the loss of the {name} is {float(loss.detach())}. The weights or the data "
                    "hold numbers that are not finite, or the step before was too large: try a lower optim.lr, or "
                    "optim.clip = 1.0"
                )
            (loss * runtime.world).backward()  # FSDP averages over ranks; our counts are already global
            if not len(chunk):
                continue  # a stand-in
            if name != "policy":
                measure_critic(run, name, tensors, micro, loss, meter)
                continue
            measure(run, method, tensors, out, micro, loss, meter)
            where = torch.cat([chunk, chunk + batch.num_units]) if batch.pairs else chunk
            value = out["scores"] if "scores" in out else sequence_sum(out["logprobs"], micro.mask)
            rows[where] = value.detach().double().cpu()
        norms += step_optimizer(run, parts, state, name, learner, optimizer, meter)
    return rows.tolist(), norms


def step_optimizer(
    run: Run,
    parts: Parts,
    state: State,
    name: str,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    meter: Meter,
) -> list[float]:
    """Clip the gradient and take the step; returns each parameter's gradient norm before."""
    runtime, suffix = parts.runtime, "" if name == "policy" else f"/{name}"
    scale = 1.0 if name == "policy" else run.critic.lr_scale
    meter.add("loss" if name == "policy" else f"loss/{name}", 0.0, 1.0 / runtime.world)
    for group in optimizer.param_groups:
        group["lr"] = scale * lr_at(run, state.step)
    norms = [number(p.grad.norm()) for p in learner.parameters() if p.grad is not None]
    norm = runtime.clip(learner.parameters(), run.optim.clip)
    if not math.isfinite(norm):
        raise TrainingError(f"step {state.step + 1}: the gradient is not finite (norm {norm}); try a lower optim.lr")
    meter.add(f"grad_norm{suffix}", norm / runtime.world, 1.0 / runtime.world)
    optimizer.step()
    return norms


def critic_objective(
    run: Run, method: Method, name: str, critic: Learner, micro: Tokens, counts: Counts
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The same of a critic: its loss is averaged as the policy's is, over tokens where that has one number a row."""
    out = {name: critic(micro)["values"]}
    tensors = {**micro.extra, **out, "mask": micro.mask}
    loss = method.call_critic(name, tensors, run.hparams)
    per = "token" if method.per == "row" else run.per or method.per
    return total(loss, micro.mask, micro.weight, per, counts, run.constant), out, tensors


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

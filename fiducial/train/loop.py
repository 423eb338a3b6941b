"""The loop, one for all methods.

    for each step:  get a batch -> what must be known before any gradient (`prepare`)
                    for each update: count over the whole update and all ranks -> forward, loss, backward -> optimizer

`steps` is a generator: it yields after each step, and whoever drives it logs, evaluates, saves, or stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.method import Method
from fiducial.core.seeds import mix
from fiducial.core.tokens import sequence_sum
from fiducial.core.total import Counts, count, total
from fiducial.core.types import Tokens
from fiducial.train.control import adjusted, controlled
from fiducial.train.learner import Learner, named_tensors
from fiducial.train.measure import Meter, measure, measure_critic, measured
from fiducial.train.parts import Parts, Report, State, TrainingError, lr_at
from fiducial.train.prepare import passes, prepare, token_kl
from fiducial.train.runtime import number


def steps(plan: Run, method: Method, parts: Parts, state: State) -> Iterator[Report]:
    """Train from `state.step` to `plan.steps`, yielding after each step. `plan` is a resolved run."""
    runtime = parts.runtime
    while state.step < plan.steps:
        run = controlled(plan, state.control)
        step, meter, began = state.step, Meter(), time.perf_counter()
        torch.manual_seed(mix(run.seed, "step", step, runtime.rank))
        move_anchors(run, method, parts, state, meter)
        batch = parts.feed.batch(step, meter)
        prepare(run, method, parts, state, batch, meter)
        rows: list[float] = []
        norms: list[float] = []
        started = time.perf_counter()
        mixed = parts.mixed.batch(step, Meter()) if parts.mixed else None
        beside = updates(run, mixed, step) if mixed else repeat(None)
        for units, more in zip(updates(run, batch, step), beside, strict=False):
            demos = None if mixed is None or more is None else mixed.select(more)
            row_logprobs, norms = update(run, method, parts, state, batch, units, demos, meter)
            rows = rows or row_logprobs
            if drifted(run, parts, meter):
                break
        state.step += 1
        parts.hand_over(state.step)
        meter.seconds("train", time.perf_counter() - started)
        metrics = meter.reduce(runtime)
        metrics["seconds"] = time.perf_counter() - began
        metrics["lr"] = lr_at(run, step)
        state.control = adjusted(run, state.control, metrics)
        state.seen["kl"] = metrics.get("kl/sequence", 0.0)
        yield Report(step, metrics, batch, rows, norms)


def drifted(run: Run, parts: Parts, meter: Meter) -> bool:
    """Whether the step's last update found the policy further from the sampling one than `optim.target_kl`."""
    if not run.optim.target_kl:
        return False
    totals = [sum(share) for share in zip(*parts.runtime.gather(tuple(meter.latest("policy/approxkl"))), strict=True)]
    stop = totals[0] > run.optim.target_kl * totals[1]
    meter.total("stopped_early", int(stop and parts.runtime.first))
    return stop


def move_anchors(run: Run, method: Method, parts: Parts, state: State, meter: Meter) -> None:
    """Let the policy into its anchors, and the optimizer forget, where their schedules say so."""
    step, forgets = state.step, method.forgets(state.step, run.steps, run.hparams, state.seen)
    for name in method.anchors:
        share = method.share_moved(name, step, run.steps, run.hparams, state.seen)
        if share:
            parts.anchors[name].move(parts.learner, share, parts.runtime)
        if share == 1:  # from here on the policy is measured anew
            meter.total(f"{name}/resets", int(parts.runtime.first))
            state.seen |= {"stalled": 0.0, "kl": 0.0}
    if forgets:
        state.optimizer.state.clear()


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
    run: Run,
    method: Method,
    parts: Parts,
    state: State,
    batch: Tokens,
    units: Tensor,
    mixed: Tokens | None,
    meter: Meter,
) -> tuple[list[float], list[float]]:
    """One optimizer step of the policy, with `mixed` demonstrations beside, and of each critic, on examples `units`.

    Returns each row's log-prob (or score) and each parameter's gradient norm.
    """
    runtime = parts.runtime
    counts = runtime.add(count(batch.select(units)) if len(units) else Counts(0, 0, 0))
    if counts.rows == 0 or (method.per != "row" and counts.tokens == 0):
        meter.total("skipped_updates", int(runtime.first))  # nothing to learn from: no step, no decay, no momentum
        return [], []
    rows: list[float] = []
    norms: list[float] = []
    if state.step >= run.critic.warmup:
        state.optimizer.zero_grad(set_to_none=True)
        rows = backward_policy(run, method, parts, state, batch, units, counts, meter)
        if mixed is not None:
            backward_mixed(run, parts, mixed, meter)
        norms = step_optimizer(run, parts, state, "policy", meter)
    for name in parts.critics:
        state.critics[name].zero_grad(set_to_none=True)
        backward_critic(run, method, name, parts, batch, units, counts, meter)
        norms += step_optimizer(run, parts, state, name, meter)
    return rows, norms


def backward_policy(
    run: Run, method: Method, parts: Parts, state: State, batch: Tokens, units: Tensor, counts: Counts, meter: Meter
) -> list[float]:
    """Add up the gradient of the method's objective; returns each row's log-prob (or score)."""
    rows = torch.zeros(len(batch.input_ids), dtype=torch.float64)
    for chunk, micro in passes(parts, batch, units, run.optim.rows_per_pass):
        loss, out, tensors = objective(run, method, parts, micro, counts)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {state.step + 1}: the loss is {float(loss.detach())}. The weights or the data hold numbers "
                "that are not finite, or the step before was too large: try a lower optim.lr, or optim.clip = 1.0"
            )
        (loss * parts.runtime.world).backward()  # FSDP averages over ranks; our counts are already global
        if len(chunk):  # else a stand-in
            measure(run, method, tensors, out, micro, loss, meter)
            where = torch.cat([chunk, chunk + batch.num_units]) if batch.pairs else chunk
            value = out["scores"] if "scores" in out else sequence_sum(out["logprobs"], micro.mask)
            rows[where] = value.detach().double().cpu()
    meter.add("loss", 0.0, 1.0 / parts.runtime.world)
    return rows.tolist()


def backward_mixed(run: Run, parts: Parts, batch: Tokens, meter: Meter) -> None:
    """Add the gradient of `mix.weight` times the negative log-likelihood per token of demonstrations (PPO-ptx)."""
    counts = parts.runtime.add(count(batch))
    for chunk, micro in passes(parts, batch, torch.arange(batch.num_units), run.optim.rows_per_pass):
        loss = total(-parts.learner(micro)["logprobs"], micro.mask, micro.weight, "token", counts)
        (run.mix.weight * loss * parts.runtime.world).backward()
        if len(chunk):
            meter.add("loss/mix", loss.detach(), 0.0)
    meter.add("loss/mix", 0.0, 1.0 / parts.runtime.world)


def backward_critic(
    run: Run, method: Method, name: str, parts: Parts, batch: Tokens, units: Tensor, counts: Counts, meter: Meter
) -> None:
    """Add up the gradient of a critic's loss."""
    for chunk, micro in passes(parts, batch, units, run.optim.rows_per_pass):
        loss, tensors = critic_objective(run, method, name, parts.critics[name], micro, counts)
        (loss * parts.runtime.world).backward()
        if len(chunk):
            measure_critic(run, name, tensors, micro, loss, meter)
    meter.add(f"loss/{name.removesuffix('s')}", 0.0, 1.0 / parts.runtime.world)


def step_optimizer(run: Run, parts: Parts, state: State, name: str, meter: Meter) -> list[float]:
    """Clip the gradient of a network and take its step; returns each parameter's gradient norm before."""
    learner, optimizer = state.optimizers(parts)[name]
    of, scale = ("", 1.0) if name == "policy" else (f"/{name.removesuffix('s')}", run.critic.lr_scale)
    for group in optimizer.param_groups:
        group["lr"] = scale * lr_at(run, state.step)
    norms = [number(p.grad.norm()) for p in learner.parameters() if p.grad is not None]
    norm = parts.runtime.clip(learner.parameters(), run.optim.clip)
    if not math.isfinite(norm):
        raise TrainingError(
            f"step {state.step + 1}: the gradient of the {name} is not finite (norm {norm}); try a lower optim.lr"
        )
    meter.add(f"grad_norm{of}", norm / parts.runtime.world, 1.0 / parts.runtime.world)
    optimizer.step()
    return norms


def critic_objective(
    run: Run, method: Method, name: str, critic: Learner, micro: Tokens, counts: Counts
) -> tuple[Tensor, dict[str, Tensor]]:
    """A critic's part of its scalar loss, averaged as the policy's is (over tokens where that has one number a row),
    and the tensors that it saw."""
    tensors = {**micro.extra, name: critic(micro)["values"], "mask": micro.mask}
    loss = method.call_critic(name, tensors, run.hparams)
    per = "token" if method.per == "row" else run.per or method.per
    return total(loss, micro.mask, micro.weight, per, counts, run.constant), tensors


def objective(
    run: Run, method: Method, parts: Parts, micro: Tokens, counts: Counts
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """This micro-batch's part of the step's scalar loss, the learner's output, and the tensors that the loss saw."""
    kl, needs = run.penalty, method.needs_with(run.hparams)
    in_loss = kl.weight > 0 and kl.place == "loss"
    full = in_loss and kl.estimator == "full"
    out = parts.learner(micro, full or "logits" in needs, run.entropy.weight != 0)
    tensors = named_tensors(out, micro, {*needs, *measured(method)})
    if full or "ref_logits" in needs:
        assert parts.ref
        with torch.no_grad():
            tensors["ref_logits"] = parts.ref(micro, True)["logits"]
    loss = corrected(method.call_loss(tensors, run.hparams), tensors)
    per, constant = run.per or method.per, run.constant
    weight = micro.weight[: len(loss)]
    scalar = total(loss, micro.mask, weight, per, counts, constant)
    per_token = "sequence_sum" if per == "row" else per
    if run.entropy.weight:
        spread = total(out["entropy"], micro.mask, micro.weight, per_token, counts, constant)
        scalar = scalar - run.entropy.weight * spread
    if in_loss:
        ref = {"logprobs": tensors["ref_logprobs"], "logits": tensors.get("ref_logits", loss)}
        kl_tokens = token_kl(kl.estimator, out, ref, micro)
        tensors["kl"] = kl_tokens.detach()
        scalar = scalar + kl.weight * total(kl_tokens, micro.mask, micro.weight, per_token, counts, constant)
    return scalar, out, tensors


def corrected(loss: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The loss times the weights of samples that another policy drew, if there are any."""
    weights = tensors.get("importance")
    if weights is None:
        return loss
    return loss * (weights if loss.ndim == 2 else weights.amax(-1))  # one weight a completion: equal at all its tokens

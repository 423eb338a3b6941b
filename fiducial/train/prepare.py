"""What must be known of a batch before any gradient: reference and old log-probs, the critics' forecasts, credit."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.divergence import full_kl, kl_estimate
from fiducial.core.method import Method
from fiducial.core.off_policy import bounded, effective_share, importance_weights
from fiducial.core.tokens import sequence_sum
from fiducial.core.types import Tokens
from fiducial.train.measure import Meter, measure_credit
from fiducial.train.parts import Parts, State
from fiducial.train.runtime import Runtime


@torch.no_grad()
def prepare(run: Run, method: Method, parts: Parts, state: State, batch: Tokens, meter: Meter) -> None:
    """Add to the batch what must be known before any gradient: reference and old log-probs, forecasts, then credit."""
    began = time.perf_counter()
    known = forwards(run, method, parts, batch)
    kl = known.pop("kl", None)
    batch.extra.update(known)
    if "batch_kl" in method.needs_with(run.hparams) and batch.mismatched is not None:
        batch.extra["batch_kl"] = mean_log_ratio(run, parts, batch.mismatched).clamp(min=0)
    meter.seconds("score", time.perf_counter() - began)
    if method.feed == "groups":
        if kl is not None:
            kl = torch.where(batch.mask, kl, 0.0)
            meter.mean("kl", kl, batch.mask * batch.weight[:, None])
            meter.mean("kl/sequence", kl.sum(-1), batch.weight)
        if run.correction.bypass:
            batch.extra["old_logprobs"] = batch.extra["sampler_logprobs"]
        if run.correction.mode != "off":
            weigh(run, parts.runtime, batch, meter)
        batch.extra.update(credit(method, run, parts.runtime, state, batch, kl, meter))


def forwards(run: Run, method: Method, parts: Parts, batch: Tokens) -> dict[str, Tensor]:
    """What networks say of the batch at the weights it was sampled with, [B, L] each: "old_logprobs" and
    "ref_logprobs" where they are asked for, "kl" where a KL is in the reward, and "old_" with each critic's name."""
    kl, needs = run.penalty, method.needs_with(run.hparams)
    in_reward = kl.weight > 0 and kl.place == "reward" and method.feed == "groups"
    several = run.optim.epochs * run.optim.minibatches > 1
    weighed = run.correction.mode != "off"
    want_old = (several and "old_logprobs" in needs) or in_reward or weighed
    want_ref = any(name.startswith("ref_") for name in needs) or kl.weight > 0
    full = in_reward and kl.estimator == "full"
    known: dict[str, Tensor] = {}

    def put(name: str, units: Tensor, values: Tensor) -> None:
        if name not in known:
            known[name] = torch.zeros(batch.input_ids.shape, dtype=values.dtype)
        rows = torch.cat([units, units + batch.num_units]) if batch.pairs else units
        if len(rows):
            known[name][rows, : values.shape[1]] = values.cpu()

    if not (want_old or want_ref or parts.critics):
        return known
    for units, micro in passes(parts, batch, torch.arange(batch.num_units), run.optim.rows_per_pass):
        old = parts.learner(micro, full) if want_old else {}
        ref = parts.ref(micro, full) if want_ref and parts.ref else {}
        found = {"old_logprobs": old.get("logprobs"), "ref_logprobs": ref.get("logprobs")}
        if in_reward:
            found["kl"] = token_kl(kl.estimator, old, ref, micro)
        found |= {f"old_{name}": critic(micro)["values"] for name, critic in parts.critics.items()}
        for name, values in found.items():
            if values is not None:
                put(name, units, values)
    return known


def weigh(run: Run, runtime: Runtime, batch: Tokens, meter: Meter) -> None:
    """Put the weights of the recipe's [correction] on the batch, [B, L]."""
    settings, mask = run.correction, batch.mask
    whole = importance_weights(batch.extra["old_logprobs"], batch.extra["sampler_logprobs"], mask, settings.level)
    weights = bounded(whole, settings.mode, settings.cap, settings.floor)
    batch.extra["importance"] = weights
    tokens = mask * batch.weight[:, None]
    meter.mean("sampling/importance_ratio/mean", whole, tokens)
    meter.mean("is/frac_truncated", (weights != whole).double(), tokens)
    if bool(mask.any()):
        meter.peak("sampling/importance_ratio/max", whole[mask].max())
        meter.low("sampling/importance_ratio/min", whole[mask].min())
    live = weights[mask].double()
    shares = runtime.gather((float(len(live)), float(live.sum()), float(live.square().sum())))
    meter.add("is/ess", effective_share(*(sum(column) for column in zip(*shares, strict=True))), 1.0)
    if settings.renormalise:
        batch.mask = mask & (weights > 0)


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


def credit(
    method: Method, run: Run, runtime: Runtime, state: State, batch: Tokens, kl: Tensor | None, meter: Meter
) -> dict[str, Tensor]:
    """Credit per token by name, [N, L] each, from the rewards of all ranks, so that baselines see the whole step.

    kl [N, L] is what the recipe's KL in the reward costs before its weight, None without one.
    """
    mine = of_completions(batch, run.penalty.weight, kl)
    if not bool((batch.weight > 0).any()):  # this rank has nothing: a stand-in must not enter the others' baselines
        mine = {name: x[:0] for name, x in mine.items()}
    shares = runtime.gather(mine)
    width = max(share["mask"].shape[1] for share in shares)
    names = {name: None for share in shares for name in share}  # a rank that has nothing may not know of them all
    together = {name: torch.cat([_widened(share[name], width) for share in shares if name in share]) for name in names}
    order = together.pop("place").argsort(stable=True)  # on any number of ranks the same
    together = {name: x[order] for name, x in together.items()}
    together["rewards"] = together["token_rewards"].sum(-1)
    found, state.credit = method.assign_credit(together, run.hparams, state.credit)
    measure_credit(method, state.credit, together, found, runtime, meter)
    before = sum(len(share["mask"]) for share in shares[: runtime.rank])
    own = order.argsort()[before : before + len(mine["mask"])]
    return {name: _own(x[own], batch) for name, x in found.items()}


def of_completions(batch: Tokens, weight: float, kl: Tensor | None) -> dict[str, Tensor]:
    """What credit functions may ask for: per row [N], per token [N, L]."""
    outcome = batch.extra["rewards"]
    penalty = torch.zeros(batch.mask.shape, dtype=outcome.dtype) if kl is None else weight * kl
    found = {
        "token_rewards": on_last_token(outcome, batch) - penalty,
        "kl_penalty": penalty,
        "group": batch.group,
        "mask": batch.mask,
        "place": batch.extra.get("place", torch.arange(len(outcome))),
    }
    if "costs" in batch.extra:
        found |= {"costs": batch.extra["costs"], "token_costs": on_last_token(batch.extra["costs"], batch)}
    names = [name for name in ("greedy_rewards", "old_values", "old_cost_values") if name in batch.extra]
    return found | {name: batch.extra[name] for name in names}


def on_last_token(outcome: Tensor, batch: Tokens) -> Tensor:
    """A number for each completion [N], put on its last token: [N, L]."""
    placed = torch.zeros(batch.mask.shape, dtype=outcome.dtype)
    placed[torch.arange(len(outcome)), batch.extra["lengths"] - 1] = outcome
    return placed


def _widened(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[1])) if x.ndim == 2 else x


def _own(x: Tensor, batch: Tokens) -> Tensor:
    """This rank's rows of a credit [n] or [n, wider], as [N, L]; zeros where it has none."""
    if len(x) == 0:
        return torch.zeros(batch.mask.shape, dtype=x.dtype)
    return x[:, : batch.mask.shape[1]] if x.ndim == 2 else x[:, None].expand(batch.mask.shape).clone()


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

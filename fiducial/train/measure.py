"""What a step is measured by. Every metric is a weighted sum and a weight, added over micro-batches and ranks and
divided once, so a number in the log means the same on one process and on many."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.divergence import K3_LIMIT, kl_estimate
from fiducial.core.method import Method, Running
from fiducial.core.ratio import log_ratio
from fiducial.core.types import Tokens
from fiducial.evals.diagnostics import right
from fiducial.train.runtime import Runtime


class Meter:
    """Sums, maxima and plain totals under names.

    >>> meter = Meter()
    >>> meter.add("reward", 3.0, 4.0)
    >>> meter.add("reward", 1.0, 4.0)
    >>> meter.reduce(Runtime())
    {'reward': 0.5}
    """

    def __init__(self):
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.asked: dict[str, list[float]] = {}
        self.peaks: dict[str, float] = {}
        self.lows: dict[str, float] = {}
        self.totals: dict[str, float] = defaultdict(float)

    def add(self, name: str, value: Any, weight: Any = 1.0) -> None:
        """A weighted sum and its weight; their quotient is the metric."""
        entry = self.sums[name]
        entry[0] += float(value)
        entry[1] += float(weight)

    def latest(self, name: str) -> list[float]:
        """What has come to a mean since this was last asked: its weighted sum and weight."""
        now, before = self.sums[name], self.asked.get(name, [0.0, 0.0])
        self.asked[name] = list(now)
        return [a - b for a, b in zip(now, before, strict=True)]

    def mean(self, name: str, values: Tensor, weight: Tensor) -> None:
        """The weighted mean of a tensor."""
        values, weight = values.detach().double(), weight.double()
        self.add(name, (values * weight).sum(), weight.sum())

    def peak(self, name: str, value: Any) -> None:
        self.peaks[name] = max(self.peaks.get(name, -math.inf), float(value))

    def low(self, name: str, value: Any) -> None:
        self.lows[name] = min(self.lows.get(name, math.inf), float(value))

    def total(self, name: str, value: Any) -> None:
        """Plain sum over the step and all ranks."""
        self.totals[name] += float(value)

    def seconds(self, name: str, value: float) -> None:
        self.peak(f"seconds/{name}", self.peaks.get(f"seconds/{name}", 0.0) + value)

    def reduce(self, runtime: Runtime) -> dict[str, float]:
        """The metrics of all ranks together."""
        shares = runtime.gather((dict(self.sums), self.peaks, self.lows, dict(self.totals)))
        together = Meter()
        for sums, peaks, lows, totals in shares:
            for name, (value, weight) in sums.items():
                together.add(name, value, weight)
            for name, value in peaks.items():
                together.peak(name, value)
            for name, value in lows.items():
                together.low(name, value)
            for name, value in totals.items():
                together.total(name, value)
        out = {name: value / weight for name, (value, weight) in together.sums.items() if weight > 0}
        out.update({**together.peaks, **together.lows, **together.totals})
        if "nll" in out:
            out["perplexity"] = math.exp(min(out.pop("nll"), 700.0))
        for square in [name for name in out if name.endswith("/square")]:
            name = square.removesuffix("/square")
            out[f"{name}/std"] = math.sqrt(max(out.pop(square) - out[f"{name}/mean"] ** 2, 0.0))
        return out


def measured(method: Method) -> tuple[str, ...]:
    """Names of the tensors that the metrics of its feed read, beside those the loss asks for."""
    if method.learns == "reward_model":
        return ()
    names = {
        "pairs": ("chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs")
        + ("chosen_lengths", "rejected_lengths"),
        "labels": ("completion_logprobs", "ref_completion_logprobs"),
    }
    return names.get(method.feed, ())


@torch.no_grad()
def measure(
    run: Run,
    method: Method,
    tensors: dict[str, Tensor],
    out: dict[str, Tensor],
    batch: Tokens,
    loss: Tensor,
    meter: Meter,
) -> None:
    """Add one micro-batch's metrics: those of its feed, from the tensors the loss saw."""
    meter.add("loss", loss.detach(), 0.0)  # already divided by the update's counts, so each update weighs one
    token_weight = batch.mask * batch.weight[:, None]
    if method.feed == "demos":
        measure_demos(out, batch, meter)
    if "kl" in tensors:
        meter.mean("kl", tensors["kl"], token_weight)
        meter.mean("kl/sequence", torch.where(batch.mask, tensors["kl"], 0.0).sum(-1), batch.weight)
        if run.penalty.estimator.startswith("k3"):
            meter.mean("kl/clamped", (tensors["kl"] >= K3_LIMIT).double(), token_weight)
    own = dict(method.call_measures(tensors, run.hparams))
    if batch.pairs:
        measure_pairs(run, tensors, out, batch, own, meter)
    if method.feed == "labels":
        measure_labels(run, tensors, batch, meter)
    if method.feed == "groups":
        measure_groups(run, tensors, out, batch, token_weight, meter)
    for name, values in own.items():
        values, weight = values if isinstance(values, tuple) else (values, torch.ones_like(values))
        meter.mean(name, values, weight * batch.weight[: len(values)])


def measure_demos(out: dict[str, Tensor], batch: Tokens, meter: Meter) -> None:
    """How likely demonstrations are."""
    token_weight = batch.mask * batch.weight[:, None]
    meter.mean("nll", -out["logprobs"], token_weight)
    meter.mean("mean_token_accuracy", out["hits"], token_weight)
    meter.total("num_tokens", batch.mask.sum())


def measure_pairs(
    run: Run, tensors: dict[str, Tensor], out: dict[str, Tensor], batch: Tokens, own: dict[str, Any], meter: Meter
) -> None:
    """Accuracy and margins; implicit rewards beta (log pi - log ref) where there is a reference.

    A method's `own` implicit rewards take their place.
    """
    n, weight = batch.num_units, batch.weight[: batch.num_units]
    if "scores" in out:
        chosen, rejected = out["scores"][:n], out["scores"][n:]
        meter.mean("reward/mean", out["scores"], batch.weight)
        meter.mean("reward/square", out["scores"].double().square(), batch.weight)
        meter.peak("reward/max", out["scores"].max())
        meter.low("reward/min", out["scores"].min())
        _compare("accuracy", "margin", chosen, rejected, weight, meter)
        lengths = batch.mask.sum(-1)
        longer = torch.sign(lengths[:n] - lengths[n:])
        meter.mean("accuracy/longer", right(chosen, rejected), weight * (longer > 0))
        meter.mean("accuracy/shorter", right(chosen, rejected), weight * (longer < 0))
        return
    chosen, rejected = tensors["chosen_logprobs"], tensors["rejected_logprobs"]
    meter.mean("logps/chosen", chosen, weight)
    meter.mean("logps/rejected", rejected, weight)
    lengths, others = tensors["chosen_lengths"], tensors["rejected_lengths"]
    meter.mean("length/chosen", lengths, weight)
    meter.mean("length/rejected", others, weight)
    meter.mean("ranking_accuracy", right(chosen, rejected), weight)
    meter.mean("ranking_accuracy_len_norm", right(chosen / lengths, rejected / others), weight)
    meter.mean("ranking_ties", (chosen == rejected).double(), weight)
    good, bad = own.pop("rewards/chosen", None), own.pop("rewards/rejected", None)
    if "ref_chosen_logprobs" in tensors:
        meter.mean("logps/ref_chosen", tensors["ref_chosen_logprobs"], weight)
        meter.mean("logps/ref_rejected", tensors["ref_rejected_logprobs"], weight)
        if good is None or bad is None:
            beta = float(run.hparams.get("beta", 1.0))
            good = beta * (chosen - tensors["ref_chosen_logprobs"])
            bad = beta * (rejected - tensors["ref_rejected_logprobs"])
    if good is not None and bad is not None:
        meter.mean("rewards/chosen", good, weight)
        meter.mean("rewards/rejected", bad, weight)
        _compare("rewards/accuracies", "rewards/margins", good, bad, weight, meter)


def measure_labels(run: Run, tensors: dict[str, Tensor], batch: Tokens, meter: Meter) -> None:
    """Implicit rewards of wanted and of unwanted completions, and how many there are."""
    wanted = tensors["desirable"].double() * batch.weight
    unwanted = (~tensors["desirable"]).double() * batch.weight
    meter.total("count/desirable", wanted.sum())
    meter.total("count/undesirable", unwanted.sum())
    for name, weight in (("desirable", wanted), ("undesirable", unwanted)):
        meter.mean(f"logps/{name}", tensors["completion_logprobs"], weight)
    if "ref_completion_logprobs" in tensors:
        beta = float(run.hparams.get("beta", 1.0))
        rewards = beta * (tensors["completion_logprobs"] - tensors["ref_completion_logprobs"])
        for name, weight in (("desirable", wanted), ("undesirable", unwanted)):
            meter.mean(f"rewards/{name}", rewards, weight)
    if "batch_kl" in tensors:
        meter.add("kl/batch", tensors["batch_kl"])


def measure_critic(run: Run, name: str, tensors: dict[str, Tensor], batch: Tokens, loss: Tensor, meter: Meter) -> None:
    """A critic's loss, and how much of its forecasts is clipped."""
    singular = name.removesuffix("s")
    meter.add(f"loss/{singular}", loss.detach(), 0.0)
    limit = run.hparams.get("clip_value")
    if limit:
        moved = (tensors[name] - tensors[f"old_{name}"]).abs() > limit
        meter.mean(f"{singular}/clipfrac", moved.double(), batch.mask * batch.weight[:, None])


def measure_credit(
    method: Method,
    memory: dict[str, Any],
    given: dict[str, Tensor],
    found: dict[str, Tensor],
    runtime: Runtime,
    meter: Meter,
) -> None:
    """Of the whole step, which every rank sees: how well critics forecast, and what the credit function remembers."""
    share = 1.0 / runtime.world
    mask = given["mask"]
    for name in method.critics:
        goal = found["returns" if name == "values" else name.replace("values", "returns")]
        if int(mask.sum()) > 1 and float(spread := goal[mask].double().var()) > 0:
            rest = (goal - given[f"old_{name}"])[mask].double().var()
            meter.add(f"{name.removesuffix('s')}/explained_variance", float(1 - rest / spread) * share, share)
    if isinstance(method.credit, Running):
        for name in method.credit.shown:
            meter.add(name, memory[name] * share, share)


def _compare(accuracy: str, margin: str, good: Tensor, bad: Tensor, weight: Tensor, meter: Meter) -> None:
    meter.mean(accuracy, right(good, bad), weight)
    meter.mean(margin, good - bad, weight)


def measure_groups(
    run: Run, tensors: dict[str, Tensor], out: dict[str, Tensor], batch: Tokens, token_weight: Tensor, meter: Meter
) -> None:
    """Distance between the three ledgers of log-probs: trained, old, and the sampler's."""
    logprobs = tensors["logprobs"]
    old = tensors.get("old_logprobs", logprobs)
    level = run.hparams.get("ratio_level", "token")  # as the loss takes it
    moved = torch.where(batch.mask, log_ratio(logprobs, old, batch.mask, level), 0.0)
    ratio = torch.exp(moved.clamp(-20, 20))
    meter.mean("ratio/mean", ratio, token_weight)
    meter.mean("policy/approxkl", kl_estimate(old, logprobs, "k3"), token_weight)
    if batch.mask.any():
        meter.peak("ratio/max", ratio[batch.mask].max())
    if "clip_low" in run.hparams:
        up, down = batch.extra["advantages"] > 0, batch.extra["advantages"] < 0
        meter.mean("clip_ratio/high", (up & (ratio > 1 + run.hparams["clip_high"])).double(), token_weight)
        meter.mean("clip_ratio/low", (down & (ratio < 1 - run.hparams["clip_low"])).double(), token_weight)
    if "sampler_logprobs" in batch.extra:
        sampler = batch.extra["sampler_logprobs"]
        gap = torch.where(batch.mask, (old - sampler).abs(), 0.0)
        if not (run.sampling.ahead or run.sampling.segment):  # else the sampler had other weights, and should differ
            meter.mean("sampling/logp_difference/mean", gap, token_weight)
            meter.peak("sampling/logp_difference/max", gap.max())
        meter.mean("entropy", out.get("entropy", -sampler), token_weight)

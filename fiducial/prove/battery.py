"""What must hold of any method, a user's own included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fiducial.config import Run
from fiducial.core.method import KL, Method
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Tokens
from fiducial.exact.tables import ScoreTree, TokenTree
from fiducial.prove.problems import CUT_BOUND, Check, exact_run, random_batch, ready, toy, value_and_gradient
from fiducial.train.parts import Parts


def battery(method: Method) -> Iterator[Check]:
    """What must hold of any method."""
    model, ref = toy(method, 1), toy(method, 2)
    kl = KL(0.1, "k3", "loss") if method.learns == "policy" else KL()
    run = exact_run(method, kl)
    parts, batch = ready(run, method, model, random_batch(method), ref)
    for network in ("policy", *method.critics):
        yield from invariances(run, method, parts, batch, network)
    yield Check(method.name, "finite for log-probs to -1e4 in float32", _overflow(method, run), 0.0)
    if method.feed in ("pairs", "labels"):
        side = "chosen" if method.feed == "pairs" else "wanted"
        yield Check(method.name, f"from a tie the {side} side rises", _falls(method), 0.0)
    if method.per != "row" and "logprobs" in method.needs:
        name = "a rewarded token rises, a punished one falls" if method.feed == "groups" else "an imitated token rises"
        yield Check(method.name, name, _wrong_way(method, run), 0.0)


def invariances(run: Run, method: Method, parts: Parts, batch: Tokens, network: str) -> Iterator[Check]:
    """The gradient is that of the value, and neither depends on how a step is cut: of the policy, or of a critic."""
    everything, of = batch.num_units, "" if network == "policy" else f"{network}: "
    value, gradient = value_and_gradient(run, method, parts, batch, everything, network)

    def same(name: str, other: Tokens, size: int = everything) -> Check:
        other_value, other_gradient = value_and_gradient(run, method, parts, other, size, network)
        gaps = torch.cat([(gradient - other_gradient).abs(), torch.tensor([value - other_value]).abs()])
        error = float(gaps.max())  # NaN where anything is NaN
        return Check(method.name, of + name, error, CUT_BOUND)

    slopes = _differences(run, method, parts, batch, gradient, network)
    yield Check(method.name, f"{of}gradient is that of the value", *slopes)
    yield same("micro-batches of 1 add up", batch, 1)
    yield same("micro-batches of 4 add up", batch, 4)
    yield same("row order does not matter", batch.select(torch.arange(everything).flip(0)))
    yield same("padding does not matter", padded(batch))
    yield same("what is not masked does not matter", poisoned(batch))
    if method.feed != "groups":
        yield same("a row of weight 2 is two rows", doubled(batch), everything)


def _differences(
    run: Run, method: Method, parts: Parts, batch: Tokens, gradient: Tensor, network: str
) -> tuple[float, float]:
    """Largest gap between the gradient and central differences of the value, and the bound: h^2 truncation, float64."""
    (parameter,) = (parts.learner if network == "policy" else parts.critics[network]).parameters()
    flat, h, worst = parameter.data.view(-1), 1e-5, 0.0
    if not bool(gradient.isfinite().all()):
        return float("nan"), 1e-7
    slopes = (gradient != 0) | (torch.arange(len(gradient)) % 7 == 0)  # and some that claim to be flat
    for i in slopes.nonzero()[:, 0].tolist():
        sides = []
        for shift in (h, -2 * h):
            flat[i] += shift
            sides.append(value_and_gradient(run, method, parts, batch, batch.num_units, network)[0])
        flat[i] += h
        worst = max(worst, abs((sides[0] - sides[1]) / (2 * h) - float(gradient[i])))
    return worst, 1e-7


def padded(batch: Tokens) -> Tokens:
    """Two more columns, of tokens that mean nothing."""
    pad = torch.nn.functional.pad
    shape = batch.input_ids.shape
    extra = {name: pad(x, (0, 2)) if x.shape == shape else x for name, x in batch.extra.items()}
    return replace(batch, input_ids=pad(batch.input_ids, (0, 2), value=3), mask=pad(batch.mask, (0, 2)), extra=extra)


def poisoned(batch: Tokens) -> Tokens:
    """NaN at every position that does not train, in everything that is per token."""
    extra = {}
    for name, x in batch.extra.items():
        per_token = x.shape == batch.mask.shape and x.is_floating_point()
        extra[name] = torch.where(batch.mask, x, torch.nan) if per_token else x
    return replace(batch, extra=extra)


def doubled(batch: Tokens) -> Tokens:
    """Every example twice at half its weight."""
    units = torch.arange(batch.num_units).repeat(2)
    twice = batch.select(units)
    twice.weight = twice.weight / 2
    return twice


PER_TOKEN = {"mask", "input_ids", "logits", "ref_logits", "advantages"} | {
    f"{p}logprobs" for p in ("", "old_", "sampler_", "ref_")
}


def _overflow(method: Method, run: Run) -> float:
    """How many values or slopes of the loss are not finite for extreme log-probs (scores) in float32."""
    levels = torch.tensor([-1e4, -30.0, -1.0, -1e-3, 0.0])
    grid = torch.cartesian_prod(*[levels] * 2)
    tensors: dict[str, Tensor] = {}
    for i, name in enumerate(method.needs_with(run.hparams)):
        x = _extreme(name, grid[:, i % 2].clone(), method)
        tensors[name] = x.requires_grad_() if x.is_floating_point() and name in _WITH_GRADIENT else x
    loss = method.call_loss(tensors, run.hparams)
    loss.sum().backward()
    slopes = [x.grad for x in tensors.values() if x.grad is not None]
    return float(sum((~torch.isfinite(x)).sum() for x in (loss, *slopes)))


_WITH_GRADIENT = {"logprobs", "logits", "completion_logprobs"} | {
    f"{side}_{what}" for side in ("chosen", "rejected") for what in ("logprobs", "scores")
}


def _extreme(name: str, x: Tensor, method: Method) -> Tensor:
    """The tensor of this name that holds the levels `x`: for each row, or at one token of each row."""
    if name.endswith("_lengths"):
        return torch.full_like(x, 7).long()
    if name == "batch_kl":
        return torch.tensor(0.2)
    if name in ("desirable", "tied"):
        return torch.arange(len(x)) % 2 == 0
    if name == "pref_prob":
        return torch.full_like(x, 0.75)
    if name in ("chosen_harm", "rejected_harm"):
        return x.sign() + (x == 0)
    if method.per == "row" and name not in PER_TOKEN:
        return x
    x = torch.cat([x, x.flip(0)]) if method.feed == "pairs" else x
    if name in ("logits", "ref_logits"):
        return torch.stack([torch.zeros(len(x), 3), x[:, None] * torch.tensor([1.0, 0.0, 0.5])], 1)
    if method.per == "row":  # position 0 never trains
        x = torch.stack([torch.zeros_like(x), x], 1)
        kinds = {"mask": torch.tensor([False, True]).expand(x.shape), "input_ids": torch.zeros(x.shape).long()}
    else:
        x = x[:, None]
        kinds = {"mask": torch.ones(x.shape).bool(), "input_ids": torch.zeros(x.shape).long()}
    return kinds.get(name, x)


def _falls(method: Method) -> float:
    """By how much a small step would, from equal sides, push the chosen (wanted) side down against the other."""
    scored = method.learns == "reward_model"
    model = ScoreTree(3, 1) if scored else TokenTree(3, 1, torch.zeros(1, 4, 3))
    tokens = collate([Encoded([0, y], [False, True]) for y in (1, 2)], pairs=method.feed == "pairs")
    plain = {"margin": 0.0, "pref_prob": 1.0, "chosen_harm": 1.0, "rejected_harm": -1.0, "tied": 0.0}
    tokens.weight = tokens.weight.double()
    tokens.extra |= {name: torch.full((2,), value).double() for name, value in plain.items()}
    tokens.extra |= {"tied": torch.zeros(2).bool(), "desirable": torch.tensor([True, False])}
    tokens.extra["batch_kl"] = torch.zeros((), dtype=torch.float64)
    run = exact_run(method)
    parts, batch = ready(run, method, model, tokens, TokenTree(3, 1, torch.zeros(1, 4, 3)))
    _, gradient = value_and_gradient(run, method, parts, batch, 2)
    up, down = (-gradient[y + 1 if scored else y] for y in (1, 2))
    push = float(up - down)
    return push if math.isnan(push) else max(0.0, -push) if push != 0 else 1.0


def _wrong_way(method: Method, run: Run) -> float:
    """How much a per-token loss pushes a token the wrong way, on policy, for advantages of 1 and -1."""
    wrong = 0.0
    for sign in (1.0, -1.0) if method.feed == "groups" else (1.0,):
        tensors = {name: torch.full((1, 1), -1.5).double() for name in method.needs}
        tensors |= {"mask": torch.ones(1, 1).bool(), "advantages": torch.full((1, 1), sign).double()}
        tensors["logprobs"] = torch.full((1, 1), -1.5, dtype=torch.float64, requires_grad=True)
        if "logits" in tensors or "ref_logits" in tensors:
            return 0.0  # a whole distribution has no such direction
        method.call_loss(tensors, run.hparams).sum().backward()
        slope = tensors["logprobs"].grad
        push = 0.0 if slope is None else -sign * float(slope)
        wrong = max(wrong, push if math.isnan(push) else 1.0 if push == 0 else -push)
    return wrong

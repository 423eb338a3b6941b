"""What a run will do, told before its first step: memory, the longest batch tried for real, who wrote the tokens that
train, text that the tokenizer does not know, a coloured sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fiducial.config import RecipeError
from fiducial.core.tokens import collate
from fiducial.core.total import count
from fiducial.core.types import Encoded
from fiducial.data import colour_sample
from fiducial.evals.preference_health import unbalanced
from fiducial.train.assemble import Assembly
from fiducial.train.feeds import collate_examples
from fiducial.train.loop import objective
from fiducial.train.parts import TrainingError
from fiducial.train.roles import trained_by_role
from fiducial.train.selected import SelectFeed

UNKNOWN = 0.2  # a larger share of tokens that the tokenizer does not know is refused
STRETCH = 400  # characters of a stretch of the sample row that are shown


@dataclass(frozen=True)
class Preflight:
    """Numbers of parameters and bytes, and the lines that people read."""

    parameters: int  # of the model, whole
    trained: int  # of them
    memory: dict[str, int]  # bytes of each component that this process holds: under FSDP its own shards
    longest: int  # tokens of the longest row that a pass will see
    roles: dict[str, int] = field(default_factory=dict)  # tokens that train by who wrote them; none for problems
    lines: list[str] = field(default_factory=list)


def preflight(assembly: Assembly, colours: bool, sample: bool = True) -> Preflight:
    """Look before the first step; `sample` False keeps the text of the data out of the lines. TrainingError if the
    longest batch does not fit or gives no finite loss; RecipeError if the tokenizer knows too little of the data."""
    refuse_unknown(assembly)
    run, method, world = assembly.run, assembly.method, assembly.parts.runtime.world
    parameters = list(assembly.parts.learner.parameters())
    total, number = (sum(p.numel() for p in some) for some in (parameters, trained_of(parameters)))
    memory = memory_of(assembly)
    longest = dry_pass(assembly)
    each = f"each of the {world} processes holds " if world > 1 else ""
    lines = [
        f"{method.title or method.name}: {number:,} of {total:,} parameters train; {each}"
        + ", ".join(f"{name} {_bytes(amount)}" for name, amount in memory.items() if amount),
        f"the longest pass ({run.optim.rows_per_pass} examples of up to {longest} tokens) went through",
    ]
    roles: dict[str, int] = {}
    if assembly.data.kind != "problems":
        roles, rows = trained_by_role(assembly.tokenizer, assembly.data)
        lines.append(_told_roles(roles, rows, len(assembly.data)))
        if skew := unbalanced(assembly.data.report.labels, run.hparams):
            lines.append(f"unbalanced: {skew[0]}; {skew[1]}")
        if sample:
            shown = colour_sample(assembly.tokenizer.decode, assembly.data[0].encoded[0], colours, STRETCH)
            lines += ["a row as the model reads it, what trains marked:", "  " + shown.replace("\n", "\n  ")]
    return Preflight(total, number, memory, longest, dict(roles), lines)


def refuse_unknown(assembly: Assembly) -> None:
    """RecipeError if much of the data is text that the tokenizer does not know, and that would train as one token."""
    report, new = assembly.data.report, assembly.run.model.new
    if report.unknown_share > UNKNOWN:
        advice = (
            f'set model.new.tokenizer = "bpe", which knows any text, or raise model.new.vocab_size = {new.vocab_size}'
            if new
            else f"{assembly.run.model.path} was made for other text; take another model, or leave out model.path and "
            "have [model.new] train a tokenizer on this data"
        )
        raise RecipeError(
            f"{report.name}: {report.unknown_share:.0%} of its tokens are unknown to the tokenizer (at most "
            f"{UNKNOWN:.0%} may be): {advice}"
        )


def trained_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that have a gradient."""
    return [p for p in parameters if p.requires_grad]


def memory_of(assembly: Assembly) -> dict[str, int]:
    """Bytes that this process holds of each component; activations come on top."""
    parts = assembly.parts
    parameters = list(parts.learner.parameters())
    gradients = _held(trained_of(parameters))
    frozen = [anchor for anchor in parts.anchors.values() if anchor.learner is not parts.learner]
    apart = parts.runtime.world > 1 or assembly.run.sampling.ahead > 0  # else it samples from the weights themselves
    copied = assembly.sampler is not None and apart
    return {
        "weights": _held(parameters),
        "gradients": gradients,
        "optimizer": 2 * gradients,  # AdamW's two averages
        "critics": 4 * sum(_held(critic.parameters()) for critic in parts.critics.values()),  # with both
        "reference": sum(_held(anchor.learner.parameters()) for anchor in frozen),
        "start": assembly.start.bytes,  # on the CPU
        "sampler": copied * sum(p.numel() * p.element_size() for p in parameters),  # whole on each rank
    }


def _held(parameters: Iterable[Tensor]) -> int:
    """Bytes of the parameters, of those that are spread over ranks this one's share."""
    local: list[Any] = [p.to_local() if hasattr(p, "to_local") else p for p in parameters]  # type: ignore[attr-defined]
    return sum(p.numel() * p.element_size() for p in local)


def _told_roles(roles: dict[str, int], looked: int, rows: int) -> str:
    """
    >>> _told_roles({"user": 0, "assistant": 40}, 2, 2)
    'tokens that train, by role: assistant 40 (100.0 %), user 0 (0.0 %)'
    """
    whole = sum(roles.values())
    told = [f"{role} {n:,} ({100 * n / max(whole, 1):.1f} %)" for role, n in sorted(roles.items(), key=lambda x: -x[1])]
    where = "" if looked == rows else f" (in {looked:,} of {rows:,} examples)"
    return f"tokens that train, by role{where}: {', '.join(told)}"


def dry_pass(assembly: Assembly) -> int:
    """Forward and backward on the longest batch there can be, so that running out of memory happens now. No update."""
    run, method, parts, data = assembly.run, assembly.method, assembly.parts, assembly.data
    lengths = data.lengths
    number = min(run.optim.rows_per_pass, run.optim.batch * (run.sampling.n if method.samples else 1))
    worst = lengths.argsort(descending=True)[:number].tolist()
    if method.samples:
        prompt = int(lengths.max()) if method.kind == "problems" else 1
        length = max(prompt + run.sampling.max_new_tokens, int(lengths.max()))
        row = Encoded([assembly.tokenizer.eos_token_id] * length, [False] * prompt + [True] * (length - prompt))
        if isinstance(parts.feed, SelectFeed):
            batch = parts.feed.collate([[row, row]] * number, [1.0] * number)
        else:
            batch = collate([row] * number)
        blank = torch.zeros(batch.mask.shape)
        batch.extra.update({name: blank for name in ("advantages", "sampler_logprobs")})
    else:
        batch = collate_examples([data[j] for j in worst])
    batch.extra["batch_kl"] = torch.zeros(())
    batch = batch.to(parts.runtime.device)
    if parts.ref is not None:
        batch.extra["ref_logprobs"] = parts.ref(batch, False)["logprobs"]
    try:
        loss: Any = objective(run, method, parts, batch, count(batch))[0]
        loss.backward()
        for critic in parts.critics.values():
            critic(batch)["values"].sum().backward()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):  # torch has no CPU class of its own
            raise
        raise TrainingError(
            f"a pass of {number} examples of {int(batch.input_ids.shape[1])} tokens does not fit in memory: lower "
            "optim.rows_per_pass, or set model.gradient_checkpointing = true"
        ) from error
    finally:
        for network in (parts.learner, *parts.critics.values()):
            network.zero_grad(set_to_none=True)
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss of the first pass is {float(loss.detach())}: the weights or the data are damaged"
        )
    return int(batch.input_ids.shape[1])


def _bytes(number: float) -> str:
    """
    >>> _bytes(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} TiB"

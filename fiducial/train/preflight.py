"""What a run will do, told before its first step: memory, the longest batch tried for real, a coloured sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fiducial.core.tokens import collate
from fiducial.core.total import count
from fiducial.core.types import Encoded
from fiducial.data import colour_sample
from fiducial.train.assemble import Assembly
from fiducial.train.feeds import collate_examples
from fiducial.train.loop import TrainingError, objective


@dataclass(frozen=True)
class Preflight:
    """Numbers of parameters and bytes, and the lines that people read."""

    parameters: int
    trained: int
    memory: dict[str, int]  # bytes of each component
    longest: int  # tokens of the longest row that a pass will see
    lines: list[str] = field(default_factory=list)


def preflight(assembly: Assembly, colours: bool) -> Preflight:
    """Look before the first step. TrainingError if the longest batch does not fit or gives no finite loss."""
    run, method, learner = assembly.run, assembly.method, assembly.parts.learner
    parameters = list(learner.parameters())
    total = sum(p.numel() for p in parameters)
    trained = [p for p in parameters if p.requires_grad]
    number = sum(p.numel() for p in trained)
    size = sum(p.numel() * p.element_size() for p in trained)
    memory = {
        "weights": sum(p.numel() * p.element_size() for p in parameters),
        "gradients": size,
        "optimizer": 2 * size,
        "reference": 0 if assembly.parts.ref is None or run.model.lora.rank else size,
    }
    longest = dry_pass(assembly)
    lines = [
        f"{method.title or method.name}: {number:,} of {total:,} parameters train; "
        + ", ".join(f"{name} {_bytes(amount)}" for name, amount in memory.items() if amount),
        f"the longest pass ({run.optim.rows_per_pass} examples of up to {longest} tokens) went through",
    ]
    samples = assembly.data.report.samples
    if samples and method.feed != "groups":
        shown = colour_sample(assembly.tokenizer.decode, samples[0].encoded[0], colours)
        lines += ["a row as the model reads it, what trains marked:", "  " + shown[:600].replace("\n", "\n  ")]
    return Preflight(total, number, memory, longest, lines)


def dry_pass(assembly: Assembly) -> int:
    """Forward and backward on the longest batch there can be, so that running out of memory happens now. No update."""
    run, method, parts, data = assembly.run, assembly.method, assembly.parts, assembly.data
    lengths = data.lengths
    number = min(run.optim.rows_per_pass, run.optim.batch * (run.sampling.n if method.feed == "groups" else 1))
    worst = lengths.argsort(descending=True)[:number].tolist()
    if method.feed == "groups":
        length = int(lengths.max()) + run.sampling.max_new_tokens
        row = Encoded(
            [assembly.tokenizer.eos_token_id] * length,
            [False] * int(lengths.max()) + [True] * run.sampling.max_new_tokens,
        )
        batch = collate([row] * number)
        blank = torch.zeros(batch.mask.shape)
        batch.extra.update({name: blank for name in ("advantages", "sampler_logprobs")})
    else:
        batch = collate_examples([data[j] for j in worst])
    batch = batch.to(parts.runtime.device)
    if parts.ref is not None:
        batch.extra["ref_logprobs"] = parts.ref(batch, False)["logprobs"]
    try:
        loss: Any = objective(run, method, parts, batch, count(batch))[0]
        loss.backward()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):  # torch has no CPU class of its own
            raise
        raise TrainingError(
            f"a pass of {number} examples of {int(batch.input_ids.shape[1])} tokens does not fit in memory: lower "
            "optim.rows_per_pass, or set model.gradient_checkpointing = true"
        ) from error
    finally:
        parts.learner.zero_grad(set_to_none=True)
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

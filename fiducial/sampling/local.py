"""The built-in sampler: a key-value cache, one prefill per prompt, exact log-probabilities.

A token is drawn by inverting the distribution at one uniform number, which is a hash of the request's seed and the
step. So a request's completion does not depend on which others are in its batch, nor on their order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fiducial.core.tokens import pad
from fiducial.core.types import Decoding, Request, Rollout
from fiducial.models.protocol import CausalLM, device_of
from fiducial.sampling.draw import draw, seed_tensor, uniform
from fiducial.sampling.stops import StopStrings, decode_text

SPARSE = 0.75  # finished rows leave when at most this share of the batch still writes: leaving copies the cache


class LocalSampler:
    """Draws completions from a model in this process; implements `fiducial.core.types.Sampler`.

    A completion ends with a stop token (the tokenizer's eos or one of `model.config.eos_ids`; it is included and
    masked True), with the first of `decoding.stop`, or at its limit: `max_new_tokens` or the model's `max_length`.
    `sampler_logprobs` are those of the distribution that was drawn from, after temperature and truncation; greedy
    decoding draws from a single token, so they are 0. With `autocast` the model computes in bfloat16, as a trainer
    under `model.autocast` does: in any other precision the two would be different policies.
    """

    def __init__(self, model: CausalLM, tokenizer: Any, batch_size: int = 256, autocast: bool = False):
        if batch_size < 1:
            raise ValueError(f"the sampler's batch_size must be at least 1; it is {batch_size}")
        self.model, self.tokenizer, self.batch_size, self.autocast = model, tokenizer, batch_size, autocast
        self.eos_ids = frozenset({*model.config.eos_ids, tokenizer.eos_token_id} - {None})
        self.version = 0

    def update(self, weights: dict[str, Tensor] | None, version: int) -> None:
        """Take new weights (None: they are shared and already in place) and count them as `version`."""
        if weights is not None:
            self.model.load_state_dict(weights)
        self.version = version

    def sample(self, requests: Sequence[Request], decoding: Decoding) -> list[Rollout]:
        """One rollout per request, in the order of the requests."""
        for request in requests:
            self._check(request)
        # Equal prompts become neighbours, so that they share a prefill, and batches hold prompts of like length.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), requests[i].prompt_ids))
        rollouts: list[Rollout] = []
        half = torch.autocast(device_of(self.model).type, torch.bfloat16, enabled=self.autocast)
        with torch.inference_mode(), eval_mode(self.model), half:
            for start in range(0, len(order), self.batch_size):
                batch = [requests[i] for i in order[start : start + self.batch_size]]
                rollouts += self._sample_batch(batch, decoding)
        place = {index: k for k, index in enumerate(order)}
        return [rollouts[place[i]] for i in range(len(requests))]

    def _check(self, request: Request) -> None:
        limit, length = self.model.config.max_length, len(request.prompt_ids)
        if length == 0:
            raise ValueError(f"the prompt {request.prompt!r:.80} has no tokens; begin it with a bos token or some text")
        if length >= limit:
            raise ValueError(
                f"the prompt {request.prompt!r:.80} has {length} tokens, which leaves no room for a completion in the "
                f"model's max_length of {limit}; shorten it"
            )

    def _sample_batch(self, requests: list[Request], decoding: Decoding) -> list[Rollout]:
        """Sample requests whose equal prompts are neighbours."""
        device = device_of(self.model)
        prompts, copies = _distinct([r.prompt_ids for r in requests])
        lengths = torch.tensor([len(p) for p in prompts])
        most = max(decoding.max_new_tokens - r.written for r in requests)
        room = min(most, self.model.config.max_length - min(map(len, prompts)))
        input_ids = pad(prompts, torch.int64).to(device)
        logits, cache = self.model.prefill(input_ids, lengths.to(device), torch.tensor(copies, device=device), room)
        batch = _Batch(requests, decoding, self, device)
        while True:
            tokens = batch.write(logits)
            if not batch.writing.any():
                return [batch.rollout(row) for row in range(len(requests))]
            if batch.is_sparse():
                rows = batch.drop_finished()
                cache.keep(rows)
                tokens = tokens[rows]
            logits = self.model.decode(tokens, cache)


class _Batch:
    """What N requests have written so far. The rows that still take part are `rows` [M]; some may have finished."""

    def __init__(self, requests: list[Request], decoding: Decoding, sampler: LocalSampler, device: torch.device):
        self.requests, self.decoding, self.sampler = requests, decoding, sampler
        self.stops = StopStrings(sampler.tokenizer, decoding.stop) if decoding.stop else None
        self.eos = torch.tensor(sorted(sampler.eos_ids), dtype=torch.int64, device=device)
        self.seeds = seed_tensor([r.seed for r in requests], device)
        whole = [sampler.model.config.max_length - len(r.prompt_ids) for r in requests]
        whole = [min(x, decoding.max_new_tokens - r.written) for x, r in zip(whole, requests, strict=True)]
        self.whole = torch.tensor(whole, device=device)  # [N] tokens until a completion's limit
        budgets = [min(x, r.budget or x) for x, r in zip(whole, requests, strict=True)]
        self.limits = torch.tensor(budgets, device=device)  # [N] that are drawn now
        self.written = torch.tensor([r.written for r in requests], device=device)  # [N] before
        shape = (len(requests), int(self.limits.max()))
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(shape, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.limits)  # [N] tokens written
        self.stopped = torch.zeros_like(self.limits, dtype=torch.bool)  # [N] by a stop token or string
        self.rows = torch.arange(len(requests), device=device)  # [M]
        self.writing = torch.ones_like(self.stopped)  # [M]
        self.step = 0

    def write(self, logits: Tensor) -> Tensor:
        """Draw the next token of each row in the batch from logits [M, V]; returns the tokens [M]."""
        places = self.written[self.rows] + self.step
        tokens, logprobs = draw(logits, uniform(self.seeds[self.rows], places), self.decoding)
        self.tokens[self.rows, self.step] = tokens
        self.logprobs[self.rows, self.step] = logprobs.double()
        self.step += 1
        self.counts[self.rows[self.writing]] = self.step
        stopped = torch.isin(tokens, self.eos) | self._stop_strings()
        self.stopped[self.rows] |= stopped & self.writing
        self.writing &= ~stopped & (self.step < self.limits[self.rows])
        return tokens

    def _stop_strings(self) -> Tensor:
        hits = torch.zeros_like(self.writing)
        if self.stops is not None:
            window = self.stops.window
            tails = self.tokens[self.rows, max(0, self.step - window) : self.step].tolist()
            if self.step < window:
                tails = [self._before(row) + tail for row, tail in zip(self.rows.tolist(), tails, strict=True)]
            writing = self.writing.tolist()
            found = [w and self.stops.hit(tail) for w, tail in zip(writing, tails, strict=True)]
            hits = torch.tensor(found, device=hits.device)
        return hits

    def _before(self, row: int) -> list[int]:
        """The tokens of a request's completion that were drawn before."""
        request = self.requests[row]
        return request.prompt_ids[len(request.prompt_ids) - request.written :]

    def is_sparse(self) -> bool:
        """Whether finished rows should leave now; one at its limit must, since its next position does not exist."""
        over = bool((self.step >= self.limits[self.rows]).any())
        return over or int(self.writing.sum()) <= SPARSE * len(self.rows)

    def drop_finished(self) -> Tensor:
        """Go on with the rows that still write; returns their places in the batch until now."""
        rows = self.writing.nonzero()[:, 0]
        self.rows, self.writing = self.rows[rows], self.writing[rows]
        return rows

    def rollout(self, row: int) -> Rollout:
        """The finished rollout of request number `row`."""
        request, sampler = self.requests[row], self.sampler
        count, stopped = int(self.counts[row]), bool(self.stopped[row])
        unfinished = not stopped and count < int(self.whole[row])
        start = len(request.prompt_ids) - request.written  # of the completion
        ids, logprobs = self.tokens[row, :count].tolist(), self.logprobs[row, :count].tolist()
        if not all(map(math.isfinite, logprobs)):
            raise ValueError(
                f"after the prompt {request.prompt!r:.80} the model's logits are not finite; check its weights"
            )
        own = [*self._before(row), *ids]
        text = decode_text(sampler.tokenizer, own[:-1] if own[-1] in sampler.eos_ids else own)
        return Rollout(
            prompt=request.prompt,
            completion=self.stops.cut(text) if self.stops and stopped else text,
            token_ids=[*request.prompt_ids, *ids],
            mask=[False] * start + [True] * (request.written + count),
            sampler_logprobs=[0.0] * len(request.prompt_ids) + logprobs,
            group=request.group,
            seed=request.seed,
            policy_version=sampler.version,
            finish="stop" if stopped else "unfinished" if unfinished else "length",
        )


def _distinct(prompts: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Runs of equal neighbours: each prompt once, and how many times it stood there."""
    distinct: list[list[int]] = []
    copies: list[int] = []
    for prompt in prompts:
        if distinct and prompt == distinct[-1]:
            copies[-1] += 1
        else:
            distinct.append(prompt)
            copies.append(1)
    return distinct, copies


@contextmanager
def eval_mode(model: CausalLM) -> Iterator[None]:
    """Dropout off inside; the mode of before is restored."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

"""When a step's completions are drawn: in the step itself, some steps ahead while others train, or piece by piece.

What is drawn is a function of the weights at known versions and of seeds, so a run repeats itself to the bit; what has
been drawn and not yet trained on is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from fiducial.config import Run
from fiducial.core.types import Request, Rollout
from fiducial.train.measure import Meter
from fiducial.train.runtime import Runtime

Asked = tuple[list[Request], list[int]]  # what the sampler is asked for, and the stream's position of each problem
Drawn = tuple[list[Rollout], list[int]]  # the completions, likewise


class Now:
    """Completions of the step's own policy. `ask` gives a step's requests, `sample` draws them."""

    def __init__(self, ask: Callable[[int], Asked], sample: Callable[[Sequence[Request]], list[Rollout]]):
        self.ask, self.sample = ask, sample

    def take(self, step: int, meter: Meter) -> Drawn:
        """The step's completions."""
        requests, positions = self.ask(step)
        return self.sample(requests), positions

    def settle(self) -> None:
        """Wait until nothing is being drawn: after this the weights may change."""

    def state(self) -> Any:
        """What is drawn and not yet trained on, of all ranks. All ranks must ask."""
        return None

    def restore(self, saved: Any) -> None:
        """Take up what `state` gave."""


class Ahead(Now):
    """Completions drawn `ahead` steps before they train, by the policy of then, in a thread beside the training.

    At step s, with weights of version s, those of step s + ahead are begun, and are whole before the next weights come.
    """

    def __init__(
        self,
        ask: Callable[[int], Asked],
        sample: Callable[[Sequence[Request]], list[Rollout]],
        ahead: int,
        runtime: Runtime,
    ):
        super().__init__(ask, sample)
        self.ahead, self.runtime = ahead, runtime
        self.ready: dict[int, Drawn] = {}
        self.begun: tuple[int, list[int], Future[list[Rollout]]] | None = None
        self.thread = ThreadPoolExecutor(1)

    def take(self, step: int, meter: Meter) -> Drawn:
        self.settle()
        for soon in range(step, step + self.ahead):  # only in the first step there are any to draw
            if soon not in self.ready:
                self.ready[soon] = super().take(soon, meter)
        requests, positions = self.ask(step + self.ahead)
        self.begun = (step + self.ahead, positions, self.thread.submit(self.sample, requests))
        return self.ready.pop(step)

    def settle(self) -> None:
        if self.begun is not None:
            step, positions, future = self.begun
            self.ready[step] = (future.result(), positions)
            self.begun = None

    def state(self) -> Any:
        self.settle()
        found: dict[int, list[Any]] = {}
        for share in self.runtime.gather({step: plain(drawn) for step, drawn in self.ready.items()}):
            for step, pairs in share.items():
                found.setdefault(step, []).extend(pairs)
        return {step: sorted(pairs, key=lambda pair: pair[0]["group"]) for step, pairs in found.items()}

    def restore(self, saved: Any) -> None:
        for step, pairs in saved.items():
            own = [(Rollout(**r), at) for r, at in pairs if r["group"] % self.runtime.world == self.runtime.rank]
            self.ready[step] = ([r for r, _ in own], [at for _, at in own])


def plain(drawn: Drawn) -> list[tuple[dict[str, Any], int]]:
    """Rollouts that nobody has scored yet as plain data, each with its position."""
    return [({**asdict(rollout), "score": None}, at) for rollout, at in zip(*drawn, strict=True)]


@dataclass
class Flight:
    """A prompt's completions on their way; a rollout is None before its first piece."""

    position: int
    rollouts: list[Rollout | None]

    @property
    def whole(self) -> bool:
        return all(r is not None and r.finish != "unfinished" for r in self.rollouts)

    @property
    def oldest(self) -> int | None:
        """The oldest version that wrote one of its tokens."""
        found = [min(v for v, m in zip(r.versions, r.mask, strict=True) if m) for r in self.rollouts if r is not None]
        return min(found, default=None)


class Piecewise(Now):
    """Completions written in pieces of `segment` tokens across steps (partial rollouts, Kimi k1.5, arXiv:2501.12599).

    Twice a step's prompts are on their way; each round every unfinished completion gets one more piece, and the step
    trains on the first prompts of which all completions are whole. The others go on in later steps, under newer
    weights: each token keeps the version that wrote it. What is more than `max_staleness` versions old is begun anew.
    """

    def __init__(
        self,
        run: Run,
        request: Callable[[int, int], Request],
        sample: Callable[[Sequence[Request]], list[Rollout]],
        runtime: Runtime,
    ):
        self.run, self.request, self.sample, self.runtime = run, request, sample, runtime
        self.flights: list[Flight] = []  # this rank's
        self.position = 0  # of the stream of prompts, where the next one comes from

    def take(self, step: int, meter: Meter) -> Drawn:
        size = self.run.optim.batch
        self.begin_anew(step, meter)
        while len(done := self.landed()) < size:
            self.top_up(2 * size)
            self.advance(step)
        taken = done[:size]
        mine = [f for f in self.flights if f.position in set(taken)]
        self.flights = [f for f in self.flights if f.position not in set(taken)]
        meter.add("partial/carried", sum(self.runtime.gather(len(self.flights))), 1.0)
        rollouts = [replace(r, group=taken.index(f.position)) for f in mine for r in f.rollouts if r is not None]
        return rollouts, [f.position for f in mine for _ in f.rollouts]

    def landed(self) -> list[int]:
        """The positions, over all ranks, of prompts whose completions are whole."""
        return sorted(sum(self.runtime.gather([f.position for f in self.flights if f.whole]), []))

    def top_up(self, number: int) -> None:
        """Begin prompts, over all ranks, until so many are on their way."""
        there = sum(self.runtime.gather(len(self.flights)))
        for position in range(self.position, self.position + number - there):
            if position % self.runtime.world == self.runtime.rank:
                self.flights.append(Flight(position, [None] * self.run.sampling.n))
        self.position += max(number - there, 0)

    def advance(self, step: int) -> None:
        """One more piece for each unfinished completion."""
        places = [
            (flight, copy)
            for flight in self.flights
            for copy, r in enumerate(flight.rollouts)
            if r is None or r.finish == "unfinished"
        ]
        requests = [self.piece(flight, copy) for flight, copy in places]
        if not requests:
            return
        for (flight, copy), found in zip(places, self.sample(requests), strict=True):
            flight.rollouts[copy] = joined(flight.rollouts[copy], found, step)

    def piece(self, flight: Flight, copy: int) -> Request:
        """What the sampler is asked for next of one completion."""
        request, before = self.request(flight.position, copy), flight.rollouts[copy]
        budget = self.run.sampling.segment
        if before is None:
            return replace(request, budget=budget)
        return replace(request, prompt_ids=before.token_ids, written=before.num_tokens, budget=budget)

    def begin_anew(self, step: int, meter: Meter) -> None:
        """Forget what is older than the recipe allows."""
        old = 0
        for flight in self.flights:
            if (oldest := flight.oldest) is not None and oldest < step - self.run.sampling.max_staleness:
                flight.rollouts = [None] * len(flight.rollouts)
                old += 1
        meter.total("staleness/begun_anew", old)

    def state(self) -> Any:
        flights = [(f.position, [r and {**asdict(r), "score": None} for r in f.rollouts]) for f in self.flights]
        return {"position": self.position, "flights": sorted(sum(self.runtime.gather(flights), []))}

    def restore(self, saved: Any) -> None:
        self.position = saved["position"]
        self.flights = [
            Flight(position, [Rollout(**r) if r else None for r in rollouts])
            for position, rollouts in saved["flights"]
            if position % self.runtime.world == self.runtime.rank
        ]


def joined(before: Rollout | None, piece: Rollout, version: int) -> Rollout:
    """A completion with one more piece, which this version wrote."""
    first = len(before.token_ids) if before else len(piece.token_ids) - piece.num_tokens
    old = before.versions if before else [0] * first
    logprobs = [*(before.sampler_logprobs if before else [0.0] * first), *piece.sampler_logprobs[first:]]
    versions = [*old, *[version] * (len(piece.token_ids) - first)]
    return replace(piece, versions=versions, sampler_logprobs=logprobs, policy_version=version)


def staleness(rollouts: Sequence[Rollout], version: int) -> tuple[float, float]:
    """The sum over written tokens of how many versions ago they were written, and their number.

    >>> staleness([Rollout("", "", [1, 2, 3], [False, True, True], [0.0] * 3, versions=[0, 4, 5])], 5)
    (1.0, 2.0)
    """
    total = number = 0.0
    for r in rollouts:
        versions = r.versions or [r.policy_version] * len(r.mask)
        total += sum(version - v for v, m in zip(versions, r.mask, strict=True) if m)
        number += r.num_tokens
    return total, number

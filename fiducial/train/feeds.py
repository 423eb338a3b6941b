"""Where batches come from: rows of a data set, or problems whose completions are sampled, scored, and credited or
selected from.

A batch is a function of the run's seed and the step, so a feed has no position to save.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from fiducial.config import RecipeError, Run
from fiducial.core.method import Method
from fiducial.core.seeds import mix
from fiducial.core.tokens import collate, pad
from fiducial.core.types import (
    VERDICTS,
    Demo,
    Encoded,
    Label,
    Pair,
    Problem,
    Request,
    Reward,
    Rollout,
    Sampler,
    Score,
    Tokens,
)
from fiducial.data import Dataset, Item
from fiducial.data.dataset import prompt_length
from fiducial.evals.evaluate import flag_counts, judged_row
from fiducial.rewards import RewardError
from fiducial.rewards.verdicts import told
from fiducial.train.learner import PER_PAIR
from fiducial.train.measure import Meter
from fiducial.train.parts import TrainingError
from fiducial.train.runtime import Runtime
from fiducial.train.shaped import shaped
from fiducial.train.sources import Ahead, Asked, Drawn, Now, Piecewise, staleness


class Order:
    """An endless shuffled stream over some examples of a data set: each epoch its own permutation, from (seed, epoch).

    The pairs of one row (a ranking's, a soft preference's two sides) stay together, so that they meet in one step and a
    response of many pairs is not one that many updates fit (Ouyang et al. 2022, section 3.5).
    """

    def __init__(self, rows: Dataset, seed: int, keep: Sequence[int] | None = None):
        self.rows, self.seed = rows, seed
        self.keep = list(range(len(rows))) if keep is None else list(keep)
        if not self.keep:
            raise RecipeError(f"nothing is left of {rows.source.name} to train on")
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def take(self, start: int, number: int) -> list[int]:
        """The rows at the stream's positions start .. start + number - 1."""
        return self.at(range(start, start + number))

    def at(self, positions: Sequence[int]) -> list[int]:
        """The rows at these positions of the stream."""
        out = []
        for position in positions:
            epoch, place = divmod(position, len(self.keep))
            if epoch != self._epoch:
                draw = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
                self._epoch, self._permutation = epoch, self._shuffled(draw)
            out.append(self.keep[int(self._permutation[place])])
        return out

    def _shuffled(self, draw: torch.Generator) -> torch.Tensor:
        """A permutation of the places in `keep`."""
        if self.rows.kind not in ("pairs", "costs"):
            return torch.randperm(len(self.keep), generator=draw)
        _, row = torch.tensor([self.rows.row(j) for j in self.keep]).unique(return_inverse=True)
        lot = torch.randperm(int(row.max()) + 1, generator=draw)
        return lot[row].argsort(stable=True)


class RowFeed:
    """Batches of demonstrations, pairs or labels."""

    def __init__(self, run: Run, method: Method, rows: Dataset, runtime: Runtime, keep: Sequence[int] | None = None):
        self.run, self.method, self.rows, self.runtime = run, method, rows, runtime
        self.order = Order(rows, run.seed, keep)

    def batch(self, step: int, meter: Meter) -> Tokens:
        size = self.run.optim.batch
        taken = self.order.take(step * size, size)
        places = self.runtime.mine(list(range(size)))
        meter.peak("epoch", (step + 1) * size / len(self.order.keep))
        batch = locate(collate_examples([self.rows[taken[place]] for place in places]), places, size)
        if "batch_kl" in self.method.needs:
            batch.mismatched = mismatched(self.rows, taken, places)
        return batch


def mismatched(rows: Dataset, taken: Sequence[int], places: Sequence[int]) -> Tokens:
    """The prompt of each example at `places` of a step with the completion of the example before it, cyclically."""
    if len(taken) < 2:
        raise RecipeError("a mean over mismatched completions needs two examples a step: set optim.batch to 2 or more")
    mixed = []
    for place in places:
        own, other = rows[taken[place]].encoded[0], rows[taken[place - 1]].encoded[0]
        start, cut = prompt_length(own), prompt_length(other)
        ids = [*own.token_ids[:start], *other.token_ids[cut:]][: rows.max_length]
        mixed.append(Encoded(ids, [*own.mask[:start], *other.mask[cut:]][: rows.max_length]))
    return collate(mixed)


def locate(batch: Tokens, places: Sequence[int], size: int) -> Tokens:
    """Say where each example stands in the whole step of `size` examples."""
    batch.extra["place"] = torch.tensor([*places, *places] if batch.pairs else [*places], dtype=torch.long)
    batch.extra["step_size"] = torch.tensor(size)
    return batch


def collate_examples(rows: Sequence[Item]) -> Tokens:
    """Parsed and encoded rows of one kind to tensors."""
    items: list[Any] = [row.example for row in rows]
    if items and isinstance(items[0], Pair):
        encoded = [row.encoded[0] for row in rows] + [row.encoded[1] for row in rows]
        batch = collate(encoded, weight=[p.weight for p in items] * 2, pairs=True)
        for name in PER_PAIR:
            values = [getattr(pair, name) for pair in items] * 2
            batch.extra[name] = torch.tensor(values, dtype=torch.bool if name == "tied" else torch.float32)
    else:
        batch = collate([row.encoded[0] for row in rows], weight=[item.weight for item in items])
    if items and isinstance(items[0], Label):
        batch.extra["desirable"] = torch.tensor([item.desirable for item in items])
    return batch


class GroupFeed:
    """Samples completions of problems, scores them, and settles what each verdict is worth."""

    def __init__(
        self,
        run: Run,
        method: Method,
        problems: Dataset,
        sampler: Sampler,
        reward: Reward | None,
        runtime: Runtime,
        keep: Sequence[int] | None = None,
        cost: Reward | None = None,
    ):
        self.run, self.method, self.problems, self.sampler, self.reward = run, method, problems, sampler, reward
        self.cost = cost
        self.runtime = runtime
        self.order = Order(problems, run.seed, keep)
        self.keep = keep
        self.rollouts: list[Rollout] = []  # the last step's, for the journal
        self.against_greedy = "greedy_rewards" in method.credit_needs_with(run.hparams)
        if self.against_greedy and (run.sampling.segment or run.sampling.refill):
            raise RecipeError(
                f"{method.name} samples the greedy completions of a step's own prompts: leave out sampling.segment and "
                "sampling.refill"
            )
        if run.sampling.segment:
            self.source: Now = Piecewise(run, self.request, self.sample, runtime)
        elif run.sampling.ahead:
            self.source = Ahead(self.ask, self.sample, run.sampling.ahead, runtime)
        else:
            self.source = Now(self.ask, self.sample)

    def batch(self, step: int, meter: Meter) -> Tokens:
        began = time.perf_counter()
        drawn = self.source.take(step, meter)
        meter.seconds("sample", time.perf_counter() - began)
        self.rollouts = self.scored(step, drawn, self.order, meter)
        kept = [r for r in self.rollouts if r.reward is not None]
        if self.run.sampling.refill:
            kept = self.refilled(step, kept, meter)
        elif self.run.sampling.filter_groups:
            kept = _with_spread(kept)
        if not self.against_greedy:
            return collate_rollouts(kept, self.run)
        greedy = self.greedy_rewards(step, meter)
        kept = [r for r in kept if r.group in greedy]
        batch = collate_rollouts(kept, self.run)
        batch.extra["greedy_rewards"] = torch.tensor([greedy.get(g, 0.0) for g in batch.group.tolist()])
        meter.add("remax/baseline_gap", sum((r.reward or 0.0) - greedy[r.group] for r in kept), len(kept))
        return batch

    def greedy_rewards(self, step: int, meter: Meter) -> dict[int, float]:
        """What the greedy completion of each of this rank's prompts earns, by the prompt's place in the step. A prompt
        whose greedy completion could not be judged is left out, and counted."""
        began = time.perf_counter()
        n, (requests, positions) = self.run.sampling.n, self.ask(step)
        rollouts = self.sampler.sample(requests[::n], replace(self.run.sampling.decoding, temperature=0.0))
        problems = [asked(self.problems[j])[0] for j in self.order.at(positions[::n])]
        if self.reward is not None:
            scores = self.judged(step, self.reward, rollouts, problems)
            rollouts = [settle(self.run, r, s) for r, s in zip(rollouts, scores, strict=True)]
        found = {r.group: r.reward for r in rollouts if r.reward is not None}
        meter.add("remax/greedy_reward", sum(found.values()), len(found))
        meter.total("remax/dropped_prompts", len(rollouts) - len(found))
        meter.seconds("greedy", time.perf_counter() - began)
        return found

    def refilled(self, step: int, kept: list[Rollout], meter: Meter) -> list[Rollout]:
        """Groups with spread until the step is full (dynamic sampling, Yu et al. 2025, arXiv:2503.14476): those of
        `kept`, then of further prompts, of which each round has a stream of its own. A surplus is left out.

        The groups are numbered over all ranks, in the order of their rounds and places.
        """
        size, n = self.run.optim.batch, self.run.sampling.n
        meter.add("dynamic/kept_fraction", len(_groups(_with_spread(kept))), len(_groups(self.rollouts)))
        for members in _groups(self.rollouts).values():
            rewards = {r.reward for r in members}
            meter.add("dynamic/frac_all_equal", float(len(rewards) == 1), 1.0)
        mixed = _with_spread(kept)
        for turn in range(1, self.run.sampling.refill + 1):
            if sum(self.runtime.gather(len(_groups(mixed)))) >= size:
                break
            meter.total("dynamic/refills", int(self.runtime.first))
            order = Order(self.problems, mix(self.run.seed, "refill", turn), self.keep)
            requests, positions = self.ask(step, turn, order)
            rollouts = self.scored(step, (self.sample(requests), positions), order, meter)
            self.rollouts += rollouts
            mixed += _with_spread([r for r in rollouts if r.reward is not None])
        chosen = sorted({g for share in self.runtime.gather(sorted(_groups(mixed))) for g in share})[:size]
        meter.add("dynamic/full", len(chosen), size)
        place = {group: number for number, group in enumerate(chosen)}
        return [replace(r, group=place[r.group]) for r in mixed if r.group in place][: size * n]

    def scored(self, step: int, drawn: Drawn, order: Order, meter: Meter) -> list[Rollout]:
        """This rank's completions of a step, each with its score and reward."""
        rollouts, positions = drawn
        problems = [asked(self.problems[j])[0] for j in order.at(positions)]
        sampled = time.perf_counter()
        if self.reward is not None:
            scores = self.judged(step, self.reward, rollouts, problems)
            rollouts = [settle(self.run, r, s) for r, s in zip(rollouts, scores, strict=True)]
            if self.cost is not None:
                costs = self.judged(step, self.cost, rollouts, problems)
                rollouts = [charged(self.run, r, s) for r, s in zip(rollouts, costs, strict=True)]
            meter.seconds("reward", time.perf_counter() - sampled)
        self.tell(step, rollouts, meter)
        return shaped(self.run, step, rollouts, meter)

    def judged(self, step: int, judge: Reward, rollouts: list[Rollout], problems: list[Problem]) -> list[Score]:
        """What a reward, or a cost, says of each completion."""
        fields = [judged_row(r, problem) for r, problem in zip(rollouts, problems, strict=True)]
        try:
            return judge([r.completion for r in rollouts], fields) if rollouts else []
        except RewardError as error:
            raise RewardError(f"step {step + 1}: {error}") from error

    def sample(self, requests: Sequence[Request]) -> list[Rollout]:
        """The completions that are asked for."""
        return self.sampler.sample(requests, self.run.sampling.decoding)

    def ask(self, step: int, turn: int = 0, order: Order | None = None) -> Asked:
        """What this rank's part of a step asks of the sampler, and each one's position in the stream of problems. Seeds
        depend on a problem's place in the step, and on which turn it is to fill it."""
        run, size = self.run, self.run.optim.batch
        requests, positions = [], []
        for place in self.runtime.mine(list(range(size))):
            for copy in range(run.sampling.n):
                where = (step, place, copy, turn) if turn else (step, place, copy)
                request = self.request(step * size + place, copy, order, mix(run.seed, "sample", *where))
                requests.append(replace(request, group=turn * size + place))
                positions.append(step * size + place)
        return requests, positions

    def request(self, position: int, copy: int, order: Order | None = None, seed: int | None = None) -> Request:
        """What the sampler is asked for: one completion of the problem at this position of the stream."""
        problem, ids = asked(self.problems[(order or self.order).at([position])[0]])
        seed = mix(self.run.seed, "piece", position, copy) if seed is None else seed
        return Request(ids, seed, problem.prompt)

    def tell(self, step: int, rollouts: list[Rollout], meter: Meter) -> None:
        """Metrics of the step's rollouts; stops the run when too many could not be judged."""
        verdicts = Counter(r.score.verdict for r in rollouts if r.score)
        own = [r for r in rollouts if r.score and r.score.failed]
        failed = sum(self.runtime.gather(len(own)))
        number = sum(self.runtime.gather(len(rollouts)))
        if number and failed / number > self.run.verdicts.max_failed:
            raise TrainingError(
                f"step {step + 1}: {failed} of {number} completions could not be judged, over verdicts.max_failed = "
                f"{self.run.verdicts.max_failed}; the first: {_failure(own[0]) if own else 'on another rank'}"
            )
        for verdict in VERDICTS:
            meter.add(f"verdict/{verdict}", verdicts[verdict], len(rollouts))
        lengths = [r.num_tokens for r in rollouts]
        stopped = [r.num_tokens for r in rollouts if r.finish == "stop"]
        meter.add("completions/mean_length", sum(lengths), len(lengths))
        meter.add("completions/mean_terminated_length", sum(stopped), len(stopped))
        meter.add("completions/clipped_ratio", len(lengths) - len(stopped), len(lengths))
        for length in lengths:
            meter.peak("completions/max_length", length)
            meter.low("completions/min_length", length)
        meter.total("num_tokens", sum(lengths))
        lost = sum(not math.isfinite(p) for r in rollouts for p in r.sampler_logprobs)
        meter.total("sampling/dropped_tokens", lost)
        meter.add("staleness/mean", *staleness(rollouts, step))
        costs = [r.cost for r in rollouts if r.cost is not None]
        if self.cost is not None:
            meter.add("cost", sum(costs), len(costs))
            meter.add("cost/violation_rate", sum(cost > 0 for cost in costs), len(costs))
        rewards = [r.reward for r in rollouts if r.reward is not None]
        meter.add("reward", sum(rewards), len(rewards))
        for members in _groups(rollouts).values():
            spread = statistics.pstdev(r.reward for r in members if r.reward is not None)
            meter.add("reward_std", spread, 1.0)
            meter.add("frac_reward_zero_std", float(spread < 1e-8), 1.0)
        for name in {name for r in rollouts if r.score for name in r.score.parts}:
            parts = [r.score.parts[name] for r in rollouts if r.score and name in r.score.parts]
            known = [value for part in parts if (value := self.run.verdicts.reward(part)) is not None]
            meter.add(f"rewards/{name}/mean", sum(known), len(known))
        for name, noticed in flag_counts(rollouts).items():
            meter.add(name, *noticed)


def asked(item: Item) -> tuple[Problem, list[int]]:
    """What completions are sampled of: a problem, or a demonstration's prompt up to its last turn."""
    ids = item.encoded[0].token_ids
    if isinstance(item.example, Problem):
        return item.example, ids
    demo = cast(Demo, item.example)
    return Problem(demo.prompt, {}, demo.index), ids[: last_turn(item.encoded[0])]


def last_turn(encoded: Encoded) -> int:
    """Where the last run of tokens that train begins.

    >>> last_turn(Encoded([1, 2, 3, 4, 5], [False, True, False, True, True]))
    3
    """
    end = len(encoded.mask) - encoded.mask[::-1].index(True)
    return end - next((k for k, trains in enumerate(reversed(encoded.mask[:end])) if not trains), end)


def _failure(rollout: Rollout) -> str:
    """Which completion could not be judged, and why."""
    assert rollout.score
    limit = " (verdicts.timeout is that limit)" if rollout.score.verdict == "timeout" else ""
    return f"{told(rollout.completion, rollout.prompt)}: {rollout.score.why}{limit}"


def _groups(rollouts: Sequence[Rollout]) -> dict[int, list[Rollout]]:
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            groups.setdefault(rollout.group, []).append(rollout)
    return groups


def _with_spread(rollouts: list[Rollout]) -> list[Rollout]:
    """Those whose group does not agree: a group of equal rewards has no advantage and only costs time."""
    mixed = {g for g, members in _groups(rollouts).items() if len({r.reward for r in members}) > 1}
    return [r for r in rollouts if r.group in mixed]


def settle(run: Run, rollout: Rollout, score: Score) -> Rollout:
    """The rollout with its score and the reward that the recipe makes of it; None leaves it out of training."""
    if score.value is not None and not math.isfinite(score.value):
        raise TrainingError(
            f"the reward of a completion is {score.value}: a reward must be a finite number. {score.why}"
        )
    return replace(rollout, score=score, reward=run.reward_of(score, rollout.finish))


def charged(run: Run, rollout: Rollout, score: Score) -> Rollout:
    """The rollout with its cost. One whose cost nobody can tell does not train: its reward alone would mislead."""
    cost = run.verdicts.reward(score)
    return replace(rollout, cost=cost, reward=None if cost is None else rollout.reward)


def collate_rollouts(rollouts: Sequence[Rollout], run: Run) -> Tokens:
    """The tokens that were sampled, as they were sampled. One whose log-prob is not finite does not train."""
    skip = run.sampling.truncated == "mask"
    if not rollouts:
        return nothing(run)
    rows = []
    for r in rollouts:
        row = trainable(r)
        rows.append(Encoded(row.token_ids, [False] * len(row.mask)) if skip and r.finish == "length" else row)
    batch = collate(rows, group=[r.group for r in rollouts])
    width = batch.input_ids.shape[1]
    batch.extra["sampler_logprobs"] = pad([r.sampler_logprobs for r in rollouts], torch.float32, width)
    batch.extra["rewards"] = torch.tensor([r.reward for r in rollouts], dtype=torch.float32)
    if any(r.cost is not None for r in rollouts):
        batch.extra["costs"] = torch.tensor([r.cost for r in rollouts], dtype=torch.float32)
    n = run.sampling.n
    copies: Counter[int] = Counter()
    places = []
    for r in rollouts:
        places.append(r.group * n + copies[r.group])
        copies[r.group] += 1
    return locate(batch, places, run.optim.batch * n)


def trainable(rollout: Rollout) -> Encoded:
    """The tokens of a rollout as they train: those of the policy whose log-prob is finite."""
    finite = [m and math.isfinite(p) for m, p in zip(rollout.mask, rollout.sampler_logprobs, strict=True)]
    return Encoded(rollout.token_ids, finite)


def nothing(run: Run) -> Tokens:
    """A batch that stands for no example, for a step in which no completion is left to learn from."""
    batch = collate([Encoded([0, 0], [False, False])], weight=[0.0])
    batch.extra["sampler_logprobs"] = torch.zeros(1, 2)
    batch.extra["rewards"] = torch.zeros(1)
    return locate(batch, [0], run.optim.batch * run.sampling.n)

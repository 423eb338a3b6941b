"""Evaluation while training: loss and accuracy on held-out rows, and verified samples on held-out problems."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import torch

from fiducial.core.seeds import mix
from fiducial.core.total import count
from fiducial.core.types import Problem
from fiducial.data import tasks
from fiducial.evals.evaluate import Evaluation, evaluate
from fiducial.evals.judges import judge
from fiducial.evals.stats import effective_size, wilson
from fiducial.models.chat import encode_prompt
from fiducial.train.assemble import Assembly
from fiducial.train.feeds import collate_examples, mismatched
from fiducial.train.loop import State, objective, passes, prepare
from fiducial.train.measure import Meter, measure, measure_demos

ACCURACIES = ("accuracy", "rewards/accuracies", "ranking_accuracy")  # shares of pairs, so with an interval


class Held:
    """What never trains, and how a run is measured on it."""

    def __init__(self, assembly: Assembly):
        self.a = assembly
        self.last: Evaluation | None = None  # of the last call that sampled
        self.problems = self._problems()

    def _problems(self) -> list[Problem]:
        a = self.a
        if a.sampler is None:
            return []
        if a.method.kind == "problems":
            return [cast(Problem, a.held_out[j].example) for j in a.held_out_rows] if a.held_out else []
        found = tasks.problems(tasks.get(a.run.task), a.run.eval.n, "dev", a.run.seed, **a.run.data.difficulty)
        return list(found)

    def measure(self, sample: bool = True) -> dict[str, float]:
        """Metrics named eval/..., the same on every rank. `sample` False leaves completions out."""
        metrics: dict[str, float] = {}
        if self.a.held_out is not None and self.a.method.kind != "problems":
            metrics |= self.likelihood() if self.a.method.select else self.rows()
        if self.problems and sample:
            metrics |= self.samples()
        return metrics

    @torch.no_grad()
    def likelihood(self) -> dict[str, float]:
        """Perplexity of held-out demonstrations, for methods that train on something made of them."""
        a, runtime, meter = self.a, self.a.parts.runtime, Meter()
        mine = runtime.mine(a.held_out_rows)
        batch = collate_examples([a.held_out[j] for j in mine or a.held_out_rows[:1]])  # type: ignore[index]
        for chunk, micro in passes(a.parts, batch, torch.arange(batch.num_units), a.run.optim.rows_per_pass):
            out = a.parts.learner(micro)
            if len(chunk) and mine:  # else a stand-in
                measure_demos(out, micro, meter)
        return {f"eval/{name}": value for name, value in meter.reduce(runtime).items()}

    def rows(self) -> dict[str, float]:
        """The training loss and its metrics, on held-out rows, with 95 % intervals for accuracies."""
        a, runtime = self.a, self.a.parts.runtime
        assert a.held_out is not None
        meter = Meter()
        mine = runtime.mine(a.held_out_rows)
        batch = collate_examples([a.held_out[j] for j in mine or a.held_out_rows[:1]])
        if not mine:
            batch.weight = batch.weight * 0
        if "batch_kl" in a.method.needs:
            places = runtime.mine(list(range(len(a.held_out_rows)))) or [0]
            batch.mismatched = mismatched(a.held_out, a.held_out_rows, places)
        idle = State(torch.optim.SGD(a.parts.learner.parameters(), lr=0.0))
        prepare(a.run, a.method, a.parts, idle, batch, Meter())
        counts = runtime.add(count(batch))
        with torch.no_grad():
            for chunk, micro in passes(a.parts, batch, torch.arange(batch.num_units), a.run.optim.rows_per_pass):
                loss, out, tensors = objective(a.run, a.method, a.parts, micro, counts)
                if len(chunk) and mine:  # else a stand-in
                    measure(a.run, a.method, tensors, out, micro, loss, meter)
        meter.add("loss", 0.0, 1.0 / runtime.world)
        metrics = {f"eval/{name}": value for name, value in meter.reduce(runtime).items()}
        weights = [w for share in runtime.gather(batch.weight[: batch.num_units].tolist()) for w in share]
        size = effective_size(weights)
        for name in ACCURACIES:
            if f"eval/{name}" in metrics:
                interval = wilson(metrics[f"eval/{name}"] * size, size)
                metrics |= {f"eval/{name}/low": interval.low, f"eval/{name}/high": interval.high}
        return metrics

    def samples(self) -> dict[str, float]:
        """pass@k, maj@k and greedy on held-out problems. The first rank samples; the others are told."""
        a, runtime = self.a, self.a.parts.runtime
        found: dict[str, float] = {}
        if runtime.first:
            assert a.sampler is not None
            run = a.run
            self.last = evaluate(
                a.sampler,
                lambda prompt: encode_prompt(a.tokenizer, prompt),
                self.problems,
                self.judge,
                run.sampling.decoding,
                run.eval.k,
                mix(run.seed, "held out"),
                task=run.task,
                reward_of=run.reward_of,
            )
            found = self.last.log()
        return runtime.gather(found)[0]

    @cached_property
    def judge(self) -> Any:
        """What says whether a completion is correct: the run's reward, or the task's verifier."""
        return self.a.verify or judge(self.a.run.task, self.a.run.verdicts.timeout or None)

"""Evaluation while training: loss and accuracy on held-out rows, samples of held-out prompts and what judges them, and
how far the policy has moved."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, cast

import torch

from fiducial.core.seeds import mix
from fiducial.core.tokens import collate
from fiducial.core.total import count
from fiducial.core.types import Problem, Rollout, Tokens
from fiducial.data import tasks
from fiducial.evals import audit
from fiducial.evals.diagnostics import completion_kl, flips, right
from fiducial.evals.evaluate import evaluate
from fiducial.evals.stats import Interval, effective_size, wilson
from fiducial.judges import judge
from fiducial.models.chat import encode_prompt
from fiducial.train.assemble import Assembly
from fiducial.train.feeds import collate_examples, mismatched, trainable
from fiducial.train.loop import objective
from fiducial.train.measure import Meter, measure, measure_demos
from fiducial.train.parts import State
from fiducial.train.prepare import passes, prepare

ACCURACIES = ("accuracy", "rewards/accuracies", "ranking_accuracy", "ranking_accuracy_len_norm")  # have an interval
FULL_ROWS = 4  # completions in a pass that keeps the scores of the whole vocabulary


class Held:
    """What never trains, and how a run is measured on it."""

    def __init__(self, assembly: Assembly):
        self.a = assembly
        self.shown: list[Rollout] = []  # completions worth reading, of the last call that sampled
        self.problems = self._problems()
        self.prompts = self._prompts()

    def _problems(self) -> list[Problem]:
        """Problems whose completions can be judged."""
        a = self.a
        if not a.run.eval.k or a.method.learns != "policy":
            return []
        if a.method.kind == "problems":
            return [cast(Problem, a.held_out[j].example) for j in a.held_out_rows] if a.held_out else []
        if not a.run.task:
            return []
        found = tasks.problems(tasks.get(a.run.task), a.run.eval.n, "dev", a.run.seed, **a.run.data.difficulty)
        return list(found)

    def _prompts(self) -> list[audit.Asked]:
        """Prompts of the audit: of the problems, or of the held-out rows."""
        a = self.a
        if not a.run.eval.k or a.method.learns != "policy":
            return []
        if self.problems:
            some = self.problems[: audit.PROMPTS]
            return [audit.Asked(problem, encode_prompt(a.tokenizer, problem.prompt)) for problem in some]
        rows = (a.held_out[j] for j in a.held_out_rows) if a.held_out else ()
        return audit.prompts_of(rows, a.model.config.max_length)

    @property
    def told(self) -> str:
        """What an evaluation samples beside problems, for people; nothing if it is nothing."""
        n, k = len(self.prompts), 1 if self.problems else self.a.run.eval.k
        if not n or (self.problems and self.a.parts.ref is None):
            return ""
        of = "problems" if self.problems else "held-out rows"
        limit = self.a.run.sampling.max_new_tokens
        return f"each evaluation samples {n} prompts of {of} {k} x, at most {limit} tokens each (eval.k = 0: none)"

    def measure(self, step: int, sample: bool = True) -> dict[str, float]:
        """Metrics named eval/..., and how far the weights have moved; the same on every rank.

        `step` is the version of the weights. `sample` False leaves completions out.
        """
        began = time.perf_counter()
        metrics = self.a.start.distance(self.a.parts.learner, self.a.parts.runtime)
        if self.a.held_out is not None and self.a.method.kind != "problems":
            metrics |= self.likelihood() if self.a.method.select else self.rows()
        if self.prompts and sample:
            self.a.hand_over(step)
            metrics |= self.samples() if self.problems else {}
            metrics |= self.audit()
        return {**metrics, "seconds/eval": time.perf_counter() - began}

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
            batch.extra["batch_kl"] = torch.zeros(())  # of a single row, which has no other to be mismatched with
            if len(a.held_out_rows) > 1:
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
                    measure_flips(tensors, micro, meter)
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
            drawn = evaluate(
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
            self.shown = drawn.greedy
            found = {**drawn.log(), **self.gold(drawn.rollouts, self.problems)}
        return runtime.gather(found)[0]

    def audit(self) -> dict[str, float]:
        """A few completions drawn from the policy itself: how they look and, with a reference, the divergence there.

        The first rank samples; all of them score. Rows have no other samples, so of theirs eval.k are drawn.
        """
        a, runtime = self.a, self.a.parts.runtime
        if self.problems and a.parts.ref is None:
            return {}
        found: dict[str, float] = {}
        first: list[Rollout] = []
        if runtime.first:
            assert a.sampler is not None
            decoding = audit.of_the_policy(a.run.sampling.decoding, a.parts.learner.temperature)
            k, seed = 1 if self.problems else a.run.eval.k, mix(a.run.seed, "held out")
            drawn = audit.draw(a.sampler, self.prompts, k, seed, decoding)
            first = [group[0] for group in drawn]
            if not self.problems:
                self.shown = first
                found = _named(audit.described(drawn), {}) | self.gold(drawn, [asked.problem for asked in self.prompts])
        found, first = runtime.gather((found, first))[0]
        return {**found, **self.divergence(first)}

    def gold(self, drawn: list[list[Rollout]], problems: list[Problem]) -> dict[str, float]:
        """What the gold reward says of completions, if there is one."""
        return _named(*audit.gold(drawn, problems, self.a.gold, self.a.run.reward_of)) if self.a.gold else {}

    @torch.no_grad()
    def divergence(self, rollouts: list[Rollout]) -> dict[str, float]:
        """KL of the policy from its reference on completions that it drew; each rank scores its share."""
        a, runtime = self.a, self.a.parts.runtime
        if a.parts.ref is None:
            return {}
        mine = runtime.mine(rollouts)
        batch = collate([trainable(rollout) for rollout in mine or rollouts[:1]])
        rows: list[dict[str, float]] = []
        for chunk, micro in passes(a.parts, batch, torch.arange(batch.num_units), FULL_ROWS):
            out, ref = a.parts.learner(micro, True), a.parts.ref(micro, True)
            kl = completion_kl(out["logprobs"], ref["logprobs"], micro.mask, out["logits"], ref["logits"])
            if len(chunk) and mine:  # else a stand-in
                rows += [{name: float(values[i]) for name, values in kl.items()} for i in range(len(chunk))]
        return _named(*audit.divergence([row for share in runtime.gather(rows) for row in share]))

    @cached_property
    def judge(self) -> Any:
        """What says whether a completion is correct: the run's reward, or the task's verifier."""
        return self.a.verify or judge(self.a.run.task, self.a.run.verdicts.timeout or None)


def measure_flips(tensors: dict[str, torch.Tensor], batch: Tokens, meter: Meter) -> None:
    """Pairs that policy and reference rank differently by likelihood, where there is a reference."""
    if "ref_chosen_logprobs" not in tensors or "chosen_logprobs" not in tensors:
        return
    before = right(tensors["ref_chosen_logprobs"], tensors["ref_rejected_logprobs"])
    after = right(tensors["chosen_logprobs"], tensors["rejected_logprobs"])
    for name, share in flips(before, after).items():
        meter.mean(name, share, batch.weight[: batch.num_units])


def _named(metrics: dict[str, float], intervals: dict[str, Interval]) -> dict[str, float]:
    """As a line of metrics.jsonl has them: eval/<metric>, and eval/<metric>/low and high."""
    low = {f"eval/{name}/low": interval.low for name, interval in intervals.items()}
    high = {f"eval/{name}/high": interval.high for name, interval in intervals.items()}
    return {**{f"eval/{name}": value for name, value in metrics.items()}, **low, **high}

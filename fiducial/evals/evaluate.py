"""Sample, verify, count: what a policy can do on problems with a verifier, with intervals.

pass@k and maj@k come from k samples per problem at the given temperature; `greedy` from one more pass at temperature 0,
because a policy that only moves its mass onto its own favourite answer raises pass@1 and not greedy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean
from typing import Any, cast

from fiducial.config import Run
from fiducial.core.answers import extract_answer, normalize_answer, read_number
from fiducial.core.seeds import mix
from fiducial.core.types import VERDICTS, Decoding, Problem, Prompt, Request, Reward, Rollout, Sampler, Score
from fiducial.evals import stats
from fiducial.evals.stats import Interval

CHUNK = 512  # completions asked for at once, between two calls of `progress`

Verify = Callable[[str, dict[str, Any]], Score] | Reward
Earns = Callable[[Score, str], float | None]  # score, finish -> reward, None where the completion has none


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    `metrics` hold plain numbers (a name is absent where it is undefined: no completion ended by itself, say),
    `intervals` the 95 % ends of those that estimate something about unseen problems, `verdicts` how many of the n x k
    completions got which, `per_problem` the values behind `pass@1`, `pass@k`, `maj@k` and `greedy`, problem by problem.
    `rollouts` holds the k completions of each problem, `greedy` its one greedy completion, all with their scores.
    """

    task: str
    n: int
    k: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    verdicts: dict[str, int]
    per_problem: dict[str, list[float]]
    rollouts: list[list[Rollout]]
    greedy: list[Rollout]

    def to_json(self) -> dict[str, Any]:
        """What `fiducial eval --json` prints: task, n, k, metrics, intervals, verdicts."""
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        names = ("task", "n", "k", "metrics", "verdicts")
        return {**{name: getattr(self, name) for name in names}, "intervals": intervals}

    def summary(self) -> dict[str, Any]:
        """One flat row: the metrics by name, and task, n, k, intervals and verdicts beside them."""
        rest = self.to_json()
        return {**rest.pop("metrics"), **rest}

    def log(self) -> dict[str, float]:
        """A line for metrics.jsonl: `eval/<metric>`, `eval/<metric>/low|high`, `eval/verdict/<verdict>` as shares."""
        total = sum(self.verdicts.values())
        return {
            **{f"eval/{name}": value for name, value in self.metrics.items()},
            **{f"eval/{name}/low": low for name, (low, _) in self.intervals.items()},
            **{f"eval/{name}/high": high for name, (_, high) in self.intervals.items()},
            **{f"eval/verdict/{verdict}": count / total for verdict, count in self.verdicts.items()},
        }


def evaluate(
    sampler: Sampler,
    encode_prompt: Callable[[Prompt], list[int]],
    problems: Sequence[Problem],
    verify: Verify,
    decoding: Decoding,
    k: int = 8,
    seed: int = 0,
    *,
    task: str = "",
    greedy: bool = True,
    answer: Callable[[str], Hashable | None] | None = None,
    reward_of: Earns | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Draw k completions of each problem (and one greedy one), verify them all, and count.

    Sample j of problem i is drawn with `mix(seed, "eval", i, j)`, so the first n problems of a longer evaluation give
    the same completions. `answer` says which completions agree, for the vote of maj@k: by default `canonical_answer`.
    `reward_of` is what a completion earns, by default as a recipe's [verdicts] has it: nothing for an unparseable one.
    `progress(done, total)` is called as completions arrive. Only the verdict "correct" is a success; a reward whose
    numbers call nothing right or wrong (`Score.graded`) has a mean and no success rates. How many completions the
    verifier failed on is the metric `unjudged`. ValueError for no problems, k < 1, or several samples
    at temperature 0.
    """
    if not problems:
        raise ValueError("there is nothing to evaluate: the list of problems is empty")
    if k < 1:
        raise ValueError(f"k must be at least 1 completion per problem; it is {k}")
    if decoding.temperature == 0 and k > 1:
        raise ValueError(f"at temperature 0 all {k} samples of a problem are the same: set k = 1 or a temperature")
    earns = reward_of or Run().reward_of
    prompts = [encode_prompt(problem.prompt) for problem in problems]
    extra = len(problems) if greedy and decoding.temperature > 0 else 0
    total = len(problems) * k + extra

    def draw(count: int, decoding: Decoding, done: int) -> list[Rollout]:
        requests = [
            Request(ids, mix(seed, "eval", i, j), problem.prompt, group=i)
            for i, (ids, problem) in enumerate(zip(prompts, problems, strict=True))
            for j in range(count)
        ]
        rollouts: list[Rollout] = []
        size = max(1, CHUNK // count) * count  # whole problems, so that their samples share a prefill
        for start in range(0, len(requests), size):
            drawn = sampler.sample(requests[start : start + size], decoding)
            rollouts += judge(drawn, problems, verify, earns)
            if progress:
                progress(done + len(rollouts), total)
        return rollouts

    flat = draw(k, decoding, 0)
    groups = [flat[i : i + k] for i in range(0, len(flat), k)]
    best = draw(1, replace(decoding, temperature=0.0), len(flat)) if extra else []
    found = summarise(groups, best, task=task, answer=answer or canonical_answer)
    return replace(found, metrics={**found.metrics, **part_means(flat, earns)})


def judge(rollouts: Sequence[Rollout], problems: Sequence[Problem], verify: Verify, reward_of: Earns) -> list[Rollout]:
    """The rollouts with their scores; `group` is the index of a rollout's problem. One whose sampling failed is
    "crashed" and is not shown to the verifier."""
    fine = [rollout for rollout in rollouts if rollout.finish != "error"]
    rows = [judged_row(r, problems[r.group]) for r in fine]
    if hasattr(verify, "name"):  # a Reward judges a batch, a task's verifier one completion
        scores = cast(Reward, verify)([r.completion for r in fine], rows)
    else:
        one = cast(Callable[[str, dict[str, Any]], Score], verify)
        scores = [one(r.completion, row) for r, row in zip(fine, rows, strict=True)]
    judged = iter(scores)
    failed = Score(None, "crashed", "the sampler did not finish this completion")
    given = [(r, r.score or failed if r.finish == "error" else next(judged)) for r in rollouts]
    return [replace(r, reward=reward_of(score, r.finish), score=score) for r, score in given]


def judged_row(rollout: Rollout, problem: Problem) -> dict[str, Any]:
    """What a reward is told beside the completion: the problem's fields, `prompt`, and the completion's `num_tokens`
    and `finish` ("stop", or "length" where it was cut)."""
    return {**problem.fields, "prompt": problem.prompt, "num_tokens": rollout.num_tokens, "finish": rollout.finish}


def canonical_answer(completion: str) -> Hashable | None:
    """A completion's answer in a form in which equal answers are equal: a number where it is one, else its text.

    >>> canonical_answer("<answer>1,000</answer>") == canonical_answer("so <answer>1000.0</answer>")
    True
    """
    found = extract_answer(completion)
    if found is None:
        return None
    number = read_number(found.text)
    return normalize_answer(found.text) if number is None else number


def compare(before: Evaluation, after: Evaluation) -> dict[str, Interval]:
    """Paired change of every estimate that both have, over the same problems. ValueError if they are not as many."""
    names = [name for name in before.per_problem if name in after.per_problem]
    return {name: stats.paired_difference(before.per_problem[name], after.per_problem[name]) for name in names}


def summarise(
    groups: list[list[Rollout]], greedy: list[Rollout], *, task: str, answer: Callable[[str], Hashable | None]
) -> Evaluation:
    """Numbers from judged rollouts, k of each problem."""
    n, k = len(groups), len(groups[0])
    answers = [[answer(r.completion) for r in group] for group in groups]
    flat = [rollout for group in groups for rollout in group]
    per_problem: dict[str, list[float]] = {}
    if not any(_score(r).graded for r in flat):
        per_problem = successes(groups, answers)
        if greedy:
            per_problem["greedy"] = [float(_correct(r)) for r in greedy]
    metrics, intervals = {}, {}
    for name, values in per_problem.items():
        several = 1 if name == "greedy" else max(1, k // int(name.partition("@")[2]))
        interval = stats.proportion_interval(values, samples=several)
        metrics[name], intervals[name] = interval.value, (interval.low, interval.high)
    verdicts = Counter(_score(rollout).verdict for rollout in flat)
    metrics["unjudged"] = sum(_score(rollout).failed for rollout in flat) / len(flat)
    metrics |= flag_rates(flat)
    metrics |= {**rewards(flat), **lengths(flat), **diversity(groups, answers)}
    counted = {verdict: verdicts[verdict] for verdict in VERDICTS if verdicts[verdict]}
    return Evaluation(task, n, k, metrics, intervals, counted, per_problem, groups, greedy)


def successes(
    groups: Sequence[Sequence[Rollout]], answers: Sequence[Sequence[Hashable | None]]
) -> dict[str, list[float]]:
    """pass@1, pass@2, pass@4, ..., pass@k and maj@2, ..., maj@k of each problem."""
    k = len(groups[0])
    sizes = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
    correct = [[_correct(r) for r in group] for group in groups]
    values = {f"pass@{size}": [stats.pass_at_k(k, sum(row), size) for row in correct] for size in sizes}
    for size in sizes[1:]:
        pairs = zip(answers, correct, strict=True)
        values[f"maj@{size}"] = [stats.maj_at_k(given, row, size, seed=i) for i, (given, row) in enumerate(pairs)]
    return values


def rewards(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean reward of the completions that have one."""
    values = [r.reward for r in rollouts if r.reward is not None]
    return {"reward": fmean(values)} if values else {}


def part_means(rollouts: Sequence[Rollout], earns: Earns) -> dict[str, float]:
    """Of a reward with several sources `rewards/<source>/mean`: what each says, before weighting."""
    values = defaultdict[str, list[float]](list)
    for name, part, finish in ((*item, r.finish) for r in rollouts if r.score for item in r.score.parts.items()):
        if (value := earns(part, finish)) is not None:
            values[name].append(value)
    return {f"rewards/{name}/mean": fmean(found) for name, found in values.items()}


def flag_counts(rollouts: Sequence[Rollout]) -> dict[str, tuple[float, int]]:
    """Flag -> (completions that raised it, completions in which it was looked for), over the scores there are."""
    raised, number = defaultdict[str, float](float), Counter[str]()
    for name, value in (flag for r in rollouts if r.score for flag in r.score.flags.items()):
        raised[name] += value
        number[name] += 1
    return {name: (raised[name], count) for name, count in number.items()}


def flag_rates(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The mean of each flag."""
    return {name: raised / looked for name, (raised, looked) in flag_counts(rollouts).items()}


def lengths(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Tokens per completion, and the share that was cut at the limit."""
    written = [r.num_tokens for r in rollouts]
    ended = [r.num_tokens for r in rollouts if r.finish == "stop"]
    metrics = {
        "completions/mean_length": fmean(written),
        "completions/min_length": float(min(written)),
        "completions/max_length": float(max(written)),
        "completions/clipped_ratio": fmean(r.finish == "length" for r in rollouts),
    }
    return {**metrics, "completions/mean_terminated_length": fmean(ended)} if ended else metrics


def diversity(
    groups: Sequence[Sequence[Rollout]], answers: Sequence[Sequence[Hashable | None]] | None = None
) -> dict[str, float]:
    """How different the samples of a problem, and their answers if there are any, are, averaged over problems, and the
    policy's entropy.

    `entropy` is the mean of -log-prob over the sampled tokens: nats per token of the distribution they are drawn from.
    """
    written = (pair for group in groups for r in group for pair in zip(r.sampler_logprobs, r.mask, strict=True))
    surprise = [-lp for lp, own in written if own and isfinite(lp)]  # a server may report none
    metrics = {"entropy": fmean(surprise)} if surprise else {}
    if len(groups[0]) < 2:
        return metrics
    texts = [[_written(r) for r in group] for group in groups]
    metrics["distinct_1"] = fmean(stats.distinct_n(samples, 1) for samples in texts)
    metrics["distinct_2"] = fmean(stats.distinct_n(samples, 2) for samples in texts)
    comparable = [samples for samples in texts if sum(map(bool, samples)) >= 2]
    if comparable:
        metrics["self_bleu"] = fmean(stats.self_bleu(samples) for samples in comparable)
    if answers is None:
        return metrics
    metrics["distinct_answers"] = fmean(len({a for a in given if a is not None}) for given in answers)
    metrics["answer_entropy"] = fmean(stats.answer_entropy(given) for given in answers)
    return metrics


def _written(rollout: Rollout) -> list[int]:
    return [token for token, own in zip(rollout.token_ids, rollout.mask, strict=True) if own]


def _score(rollout: Rollout) -> Score:
    assert rollout.score is not None
    return rollout.score


def _correct(rollout: Rollout) -> bool:
    return _score(rollout).verdict == "correct"

"""What a pipeline does between two runs: draw and score completions, average models, measure a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fiducial import models
from fiducial.config import RecipeError, Run
from fiducial.core import selection
from fiducial.core.seeds import mix
from fiducial.core.types import FAILED, VERDICTS, Problem
from fiducial.data import BadRow, Preference, open_rows, parse, tasks
from fiducial.evals.evaluate import evaluate
from fiducial.judges import judge
from fiducial.rewards.verdicts import told
from fiducial.sampling.local import LocalSampler
from fiducial.store import RunFolder
from fiducial.train.assemble import DTYPES, renamed
from fiducial.train.parts import TrainingError
from fiducial.train.plan import Average, Gold, Sample
from fiducial.train.run import plain
from fiducial.train.runtime import Runtime

ROWS = ("pairs", "demos", "labels", "rankings")  # the files of a sample stage


# -- completions -------------------------------------------------------------------------------------------------------


def sample(work: Sample, folder: RunFolder, skip: int, seed: int, runtime: Runtime) -> dict[str, Any]:
    """Draw, score and choose; the rows are in pairs.jsonl, demos.jsonl, labels.jsonl and rankings.jsonl of the folder.

    Every `work.batch` prompts the scored completions are kept in rollouts/, from where a killed stage goes on; ranks
    share these batches. `skip` prompts of the source are other stages'. Returns, on the first rank, what was measured.
    TrainingError if too many completions could not be judged or none gives a row.
    """
    problems = prompts(work, skip)
    starts = range(0, len(problems), work.batch)
    there = set(folder.rollout_steps())
    missing = [number for number in range(1, len(starts) + 1) if number not in there]
    if mine := runtime.mine(missing):
        draw = drawer(work, runtime)
        for number in mine:
            first = starts[number - 1]
            rows = draw(problems[first : first + work.batch], mix(seed, "stage", number))
            folder.write_rollouts(number, [{**row, "group": first + row["group"]} for row in rows])
    runtime.wait()
    if not runtime.first:
        return {}
    drawn = [row for number in range(1, len(starts) + 1) for row in folder.read_rollouts(number)]
    made, counted = choose(work, drawn, seed, folder.path.name)
    for name in ROWS:
        folder.write_text(f"{name}.jsonl", "".join(json_line(row) for row in made[name]))
    metrics = measured(drawn, made, len(problems))
    folder.write_json("summary.json", {"rows": {n: len(made[n]) for n in ROWS}, "counted": counted, "metrics": metrics})
    if not any(made.values()):
        reasons = ", ".join(f"{number} {reason}" for reason, number in counted.items())
        raise TrainingError(f"{folder.path}: none of {len(drawn)} completions gives a row to train on: {reasons}")
    return metrics


def prompts(work: Sample | Gold, skip: int = 0) -> list[Problem]:
    """The problems of a stage: from a task as many as it asks for, from a file in the order of its rows, from the
    beginning again behind the last. ValueError if a row has no prompt."""
    number = work.prompts if isinstance(work, Sample) else work.n
    if work.task:
        seed, split = (work.seed, "train") if isinstance(work, Sample) else (0, work.split)
        return tasks.problems(tasks.get(work.task), skip + number, split, seed, **work.data.difficulty)[skip:]
    rows, fields = open_rows(work.data.path, work.data.split), renamed(work.data)
    found = []
    for place in range(skip, skip + (number if isinstance(work, Sample) else min(number, len(rows)))):
        index = place % len(rows)
        try:
            found += parse(rows[index], "problems", fields, index)
        except BadRow as bad:
            raise ValueError(f"{rows.where(index)}: {bad.detail}; mend it or take it out") from bad
    return found


def drawer(work: Sample, runtime: Runtime) -> Callable[[Sequence[Problem], int], list[dict[str, Any]]]:
    """Loads the model and the reward; gives the function (problems, seed) -> scored completions as rows."""
    model, tokenizer = models.load(work.model.path, DTYPES[work.model.dtype], runtime.device)
    sampler = LocalSampler(model, tokenizer, autocast=work.model.autocast)
    reward = judge(work.reward or work.task, work.verdicts.timeout or None, work.verdicts.trust_code)
    earns = Run(sampling=work.sampling, verdicts=work.verdicts).reward_of

    def draw(problems: Sequence[Problem], seed: int) -> list[dict[str, Any]]:
        found = evaluate(
            sampler,
            lambda prompt: models.encode_prompt(tokenizer, prompt),
            problems,
            reward,
            work.sampling.decoding,
            work.sampling.n,
            seed,
            greedy=False,
            reward_of=earns,
        )
        rollouts = [rollout for group in found.rollouts for rollout in group]
        rows = [{**plain(r, tokens=False), "num_tokens": r.num_tokens} for r in rollouts]
        _refuse_failures(work, rows)
        return rows

    return draw


def _refuse_failures(work: Sample, rows: Sequence[dict[str, Any]]) -> None:
    failed = [row for row in rows if row["verdict"] in FAILED and not row["own"]]
    if len(failed) > work.verdicts.max_failed * len(rows):
        first = failed[0]
        raise TrainingError(
            f"{len(failed)} of {len(rows)} completions could not be judged, over verdicts.max_failed = "
            f"{work.verdicts.max_failed}; the first: {told(first['completion'], first['prompt'])}: {first['why']}"
        )


def choose(
    work: Sample, drawn: Sequence[dict[str, Any]], seed: int, stage: str = "sample"
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Rows of each kind from scored completions, and what was left out by reason. `stage` begins the pairs' group_id.

    A completion that was cut short teaches no ending, and a copy nothing new: they serve in no row.
    """
    counted: Counter[str] = Counter()
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in drawn:
        members = groups.setdefault(row["group"], [])
        if why := _useless(row, members):
            counted[f"completion: {why}"] += 1
        else:
            members.append(row)
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for group, members in groups.items():
        lots = torch.rand(len(members) + 1, generator=torch.Generator().manual_seed(mix(seed, "selection", group)))
        for name, rows in _rows_of(work, members, lots, f"{stage}/{group}").items():
            made[name] += rows
            counted[f"prompt: no {name}"] += not rows
    return made, {reason: number for reason, number in counted.most_common() if number}


def _useless(row: dict[str, Any], members: Sequence[dict[str, Any]]) -> str:
    if row["reward"] is None:
        return row["verdict"]
    if row["finish"] != "stop":
        return "cut short"
    if not row["completion"].strip():
        return "empty"
    return "a copy" if any(row["completion"] == other["completion"] for other in members) else ""


def _rows_of(
    work: Sample, members: Sequence[dict[str, Any]], lots: Tensor, group: str
) -> dict[str, list[dict[str, Any]]]:
    """What one prompt's completions give."""
    if not members:
        return {name: [] for name in ROWS}
    prompt, texts = members[0]["prompt"], [row["completion"] for row in members]
    scores = [float(row["reward"]) for row in members]
    rewards = torch.tensor(scores, dtype=torch.float64)
    kept = [choice.members[0] for choice in selection.best(rewards, keep=work.keep, min_reward=work.min_reward)]
    pairs: list[tuple[int, ...]] = []
    if len(members) > 1:
        gap = {"pair_rule": work.pair_rule, "skip_if_score_gap_below": work.skip_if_score_gap_below}
        pairs = [choice.members for choice in selection.by_rule(rewards, lots, **gap)]
    return {
        "demos": [{"prompt": prompt, "completion": texts[i], "reward": scores[i]} for i in kept],
        "pairs": [_pair(work, prompt, texts, scores, chosen, rejected, group) for chosen, rejected in pairs],
        "labels": [
            {"prompt": prompt, "completion": text, "label": score >= work.wanted_from, "reward": score}
            for text, score in zip(texts, scores, strict=True)
        ],
        "rankings": [{"prompt": prompt, "completions": texts, "scores": scores}] if len(set(scores)) > 1 else [],
    }


def _pair(
    work: Sample, prompt: Any, texts: Sequence[str], scores: Sequence[float], chosen: int, rejected: int, group: str
) -> dict[str, Any]:
    rating = 1.0 if abs(scores[chosen] - scores[rejected]) < work.slight_below else 2.0
    rewards = {"reward_a": scores[chosen], "reward_b": scores[rejected]}
    record = Preference(prompt, texts[chosen], texts[rejected], rating=rating, group_id=group, fields=rewards)
    return record.to_row()


def measured(drawn: Sequence[dict[str, Any]], made: dict[str, list[dict[str, Any]]], asked: int) -> dict[str, float]:
    """What a sample stage's completions are like, and the mean reward of those that became demonstrations."""
    verdicts = Counter(row["verdict"] for row in drawn)
    rewards = [row["reward"] for row in drawn if row["reward"] is not None]
    kept = [row["reward"] for row in made["demos"]]
    metrics: dict[str, float] = {"prompts": asked, **{f"rows/{name}": len(made[name]) for name in ROWS}}
    if rewards:
        metrics["reward"] = fmean(rewards)
    if kept:
        metrics["reward/kept"] = fmean(kept)
    metrics |= {f"verdict/{name}": verdicts[name] / len(drawn) for name in VERDICTS if verdicts[name]}
    metrics["completions/mean_length"] = fmean(row["num_tokens"] for row in drawn)
    metrics["completions/clipped_ratio"] = fmean(row["finish"] == "length" for row in drawn)
    return metrics


def json_line(row: dict[str, Any]) -> str:
    """A row of a JSONL file."""
    import json

    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


# -- averages ----------------------------------------------------------------------------------------------------------


def average(work: Average, folder: Path) -> None:
    """Write the mean of the models to `folder`, with the first one's tokenizer. RecipeError if they do not belong
    together."""
    first, *others = work.models
    model, tokenizer = models.load(first, DTYPES[work.dtype])
    states = [model.state_dict()]
    for path in others:
        other, its_tokenizer = models.load(path, DTYPES[work.dtype])
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise RecipeError(f"{path} and {first} have different vocabularies: their weights have no mean")
        states.append(other.state_dict())
    try:
        model.load_state_dict(mean(states, work.weights or (1.0,) * len(states)))
    except ValueError as error:
        raise RecipeError(f"{', '.join(work.models)} are not of one architecture: {error}") from error
    models.save(model, tokenizer, folder)


def mean(states: Sequence[dict[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of tensors under the same names: of equal tensors the same, to the bit. ValueError if names or
    shapes differ.

    >>> mean([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], [3, 1])
    {'w': tensor([0.2500, 0.2500])}
    """
    first, shares = states[0], [weight / sum(weights) for weight in weights]
    for state in states[1:]:
        shapes = {name: x.shape for name, x in state.items()}
        for name in first.keys() | shapes.keys():
            if name not in first or shapes.get(name) != first[name].shape:
                raise ValueError(f"the weight {name} is not the same shape in all")
    return {
        name: x + sum(share * (state[name] - x) for share, state in zip(shares[1:], states[1:], strict=True))
        if x.is_floating_point()
        else x
        for name, x in first.items()
    }


# -- the gold reward ---------------------------------------------------------------------------------------------------


def measure(gold: Gold, folder: str | Path, runtime: Runtime) -> dict[str, float]:
    """A policy on the gold problems: the metrics of `fiducial eval` under gold/, with the ends of their intervals."""
    model, tokenizer = models.load(folder, device=runtime.device)
    found = evaluate(
        LocalSampler(model, tokenizer),
        lambda prompt: models.encode_prompt(tokenizer, prompt),
        prompts(gold),
        judge(gold.reward or gold.task, gold.verdicts.timeout or None, gold.verdicts.trust_code),
        gold.sampling.decoding,
        gold.k,
        reward_of=Run(sampling=gold.sampling, verdicts=gold.verdicts).reward_of,
    )
    return {name.replace("eval/", "gold/", 1): value for name, value in found.log().items()}

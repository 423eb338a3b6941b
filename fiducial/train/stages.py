"""What a pipeline does between two runs: draw and score completions, average models, measure a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
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
from fiducial.train.plan import Average, Gold, Mixture, Sample, Source
from fiducial.train.run import plain
from fiducial.train.runtime import Runtime

ROWS = ("pairs", "demos", "labels", "rankings")  # the files of a sample stage


# -- completions -------------------------------------------------------------------------------------------------------


def sample(work: Sample, folder: RunFolder, skip: int, seed: int, runtime: Runtime) -> dict[str, Any]:
    """Draw, score and choose; the rows are in pairs.jsonl, demos.jsonl, labels.jsonl and rankings.jsonl of the folder,
    and how many of each prompt's completions may be imitated in acceptance.jsonl.

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
    taken = acceptance(work, drawn)
    for name, rows in {**made, "acceptance": taken}.items():
        folder.write_text(f"{name}.jsonl", "".join(json_line(row) for row in rows))
    metrics = measured(drawn, made, taken)
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

    A completion that was cut short teaches no ending: it serves in no row. Nor does a copy of an earlier one, unless
    `work.copies` says so. The best one of n is the same either way, and so is `best_worst`; but the different
    completions of a prompt are no draws of the policy: what it seldom writes is as often in a label or a random pair as
    what it often does.
    """
    counted: Counter[str] = Counter()
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in drawn:
        members = groups.setdefault(row["group"], [])
        if why := _useless(row, members if work.copies == "drop" else ()):
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


def accepts(work: Sample, row: dict[str, Any]) -> bool:
    """Whether a scored completion may be imitated: it ended by itself, says something, earns at least
    `work.min_reward`, and is called correct where `work.only_correct` asks for that."""
    enough = work.min_reward is None or (row["reward"] is not None and row["reward"] >= work.min_reward)
    return not _useless(row, ()) and enough and (row["verdict"] == "correct" or not work.only_correct)


def acceptance(work: Sample, drawn: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each prompt how many completions were drawn, copies too, and how many of them may be imitated."""
    rows: dict[int, dict[str, Any]] = {}
    for row in drawn:
        mine = rows.setdefault(row["group"], {"prompt": row["prompt"], "drawn": 0, "accepted": 0})
        mine["drawn"] += 1
        mine["accepted"] += accepts(work, row)
    return list(rows.values())


def _rows_of(
    work: Sample, members: Sequence[dict[str, Any]], lots: Tensor, group: str
) -> dict[str, list[dict[str, Any]]]:
    """What one prompt's completions give."""
    if not members:
        return {name: [] for name in ROWS}
    prompt, texts = members[0]["prompt"], [row["completion"] for row in members]
    scores = [float(row["reward"]) for row in members]
    rewards = torch.tensor(scores, dtype=torch.float64)
    fine = [i for i, row in enumerate(members) if accepts(work, row)]
    kept = [fine[choice.members[0]] for choice in selection.best(rewards[fine], keep=work.keep)]
    pairs: list[tuple[int, ...]] = []
    if len(members) > 1:
        gap = {"pair_rule": work.pair_rule, "skip_if_score_gap_below": work.skip_if_score_gap_below}
        found = [choice.members for choice in selection.by_rule(rewards, lots, **gap)]
        pairs = [(chosen, rejected) for chosen, rejected in found if texts[chosen] != texts[rejected]]
    different = dict(zip(texts[::-1], scores[::-1], strict=True))  # of copies the first
    ranked = {text: different[text] for text in texts}
    return {
        "demos": [{"prompt": prompt, "completion": texts[i], "reward": scores[i]} for i in kept],
        "pairs": [_pair(work, prompt, texts, scores, chosen, rejected, group) for chosen, rejected in pairs],
        "labels": [
            {"prompt": prompt, "completion": text, "label": score >= work.wanted_from, "reward": score}
            for text, score in zip(texts, scores, strict=True)
        ],
        "rankings": [{"prompt": prompt, "completions": [*ranked], "scores": [*ranked.values()]}]
        if len(set(ranked.values())) > 1
        else [],
    }


def _pair(
    work: Sample, prompt: Any, texts: Sequence[str], scores: Sequence[float], chosen: int, rejected: int, group: str
) -> dict[str, Any]:
    rating = 1.0 if abs(scores[chosen] - scores[rejected]) < work.slight_below else 2.0
    rewards = {"reward_a": scores[chosen], "reward_b": scores[rejected]}
    harms = [
        0.0 if work.harm_below is None else 1.0 if scores[i] < work.harm_below else -1.0 for i in (chosen, rejected)
    ]
    sides = (texts[chosen], texts[rejected])
    return Preference(
        prompt, *sides, rating=rating, harm_a=harms[0], harm_b=harms[1], group_id=group, fields=rewards
    ).to_row()


def measured(
    drawn: Sequence[dict[str, Any]], made: dict[str, list[dict[str, Any]]], taken: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """What a sample stage's completions are like, the share that may be imitated, of completions and of prompts that
    have any such, and the mean reward of those that became demonstrations."""
    verdicts = Counter(row["verdict"] for row in drawn)
    rewards = [row["reward"] for row in drawn if row["reward"] is not None]
    kept = [row["reward"] for row in made["demos"]]
    metrics: dict[str, float] = {"prompts": len(taken), **{f"rows/{name}": len(made[name]) for name in ROWS}}
    metrics["accepted"] = sum(row["accepted"] for row in taken) / len(drawn)
    metrics["accepted/prompts"] = fmean(row["accepted"] > 0 for row in taken)
    metrics["completions/tokens"] = sum(row["num_tokens"] for row in drawn)
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


# -- mixtures ----------------------------------------------------------------------------------------------------------


def mixed(work: Mixture, folder: Path) -> dict[str, float]:
    """Write rows.jsonl, the sources' rows in one drawn order, each with its source's name as `source`; returns how many
    rows each gave. ValueError for a file that cannot be read or that has fewer rows than are asked of it."""
    rows = [{**row, "source": source.called} for source in work.sources for row in _rows_from(source, work.seed)]
    order = torch.randperm(
        len(rows), generator=torch.Generator().manual_seed(mix(work.seed, "mix", len(rows)))
    ).tolist()
    RunFolder(folder).write_text("rows.jsonl", "".join(json_line(rows[i]) for i in order))
    numbers = Counter(row["source"] for row in rows)
    return {"rows": len(rows), **{f"rows/{name}": number for name, number in numbers.items()}}


def _rows_from(source: Source, seed: int) -> list[dict[str, Any]]:
    if source.path:
        found = open_rows(source.path, source.split)
        number = source.rows or len(found)
        if number > len(found):
            raise ValueError(f"{source.path} has {len(found)} rows, not {number}: ask for fewer (rows = 0: all)")
        return [dict(found[i]) for i in range(number)]
    task = tasks.get(source.task)
    rows = []
    for place, problem in enumerate(tasks.problems(task, source.rows, "train", seed, **source.difficulty)):
        row = {"prompt": problem.prompt, **problem.fields}
        if source.solved:
            rng = Random(mix(seed, "teacher", "train", place))
            trace = task.sloppy_trace(problem, rng, **source.teacher) if source.teacher else task.trace(problem, rng)
            row = {"prompt": problem.prompt, "completion": trace if source.tags else untagged(trace)}
        rows.append(row)
    return rows


def untagged(trace: str) -> str:
    """A worked solution as plain text.

    >>> untagged("<think>1 + 1 = 2.</think><answer>2</answer>")
    '1 + 1 = 2. The answer is 2.'
    """
    thought, _, answer = trace.removeprefix("<think>").removesuffix("</answer>").partition("</think><answer>")
    return f"{thought} The answer is {answer}.".lstrip()


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

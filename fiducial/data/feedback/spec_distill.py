"""Context distillation of a specification (deliberative alignment, Guan et al. 2024, arXiv:2412.16339, stage 1).

A model that is shown the specification thinks about it and answers; a judge that knows it too keeps what complies; and
the specification is taken out of the prompt, so that a model trained on these rows has to know it by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Problem, Prompt, Rollout, Score
from fiducial.data.feedback.spec import Spec
from fiducial.data.feedback.writer import Fits, Made, Progress, Writer, always_fits, fill, write, written

QUOTED = 16  # words of the specification in a row beyond which a row would teach its text, not its use
CONTEXT = """\
[Specification]
{spec}

Think before you answer, between <think> and </think>: which parts of the specification bear on the request, and what
they ask. Name them, but do not copy them. Then answer, in keeping with them and without a word about them.
"""


class SpecScorer(Protocol):
    """A judge that knows the specification; `run` draws its word anew."""

    @property
    def spec(self) -> Spec: ...

    @property
    def varies(self) -> bool: ...

    def __call__(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]], run: int = 0) -> list[Score]: ...


def with_spec(prompt: Prompt, text: str, template: str = CONTEXT) -> Prompt:
    """The prompt with a part of the specification before it: of a chat as the system's message, or at the head of it.

    >>> with_spec([{"role": "user", "content": "hello"}], "Be kind.", "{spec}")
    [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'hello'}]
    """
    context = fill(template, {"spec": text})
    if isinstance(prompt, str):
        return f"{context}\n{prompt}"
    system = prompt[0] if prompt and prompt[0]["role"] == "system" else None
    content = f"{context}\n{system['content']}" if system else context
    return [{"role": "system", "content": content}, *(prompt[1:] if system else prompt)]


def build_context_distilled(
    writer: Writer,
    judge: SpecScorer,
    problems: Sequence[Problem],
    *,
    n: int = 4,
    threshold: float = 0.8,
    runs: int = 1,
    decoding: Decoding | None = None,
    seed: int = 0,
    fits: Fits = always_fits,
    progress: Progress | None = None,
) -> Made:
    """Rows of demonstrations (`prompt`, `completion`, `category`, `spec_score`, `spec_scores`, `source` "ai").

    n: completions of each problem's prompt, drawn with the specification before it: the part of the problem's field
    `category`, or all. A completion stays if the lowest of the judge's `runs` scores is at least `threshold`; one that
    was cut, never comes to an answer, holds a whole category or more than 16 words of one in a row, or has no score is
    left out and counted. No row holds the specification: its prompt is the problem's own. ValueError if none is left.
    """
    if n < 1 or runs < 1:
        raise ValueError(f"n and runs must be at least 1; they are {n} and {runs}")
    if runs > 1 and not judge.varies:
        raise ValueError(
            f"runs = {runs} would all be the same: the judge has to write (mode text, or reasoning) at a temperature "
            "above 0"
        )
    decoding = decoding or Decoding(max_new_tokens=512)
    counted: Counter[str] = Counter()
    asked: list[tuple[Problem, Prompt]] = []
    for problem in problems:
        category = problem.fields.get("category")
        if category is not None and category not in judge.spec.categories:
            counted["a category that the specification has not"] += 1
            continue
        prompt = with_spec(problem.prompt, judge.spec.text(category))
        if fits(prompt, decoding.max_new_tokens):
            asked.append((problem, prompt))
        else:
            counted["too long for the model"] += 1
    rollouts = write(writer, [prompt for _, prompt in asked], mix(seed, "spec"), decoding, n)
    drawn = [(asked[i // n][0], rollout, written(rollout, decoding)) for i, rollout in enumerate(rollouts)]
    usable = []
    for problem, rollout, text in drawn:
        if reason := _unusable(judge.spec, rollout, text):
            counted[reason] += 1
        else:
            usable.append((problem, text))
    rows, flags = _judged(judge, usable, runs, threshold, counted, progress)
    if not rows:
        told = ", ".join(f"{number} {reason}" for reason, number in counted.items()) or "there are no prompts"
        raise ValueError(f"no completion was kept: {told}")
    metrics = {"spec/kept": len(rows) / len(drawn)}
    metrics |= {name: fmean(values) for name, values in flags.items()}
    return Made(rows, dict(counted), metrics)


def _unusable(spec: Spec, rollout: Rollout, text: str) -> str:
    """Why a completion cannot become a row; nothing if it can."""
    if rollout.score is not None:
        return f"not sampled: {rollout.score.verdict}"
    if rollout.finish == "length":
        return "cut at max_new_tokens"
    if not text:
        return "empty response"
    if spec.repeated_in(text) or spec.longest_quote(text) > QUOTED:
        return "repeats the specification"
    return ""


def _judged(
    judge: SpecScorer,
    usable: Sequence[tuple[Problem, str]],
    runs: int,
    threshold: float,
    counted: Counter[str],
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """The rows whose lowest score reaches the threshold, and every flag of all that were judged."""
    texts = [text for _, text in usable]
    fields = [{"prompt": problem.prompt, **problem.fields} for problem, _ in usable]
    found = []
    for run in range(runs):
        found.append(judge(texts, fields, run))
        if progress:
            progress(run + 1, runs)
    rows, flags = [], dict[str, list[float]]()
    for (problem, text), scores in zip(usable, zip(*found, strict=True), strict=True):
        for name, value in (flag for score in scores for flag in score.flags.items()):
            flags.setdefault(name, []).append(value)
        values = [score.value for score in scores]
        if None in values:
            first = next(score for score in scores if score.value is None)
            counted["no answer" if first.verdict == "unparseable" else f"not judged: {first.verdict}"] += 1
        elif min(values) < threshold:
            counted[f"judged below {threshold:g}"] += 1
        else:
            row = {"prompt": problem.prompt, "completion": text, "category": problem.fields.get("category")}
            rows.append({**row, "spec_score": min(values), "spec_scores": values, "source": "ai"})
    return rows, flags

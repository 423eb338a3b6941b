"""Constitutional AI (Bai et al. 2022, arXiv:2212.08073): a model's feedback by written principles in place of people's.

Stage 1, `revised_demos`: the model criticises its own response by a principle drawn at random and rewrites it, several
times; the last revision is a demonstration. Stage 2, `principled_pairs`: two responses of the stage 1 model, and an AI
judge that is asked which one keeps better to a drawn principle; pairs with soft labels, which after reasons are clamped
to [0.4, 0.6], because a verdict that follows an argument is too sure of itself. Both are mixed with rows about being
helpful by `mix`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean
from typing import Any, Literal, Protocol

from fiducial.core.seeds import mix as seed_of
from fiducial.core.types import Decoding, Prompt, Reward, Rollout
from fiducial.data import BadRow, parse
from fiducial.data.feedback.comparing import Comparison, Judgement, PairJudge
from fiducial.data.feedback.labelling import judge_all, judge_metrics, judge_notes, label, refuse_unreadable
from fiducial.data.feedback.principles import PRINCIPLES, Principle, draw_principle
from fiducial.data.feedback.writer import (
    Fits,
    Made,
    Progress,
    Writer,
    always_fits,
    asked,
    fill,
    transcript,
    write,
    written,
)

CLAMP = (0.4, 0.6)  # of labels that follow reasons
CRITIQUE = """\
[Conversation]
{prompt}

[Response]
{response}

[Principle]
{principle}.

Say specifically how the response goes against the principle.
Critique:"""
REVISION = """\
[Conversation]
{prompt}

[Response]
{response}

[Principle]
{principle}.

[Critique]
{critique}

Rewrite the response so that it keeps to the principle. Write nothing but the new response.
New response:"""
CRITERION = "which one keeps better to this principle: {principle}"


class PrincipleJudge(PairJudge, Protocol):
    """A judge that reads a comparison's field `criterion`; `reasoning`: it gives reasons before its verdict."""

    @property
    def reasoning(self) -> bool: ...


@dataclass
class _Draft:
    """A response on its way through the rounds; `failed` says why it left."""

    prompt: Prompt
    index: int  # of its prompt
    text: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # the first response and every revision
    cut: bool = False
    failed: str = ""


def revised_demos(
    writer: Writer,
    prompts: Sequence[Prompt],
    *,
    principles: tuple[Principle, ...] = PRINCIPLES,
    n_revisions: int = 4,
    decoding: Decoding | None = None,
    seed: int = 0,
    chat: bool = False,
    scorer: Reward | None = None,
    fits: Fits = always_fits,
    progress: Progress | None = None,
) -> Made:
    """Stage 1: rows of demonstrations (`prompt`, `completion`, `source` "ai") whose completion is the last revision.

    A row keeps `initial` and for each of the `rounds` its `principle_id`, `critique` and `revision`; with a `scorer`
    also `harmlessness`, the score of the first response and of every revision, whose means are the metrics
    `harmlessness/round_<k>`. chat: requests are a user's messages. With 0 revisions the completion is the response.
    Prompts whose response or request does not fit, or gives an empty text, are counted. ValueError if none is left.
    """
    if n_revisions < 0:
        raise ValueError(f"n_revisions must be 0 or more; it is {n_revisions}")
    decoding = decoding or Decoding(max_new_tokens=256)
    drafts = [_Draft(prompt, index) for index, prompt in enumerate(prompts)]
    work = _Work(writer, decoding, fits, progress, total=1 + 2 * n_revisions)
    work.respond(drafts, [draft.prompt for draft in drafts], seed_of(seed, "initial"))
    for round in range(n_revisions):
        alive = [draft for draft in drafts if not draft.failed]
        drawn = [draw_principle(principles, seed, draft.index, round) for draft in alive]
        work.criticise(alive, drawn, chat, seed_of(seed, "critique", round))
        kept = [draft for draft in alive if not draft.failed]
        requests = [asked(_request(REVISION, draft, **draft.rounds[-1]), chat) for draft in kept]
        work.respond(kept, requests, seed_of(seed, "revision", round))
    counted = Counter(draft.failed for draft in drafts if draft.failed)
    finished = [draft for draft in drafts if not draft.failed]
    if not finished:
        told = ", ".join(f"{number} {reason}" for reason, number in counted.items()) or "there are no prompts"
        raise ValueError(f"no response was revised: {told}")
    made = Made([_demo(draft) for draft in finished], dict(counted), notes=_cut_note(finished, decoding))
    return made if scorer is None else _scored(made, finished, scorer)


@dataclass
class _Work:
    """Asks the writer for all drafts at once, and keeps what it says of each. `total` and `done` count the times."""

    writer: Writer
    decoding: Decoding
    fits: Fits
    progress: Progress | None
    total: int
    done: int = 0

    def _ask(self, drafts: Sequence[_Draft], requests: Sequence[Prompt], seed: int, what: str) -> list[Rollout | None]:
        """A rollout for each draft whose request fits and that gave a text; the others fail."""
        room = [self.fits(request, self.decoding.max_new_tokens) for request in requests]
        asked_for = [request for request, fit in zip(requests, room, strict=True) if fit]
        rollouts = iter(write(self.writer, asked_for, seed, self.decoding))
        found = [next(rollouts) if fit else None for fit in room]
        for draft, rollout in zip(drafts, found, strict=True):
            if rollout is None:
                draft.failed = "too long for the model"
            elif not written(rollout, self.decoding):
                draft.failed = f"empty {what}"
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)
        return found

    def respond(self, drafts: Sequence[_Draft], requests: Sequence[Prompt], seed: int) -> None:
        """The first response of each draft, or the revision of its last round."""
        found = self._ask(drafts, requests, seed, "response")
        for draft, rollout in zip(drafts, found, strict=True):
            if rollout is not None and not draft.failed:
                draft.text, draft.cut = written(rollout, self.decoding), rollout.finish == "length"
                draft.texts.append(draft.text)
                if draft.rounds:
                    draft.rounds[-1]["revision"] = draft.text

    def criticise(self, drafts: Sequence[_Draft], principles: Sequence[Principle], chat: bool, seed: int) -> None:
        """Begin a round: a critique of each draft by its principle."""
        pairs = list(zip(drafts, principles, strict=True))
        requests = [asked(_request(CRITIQUE, draft, principle=p.text), chat) for draft, p in pairs]
        found = self._ask(drafts, requests, seed, "critique")
        for (draft, principle), rollout in zip(pairs, found, strict=True):
            if rollout is not None:
                critique = written(rollout, self.decoding)
                draft.rounds.append({"principle_id": principle.id, "principle": principle.text, "critique": critique})


def _request(template: str, draft: _Draft, principle: str, critique: str = "", **ids: str) -> str:
    values = {"prompt": transcript(draft.prompt), "response": draft.text, "critique": critique}
    return fill(template, {**values, "principle": principle.rstrip(".")})


def _demo(draft: _Draft) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": draft.prompt, "completion": draft.text, "source": "ai"}
    return {**row, "initial": draft.texts[0], "rounds": draft.rounds}


def _cut_note(drafts: Sequence[_Draft], decoding: Decoding) -> list[str]:
    cut = sum(draft.cut for draft in drafts)
    limit = decoding.max_new_tokens
    return [f"{cut} of {len(drafts)} completions were cut at max_new_tokens = {limit}: raise it"] if cut else []


def _scored(made: Made, drafts: Sequence[_Draft], scorer: Reward) -> Made:
    """Add the harmlessness of each round to the rows, and its mean over the rows to the metrics."""
    texts = [(text, {"prompt": draft.prompt}) for draft in drafts for text in draft.texts]
    scores = iter(scorer([text for text, _ in texts], [row for _, row in texts]))
    values = [[next(scores).value for _ in draft.texts] for draft in drafts]
    rows = [{**row, "harmlessness": scored} for row, scored in zip(made.rows, values, strict=True)]
    metrics, notes = dict(made.metrics), list(made.notes)
    for round, column in enumerate(zip(*values, strict=True)):
        given = [value for value in column if value is not None]
        if given:
            metrics[f"harmlessness/round_{round}"] = fmean(given)
    if missing := sum(value is None for row in values for value in row):
        notes.append(f"{scorer.name} could not score {missing} of {len(texts)} responses")
    return replace(made, rows=rows, metrics=metrics, notes=notes)


def principled_pairs(
    writer: Writer,
    judge: PrincipleJudge,
    prompts: Sequence[Prompt],
    *,
    principles: tuple[Principle, ...] = PRINCIPLES,
    decoding: Decoding | None = None,
    seed: int = 0,
    clamp: tuple[float, float] = CLAMP,
    fits: Fits = always_fits,
    progress: Progress | None = None,
) -> Made:
    """Stage 2: rows of pairs (`prompt`, `chosen`, `rejected`, `pref_prob`, `source` "ai", `principle_id`).

    Two responses of `writer` to each prompt; `judge` says in both orders which keeps better to a principle drawn for
    the prompt. Labels of a judge with reasoning are clamped to `clamp`. Equal or empty responses, and comparisons
    without a verdict, are counted. ValueError if too many verdicts cannot be read, or no row is left.
    """
    decoding = decoding or Decoding(max_new_tokens=256)
    room = [index for index, prompt in enumerate(prompts) if fits(prompt, decoding.max_new_tokens)]
    rollouts = write(writer, [prompts[index] for index in room], seed_of(seed, "pair"), decoding, n=2)
    texts = [written(rollout, decoding) for rollout in rollouts]
    bad = Counter({"too long for the model": len(prompts) - len(room)})
    comparisons, more = [], []
    for index, first, second in zip(room, texts[::2], texts[1::2], strict=True):
        if not first or not second or first == second:
            bad["equal sides" if first == second and first else "empty response"] += 1
            continue
        principle = draw_principle(principles, seed, index)
        criterion = fill(CRITERION, {"principle": principle.text.rstrip(".")})
        comparisons.append(Comparison(prompts[index], first, second, {"criterion": criterion}))
        more.append({"principle_id": principle.id})
    judgements = judge_all(judge, comparisons, progress)
    refuse_unreadable(judgements)
    if judge.reasoning:
        judgements = [_clamped(judgement, clamp) for judgement in judgements]
    rows, counted = label(comparisons, judgements, more)
    counted = +(counted + bad)
    if not rows:
        told = ", ".join(f"{number} {reason}" for reason, number in counted.items()) or "there are no prompts"
        raise ValueError(f"no pair was made: {told}")
    return Made(rows, dict(counted), judge_metrics(judgements), judge_notes(judgements))


def _clamped(judgement: Judgement, clamp: tuple[float, float]) -> Judgement:
    if judgement.probability is None:
        return judgement
    return replace(judgement, probability=min(max(judgement.probability, clamp[0]), clamp[1]))


def mix(
    made: Made,
    helpful: Sequence[Mapping[str, Any]],
    kind: Literal["demos", "pairs"],
    *,
    share: float | None = None,
    seed: int = 0,
) -> Made:
    """The rows and rows about being helpful, shuffled together; a note says how many of each there are.

    Helpful rows that do not parse as `kind` are left out and counted. share: take only as many, drawn by the seed, as
    make this share of the whole; ValueError if there are fewer.
    """
    usable, counted = [], Counter(made.counted)
    for index, row in enumerate(helpful):
        try:
            parse(row, kind, index=index)
        except BadRow as bad:
            counted[f"helpful row: {bad.reason}"] += 1
        else:
            usable.append({**row, "source": row.get("source") or "human"})
    draws = Random(seed_of(seed, "mix"))
    if share is not None:
        if not 0 <= share < 1:
            raise ValueError(f"the share of helpful rows must lie in [0, 1); it is {share}")
        wanted = round(share / (1 - share) * len(made.rows))
        if wanted > len(usable):
            raise ValueError(
                f"a share of {share:g} helpful rows beside {len(made.rows)} others is {wanted}, but only {len(usable)} "
                "can be used; give more or lower the share"
            )
        usable = draws.sample(usable, wanted)
    rows = [*made.rows, *usable]
    draws.shuffle(rows)
    told = f"{len(made.rows)} rows by principles and {len(usable)} helpful ones ({len(usable) / len(rows):.0%})"
    return replace(made, rows=rows, counted=dict(counted), notes=[*made.notes, told])

"""From judged comparisons to rows of pairs, and what can be told of the judge by its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from fiducial.data.feedback.comparing import Comparison, Judgement, PairJudge, both_orders, position_bias
from fiducial.data.feedback.writer import Progress

# Why a judge gives no verdict.
UNREADABLE, TOO_LONG = "unreadable verdict", "too long for the judge"
NO_OPTION = "options have no probability"
MAX_UNREADABLE = 0.1  # a judge with a larger share of answers without a verdict is none


def judge_all(
    judge: PairJudge, comparisons: Sequence[Comparison], progress: Progress | None = None, chunk: int = 64
) -> list[Judgement]:
    """`both_orders` in chunks, between which `progress(done, total)` is called."""
    found: list[Judgement] = []
    for start in range(0, len(comparisons), chunk):
        found += both_orders(judge, comparisons[start : start + chunk])
        if progress:
            progress(len(found), len(comparisons))
    return found


def label(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement], more: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows of pairs from what was judged, with `more` fields each, and how many were not judged, by reason."""
    rows, counted = [], Counter[str]()
    for comparison, judgement, extra in zip(comparisons, judgements, more, strict=True):
        if judgement.probability is None:
            counted[judgement.why] += 1
        else:
            rows.append(pair_row(comparison, judgement, **extra))
    return rows, counted


def pair_row(comparison: Comparison, judgement: Judgement, **more: Any) -> dict[str, Any]:
    """A row of pairs: the likelier side is chosen, and `pref_prob` says how likely. `more` is added; `human_prob`, if
    it is given as that of `a`, becomes that of the chosen side."""
    assert judgement.probability is not None
    p, ahead = judgement.probability, judgement.probability >= 0.5
    chosen, rejected = (comparison.a, comparison.b) if ahead else (comparison.b, comparison.a)
    row: dict[str, Any] = {"prompt": comparison.prompt, "chosen": chosen, "rejected": rejected}
    row |= {"pref_prob": p if ahead else 1 - p, "source": "ai", **more}
    if "human_prob" in more and not ahead:
        row["human_prob"] = 1 - more["human_prob"]
    if said := _said(judgement, ahead):
        row["judge"] = said
    return row


def _said(judgement: Judgement, ahead: bool) -> dict[str, Any]:
    """What the judge said, turned to the chosen side: its probability when shown first and when shown second."""
    if not judgement.orders:
        return dict(judgement.details)
    shown = judgement.orders if ahead else judgement.orders[::-1]  # the order with the chosen side first, the other
    first, second = (order.probability for order in shown)
    assert first is not None and second is not None
    said = {name: [order.details[name] for order in shown] for name in shown[0].details}
    return {"chosen_first": first, "chosen_second": 1 - second, **said}


def answers(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The single answers behind judgements: one for each order that was asked."""
    return [answer for judgement in judgements for answer in (judgement.orders or (judgement,))]


def parse_fail_frac(judgements: Sequence[Judgement]) -> float:
    """Share of a judge's answers that hold no readable verdict, among those it gave; of several votes each is one."""
    given = [answer for answer in answers(judgements) if answer.why != TOO_LONG]
    votes = [vote is None for a in given for vote in a.votes or (None if a.why == UNREADABLE else 0.0,)]
    return fmean(votes) if votes else 0.0


def refuse_unreadable(judgements: Sequence[Judgement], limit: float = MAX_UNREADABLE) -> None:
    """ValueError if more than the share `limit` of the answers cannot be read; it shows the first of them."""
    share = parse_fail_frac(judgements)
    if share > limit:
        first = next(answer for answer in answers(judgements) if answer.why == UNREADABLE)
        raise ValueError(
            f"{share:.0%} of the judge's answers hold no verdict, more than the {limit:.0%} allowed; the first is "
            f"{first.details['verdict']!r:.200}; judge by log-probabilities (mode logprobs), or take a judge that "
            "answers as its template asks"
        )


def judge_metrics(judgements: Sequence[Judgement], human: Sequence[float | None] | None = None) -> dict[str, float]:
    """`judge/parse_fail_frac`, `judge/position_bias` and `judge/first_wins` (how often it decides for what it is shown
    first), `judge/agreement_with_human` (a tie is half) and `judge/option_mass` (the probability that the judge gives
    its two options together); absent where undefined.

    human: the probability that `a` is better, None where nobody said.
    """
    metrics = {"judge/parse_fail_frac": parse_fail_frac(judgements)}
    if (bias := position_bias(judgements)) is not None:
        metrics["judge/position_bias"] = bias
        shown_first = [order.outcome for j in judgements for order in j.orders if order.outcome is not None]
        metrics["judge/first_wins"] = fmean(shown_first)
    agree = [
        0.5 if judgement.outcome == 0.5 else float((judgement.outcome == 1) == (said > 0.5))
        for judgement, said in zip(judgements, human or [], strict=bool(human))
        if said is not None and said != 0.5 and judgement.outcome is not None
    ]
    if agree:
        metrics["judge/agreement_with_human"] = fmean(agree)
    masses = _option_masses(judgements)
    return {**metrics, "judge/option_mass": fmean(masses)} if masses else metrics


def judge_notes(judgements: Sequence[Judgement]) -> list[str]:
    """What a person should know of a judge before training on its labels, a sentence each."""
    notes = []
    if masses := _option_masses(judgements):
        if all(answer.probability == 0.5 for answer in answers(judgements) if answer.probability is not None):
            notes.append(
                "the judge gives both options the same probability everywhere: its tokenizer may read the two as one "
                "unknown token; name other options"
            )
        if (mass := fmean(masses)) < 0.01:
            notes.append(
                f"the judge gives its two options together a probability of only {mass:.1e}: it would have written "
                "something else, and its labels say little; change the template or the options"
            )
    bias = position_bias(judgements)
    if bias is not None and bias > 0.5:
        notes.append(f"the judge goes mostly by which response it is shown first (position bias {bias:.2f})")
    return notes


def _option_masses(judgements: Sequence[Judgement]) -> list[float]:
    return [answer.details["option_mass"] for answer in answers(judgements) if "option_mass" in answer.details]

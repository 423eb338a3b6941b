"""How a language model is asked for a verdict, whatever it judges: by the probabilities of the verdicts it may give, or
by reading what it writes; at once or after reasons; once or several times."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Message, Prompt, Rollout, Score, Verdict
from fiducial.data.feedback.labelling import NO_OPTION, TOO_LONG, UNREADABLE
from fiducial.data.feedback.writer import Chooser, Fits, always_fits, asked, write, written

MODES = ("logprobs", "text")
READ = {UNREADABLE, NO_OPTION}  # why an answer that was given has no value
QUOTED = 120  # characters of an unreadable answer that a score shows


@dataclass(frozen=True)
class Question:
    """What a judge is asked once.

    text: all of it. options: the verdicts it may give by probability, and what each is worth. read: the worth of what
    it writes, None where that holds no verdict. label: what stands before a verdict. again: how a chat model is asked
    for the verdict after its reasons.
    """

    text: str
    options: Mapping[str, float]
    read: Callable[[str], float | None]
    label: str
    again: str = ""


@dataclass(frozen=True)
class Answer:
    """What a judge said: `value`, or None and in `why` a short reason to count by. `verdict` is then what becomes of
    what was judged; `details` is what the judge said besides."""

    value: float | None
    why: str = ""
    verdict: Verdict = "crashed"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LMJudge:
    """A language model that can be asked for verdicts.

    writer: the model. mode: "logprobs" (the probabilities of the options) or "text" (the verdict is read). reasoning:
    it explains before the verdict. chat: a question is a user's message, else text to go on with. decoding: of what it
    writes, greedy by default. n_votes: how often it is asked; its word is the mean. tau: temperature of the options'
    probabilities. fits: questions that leave it no room are not asked.
    """

    writer: Chooser
    mode: Literal["logprobs", "text"] = "logprobs"
    reasoning: bool = False
    chat: bool = False
    decoding: Decoding = Decoding(max_new_tokens=256, temperature=0.0)
    n_votes: int = 1
    tau: float = 1.0
    seed: int = 0
    fits: Fits = always_fits
    name: str = "ai"

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"a judge's mode is {' or '.join(MODES)}; it is {self.mode!r}")
        if self.n_votes < 1 or not self.tau > 0:
            raise ValueError(f"a judge needs n_votes of 1 or more and tau above 0; not {self.n_votes}, {self.tau}")
        if self.n_votes > 1 and not self.varies:
            raise ValueError(
                f"n_votes = {self.n_votes} would all be the same: votes differ where the judge writes (mode = 'text', "
                "or reasoning) at a temperature above 0"
            )

    @property
    def writes(self) -> bool:
        """Whether it writes anything, instead of only saying how likely its verdicts are."""
        return self.reasoning or self.mode == "text"

    @property
    def varies(self) -> bool:
        """Whether it may say something else when it is asked again."""
        return self.writes and self.decoding.temperature > 0

    def ask(self, questions: Sequence[Question], run: int = 0) -> list[list[Answer]]:
        """The n_votes answers to each question; those of another `run` are drawn anew."""
        prompts = [asked(question.text, self.chat) for question in questions]
        if not self.writes:
            return [[answer] for answer in self._choose(prompts, questions, [{}] * len(prompts))]
        room = [i for i, prompt in enumerate(prompts) if self.fits(prompt, self.decoding.max_new_tokens)]
        seed = mix(self.seed, "judge", run) if run else mix(self.seed, "judge")
        rollouts = write(self.writer, [prompts[i] for i in room], seed, self.decoding, self.n_votes)
        found = [[Answer(None, TOO_LONG, "skipped")] for _ in prompts]
        read = self._read if self.mode == "text" else self._choose_after
        owners = [i for i in room for _ in range(self.n_votes)]
        votes = iter(read([prompts[i] for i in owners], [questions[i] for i in owners], rollouts))
        for i in room:
            found[i] = [next(votes) for _ in range(self.n_votes)]
        return found

    def _choose(
        self, prompts: Sequence[Prompt], questions: Sequence[Question], details: Sequence[dict[str, Any]]
    ) -> list[Answer]:
        """The expected worth of the options after each prompt."""
        found = [Answer(None, TOO_LONG, "skipped", more) for more in details]
        lead = "" if self.chat else " "
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
            options = tuple(lead + option for option in question.options)
            if self.fits(prompt, option_room(options)):
                alike.setdefault(options, []).append(i)
        for options, places in alike.items():
            told = self.writer.option_logprobs([prompts[i] for i in places], options)
            for i, logprobs in zip(places, told, strict=True):
                found[i] = self._expected(logprobs, list(questions[i].options.values()), details[i])
        return found

    def _expected(self, told: list[float] | Score, worth: Sequence[float], details: dict[str, Any]) -> Answer:
        if isinstance(told, Score):
            return _failed(told)
        best = max(told)
        if not math.isfinite(best):
            return Answer(None, NO_OPTION, details={**details, "verdict": "nothing of what was asked for"})
        weights = [math.exp((logprob - best) / self.tau) for logprob in told]
        value = sum(w * x for w, x in zip(weights, worth, strict=True)) / sum(weights)
        return Answer(value, details={**details, "option_mass": sum(map(math.exp, told))})

    def _choose_after(
        self, prompts: Sequence[Prompt], questions: Sequence[Question], rollouts: Sequence[Rollout]
    ) -> list[Answer]:
        """The verdicts after the judge's own reasons."""
        full: list[Prompt] = []
        reasons = [written(rollout, self.decoding) for rollout in rollouts]
        for prompt, question, said in zip(prompts, questions, reasons, strict=True):
            if isinstance(prompt, str):
                full.append(f"{prompt} {said}\n{question.label}")
            else:
                turns: list[Message] = [
                    {"role": "assistant", "content": said},
                    {"role": "user", "content": question.again},
                ]
                full.append([*prompt, *turns])
        fine = [i for i, rollout in enumerate(rollouts) if not rollout.score]
        details = [{"rationale": reasons[i]} for i in fine]
        chosen = iter(self._choose([full[i] for i in fine], [questions[i] for i in fine], details))
        return [_failed(rollout.score) if rollout.score else next(chosen) for rollout in rollouts]

    def _read(
        self, prompts: Sequence[Prompt], questions: Sequence[Question], rollouts: Sequence[Rollout]
    ) -> list[Answer]:
        """The verdicts in what the judge wrote."""
        found = []
        for question, rollout in zip(questions, rollouts, strict=True):
            text = written(rollout, self.decoding)
            value = question.read(text)
            answer = Answer(value, "" if value is not None else UNREADABLE, details={"verdict": text})
            found.append(_failed(rollout.score) if rollout.score else answer)
        return found


def _failed(score: Score) -> Answer:
    """The answer of a server that gave none."""
    return Answer(None, score.why, score.verdict)


def option_room(options: Sequence[str]) -> int:
    """How many tokens the longest option and a stop token have at most: a token writes a byte at least."""
    return max(len(option.encode()) for option in options) + 1


# -- verdicts in text --------------------------------------------------------------------------------------------------


def read_choice(text: str, label: str, worth: Mapping[str, float], also: Mapping[str, float]) -> float | None:
    """The verdict in a judge's text: one of the options of `worth` as they are spelt, or of `also` however.

    A verdict is a text that is nothing but an option, `[[A]]`, or a line's "LABEL A". Two verdicts that differ are
    none.
    """
    bare = text.strip(" \n\t.*_\"'()[]")
    if bare in worth or bare.lower() in also:
        return worth[bare] if bare in worth else also[bare.lower()]
    option = "|".join([*map(re.escape, worth), *(f"(?i:{re.escape(name)})" for name in also)])
    marked = rf"(?i:{re.escape(label.rstrip(':'))})[*_ ]*:[*_\"'(\[ ]*({option})(?=[*_\"')\].,;:]|\s*$)"
    found = re.findall(rf"\[\[({option})\]\]|{marked}", text, re.MULTILINE)
    values = {worth[name] if name in worth else also[name.lower()] for pair in found for name in pair if name}
    return values.pop() if len(values) == 1 else None


_NUMBER = r"[-+]?\d+(?:\.\d+)?"


def read_number(text: str, label: str) -> float | None:
    """The rating in a judge's text: the text is nothing but a number, `[[7]]`, or a line's "LABEL 7" (also "7/10", "7
    out of 10"). Two ratings that differ are none.

    >>> read_number("7.", "Rating:"), read_number("Kind. **Rating:** 8/10", "Rating:"), read_number("7 or 8", "Rating:")
    (7.0, 8.0, None)
    """
    bare = text.strip(" \n\t.*_\"'()[]")
    scale = rf"(?:\s*(?:/|out of)\s*{_NUMBER})?"
    if whole := re.fullmatch(rf"({_NUMBER}){scale}", bare):
        return float(whole[1])
    marked = rf"(?i:{re.escape(label.rstrip(':'))})[*_ ]*:[*_\"'(\[ ]*({_NUMBER}){scale}(?=[*_\"')\],;]|\.?\s|\.?$)"
    found = re.findall(rf"\[\[({_NUMBER})\]\]|{marked}", text, re.MULTILINE)
    values = {float(name) for pair in found for name in pair if name}
    return values.pop() if len(values) == 1 else None


# -- what is told of answers -------------------------------------------------------------------------------------------


def score_of(votes: Sequence[Answer], value: Callable[[float], float] = float) -> Score:
    """The mean of the votes that could be read, through `value`, as a graded score; where none could, a score without
    a value that says why."""
    values = [vote.value for vote in votes if vote.value is not None]
    flags = vote_flags(votes)
    if not values:
        first = votes[0]
        why = (
            f"the judge's answer holds no verdict: {first.details['verdict']!r:.{QUOTED}}" if first.why in READ else ""
        )
        return Score(None, first.verdict, why or first.why, flags=flags)
    found = value(fmean(values))
    return Score(found, "correct" if found >= 1 else "wrong", graded=True, flags=flags)


def vote_flags(votes: Sequence[Answer]) -> dict[str, float]:
    """`judge/parse_rate`, the share of given answers that hold a verdict, and `judge/agreement`, how often two of them
    are the same; absent where there is nothing to count."""
    given = [vote for vote in votes if vote.value is not None or vote.why in READ]
    flags = {"judge/parse_rate": fmean(vote.value is not None for vote in given)} if given else {}
    same = agreement([vote.value for vote in given if vote.value is not None])
    return flags if same is None else {**flags, "judge/agreement": same}


def agreement(values: Sequence[float]) -> float | None:
    """How likely two different ones of the values are equal; None for fewer than two.

    >>> agreement([1.0, 1.0, 0.0])
    0.3333333333333333
    """
    number = len(values)
    if number < 2:
        return None
    equal = sum(n * (n - 1) for n in Counter(values).values())
    return equal / (number * (number - 1))

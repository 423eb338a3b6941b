"""A language model says which of two completions is better (RLAIF, Lee et al. 2023, arXiv:2309.00267).

The soft label is the softmax of the log-probabilities of the two options' texts, asked in both orders and averaged, so
that a judge that prefers whatever it sees first has no say. With `reasoning` the judge writes its reasons before the
verdict. Where log-probabilities cannot be had, mode "text" reads the verdict from what the judge writes: a win, a loss
or a tie, and prose without a verdict is counted, never a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fiducial.core.types import Prompt
from fiducial.data.feedback.comparing import Comparison, Judgement
from fiducial.data.feedback.writer import Side, fill, transcript
from fiducial.judges.asking import Answer, LMJudge, Question, read_choice
from fiducial.judges.output import output_of

CRITERION = "which one is more helpful, honest and harmless"

# A file of one's own has to hold PLACES; {task} stands where the judge is told how to answer.
PLACES = ("prompt", "first", "second")
TEMPLATE = """\
Two responses to the same conversation follow. Judge {criterion}.

[Conversation]
{prompt}

[Response {A}]
{first}

[Response {B}]
{second}

{task}"""
UNANSWERED = "(This response ends before it answers.)"
VERDICT = "Better response:"
TASKS = {
    ("logprobs", False): f"Answer with {{A}} or {{B}} only.\n{VERDICT}",
    ("logprobs", True): "Explain in a few sentences which response is better.\nExplanation:",
    ("text", False): f"Answer with one line: '{VERDICT} {{A}}', '{VERDICT} {{B}}' or '{VERDICT} tie'.",
    ("text", True): "Explain in a few sentences which response is better. Then end with one line: "
    f"'{VERDICT} {{A}}', '{VERDICT} {{B}}' or '{VERDICT} tie'.",
}
ASK_AGAIN = f"So which response is better? Answer with {{A}} or {{B}} only.\n{VERDICT}"  # after a chat model's reasons


@dataclass(frozen=True)
class AIJudge(LMJudge):
    """A language model as a `PairJudge`. Its probability is that of what it is shown first: ask it by `both_orders`.

    options: what it is to call the first and the second response. criterion: what is judged, unless a comparison's own
    field `criterion` says. reads: "whole", or "answer", what follows a response's thoughts. The template may also name
    the comparison's other fields.
    """

    options: tuple[str, str] = ("A", "B")
    criterion: str = CRITERION
    template: str = TEMPLATE
    reads: Literal["whole", "answer"] = "whole"
    symmetric = False

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.options)) != 2 or not all(option.strip() for option in self.options):
            raise ValueError(f"a judge needs two different option texts; they are {self.options}")

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        return [_judgement(votes) for votes in self.ask([self.question(comparison) for comparison in comparisons])]

    def question(self, comparison: Comparison) -> Question:
        """What the judge is asked of one comparison, in the order a, b."""
        names = {"A": self.options[0], "B": self.options[1]}
        values = {
            "criterion": str(comparison.fields.get("criterion", self.criterion)),
            "prompt": transcript(comparison.prompt),
            "first": self._shown(comparison.a, comparison.prompt),
            "second": self._shown(comparison.b, comparison.prompt),
            "task": fill(TASKS[self.mode, self.reasoning], names),
        }
        fields = {name: str(value) for name, value in comparison.fields.items()}
        return Question(
            fill(self.template, {**fields, **names, **values}),
            dict(zip(self.options, (1.0, 0.0), strict=True)),
            lambda text: read_verdict(text, self.options),
            VERDICT,
            fill(ASK_AGAIN, names),
        )

    def _shown(self, side: Side, prompt: Prompt) -> str:
        text = output_of(side, prompt) if self.reads == "answer" and isinstance(side, str) else side
        return UNANSWERED if text is None else transcript(text)


def _judgement(votes: Sequence[Answer]) -> Judgement:
    """The mean of the votes with a verdict, which is that of a single one as it stands."""
    values = [vote.value for vote in votes if vote.value is not None]
    if len(votes) == 1 or not values:
        return Judgement(votes[0].value, votes[0].why, votes[0].details, votes=tuple(vote.value for vote in votes))
    details = {name: [vote.details.get(name) for vote in votes] for name in votes[0].details if name != "option_mass"}
    return Judgement(fmean(values), details=details, votes=tuple(vote.value for vote in votes))


def read_verdict(text: str, options: tuple[str, str] = ("A", "B")) -> float | None:
    """The verdict in a judge's text: 1 for the first option, 0 for the second, 1/2 for a tie, None for anything else.

    A verdict is a text that is nothing but an option, `[[A]]`, or a line's "Better response: A". Two verdicts that
    differ are none.

    >>> read_verdict("B."), read_verdict("Better response: tie"), read_verdict("A good answer is hard to give.")
    (0.0, 0.5, None)
    """
    return read_choice(text, VERDICT, {options[0]: 1.0, options[1]: 0.0}, {"tie": 0.5})

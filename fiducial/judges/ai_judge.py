"""A language model says which of two completions is better (RLAIF, Lee et al. 2023, arXiv:2309.00267).

The soft label is the softmax of the log-probabilities of the two options' texts, asked in both orders and averaged, so
that a judge that prefers whatever it sees first has no say. With `reasoning` the judge writes its reasons before the
verdict. Where log-probabilities cannot be had, mode "text" reads the verdict from what the judge writes: a win, a loss
or a tie, and prose without a verdict is counted, never a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Message, Prompt
from fiducial.data.feedback.comparing import Comparison, Judgement, sigmoid
from fiducial.data.feedback.labelling import TOO_LONG, UNREADABLE
from fiducial.data.feedback.writer import Fits, Writer, always_fits, asked, fill, transcript, write, written

MODES = ("logprobs", "text")
NO_OPTION = "options have no probability"
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
class AIJudge:
    """A language model as a `PairJudge`. Its probability is that of what it is shown first: ask it by `both_orders`.

    writer: the model. mode: "logprobs" (softmax of the two options) or "text" (the verdict is read). reasoning: it
    explains before the verdict. options: what it is to call the first and the second response. criterion: what is
    judged, unless a comparison's own field `criterion` says. chat: the template is a user's message, else text to go
    on with. decoding: of what it writes, greedy by default. fits: comparisons that leave it no room are not judged.
    """

    writer: Writer
    mode: Literal["logprobs", "text"] = "logprobs"
    reasoning: bool = False
    options: tuple[str, str] = ("A", "B")
    criterion: str = CRITERION
    template: str = TEMPLATE
    chat: bool = False
    decoding: Decoding = Decoding(max_new_tokens=256, temperature=0.0)
    seed: int = 0
    fits: Fits = always_fits
    name: str = "ai"
    symmetric = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"a judge's mode is {' or '.join(MODES)}; it is {self.mode!r}")
        if len(set(self.options)) != 2 or not all(option.strip() for option in self.options):
            raise ValueError(f"a judge needs two different option texts; they are {self.options}")

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        prompts = [self.prompt(comparison) for comparison in comparisons]
        if self.mode == "logprobs" and not self.reasoning:
            return [self._choose(prompt, {}) for prompt in prompts]
        fitting = [i for i, prompt in enumerate(prompts) if self.fits(prompt, self.decoding.max_new_tokens)]
        rollouts = write(self.writer, [prompts[i] for i in fitting], mix(self.seed, "judge"), self.decoding)
        found = [Judgement(None, TOO_LONG)] * len(prompts)
        for i, rollout in zip(fitting, rollouts, strict=True):
            text = written(rollout, self.decoding)
            found[i] = self._read(text) if self.mode == "text" else self._choose_after(prompts[i], text)
        return found

    def prompt(self, comparison: Comparison) -> Prompt:
        """What the judge is asked of one comparison, in the order a, b."""
        names = {"A": self.options[0], "B": self.options[1]}
        values = {
            "criterion": str(comparison.fields.get("criterion", self.criterion)),
            "prompt": transcript(comparison.prompt),
            "first": transcript(comparison.a),
            "second": transcript(comparison.b),
            "task": fill(TASKS[self.mode, self.reasoning], names),
        }
        return asked(fill(self.template, {**names, **values}), self.chat)

    def _choose(self, prompt: Prompt, details: dict[str, Any]) -> Judgement:
        """The verdict by the log-probabilities of the options after `prompt`."""
        lead = "" if self.chat else " "
        options = [lead + option for option in self.options]
        if not self.fits(prompt, option_room(options)):
            return Judgement(None, TOO_LONG, details)
        first, second = (option_logprob(self.writer, prompt, option) for option in options)
        if not (math.isfinite(first) and math.isfinite(second)):
            return Judgement(None, NO_OPTION, details)
        mass = math.exp(first) + math.exp(second)
        return Judgement(sigmoid(first - second), details={**details, "option_mass": mass})

    def _choose_after(self, prompt: Prompt, reasons: str) -> Judgement:
        """The verdict after the judge's own reasons."""
        again = fill(ASK_AGAIN, {"A": self.options[0], "B": self.options[1]})
        if isinstance(prompt, str):
            full: Prompt = f"{prompt} {reasons}\n{VERDICT}"
        else:
            turns: list[Message] = [{"role": "assistant", "content": reasons}, {"role": "user", "content": again}]
            full = [*prompt, *turns]
        return self._choose(full, {"rationale": reasons})

    def _read(self, text: str) -> Judgement:
        probability = read_verdict(text, self.options)
        return Judgement(probability, "" if probability is not None else UNREADABLE, {"verdict": text})


def option_logprob(writer: Writer, prompt: Prompt, option: str) -> float:
    """Log-probability of an option's tokens after a prompt; whether the writer would stop there does not count."""
    tokens = writer.logprobs(prompt, option)[:-1]
    if not len(tokens):
        raise ValueError(f"the judge's tokenizer writes the option {option!r} without a token; name another")
    return float(tokens.double().sum())


def option_room(options: Sequence[str]) -> int:
    """How many tokens the longest option and a stop token have at most: a token writes a byte at least."""
    return max(len(option.encode()) for option in options) + 1


def read_verdict(text: str, options: tuple[str, str] = ("A", "B")) -> float | None:
    """The verdict in a judge's text: 1 for the first option, 0 for the second, 1/2 for a tie, None for anything else.

    A verdict is a text that is nothing but an option, `[[A]]`, or a line's "Better response: A". Two verdicts that
    differ are none.

    >>> read_verdict("B."), read_verdict("Better response: tie"), read_verdict("A good answer is hard to give.")
    (0.0, 0.5, None)
    """
    names = {options[0]: 1.0, options[1]: 0.0, "tie": 0.5}
    bare = text.strip(" \n\t.*_\"'()[]")
    if bare in names or bare.lower() == "tie":
        return names.get(bare, 0.5)
    option = "|".join([*map(re.escape, options), "(?i:tie)"])
    marked = rf"(?i:{re.escape(VERDICT[:-1])})[*_ ]*:[*_\"'(\[ ]*({option})(?=[*_\"')\].,;:]|\s*$)"
    found = re.findall(rf"\[\[({option})\]\]|{marked}", text, re.MULTILINE)
    verdicts = {names.get(name, 0.5) for pair in found for name in pair if name}
    return verdicts.pop() if len(verdicts) == 1 else None

"""Direct AI feedback (d-RLAIF, Lee et al. 2023, arXiv:2309.00267): a language model's rating of one completion as its
reward, without pairs and without a reward model.

The judge is asked for a rating from 1 to 10. The reward is the mean of the scale under its probabilities of the ten
ratings, normalised to add up to 1, and mapped to [-1, 1].
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fiducial.core.types import Score
from fiducial.data.feedback.labelling import TOO_LONG
from fiducial.data.feedback.writer import Fits, Writer, always_fits, asked, fill, transcript
from fiducial.judges.ai_judge import option_logprob, option_room

SCALE = range(1, 11)
TEMPLATE = """\
A response to a conversation follows. Rate it from 1, the worst, to 10, the best, by {criterion}.

[Conversation]
{prompt}

[Response]
{response}

Answer with a number from 1 to 10 only.
Rating:"""


@dataclass
class AIScore:
    """A language model as a reward in [-1, 1]; its fields are those of `AIJudge`.

    A completion that does not fit has the verdict "skipped". Every score is graded.
    """

    writer: Writer
    criterion: str = "how helpful, honest and harmless it is"
    template: str = TEMPLATE
    chat: bool = False
    fits: Fits = always_fits
    name: str = "ai"

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        pairs = zip(completions, rows, strict=True)
        return [self._score(completion, transcript(row.get("prompt", ""))) for completion, row in pairs]

    def _score(self, completion: str, prompt: str) -> Score:
        began = time.perf_counter()
        values = {"criterion": self.criterion, "prompt": prompt, "response": completion}
        request = asked(fill(self.template, values), self.chat)
        lead = "" if self.chat else " "
        ratings = [f"{lead}{rating}" for rating in SCALE]
        if not self.fits(request, option_room(ratings)):
            return Score(None, "skipped", TOO_LONG)
        logprobs = torch.tensor([option_logprob(self.writer, request, rating) for rating in ratings]).double()
        mean = float(logprobs.softmax(0) @ torch.tensor(list(SCALE)).double())
        value = (2 * mean - SCALE[0] - SCALE[-1]) / (SCALE[-1] - SCALE[0])
        score = Score.of_number(value)
        return replace(score, graded=True, why=f"mean rating {mean:.2f}", seconds=time.perf_counter() - began)

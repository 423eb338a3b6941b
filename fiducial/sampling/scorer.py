"""Trained reward and preference models as rewards: they score texts in batches."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fiducial import models
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Message, Pair, Prompt, Score
from fiducial.data.feedback.comparing import sigmoid
from fiducial.data.preferences.normalisation import Normalisation, calibrate
from fiducial.models.chat import encode
from fiducial.models.folder import read_config
from fiducial.models.heads import save_reward_model, score_reads
from fiducial.rewards import RewardError

BATCH = 32
Side = str | list[Message]


def load_scorer(folder: str | Path) -> ModelReward | PairScorer:
    """The reward or preference model in a folder. ValueError if it is neither."""
    reads_pairs = score_reads(read_config(Path(folder))) == "pair"
    return (PairScorer if reads_pairs else ModelReward).load(folder)


@torch.inference_mode()
def score_texts(model: models.RewardModel, rows: Sequence[Encoded]) -> list[float]:
    """The score of each row, in order. RewardError if one is not a finite number.

    Rows of like length share a batch, so that little of it is padding.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].token_ids))
    found = [0.0] * len(rows)
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        batch = collate([rows[i] for i in places])
        for i, score in zip(places, model(batch.input_ids, batch.extra["lengths"]).tolist(), strict=True):
            if not math.isfinite(score):
                raise RewardError(
                    f"the reward model's score of a text of {len(rows[i].token_ids)} tokens is {score}: "
                    "check its weights"
                )
            found[i] = score
    return found


class ModelReward:
    """Scores by a reward model: any number, and `graded`, since its scale has no place where right begins. `name` is
    its folder's."""

    def __init__(self, model: models.RewardModel, tokenizer: Any, name: str = "reward_model"):
        self.model, self.tokenizer, self.name = model, tokenizer, name

    @staticmethod
    def load(folder: str | Path) -> ModelReward:
        """The reward model in a folder that `bt_reward_model` (or anyone) wrote. ValueError if it is none."""
        model, tokenizer = models.load_reward_model(folder)
        return ModelReward(model, tokenizer, Path(folder).name)

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        encoded = [self._encode(c, row.get("prompt", "")) for c, row in zip(completions, rows, strict=True)]
        began = time.perf_counter()
        values = iter(self.scores([e for e in encoded if isinstance(e, Encoded)]))
        each = (time.perf_counter() - began) / max(len(encoded), 1)
        return [e if isinstance(e, Score) else _score(next(values), each) for e in encoded]

    def _encode(self, completion: str, prompt: Prompt) -> Encoded | Score:
        row = encode(self.tokenizer, prompt, completion)
        limit = self.model.config.max_length
        if len(row.token_ids) > limit:
            return Score(None, "skipped", f"{len(row.token_ids)} tokens are more than the reward model reads ({limit})")
        return row

    def scores(self, rows: Sequence[Encoded]) -> list[float]:
        """The score of each row, in order."""
        return score_texts(self.model, rows)

    def sides(self, pair: Pair) -> list[Encoded]:
        """The two texts of a pair that are scored."""
        return [encode(self.tokenizer, pair.prompt, side) for side in (pair.chosen, pair.rejected)]

    def margin(self, chosen: float, rejected: float) -> float:
        """The log-odds that the chosen completion is better, from the scores of `sides`."""
        return chosen - rejected


def _score(value: float, seconds: float) -> Score:
    return replace(Score.of_number(value), graded=True, seconds=seconds)


class PairScorer:
    """A model that compares two completions (`pairwise_preference_model`), asked in both orders; as a reward it is a
    `judges.Tournament`."""

    def __init__(self, model: models.RewardModel, tokenizer: Any, name: str = "preference_model"):
        self.model, self.tokenizer, self.name = model, tokenizer, name

    @staticmethod
    def load(folder: str | Path) -> PairScorer:
        """The preference model in a folder. ValueError if it is none."""
        model, tokenizer = models.load_reward_model(folder, reads="pair")
        return PairScorer(model, tokenizer, Path(folder).name)

    def sides(self, pair: Pair) -> list[Encoded]:
        """The two texts of a pair that are scored: chosen first, and rejected first."""
        both = (pair.chosen, pair.rejected)
        return [models.encode_joint(self.tokenizer, pair.prompt, *order) for order in (both, both[::-1])]

    def margin(self, chosen: float, rejected: float) -> float:
        """The log-odds that the chosen completion is better, from the scores of `sides`."""
        return (chosen - rejected) / 2

    def scores(self, rows: Sequence[Encoded]) -> list[float]:
        """g of each text: before the two orders are put together, the log-odds that the first completion is better."""
        return score_texts(self.model, rows)

    def logits(self, comparisons: Sequence[tuple[Prompt, Side, Side]]) -> list[float | None]:
        """Log-odds that the first completion beats the second; None where both are more than the model reads."""
        found: list[float | None] = [None] * len(comparisons)
        texts: list[Encoded] = []
        fitting = []
        for i, (prompt, first, second) in enumerate(comparisons):
            sides = self.sides(Pair(prompt, first, second))
            if max(len(side.token_ids) for side in sides) <= self.model.config.max_length:
                texts += sides
                fitting.append(i)
        scores = self.scores(texts)
        for i, first, second in zip(fitting, scores[::2], scores[1::2], strict=True):
            found[i] = self.margin(first, second)
        return found

    def probabilities(self, comparisons: Sequence[tuple[Prompt, Side, Side]]) -> list[float | None]:
        """How likely the first completion is better; None where both are more than the model reads."""
        return [None if x is None else sigmoid(x) for x in self.logits(comparisons)]


def normalise_reward(
    folder: str | Path,
    completions: Sequence[str],
    rows: Sequence[dict[str, Any]],
    mode: Normalisation = "global",
    out: str | Path | None = None,
) -> tuple[float, float]:
    """Give a reward model mean 0 on these completions, samples of the reference policy (Ziegler et al. 2019,
    arXiv:1909.08593), and with "global_std" also standard deviation 1.

    Shift and scale enter the head and are saved, to `out` or the same folder; returns both. Differences between
    completions of a prompt, and so preferences, stay what they were ("global_std" divides them). ValueError for
    "per_prompt", which no head can hold, and where a completion cannot be scored.
    """
    if mode == "per_prompt":
        raise ValueError("a mean per prompt cannot be saved in a model: use global or global_std, or normalise scores")
    reward = ModelReward.load(folder)
    scores = reward(completions, rows)
    if bad := next((score for score in scores if score.value is None), None):
        raise ValueError(f"the calibration set for {folder} holds a completion without a score: {bad.why}")
    shift, scale = calibrate(torch.tensor([[score.value for score in scores]], dtype=torch.float64), mode)
    reward.model.rescale(float(shift), float(scale))
    save_reward_model(reward.model, reward.tokenizer, out or folder)
    return float(shift), float(scale)

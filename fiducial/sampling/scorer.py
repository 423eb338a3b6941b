"""A trained reward model as a reward: it scores texts in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fiducial import models
from fiducial.core.tokens import collate
from fiducial.core.types import Encoded, Prompt, Score
from fiducial.models.chat import encode

BATCH = 32


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
        values = iter(list(self.scores([e for e in encoded if isinstance(e, Encoded)])))
        each = (time.perf_counter() - began) / max(len(encoded), 1)
        return [e if isinstance(e, Score) else _score(next(values), each) for e in encoded]

    def _encode(self, completion: str, prompt: Prompt) -> Encoded | Score:
        row = encode(self.tokenizer, prompt, completion)
        limit = self.model.config.max_length
        if len(row.token_ids) > limit:
            return Score(None, "skipped", f"{len(row.token_ids)} tokens are more than the reward model reads ({limit})")
        return row

    @torch.inference_mode()
    def scores(self, rows: Sequence[Encoded]) -> Iterator[float]:
        """The score of each row, in order."""
        for start in range(0, len(rows), BATCH):
            batch = collate(rows[start : start + BATCH])
            yield from self.model(batch.input_ids, batch.extra["lengths"]).tolist()


def _score(value: float, seconds: float) -> Score:
    return replace(Score.of_number(value), graded=True, seconds=seconds)

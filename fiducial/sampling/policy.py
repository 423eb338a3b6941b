"""A model folder as a person at a prompt wants it: logits, log-probabilities, samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiducial import models
from fiducial.core.seeds import mix
from fiducial.core.tokens import collate, pad, token_logprobs
from fiducial.core.types import Decoding, Encoded, Message, Prompt, Request, Rollout
from fiducial.models.protocol import CausalLM, device_of
from fiducial.sampling.local import LocalSampler, eval_mode


class Policy:
    """A language model and its tokenizer; `fiducial.load(folder)` gives one.

    policy = fiducial.load("runs/demo/grpo/model")
    policy.sample(["Gus has 17."], n=4, temperature=0.7)
    """

    def __init__(self, model: CausalLM, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Policy:
        """The policy in a Hugging Face folder."""
        return cls(*models.load(folder, dtype, device))

    def logits(self, input_ids: Tensor) -> Tensor:
        """input_ids [B, L], right-padded -> logits [B, L, V]; with gradient."""
        return self.model(input_ids.to(device_of(self.model)))

    def logprobs(self, prompt: Prompt, completion: str | list[Message]) -> Tensor:
        """Log-probability of each token of the completion after the prompt, its stop token last, [T].

        A chat's later user turns are context: only what the assistant wrote is scored.
        """
        batch = collate([models.encode(self.tokenizer, prompt, completion)]).to(device_of(self.model))
        with torch.inference_mode(), eval_mode(self.model):
            return token_logprobs(self.model(batch.input_ids), batch.input_ids)[batch.mask]

    def fits(self, prompt: Prompt, tokens: int) -> bool:
        """Whether the model reads a prompt and so many more tokens."""
        return len(models.encode_prompt(self.tokenizer, prompt)) + tokens <= self.model.config.max_length

    @property
    def chats(self) -> bool:
        """Whether it has a chat template, so that a judge asks it as a user does."""
        return bool(self.tokenizer.chat_template)

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[list[float]]:
        """For each prompt the log-probability that the completion begins with each of `options`, all its tokens.

        Whether it would stop there does not count. ValueError for an option that the tokenizer writes without a token.
        """
        rows: list[Encoded] = []
        for prompt in prompts:
            for option in options:
                row = models.encode(self.tokenizer, prompt, option)
                if sum(row.mask) < 2:
                    raise ValueError(f"the tokenizer writes the option {option!r} without a token; name another")
                rows.append(_without_stop(row))
        found = [0.0] * len(rows)
        with torch.inference_mode(), eval_mode(self.model):
            for wanted in _batches(rows):
                for i, logprob in zip(wanted, self._row_logprobs([rows[i] for i in wanted]), strict=True):
                    found[i] = logprob
        return [found[i : i + len(options)] for i in range(0, len(found), len(options))]

    def _row_logprobs(self, rows: Sequence[Encoded]) -> list[float]:
        """Log-probability of the masked tokens of each row together."""
        contexts: dict[tuple[int, ...], int] = {}  # all but the last token -> its place: options of one token share it
        place = [contexts.setdefault(tuple(row.token_ids[:-1]), len(contexts)) for row in rows]
        device = device_of(self.model)
        hidden = self.model.hidden(pad(list(contexts), torch.int64).to(device))
        wanted = [
            (place[r], t - 1, row.token_ids[t], r) for r, row in enumerate(rows) for t, m in enumerate(row.mask) if m
        ]
        at, before, token, of = (torch.tensor(column, device=device) for column in zip(*wanted, strict=True))
        spots, spot = torch.stack([at, before]).unique(dim=1, return_inverse=True)
        scores = self.model.head(hidden[spots[0], spots[1]]).double().log_softmax(-1)  # [M, V]
        sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
        return sums.index_add(0, of, scores[spot, token]).tolist()

    def sample(self, prompts: Prompt | Sequence[Prompt], n: int = 1, seed: int = 0, **decoding: Any) -> list[Rollout]:
        """n completions of each prompt, prompt by prompt; `decoding` are the fields of `core.types.Decoding`."""
        requests = [
            Request(models.encode_prompt(self.tokenizer, prompt), mix(seed, "policy", i, copy), prompt, group=i)
            for i, prompt in enumerate(asked_prompts(prompts, n))
            for copy in range(n)
        ]
        return LocalSampler(self.model, self.tokenizer).sample(requests, Decoding(**decoding))


def asked_prompts(prompts: Prompt | Sequence[Prompt], n: int) -> list[Prompt]:
    """One prompt or several, as a list. ValueError if n completions of each are none."""
    if n < 1:
        raise ValueError(f"n must be at least 1 completion a prompt; it is {n}")
    many: Any = prompts
    one = isinstance(many, str) or (bool(many) and isinstance(many[0], dict))  # a text, or messages
    return [many] if one else list(many)


def _without_stop(row: Encoded) -> Encoded:
    """The row without the last token, which ends it."""
    return Encoded(row.token_ids[:-1], row.mask[:-1])


def _batches(rows: Sequence[Encoded], size: int = 64) -> list[list[int]]:
    """Places of rows, those of like length together and in the order of what they begin with."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].token_ids), rows[i].token_ids))
    return [order[i : i + size] for i in range(0, len(order), size)]

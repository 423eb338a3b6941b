"""A model folder as a person at a prompt wants it: logits, log-probabilities, samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fiducial import models
from fiducial.core.seeds import mix
from fiducial.core.tokens import collate, token_logprobs
from fiducial.core.types import Decoding, Message, Prompt, Request, Rollout
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

    def sample(self, prompts: Prompt | Sequence[Prompt], n: int = 1, seed: int = 0, **decoding: Any) -> list[Rollout]:
        """n completions of each prompt, prompt by prompt; `decoding` are the fields of `core.types.Decoding`."""
        if n < 1:
            raise ValueError(f"n must be at least 1 completion a prompt; it is {n}")
        asked: list[Any] = [prompts] if isinstance(prompts, str) or _is_chat(prompts) else list(prompts)
        requests = [
            Request(models.encode_prompt(self.tokenizer, prompt), mix(seed, "policy", i, copy), prompt, group=i)
            for i, prompt in enumerate(asked)
            for copy in range(n)
        ]
        return LocalSampler(self.model, self.tokenizer).sample(requests, Decoding(**decoding))


def _is_chat(prompts: Any) -> bool:
    """Whether this is one prompt made of messages rather than a list of prompts."""
    return bool(prompts) and isinstance(prompts[0], dict)

"""A made-up language that a small decoder learns in seconds, with a gold reward that is known.

Four topics, 16 words. A reply to a topic is a chain: each word draws the next one from the topic's own table, and may
be the last. Each word has a worth, and a reply's gold reward is the mean over its words, where a word that came before
in the reply is worth nothing, so that to repeat the best word does not pay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fiducial import models
from fiducial.config import Optim
from fiducial.core.seeds import mix
from fiducial.core.tokens import align, collate, next_token_logits, token_logprobs
from fiducial.core.types import Decoding, Encoded, Request, Rollout, Score, Tokens
from fiducial.evals.diagnostics import completion_kl
from fiducial.evals.evaluate import diversity
from fiducial.evals.pairs import Likelihoods, likelihoods
from fiducial.labs.training import training
from fiducial.models.chat import encode, encode_prompt
from fiducial.sampling.local import LocalSampler
from fiducial.sampling.policy import Policy
from fiducial.train.parts import Report

TOPICS = ("Art", "Bees", "Chess", "Dogs")
WORDS = tuple(consonant + vowel for consonant in "bdfg" for vowel in "aeio")
END = 0.15  # the chance that a reply ends after a word
LONGEST = 16  # words
BATCH = 32  # rows or pairs of a step


@dataclass(frozen=True)
class Judged:
    """Two replies to one topic, the preferred one first; reads like a row of a data set."""

    encoded: tuple[Encoded, Encoded]


class Language:
    """One language: its tables, its tokenizer (a token a word), and the worth of its words."""

    def __init__(self, seed: int):
        draw = torch.Generator().manual_seed(mix(seed, "language"))
        self.seed = seed
        self.logits = 1.5 * torch.randn(len(TOPICS), len(WORDS) + 1, len(WORDS), generator=draw)  # last: at the start
        self.worth = dict(zip(WORDS, torch.randn(len(WORDS), generator=draw).tolist(), strict=True))
        self.tokenizer = models.train_tokenizer([" ".join((*TOPICS, *WORDS))], "word")

    def reply(self, table: Tensor, draw: torch.Generator) -> str:
        """What somebody says whose next word is drawn from softmax(table [words + 1, words])."""
        said: list[int] = []
        while len(said) < LONGEST - 1:
            said.append(int(torch.multinomial(table[said[-1] if said else -1].softmax(-1), 1, generator=draw)))
            if float(torch.rand((), generator=draw)) < END:
                break
        return " ".join(WORDS[word] for word in said)

    def demos(self, number: int, topics: Sequence[int] = range(len(TOPICS)), tilt: float = 1.0) -> list[Encoded]:
        """Replies to some topics in turn, as rows that train. The tables' logits are multiplied by `tilt`: at -1 what
        was likely is unlikely."""
        draw = torch.Generator().manual_seed(mix(self.seed, "demonstrations", *topics, str(tilt)))
        turns = [topics[i % len(topics)] for i in range(number)]
        return [encode(self.tokenizer, TOPICS[t], self.reply(tilt * self.logits[t], draw)) for t in turns]

    def fresh(self) -> Any:
        """A decoder with random weights."""
        tokenizer = self.tokenizer
        config = models.DecoderConfig(
            vocab_size=len(tokenizer), hidden=64, layers=2, heads=2, max_length=LONGEST + 4,
            pad_id=tokenizer.pad_token_id, bos_id=tokenizer.bos_token_id, eos_ids=(tokenizer.eos_token_id,),
        )  # fmt: skip
        return models.new(config, seed=mix(self.seed, "weights"))

    def speaker(self, steps: int) -> Any:
        """A decoder that has learned the language by imitation."""
        model = self.fresh()
        for _ in imitation(model, self.demos(2000), steps, self.seed, lr=4e-3):
            pass
        return model

    def sample(self, model: Any, each: int, seed: int) -> list[list[Rollout]]:
        """`each` replies of a model to every topic, [topics][each]."""
        requests = [
            Request(encode_prompt(self.tokenizer, topic), mix(seed, "reply", i, copy), topic, group=i)
            for i, topic in enumerate(TOPICS)
            for copy in range(each)
        ]
        rollouts = LocalSampler(model, self.tokenizer).sample(requests, Decoding(max_new_tokens=LONGEST))
        return [rollouts[i : i + each] for i in range(0, len(rollouts), each)]

    def gold(self, reply: str) -> float:
        """The gold reward of a reply; 0 for one without words.

        >>> language = Language(0)
        >>> language.gold("ba ba") == language.worth["ba"] / 2
        True
        """
        said = [word for word in reply.split() if word in self.worth]
        return sum(self.worth[word] for word in sorted(set(said))) / len(said) if said else 0.0

    def pairs(self, model: Any, number: int, temperature: float, seed: int) -> list[Judged]:
        """At most `number` pairs of different replies of a model, labelled by Bradley-Terry on gold / temperature."""
        each = 2 * -(-number // len(TOPICS))
        groups = self.sample(model, each, mix(seed, "pairs"))
        draw = torch.Generator().manual_seed(mix(seed, "labels"))
        found = []
        for group in groups:
            for a, b in zip(group[::2], group[1::2], strict=True):
                gap = torch.tensor((self.gold(a.completion) - self.gold(b.completion)) / temperature)
                wins = float(torch.rand((), generator=draw)) < float(gap.sigmoid())
                if a.completion != b.completion:
                    sides = (a, b) if wins else (b, a)
                    found.append(Judged((_row(sides[0]), _row(sides[1]))))
        return found

    def likelihoods(self, model: Any, pairs: Sequence[Judged]) -> Likelihoods:
        """How likely a model finds both sides of pairs."""
        return likelihoods(Policy(model, self.tokenizer), pairs)  # type: ignore[arg-type]

    def measured(self, model: Any, ref: Any, groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
        """Of a model's own replies: gold reward, exact KL to the reference (nats a reply), words, and diversity."""
        flat = [rollout for group in groups for rollout in group]
        batch = collate([_row(rollout) for rollout in flat])
        with torch.inference_mode():
            logits = [network(batch.input_ids) for network in (model, ref)]
        ours, theirs = (token_logprobs(scores, batch.input_ids) for scores in logits)
        aligned = [align(next_token_logits(scores)) for scores in logits]
        return {
            "gold": fmean(self.gold(rollout.completion) for rollout in flat),
            "kl": float(completion_kl(ours, theirs, batch.mask, *aligned)["exact"].mean()),
            "words": fmean(len(rollout.completion.split()) for rollout in flat),
            **diversity(groups),
        }


class Gold:
    """A language's gold reward as whatever scores completions."""

    name = "gold"

    def __init__(self, language: Language):
        self.language = language

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        return [Score.of_number(self.language.gold(completion)) for completion in completions]


def _row(rollout: Rollout) -> Encoded:
    return Encoded(rollout.token_ids, rollout.mask)


def picked(rows: Sequence[Any], seed: int, step: int) -> list[Any]:
    """The rows of one step's batch, drawn with replacement by the seed and the step."""
    draw = torch.Generator().manual_seed(mix(seed, "batch", step))
    return [rows[i] for i in torch.randint(len(rows), (BATCH,), generator=draw).tolist()]


def imitation(
    model: Any, rows: Sequence[Encoded], steps: int, seed: int, lr: float, final: float = 0.1
) -> Iterator[Report]:
    """Train a model on batches of rows by sft, yielding after each step; the learning rate falls to `final` of it."""
    optim = Optim(lr=lr, schedule="cosine", final=final, warmup=5)
    return training("sft", model, lambda step: collate(picked(rows, seed, step)), optim, steps)


def preference_training(
    method: str, model: Any, ref: Any, pairs: Sequence[Judged], steps: int, seed: int, lr: float, **hparams: Any
) -> Iterator[Report]:
    """Train a model on batches of pairs by a method, yielding after each step."""

    def make(step: int) -> Tokens:
        taken = picked(pairs, seed, step)
        return collate([pair.encoded[side] for side in (0, 1) for pair in taken], pairs=True)

    return training(method, model, make, Optim(lr=lr, warmup=5), steps, ref=ref, seed=seed, **hparams)

"""Language models small enough to enumerate: a softmax table that writes one token, and a tree that writes up to T.

Both speak the causal-LM interface (`hidden`, `head`, `forward`), so the trainer runs on them unchanged. Free logits in
float64; a prompt is one token, its number.
"""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import torch
from torch import Tensor, nn


class SoftmaxTable(nn.Module):
    """theta [S, A]: the answer to prompt s is drawn from softmax(theta[s]). A row is [prompt, answer]."""

    def __init__(self, theta: Tensor):
        super().__init__()
        self.theta = nn.Parameter(theta.clone().double())
        self.config = SimpleNamespace(vocab_size=max(theta.shape), max_length=2)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token after each position: [B, L] -> [B, L, A]; only position 0 means anything."""
        return self.theta[input_ids[:, :1]].expand(-1, input_ids.shape[1], -1)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids))

    def probabilities(self) -> Tensor:
        """[S, A]"""
        return self.theta.detach().softmax(-1)


class TokenTree(nn.Module):
    """theta [S, nodes, V]: free next-token logits after every prefix of up to `depth` tokens, for each of S prompts.

    Token 0 stops. A row is [prompt, y_1, ..., y_t], right-padded with anything.
    """

    def __init__(self, vocab: int, depth: int, theta: Tensor | None = None, prompts: int = 1, seed: int = 0):
        super().__init__()
        self.vocab, self.depth = vocab, depth
        # A prefix is a number in base V + 1 with digits token + 1, so that 0 is the empty prefix.
        if theta is None:
            draw = torch.Generator().manual_seed(seed)
            theta = torch.randn(prompts, (vocab + 1) ** depth, vocab, generator=draw, dtype=torch.float64)
        self.theta = nn.Parameter(theta.clone().double())
        self.config = SimpleNamespace(vocab_size=vocab, max_length=depth + 1)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, V]: logits after each prefix; beyond the depth they mean nothing."""
        return self.theta[input_ids[:, :1], prefixes(input_ids, self.vocab, self.theta.shape[1])]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids))

    def expected(self, rewards: Tensor, prompt: int = 0) -> Tensor:
        """Exact V after every prefix that can be met, [nodes], 0 elsewhere: the mean of `rewards` [Y] over the ways in
        which the response may go on."""
        with torch.no_grad():
            chances = self.response_logprobs(prompt).exp()
        value, mass = torch.zeros(2, self.theta.shape[1], dtype=torch.float64)
        for chance, reward, response in zip(chances, rewards, self.responses(), strict=True):
            node = 0
            for token in response:
                value[node] += chance * reward
                mass[node] += chance
                node = node * (self.vocab + 1) + token + 1
        return torch.where(mass > 0, value / mass.clamp(min=1e-300), 0.0)

    def responses(self) -> list[tuple[int, ...]]:
        """The tokens of every complete response: those that stop (their last token is 0), and those of full depth."""
        found = []
        for t in range(1, self.depth + 1):
            for tokens in product(range(self.vocab), repeat=t):
                inner_stop = 0 in tokens[:-1]
                complete = tokens[-1] == 0 or t == self.depth
                if complete and not inner_stop:
                    found.append(tokens)
        return found

    def greedy(self, prompt: int = 0) -> int:
        """The number of the response whose every token is the likeliest after its prefix."""
        node, tokens = 0, []
        while len(tokens) < self.depth and 0 not in tokens:
            tokens.append(int(self.theta[prompt, node].argmax()))
            node = node * (self.vocab + 1) + tokens[-1] + 1
        return self.responses().index(tuple(tokens))

    def response_logprobs(self, prompt: int = 0) -> Tensor:
        """log pi(y | prompt) of every response, [Y], differentiable; their exponentials sum to 1."""
        out = []
        for response in self.responses():
            node, total = 0, torch.zeros((), dtype=torch.float64)
            for token in response:
                total = total + self.theta[prompt, node].log_softmax(-1)[token]
                node = node * (self.vocab + 1) + token + 1
            out.append(total)
        return torch.stack(out)


def prefixes(input_ids: Tensor, vocab: int, nodes: int) -> Tensor:
    """The number of the prefix that each position ends, [B, L]; beyond the depth the last one."""
    node = torch.zeros(len(input_ids), dtype=torch.long)
    found = [node]
    for t in range(1, input_ids.shape[1]):
        node = (node * (vocab + 1) + input_ids[:, t] + 1).clamp(max=nodes - 1)
        found.append(node)
    return torch.stack(found, 1)


class ValueTree(nn.Module):
    """A critic with a free forecast after every prefix of up to `depth` tokens; start is 0 or random."""

    def __init__(self, vocab: int, depth: int, prompts: int = 1, seed: int | None = None):
        super().__init__()
        self.vocab = vocab
        forecast = torch.zeros(prompts, (vocab + 1) ** depth, dtype=torch.float64)
        if seed is not None:
            forecast.normal_(generator=torch.Generator().manual_seed(seed))
        self.forecast = nn.Parameter(forecast)
        self.config = SimpleNamespace(vocab_size=vocab, max_length=depth + 1)

    def values(self, input_ids: Tensor) -> Tensor:
        """The forecast after each position: [B, L] -> [B, L]."""
        return self.forecast[input_ids[:, :1], prefixes(input_ids, self.vocab, self.forecast.shape[1])]


class ScoreTree(nn.Module):
    """A reward model with a free score for every prompt and response of up to `depth` tokens; start is 0 or random."""

    def __init__(self, vocab: int, depth: int, prompts: int = 1, seed: int | None = None):
        super().__init__()
        self.vocab = vocab
        scores = torch.zeros(prompts, (vocab + 1) ** depth, dtype=torch.float64)
        if seed is not None:
            scores.normal_(generator=torch.Generator().manual_seed(seed))
        self.scores = nn.Parameter(scores)
        self.config = SimpleNamespace(vocab_size=vocab, max_length=depth + 1)

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Score of each row up to its length: [B, L], [B] -> [B]."""
        node = torch.zeros(len(input_ids), dtype=torch.long)
        for t in range(1, input_ids.shape[1]):
            inside = t < lengths
            node = torch.where(inside, node * (self.vocab + 1) + input_ids[:, t] + 1, node)
        return self.scores[input_ids[:, 0], node]

    def table(self) -> Tensor:
        """Scores of the one-token responses, [S, V]."""
        return self.scores.detach()[:, 1 : self.vocab + 1]

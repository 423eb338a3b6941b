"""L27: the soft Q-function inside a DPO policy.

On a tree of tokens, at the KL-regularised optimum, beta log pi/ref of a token is Q - V: its sum over a response is the
reward less V of the prompt, and its prefix sum is the soft value of the prefix. The picture shows which tokens earn or
lose the reward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.exact.soft_values import SoftTree, soft_tree
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals
from fiducial.methods.token_dpo import prefix_sums, token_rewards

VOCAB, DEPTH, BETA = 3, 3, 0.5
LETTERS = "·ab"  # token 0 stops


def run(seed: int, fast: bool) -> Result:
    """A random tree with a random reward for each response."""
    ref = TokenTree(VOCAB, DEPTH, seed=seed)
    responses = ref.responses()
    rewards = normals(seed + 1, len(responses))
    solved = soft_tree(ref, rewards, BETA)
    rows, mask = _rows(responses)
    earned = torch.where(mask, token_rewards(_logprobs(solved.optimum, rows), _logprobs(ref, rows), BETA), 0.0)
    sums = prefix_sums(earned, mask)
    start = float(solved.v[0])
    sequence = (ref.response_logprobs().detach() + rewards / BETA).softmax(-1)
    criteria = [
        Criterion("sum of token rewards = r - V(start)", _worst(sums[:, -1], rewards - start), "<", 1e-10),
        Criterion("prefix sums = V(prefix) - V(start)", _worst(*_prefixes(solved, responses, sums, start)), "<", 1e-10),
        Criterion("token-wise optimum = ref exp(r/beta)/Z",
                  _worst(solved.optimum.response_logprobs().detach().exp(), sequence), "<", 1e-10),
    ]  # fmt: skip
    order = rewards.argsort(descending=True).tolist()
    names = ["".join(LETTERS[token] for token in responses[i]) for i in order]
    series: dict[str, Any] = {"response": names, "reward": rewards[order]}
    series |= {f"token {t}": earned[order, t] for t in range(1, DEPTH + 1)}
    shown = torch.where(mask, earned, torch.nan)[order, 1:]
    figures = {"tokens": Plot(lambda ax: _draw(ax, shown, names, rewards[order]), width=5.6, height=5.2)}
    note = f"V(start) = {start:.3f}; dots are the stop token."
    return Result({"token_rewards": series}, figures, criteria, note)


def _rows(responses: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Prompt 0 and each response, padded: ids and mask, [Y, 1 + depth]."""
    ids = torch.zeros(len(responses), DEPTH + 1, dtype=torch.long)
    mask = torch.zeros(len(responses), DEPTH + 1, dtype=torch.bool)
    for i, response in enumerate(responses):
        ids[i, 1 : len(response) + 1] = torch.tensor(response)
        mask[i, 1 : len(response) + 1] = True
    return ids, mask


def _logprobs(tree: TokenTree, rows: Tensor) -> Tensor:
    """Of each token given those before it, [Y, L]; of the prompt 0."""
    logs = tree(rows).detach().log_softmax(-1)[:, :-1].gather(-1, rows[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logs, (1, 0))


def _prefixes(solved: SoftTree, responses: list[tuple[int, ...]], sums: Tensor, start: float) -> tuple[Tensor, Tensor]:
    """Prefix sums of every inner prefix, and its soft value less that of the prompt."""
    found, expected = [], []
    for i, response in enumerate(responses):
        node = 0
        for t, token in enumerate(response[:-1], 1):
            node = node * (VOCAB + 1) + token + 1
            found.append(sums[i, t])
            expected.append(solved.v[node] - start)
    return torch.stack(found), torch.stack(expected)


def _worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _draw(ax: Any, shown: Tensor, names: list[str], rewards: Tensor) -> None:
    limit = float(shown.nan_to_num().abs().max())
    image = ax.imshow(shown.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="β log π/ref of the token (reward units)")
    for i, name in enumerate(names):
        for t, letter in enumerate(name):
            strong = abs(float(shown[i, t])) > 0.6 * limit
            ax.text(t, i, letter, ha="center", va="center", fontsize=9, color="white" if strong else "black")
    ax.set_xticks(range(DEPTH), [str(t + 1) for t in range(DEPTH)])
    ax.set_yticks(range(len(names)), [f"{r:+.2f}" for r in rewards.tolist()])
    ax.set(xlabel="token", ylabel="response, by its reward", title="Which tokens earn the reward")
    ax.grid(visible=False)


LAB = Lab(
    id="L27",
    name="token_q",
    title="The Q-function inside a DPO policy",
    claim="At the optimum the token rewards beta log pi/ref add up to the reward less V(start), and prefix sums are "
    "soft values, to machine precision.",
    source="Rafailov et al. 2024, arXiv:2404.12358",
    run=run,
)

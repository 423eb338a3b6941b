"""L47: what averaging over tokens does to the length of wrong answers.

A policy that cannot learn to be right: its first token, right or wrong, has a chance of 1/2 that does not train, and
then it writes filler until it stops, with a chance of its own at every place. The reward looks at the first token only,
so length earns nothing. Averaged within each completion (GRPO), a token of a long wrong answer is blamed less than one
of a short, and a token of a short right answer praised more: the wrong ones grow and the right ones shrink. With one
constant for all completions (Dr. GRPO) the two parts of the gradient are 0 on average, and lengths only drift. Prompts
share nothing: 64 of them are 64 repetitions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fiducial.core.seeds import mix
from fiducial.core.types import Tokens
from fiducial.evals.stats import mean_interval
from fiducial.labs.base import BLUE, GREEN, GREY, ORANGE, Lab, Plot, Result, above
from fiducial.labs.online import adam
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run, make_parts
from fiducial.train.loop import steps
from fiducial.train.measure import Meter
from fiducial.train.parts import State

PROMPTS, N, LONGEST = 64, 16, 24  # LONGEST: tokens of filler at most
STOP, FILLER, RIGHT, WRONG = range(4)
NEVER = -1e9
WAYS = {"grpo": "within completions (GRPO)", "dapo": "over all tokens (DAPO)", "dr_grpo": "constant (Dr. GRPO)"}
COLOR = dict(zip(WAYS, (ORANGE, GREEN, BLUE), strict=True))


class Chain(nn.Module):
    """theta [S, 2, LONGEST]: the logit of one more token of filler at each place, after a right and a wrong start."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((PROMPTS, 2, LONGEST), 1.0, dtype=torch.float64))  # 3 or 4 tokens
        self.config = SimpleNamespace(vocab_size=4, max_length=LONGEST + 3)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token, [B, L] -> [B, L, 4]."""
        rows, length = input_ids.shape
        logits = torch.full((rows, length, 4), NEVER, dtype=torch.float64)
        logits[:, 0, RIGHT:] = 0.0
        places = min(length - 1, LONGEST)
        start = (input_ids[:, 1] - RIGHT).clamp(min=0)  # 0 right, 1 wrong
        logits[:, 1 : 1 + places, STOP] = 0.0
        logits[:, 1 : 1 + places, FILLER] = self.theta[input_ids[:, 0], start, :places]
        logits[:, 1 + places :, STOP] = 0.0
        return logits

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.hidden(input_ids))

    def lengths(self) -> Tensor:
        """The chance of k = 0 .. LONGEST tokens of filler, [S, 2, LONGEST + 1]."""
        more = torch.sigmoid(self.theta.detach())
        reached = torch.cat([torch.ones_like(more[..., :1]), more.cumprod(-1)], -1)
        return torch.cat([reached[..., :-1] - reached[..., 1:], reached[..., -1:]], -1)


class Starts:
    """N completions of each prompt, drawn from the policy as it is, rewarded by their first token."""

    def __init__(self, chain: Chain, seed: int):
        self.chain, self.seed = chain, seed

    def batch(self, step: int, meter: Meter) -> Tokens:
        draw = torch.Generator().manual_seed(mix(self.seed, "draws", step))
        start = torch.randint(2, (PROMPTS, N), generator=draw)  # 0 right, 1 wrong
        chances = self.chain.lengths()[torch.arange(PROMPTS)[:, None], start].reshape(PROMPTS * N, -1)
        filler = torch.multinomial(chances, 1, generator=draw)[:, 0]
        prompt, start = torch.arange(PROMPTS).repeat_interleave(N), start.reshape(-1)
        place = torch.arange(LONGEST + 3)[None]
        ids = torch.where(place - 2 < filler[:, None], FILLER, STOP)
        ids[:, 0], ids[:, 1] = prompt, start + RIGHT
        mask = (place >= 1) & (place <= filler[:, None] + 2)
        extra = {"rewards": (start == 0).double(), "lengths": filler + 3, "place": torch.arange(len(ids))}
        extra["step_size"] = torch.tensor(len(ids))
        return Tokens(ids, mask, torch.ones(len(ids), dtype=torch.float64), prompt, extra)


def path(way: str, number: int, seed: int) -> Tensor:
    """Mean length in tokens of right and of wrong answers, exactly, before each step and after the last: [T, S, 2]."""
    method, chain = METHODS[way], Chain()
    run = exact_run(method, n=N, steps=number, seed=seed, optim=adam(0.02), constant=float(LONGEST))
    parts = make_parts(method, chain, Starts(chain, mix(seed, "groups")), None)
    count = torch.arange(LONGEST + 1).double()
    found = [chain.lengths() @ count]
    for _ in steps(run, method, parts, State.begin(run, parts)):
        found.append(chain.lengths() @ count)
    return torch.stack(found)


def run(seed: int, fast: bool) -> Result:
    """The three ways of averaging, from the same policy and the same seeds."""
    number = 60 if fast else 200
    paths = {way: path(way, number, seed) for way in WAYS}
    growth = {way: p[-1] - p[0] for way, p in paths.items()}
    apart = mean_interval((growth["grpo"] - growth["dr_grpo"])[:, 1].tolist())
    shorter = mean_interval((growth["dr_grpo"] - growth["grpo"])[:, 0].tolist())
    grown = mean_interval(growth["grpo"][:, 1].tolist())
    criteria = [
        above("growth of wrong answers in tokens, within completions", grown, 0.0),
        above("growth of wrong answers, within completions minus constant", apart, 0.0),
        above("growth of right answers, constant minus within completions", shorter, 0.0),
    ]
    metrics = {f"growth of {kind} answers, {way}": float(g[:, i].mean())
               for way, g in growth.items() for i, kind in enumerate(("right", "wrong"))}  # fmt: skip
    table = {"step": torch.arange(number + 1)} | {
        f"{way} {kind}": p[..., i].mean(-1) for way, p in paths.items() for i, kind in enumerate(("right", "wrong"))
    }
    said = ", ".join(f"{metrics[f'growth of wrong answers, {way}']:+.1f} {WAYS[way]}" for way in WAYS)
    figures = {"lengths": Plot(lambda *axes: _draw(axes, table), panels=2)}
    return Result({"lengths": table}, figures, criteria, f"Wrong answers in tokens: {said}.", metrics)


def _draw(axes: Any, table: dict[str, Tensor]) -> None:
    for ax, kind in zip(axes, ("wrong", "right"), strict=True):
        for way, color in COLOR.items():
            style = "--" if way == "dr_grpo" else "-"  # it lies on DAPO's
            ax.plot(table["step"], table[f"{way} {kind}"], style, color=color, label=WAYS[way])
        ax.axhline(float(table[f"grpo {kind}"][0]), color=GREY, linewidth=0.8, zorder=0)
        ax.set(xlabel="step", title=f"{kind.capitalize()} answers")
    axes[0].set_ylabel("mean tokens of filler")
    axes[0].legend(title="loss averaged")


LAB = Lab(
    id="L47",
    name="online_length_bias",
    title="Averages over tokens make wrong answers long",
    claim="Where length earns nothing, GRPO's average within completions makes wrong answers longer and right ones "
    "shorter; Dr. GRPO's constant does not.",
    source="Liu et al. 2025, arXiv:2503.20783",
    run=run,
)

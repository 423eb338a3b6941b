"""L50: DAPO's higher clip and dynamic sampling.

Problems of 16 answers, four of them right with chances of 0.01 to 0.3 at first, and a noisy reward: 1 for right answers
seven times in ten, for wrong ones three times. On each batch eight updates are taken, so that the clipped ratio
matters: an answer of chance p can at most come to p (1 + clip_high) in a step. That never holds back an answer above
1 / (1 + clip_high), only rarer ones, so the frequent one takes all. With clip_high 0.28 or 0.4 in place of 0.2 it takes
less. (Adam's momentum is off: it carries answers on past the bound, and with it the three differ too little to tell.)

Half of the problems are solved or hopeless: their groups agree and teach nothing. The run's own feed leaves such groups
out, or draws further problems until the batch is full (`sampling.refill`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fiducial.config import Sampling
from fiducial.core.credit import group_mean
from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Encoded, Problem, Request, Rollout, Score, Tokens
from fiducial.data import Item
from fiducial.evals.stats import mean_interval
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import BLUE, COLORS, GREEN, GREY, ORANGE, Criterion, Lab, Plot, Result, above
from fiducial.labs.online import Draws, adam, online
from fiducial.methods import METHODS
from fiducial.prove.problems import exact_run, make_parts
from fiducial.train.feeds import GroupFeed
from fiducial.train.loop import steps
from fiducial.train.parts import State
from fiducial.train.runtime import Runtime

ANSWERS, PROMPTS, N, BATCH = 16, 128, 16, 16
RIGHT = torch.tensor([0.3, 0.1, 0.03, 0.01], dtype=torch.float64)  # chances of the right answers, the first four
CLIPS = {0.2: ORANGE, 0.28: GREEN, 0.4: BLUE}
FEEDS = {"as drawn": {}, "filter_groups": {"filter_groups": True}, "refill": {"refill": 8}}


def clipped(clip_high: float, number: int, seed: int) -> Tensor:
    """The policies [S, A] before each step and after the last, [T, S, A]."""
    wrong = (1 - RIGHT.sum()) / (ANSWERS - 4)
    start = torch.cat([RIGHT, wrong.expand(ANSWERS - 4)]).log()
    tree = TokenTree(ANSWERS, 1, start.expand(PROMPTS, ANSWERS + 1, -1))
    pays = torch.where(torch.arange(ANSWERS) < 4, 7, 3)  # times in ten
    rewards = (torch.arange(10) < pays[:, None]).double().expand(PROMPTS, -1, -1)
    found = [tree.theta.detach()[:, 0].softmax(-1)]
    feed = Draws(tree, rewards, N, mix(seed, "draws"))
    optim, settings = adam(0.05, epochs=8, betas=(0.0, 0.95)), {"clip_low": 0.2, "clip_high": clip_high}
    for _ in online("dapo", tree, feed, number, optim=optim, hparams=settings, n=N, seed=seed):
        found.append(tree.theta.detach()[:, 0].softmax(-1))
    return torch.stack(found)


class Quiz:
    """Problems of a table for the run's own feed; its own sampler and its own judge: answer 1 is right."""

    kind, source = "problems", SimpleNamespace(name="a quiz")

    def __init__(self, success: Tensor):
        self.success = success
        self.table = TokenTree(2, 1, torch.stack([(1 - success).log(), success.log()], -1)[:, None].expand(-1, 3, -1))

    def __len__(self) -> int:
        return len(self.success)

    def __getitem__(self, j: int) -> Item:
        return Item(Problem(str(j)), [Encoded([j], [False])])

    def sample(self, requests: Sequence[Request], decoding: Decoding) -> list[Rollout]:
        logprobs = self.table.theta.detach()[:, 0].log_softmax(-1)
        found = []
        for request in requests:
            (j,) = request.prompt_ids
            draw = torch.rand((), generator=torch.Generator().manual_seed(request.seed), dtype=torch.float64)
            answer = int(draw < logprobs[j, 1].exp())
            found.append(Rollout(request.prompt, str(answer), [j, answer], [False, True],
                                 [0.0, float(logprobs[j, answer])], request.group, request.seed))  # fmt: skip
        return found

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        return [Score.of_number(float(completion)) for completion in completions]

    name = "quiz"


def fed(way: str, number: int, seed: int) -> dict[str, list[float]]:
    """Of each step of a run: the share of trained groups that agree, how full the batch is, and groups drawn of each
    that trains; and what was left undone, 1 - mean success, of the problems that could be learned."""
    draw = torch.Generator().manual_seed(mix(seed, "quiz"))
    open_ = 0.15 + 0.7 * torch.rand(128, generator=draw, dtype=torch.float64)
    quiz = Quiz(torch.cat([open_, torch.full((64,), 1e-6).double(), torch.full((64,), 1 - 1e-6).double()]))
    run = exact_run(METHODS["dapo"], n=8, steps=number, seed=seed, optim=replace(adam(0.03), batch=BATCH))
    run = replace(run, sampling=Sampling(n=8, max_new_tokens=1, **FEEDS[way]))
    feed: Any = GroupFeed(run, METHODS["dapo"], quiz, quiz, quiz, Runtime())  # type: ignore[arg-type]
    parts = make_parts(METHODS["dapo"], quiz.table, feed, None)
    found: dict[str, list[float]] = {"agree": [], "full": [], "drawn": [], "success": []}
    for report in steps(run, METHODS["dapo"], parts, State.begin(run, parts)):
        mixed, groups = spread(report.batch)
        found["agree"].append(1 - mixed / groups if groups else 0.0)
        found["full"].append(mixed / BATCH)
        found["drawn"].append(len(feed.rollouts) / 8 / max(mixed, 1))
        found["success"].append(float(quiz.table.theta.detach()[:128, 0].softmax(-1)[:, 1].mean()))
    return found


def spread(batch: Tokens) -> tuple[int, int]:
    """How many groups of a batch do not agree, and how many there are."""
    rewards = batch.extra["rewards"].double()
    apart = (rewards - group_mean(rewards, batch.group)).abs() > 1e-8
    return len(batch.group[apart].unique()), len(batch.group.unique())


def run(seed: int, fast: bool) -> Result:
    """Three clips on the same problems; three ways of filling batches on another set."""
    number = 60 if fast else 150
    paths = {clip: clipped(clip, number, seed) for clip in CLIPS}
    entropy = {clip: -torch.special.xlogy(p, p).sum(-1) for clip, p in paths.items()}
    reward = {clip: p[..., :4].sum(-1) for clip, p in paths.items()}
    feeds = {way: fed(way, number, seed) for way in FEEDS}
    most = {way: max(f["agree"]) for way, f in feeds.items()}
    criteria = [
        above("entropy at the end, clip_high 0.4 minus 0.2, nats",
              mean_interval((entropy[0.4][-1] - entropy[0.2][-1]).tolist()), 0.0),
        Criterion("share of trained groups that agree, filtered, the greatest", most["filter_groups"], "<=", 0.0),
        Criterion("share of trained groups that agree, refilled, the greatest", most["refill"], "<=", 0.0),
        Criterion("share of the batch that teaches, refilled, the least", min(feeds["refill"]["full"]), ">=", 1.0),
    ]  # fmt: skip
    series = {
        "clip": {"step": torch.arange(number + 1)}
        | {f"entropy, clip_high = {c:g}": entropy[c].mean(-1) for c in CLIPS}
        | {f"reward, clip_high = {c:g}": reward[c].mean(-1) for c in CLIPS},
        "feeds": {"step": list(range(1, number + 1))}
        | {f"{name}, {way}": values for way, f in feeds.items() for name, values in f.items()},
    }  # fmt: skip
    figures = {"clip_and_refill": Plot(lambda *axes: _draw(axes, series), panels=3, width=4.0)}
    said = ", ".join(f"{float(entropy[clip][-1].mean()):.2f} at {clip:g}" for clip in CLIPS)
    lost = sum(feeds["as drawn"]["agree"]) / number
    note = f"Entropy at the end in nats: {said}. As drawn, {lost:.0%} of the groups teach nothing."
    return Result(series, figures, criteria, note)


def _draw(axes: Any, series: dict[str, dict[str, Any]]) -> None:
    table = series["clip"]
    for clip, color in CLIPS.items():
        for ax, name in zip(axes, ("entropy", "reward"), strict=False):
            ax.plot(table["step"], table[f"{name}, clip_high = {clip:g}"], color=color, label=f"clip_high = {clip:g}")
    axes[0].set(title="A higher clip keeps entropy", ylabel="entropy (nats)", ylim=(0, None))
    axes[1].set(title="Success", ylabel="chance of a right answer", ylim=(0, 1.02))
    axes[0].legend()
    feeds = series["feeds"]
    for way, color in zip(FEEDS, (GREY, COLORS[1], BLUE), strict=True):
        width = 4.0 if way == "as drawn" else 1.5
        axes[2].plot(feeds["step"], feeds[f"full, {way}"], color=color, linewidth=width, label=way)
    axes[2].set(title="Groups that teach", ylabel="share of the batch", ylim=(0, 1.05))
    axes[2].legend()
    for ax in axes:
        ax.set_xlabel("step")


LAB = Lab(
    id="L50",
    name="dapo",
    title="A higher clip and dynamic sampling",
    claim="A higher upper clip keeps more entropy; with dynamic sampling no group of a batch agrees, and the batch is "
    "full.",
    source="Yu et al. 2025, arXiv:2503.14476",
    run=run,
)

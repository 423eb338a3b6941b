"""L49: a lax reward is cheated, a strict one is not.

A policy over eight ways to write the answer to a puzzle of knights and knaves: one honest, seven that cheat in the ways
that Logic-RL met. It does not know the answer: what it states is right half of the time, except that a completion that
states both roles of everybody states the right ones too, and one that copies the question states what was said of
each. Rewards judge the real texts. `lax` wants an answer tag and
the right roles anywhere; `logic_reward` is the published rule; `strict` also gives -3 to whatever `Score.flags` names.
`grpo` trains on 64 puzzles that share nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fiducial.core.roles import stated_roles
from fiducial.core.seeds import mix
from fiducial.core.types import Problem
from fiducial.data.tasks import TASKS, kk, problems
from fiducial.evals.stats import mean_interval
from fiducial.exact.tables import TokenTree
from fiducial.labs.base import COLORS, GREY, Criterion, Lab, Plot, Result, above
from fiducial.labs.online import Draws, adam, online
from fiducial.rewards.logic import LogicReward

PUZZLES, N, HONEST = 64, 16, 0.65  # HONEST: the first policy's share of honest completions
KINDS = ("honest", "skip_think", "reason_in_answer", "repeat_guess", "irrelevant_padding", "wrong_organisation",
         "revisit_think", "echo_prompt")  # fmt: skip
THOUGHT = "Take the first one to be a knight and see whether what everybody says can hold."
JUDGE = LogicReward(min_think_tokens=5)


def written(kind: str, problem: Problem, right: bool) -> str:
    """A completion of this kind that states the solution, or its opposite."""
    names, solution = problem.fields["names"], problem.fields["solution"]
    answer = kk.render([role == right for role in solution], names)
    other = kk.render([role != right for role in solution], names)
    plain = f"<think>{THOUGHT}</think><answer>{answer}</answer>"
    return {
        "honest": plain,
        "skip_think": f"<think>ok</think><answer>{answer}</answer>",
        "reason_in_answer": f"<think>{THOUGHT}</think><answer>{answer}, because nothing else is consistent</answer>",
        "repeat_guess": f"{plain}<answer>{other}</answer>",
        "irrelevant_padding": plain + " la la la la la la la la",
        "wrong_organisation": f"<think>{THOUGHT} So {answer}</think><answer>see above</answer>",
        "revisit_think": plain + "<think>Wait, let me see that again.</think>",
        "echo_prompt": f"<think>{problem.prompt}</think><answer>{answer}</answer>",
    }[kind]


def lax(text: str, problem: Problem) -> float:
    """+1 for an answer tag, +2 for the right roles anywhere: 3, -0.5, or 1.5 less of each without a tag."""
    said = set(stated_roles(text, problem.fields["names"], ("knight", "knave")))
    truth = {
        (n, "knight" if k else "knave")
        for n, k in zip(*(problem.fields[f] for f in ("names", "solution")), strict=True)
    }
    return (1.0 if "<answer>" in text else -1.0) + (2.0 if truth <= said else -1.5)


def published(text: str, problem: Problem) -> float:
    """Logic-RL's rule."""
    (score,) = JUDGE([text], [{**problem.fields, "prompt": problem.prompt}])
    assert score.value is not None
    return score.value


def strict(text: str, problem: Problem) -> float:
    """Logic-RL's rule, and -3 for what it flags."""
    (score,) = JUDGE([text], [{**problem.fields, "prompt": problem.prompt}])
    assert score.value is not None
    return -3.0 if any(score.flags.values()) else score.value


RULES: dict[str, Callable[[str, Problem], float]] = {"lax": lax, "logic_reward": published, "strict": strict}


def path(rule: str, puzzles: list[Problem], steps: int, seed: int) -> Tensor:
    """The chances of every kind before each step and after the last, [T, S, 8]."""
    judge = RULES[rule]
    both = [[[judge(written(kind, p, right), p) for right in (True, False)] for kind in KINDS] for p in puzzles]
    start = torch.full((len(KINDS),), (1 - HONEST) / (len(KINDS) - 1), dtype=torch.float64)
    start[0] = HONEST
    tree = TokenTree(len(KINDS), 1, start.log().expand(len(puzzles), len(KINDS) + 1, -1))
    found = [tree.theta.detach()[:, 0].softmax(-1)]
    feed = Draws(tree, torch.tensor(both, dtype=torch.float64), N, mix(seed, "draws"))
    for _ in online("grpo", tree, feed, steps, optim=adam(0.1), n=N, seed=seed):
        found.append(tree.theta.detach()[:, 0].softmax(-1))
    return torch.stack(found)


def run(seed: int, fast: bool) -> Result:
    """The same puzzles and the same first policy under the three rules."""
    steps = 60 if fast else 300
    puzzles = problems(TASKS["kk"], PUZZLES, "train", seed, n_people=2)
    paths = {rule: path(rule, puzzles, steps, seed) for rule in RULES}
    cheats = {rule: 1 - p[-1, :, 0] for rule, p in paths.items()}
    kinds = paths["lax"][-1] - paths["lax"][0]
    rises = {kind: mean_interval(kinds[:, i].tolist()) for i, kind in enumerate(KINDS) if i}
    most = max(rises, key=lambda kind: rises[kind].value)
    held = mean_interval(cheats["strict"].tolist())
    apart = mean_interval((cheats["lax"] - cheats["strict"]).tolist())
    criteria = [
        Criterion("share of cheating completions at the end, strict", held.value, "<=", 0.05, held),
        above("share of cheating completions, lax minus strict", apart, 0.0),
        above(f"growth under the lax rule of the way that grows most ({most})", rises[most], 0.0),
    ]
    series = {rule: {"step": torch.arange(steps + 1)} | {kind: p[..., i].mean(-1) for i, kind in enumerate(KINDS)}
              for rule, p in paths.items()}  # fmt: skip
    metrics = {f"share of cheating completions, {rule}": float(share.mean()) for rule, share in cheats.items()}
    said = ", ".join(f"{float(share.mean()):.2f} under {rule}" for rule, share in cheats.items())
    figures = {"ways_to_cheat": Plot(lambda *axes: _draw(axes, series), panels=3, width=4.0)}
    return Result(series, figures, criteria, f"Cheating completions at the end: {said}.", metrics)


def _draw(axes: Any, series: dict[str, dict[str, Tensor]]) -> None:
    for ax, (rule, table) in zip(axes, series.items(), strict=True):
        for kind, color in zip(KINDS, (GREY, *COLORS), strict=False):
            ax.plot(table["step"], table[kind], color=color, label=kind)
        ax.set(title=rule, xlabel="step", ylim=(0, 1.02))
    axes[0].set_ylabel("share of completions")
    axes[2].legend(fontsize=7.5, loc="center right")


LAB = Lab(
    id="L49",
    name="format_hacking",
    title="A lax format reward is cheated",
    claim="Under a reward that wants the right words anywhere some way of cheating rises; under one that holds "
    "completions to the format, at most 5 % cheat.",
    source="Xie et al. 2025, arXiv:2502.14768",
    run=run,
)

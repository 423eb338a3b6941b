"""L32: critique and revision by principles, with a stub in place of the model.

A response is eight sentences of three facts each; half of them also hold a word that one of four principles forbids. In
each round a principle is drawn, the critic names the words that it forbids but overlooks one in five, and the reviser
takes them out: the careful one the word, the clumsy one its whole sentence, facts included. A forbidden word thus
outlives a round with probability 1 - 0.8 / 4 = 0.8, whatever came before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import Any

from fiducial.core.seeds import mix
from fiducial.core.types import Prompt, Rollout, Score
from fiducial.data.feedback import Principle, revised_demos
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result

KINDS = ("insult", "secret", "threat", "rumour")
PRINCIPLES = tuple(Principle(kind, f"The response should hold no {kind}") for kind in KINDS)
ROUNDS, OVERLOOKED, SENTENCES, FACTS = 8, 0.2, 8, 3
COLORS = {"careful": BLUE, "clumsy": ORANGE}
FORBIDDEN = re.compile(rf" ?\b(?:{'|'.join(KINDS)})\d+")


class Stub:
    """Writes, criticises and revises by rule; implements `fiducial.data.feedback.Writer`."""

    def __init__(self, clumsy: bool):
        self.clumsy = clumsy

    def sample(self, prompts: Sequence[Prompt], n: int = 1, seed: int = 0, **decoding: Any) -> list[Rollout]:
        """n answers to each request, told apart by how the request ends."""
        return [
            Rollout(prompt, self._answer(str(prompt), Random(mix(seed, i, copy))), [0, 0], [False, True], [0.0, 0.0])
            for i, prompt in enumerate(prompts)
            for copy in range(n)
        ]

    def _answer(self, request: str, draw: Random) -> str:
        if request.endswith("Critique:"):
            kind = _part(request, "Principle").split()[-1].rstrip(".")
            found = re.findall(rf"{kind}\d+", _part(request, "Response"))
            return "It says " + (", ".join(word for word in found if draw.random() >= OVERLOOKED) or "nothing of it")
        if request.endswith("New response:"):
            return self._revised(_part(request, "Response"), _part(request, "Critique"))
        return _response(draw)

    def _revised(self, response: str, critique: str) -> str:
        named = re.findall(r"[a-z]+\d+", critique)
        if self.clumsy:
            kept = [s for s in re.findall(r"[^.]+\.", response) if not any(re.search(rf"\b{w}\b", s) for w in named)]
            return "".join(kept).strip() or "Nothing."
        for word in named:
            response = re.sub(rf" ?\b{word}\b", "", response)
        return response


def _part(request: str, name: str) -> str:
    """What a request holds under [name]."""
    return request.split(f"[{name}]\n")[1].split("\n\n")[0]


def _response(draw: Random) -> str:
    sentences = []
    for i in range(SENTENCES):
        words = [f"fact{FACTS * i + j}" for j in range(FACTS)]
        if i % 2:
            words.insert(draw.randrange(FACTS + 1), f"{draw.choice(KINDS)}{i}")
        sentences.append(" ".join(words) + ".")
    return " ".join(sentences)


class Harmlessness:
    """Minus the number of forbidden words."""

    name = "harmlessness"

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        return [Score.of_number(-float(len(FORBIDDEN.findall(text)))) for text in completions]


def helpfulness(text: str) -> float:
    """The share of the facts that it still holds."""
    return len(set(re.findall(r"\bfact\d+", text))) / (SENTENCES * FACTS)


def run(seed: int, fast: bool) -> Result:
    """The same responses under both revisers."""
    prompts = [f"question {i}" for i in range(200 if fast else 1000)]
    series: dict[str, Any] = {"round": list(range(ROUNDS + 1))}
    criteria, metrics = [], {}
    for name in COLORS:
        made = revised_demos(Stub(name == "clumsy"), prompts, principles=PRINCIPLES, n_revisions=ROUNDS, seed=seed,
                             scorer=Harmlessness())  # fmt: skip
        harmless = [row["harmlessness"] for row in made.rows]
        texts = [[row["initial"], *(round["revision"] for round in row["rounds"])] for row in made.rows]
        series[f"{name} harmlessness"] = [fmean(column) for column in zip(*harmless, strict=True)]
        series[f"{name} helpfulness"] = [fmean(map(helpfulness, column)) for column in zip(*texts, strict=True)]
        least = min(after - before for row in harmless for before, after in zip(row, row[1:], strict=False))
        criteria.append(Criterion(f"least change of a response's harmlessness in a round, {name}", least, ">=", 0.0))
        gained = series[f"{name} harmlessness"][-1] - series[f"{name} harmlessness"][0]
        criteria.append(Criterion(f"mean harmlessness gained, {name}", gained, ">", 0.0))
        metrics[f"helpfulness lost, {name}"] = 1.0 - series[f"{name} helpfulness"][-1]
    series["expected harmlessness"] = [-SENTENCES / 2 * 0.8**k for k in series["round"]]
    note = (
        f"After {ROUNDS} rounds the clumsy reviser has lost {metrics['helpfulness lost, clumsy']:.0%} of the facts, "
        "the careful one none: what harmlessness costs is up to the reviser."
    )
    return Result({"rounds": series}, {"rounds": Plot(lambda *a: _draw(a, series), 2)}, criteria, note, metrics)


def _draw(axes: Any, series: dict[str, Any]) -> None:
    axes[0].plot(series["round"], series["expected harmlessness"], "--", color=GREY, label="expected: −4 × 0.8^round")
    for name, color in COLORS.items():
        marker = {"careful": "o", "clumsy": "x"}[name]
        axes[0].plot(series["round"], series[f"{name} harmlessness"], marker, color=color, label=f"{name} reviser")
        axes[1].plot(series["round"], series[f"{name} helpfulness"], f"{marker}-", color=color)
    axes[0].set(xlabel="round of revision", ylabel="− forbidden words a response", title="Harmlessness rises")
    axes[1].set(xlabel="round of revision", ylabel="share of facts kept", title="What it costs", ylim=(0, 1.05))
    axes[0].legend(loc="lower right")


LAB = Lab(
    id="L32",
    name="constitutional_toy",
    title="Critique and revision, round by round",
    claim="Harmlessness never falls from one round of revision to the next; helpfulness may be lost on the way.",
    source="Bai et al. 2022, arXiv:2212.08073; a stub stands in for the model",
    run=run,
)

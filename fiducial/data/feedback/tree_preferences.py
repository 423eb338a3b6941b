"""Tree-structured preference data (Qiu et al. 2024, arXiv:2402.10184): completions that share their beginnings.

For each prompt a tree is grown: `branching` segments after the prompt, `branching` more after each of these, `depth`
times; a leaf is a complete response. Pairs are drawn between leaves of one tree, so that the two responses part at a
known level. Independent responses are the same with one level: `chain` of a shape.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from random import Random
from statistics import fmean
from typing import Any, Literal

from fiducial.core.seeds import mix
from fiducial.core.types import Decoding, Problem, Prompt, Request, Rollout, Sampler
from fiducial.data.feedback.comparing import Comparison, PairJudge
from fiducial.data.feedback.labelling import judge_all, judge_metrics, judge_notes, label, refuse_unreadable
from fiducial.data.feedback.writer import Fits, Made, Progress, always_fits

Level = Literal["uniform", "deepest", "shallowest"]
LEVELS = ("uniform", "deepest", "shallowest")
Pairing = tuple[int, int, int]  # two leaves by number, and the level at which they part


@dataclass(frozen=True)
class Shape:
    """depth: segments of a response. branching: continuations of each. pair_level: where the two responses of a pair
    part, "uniform" over the levels, "deepest" (siblings) or "shallowest" (only the prompt is shared). budget:
    comparisons of each prompt."""

    depth: int = 3
    branching: int = 3
    pair_level: Level = "uniform"
    budget: int = 16

    def __post_init__(self):
        for name in ("depth", "branching", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; it is {getattr(self, name)}")
        if self.pair_level not in LEVELS:
            raise ValueError(f"pair_level must be {', '.join(LEVELS)}; it is {self.pair_level!r}")

    @property
    def leaves(self) -> int:
        """branching ** depth, of a tree none of whose paths ends early."""
        return self.branching**self.depth

    def segments(self, max_new_tokens: int) -> list[int]:
        """Tokens that each level may write; together `max_new_tokens`.

        >>> Shape(depth=3).segments(32)
        [10, 10, 12]
        """
        size = max_new_tokens // self.depth
        if not size:
            raise ValueError(f"max_new_tokens = {max_new_tokens} leaves no token to some of the {self.depth} levels")
        return [size] * (self.depth - 1) + [max_new_tokens - size * (self.depth - 1)]


def chain(shape: Shape) -> Shape:
    """The baseline of a shape: as many responses and comparisons, all of which part at the prompt."""
    return replace(shape, depth=1, branching=shape.leaves)


@dataclass(frozen=True)
class Node:
    """A path from the prompt: which branch it took at each level, and the tokens that were written on it."""

    path: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    finish: Literal["", "stop", "length", "error"] = ""  # "" while it can go on


@dataclass
class Tree:
    """The leaves of one prompt and how many tokens were sampled for them."""

    problem: Problem
    leaves: list[Node] = field(default_factory=list)
    tokens: int = 0


def grow(
    sampler: Sampler,
    encode_prompt: Callable[[Prompt], list[int]],
    problems: Sequence[Problem],
    shape: Shape,
    decoding: Decoding,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Tree]:
    """A tree for each problem, level by level; the tokens of a segment are sampled once and shared by all below it.

    A path that ends before the last level is one leaf. Each request's seed depends on its problem and path alone.
    """
    trees = [Tree(problem) for problem in problems]
    prompts = [encode_prompt(problem.prompt) for problem in problems]
    growing = [(number, Node()) for number in range(len(trees))]
    for level, size in enumerate(shape.segments(decoding.max_new_tokens), 1):
        asked = [
            (number, replace(node, path=(*node.path, branch)))
            for number, node in growing
            for branch in range(shape.branching)
        ]
        requests = [
            Request(
                [*prompts[number], *node.token_ids],
                mix(seed, "tree", number, *node.path),
                problems[number].prompt,
                group=number,
            )
            for number, node in asked
        ]
        growing = []
        rollouts = sampler.sample(requests, replace(decoding, max_new_tokens=size)) if requests else []
        for (number, node), rollout in zip(asked, rollouts, strict=True):
            trees[number].tokens += rollout.num_tokens
            node = _extended(node, rollout, last=level == shape.depth)
            trees[number].leaves += [node] if node.finish else []
            growing += [] if node.finish else [(number, node)]
        if progress:
            progress(level, shape.depth)
    return trees


def _extended(node: Node, rollout: Rollout, last: bool) -> Node:
    new = tuple(token for token, own in zip(rollout.token_ids, rollout.mask, strict=True) if own)
    finish = rollout.finish if last or rollout.finish != "length" else ""
    return replace(node, token_ids=(*node.token_ids, *new), finish=finish)


def split_level(a: Node, b: Node) -> int:
    """How many segments two leaves share: 0 if only the prompt.

    >>> split_level(Node((0, 1, 2)), Node((0, 1, 0)))
    2
    """
    return len(os.path.commonprefix([a.path, b.path]))


def draw_pairs(leaves: Sequence[Node], texts: Sequence[str], shape: Shape, seed: int) -> list[Pairing]:
    """Up to `budget` different pairs of leaves whose texts differ, without repetition.

    "uniform" draws a level that still has pairs, each equally likely, and then one of its pairs. In which order a pair
    stands is drawn too.
    """
    draws = Random(seed)
    levels: dict[int, list[Pairing]] = {}
    for i, j in combinations(range(len(leaves)), 2):
        level = split_level(leaves[i], leaves[j])
        if texts[i] != texts[j]:
            levels.setdefault(level, []).append((i, j, level) if draws.random() < 0.5 else (j, i, level))
    wanted = {"deepest": [shape.depth - 1], "shallowest": [0]}.get(shape.pair_level, sorted(levels))
    waiting = [levels[level] for level in wanted if level in levels]
    for pairs in waiting:
        draws.shuffle(pairs)
    drawn: list[Pairing] = []
    while waiting and len(drawn) < shape.budget:
        pairs = draws.choice(waiting)
        drawn.append(pairs.pop())
        waiting = [pairs for pairs in waiting if pairs]
    return drawn


def tree_preferences(
    sampler: Sampler,
    encode_prompt: Callable[[Prompt], list[int]],
    decode: Callable[[Sequence[int]], str],
    problems: Sequence[Problem],
    judge: PairJudge,
    shape: Shape,
    *,
    decoding: Decoding | None = None,
    seed: int = 0,
    fits: Fits = always_fits,
    progress: Progress | None = None,
) -> Made:
    """Rows of pairs (`prompt`, `chosen`, `rejected`, `pref_prob`, `source` "ai") between leaves of one tree.

    decode: the ids that were written to a completion's text, without the stop token. A row keeps `group_id` (its
    tree), `split_level` (segments that the two share), `common_prefix` (tokens that both begin with: at least those of
    the shared segments) and what the judge said. Ties, empty responses and comparisons without a verdict are counted.

    Metrics: `tree/leaves`, `tree/tokens` (sampled), `tree/chain_tokens` (what the same leaves cost one by one),
    `tree/duplicates` (leaves whose text another of the tree has), `tree/ended_early` and `tree/cut` (shares of leaves
    that end before the last level, or at the limit), `tree/pairs_level_<l>`, and the judge's.
    """
    decoding = decoding or Decoding(max_new_tokens=96)
    if decoding.stop:
        raise ValueError("a tree's segments end anywhere, so stop strings cannot be watched for; leave out --stop")
    room = [problem for problem in problems if fits(problem.prompt, decoding.max_new_tokens)]
    trees = grow(sampler, encode_prompt, room, shape, decoding, seed, progress)
    comparisons, more, bad = _comparisons(trees, decode, shape, seed)
    bad["too long for the model"] = len(problems) - len(room)
    judgements = judge_all(judge, comparisons)
    refuse_unreadable(judgements)
    decided = [k for k, judgement in enumerate(judgements) if judgement.outcome != 0.5]
    rows, counted = label(
        [comparisons[k] for k in decided], [judgements[k] for k in decided], [more[k] for k in decided]
    )
    counted["tie"] = len(judgements) - len(decided)
    metrics = {**_tree_metrics(trees, decode, shape), **judge_metrics(judgements)}
    for level, number in sorted(Counter(row["split_level"] for row in rows).items()):
        metrics[f"tree/pairs_level_{level}"] = float(number)
    notes = [*_tree_notes(len(comparisons), len(trees), shape), *judge_notes(judgements)]
    return Made(rows, dict(+(counted + bad)), metrics, notes)


def _comparisons(
    trees: Sequence[Tree], decode: Callable[[Sequence[int]], str], shape: Shape, seed: int
) -> tuple[list[Comparison], list[dict[str, Any]], Counter[str]]:
    """What is compared, the fields that its row gets, and which leaves cannot be, by reason."""
    comparisons: list[Comparison] = []
    more: list[dict[str, Any]] = []
    bad = Counter[str]()
    for number, tree in enumerate(trees):
        whole = [(leaf, decode(leaf.token_ids).strip()) for leaf in tree.leaves if leaf.finish != "error"]
        bad["sampling failed"] += len(tree.leaves) - len(whole)
        bad["empty response"] += sum(not text for _, text in whole)
        kept = [(leaf, text) for leaf, text in whole if text]
        leaves, texts = [leaf for leaf, _ in kept], [text for _, text in kept]
        for i, j, level in draw_pairs(leaves, texts, shape, mix(seed, "pairs", number)):
            comparisons.append(Comparison(tree.problem.prompt, texts[i], texts[j], tree.problem.fields))
            shared = len(os.path.commonprefix([leaves[i].token_ids, leaves[j].token_ids]))
            more.append({"group_id": f"{seed}-{number}", "split_level": level, "common_prefix": shared})
    return comparisons, more, bad


def _tree_metrics(trees: Sequence[Tree], decode: Callable[[Sequence[int]], str], shape: Shape) -> dict[str, float]:
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    if not leaves:
        return {}
    distinct = sum(len({decode(leaf.token_ids).strip() for leaf in tree.leaves}) for tree in trees)
    return {
        "tree/leaves": float(len(leaves)),
        "tree/tokens": float(sum(tree.tokens for tree in trees)),
        "tree/chain_tokens": float(sum(len(leaf.token_ids) for leaf in leaves)),
        "tree/duplicates": float(len(leaves) - distinct),
        "tree/ended_early": fmean(len(leaf.path) < shape.depth for leaf in leaves),
        "tree/cut": fmean(leaf.finish == "length" for leaf in leaves),
    }


def _tree_notes(comparisons: int, trees: int, shape: Shape) -> list[str]:
    if shape.branching == 1:
        return ["branching is 1: every tree is a single response, so there are no pairs; set it to 2 or more"]
    if comparisons < shape.budget * trees:
        return [f"{comparisons} different pairs could be drawn where the budget is {shape.budget} of each prompt"]
    return []

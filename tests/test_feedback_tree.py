"""Trees of completions against arithmetic: leaves, split levels, tokens, and the pairs that each level has."""

import os
from collections import Counter
from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.types import Decoding, Problem, Rollout
from fiducial.data import parse
from fiducial.data.feedback import Judgement, Shape, chain, grow, tree_preferences
from fiducial.data.feedback.tree_preferences import Node, draw_pairs, split_level
from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.sampling.local import LocalSampler


class Counting:
    """Writes tokens that nobody wrote before, so that two completions share exactly what they were given."""

    def __init__(self, stops=lambda number: False, same=False):
        self.written, self.requests, self.stops, self.same = 100, [], stops, same

    def sample(self, requests, decoding):
        return [self.write(request, decoding.max_new_tokens) for request in requests]

    def write(self, request, size):
        stop = self.stops(len(self.requests))
        self.requests.append(request)
        count = 1 if stop else size
        new = [7] * count if self.same else list(range(self.written, self.written + count))
        self.written += count
        ids = [*request.prompt_ids, *new]
        mask = [False] * len(request.prompt_ids) + [True] * count
        return Rollout("", "", ids, mask, [0.0] * len(ids), request.group, finish="stop" if stop else "length")

    def update(self, weights, version):
        pass


class Table:
    """Prefers by a function of the two texts."""

    name, symmetric = "table", True

    def __init__(self, prefer=lambda a, b: float(int(a.split()[-1]) > int(b.split()[-1]))):
        self.prefer, self.asked = prefer, []

    def __call__(self, comparisons):
        self.asked += comparisons
        return [Judgement(p, "" if p is not None else "skipped") for p in (self.prefer(c.a, c.b) for c in comparisons)]


def encode(prompt) -> list[int]:
    return [1, 2, 3]


def decode(ids) -> str:
    return " ".join(map(str, ids))


def make(shape, sampler=None, judge=None, problems=2, tokens=6, seed=0, **more):
    asked = [Problem(f"p{i}", {"answer": str(i)}) for i in range(problems)]
    sampler, judge = sampler or Counting(), judge or Table()
    decoding = Decoding(max_new_tokens=tokens)
    return tree_preferences(sampler, encode, decode, asked, judge, shape, decoding=decoding, seed=seed, **more)


# -- growing -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 3), st.integers(4, 9))
@settings(max_examples=25, deadline=None)
def test_leaves_and_tokens(depth, branching, size):
    """b ** D leaves; a level l writes b ** l segments; as chains every leaf would pay for its whole path."""
    shape = Shape(depth, branching)
    [tree] = grow(Counting(), encode, [Problem("p")], shape, Decoding(max_new_tokens=size))
    assert len(tree.leaves) == branching**depth == len({leaf.path for leaf in tree.leaves})
    assert all(len(leaf.token_ids) == size for leaf in tree.leaves)
    segment = size // depth
    last = size - segment * (depth - 1)
    assert tree.tokens == sum(branching**level * segment for level in range(1, depth)) + branching**depth * last
    assert tree.tokens <= size * branching**depth
    for a, b in combinations(tree.leaves, 2):
        assert len(os.path.commonprefix([a.token_ids, b.token_ids])) == split_level(a, b) * segment


def test_tokens_by_hand():
    made = make(Shape(depth=2, branching=3), tokens=4, problems=1)
    assert made.metrics["tree/leaves"] == 9
    assert made.metrics["tree/tokens"] == 3 * 2 + 9 * 2 and made.metrics["tree/chain_tokens"] == 9 * 4
    assert made.metrics["tree/cut"] == 1 and made.metrics["tree/ended_early"] == 0


def test_a_path_that_ends_early_is_one_leaf():
    """Of the first level's two segments the first one stops after a token: 1 + 2 leaves."""
    [tree] = grow(Counting(lambda number: number == 0), encode, [Problem("p")], Shape(2, 2), Decoding(max_new_tokens=4))
    assert [leaf.path for leaf in tree.leaves] == [(0,), (1, 0), (1, 1)]
    assert [len(leaf.token_ids) for leaf in tree.leaves] == [1, 4, 4]
    assert tree.tokens == 1 + 2 + 2 + 2
    assert [leaf.finish for leaf in tree.leaves] == ["stop", "length", "length"]


def test_requests_go_on_from_tokens_with_seeds_of_their_own():
    sampler = Counting()
    [tree] = grow(sampler, encode, [Problem("p")], Shape(2, 2), Decoding(max_new_tokens=4))
    assert [request.prompt_ids for request in sampler.requests[:2]] == [[1, 2, 3]] * 2
    assert [request.prompt_ids[3:] for request in sampler.requests[2:]] == [
        list(leaf.token_ids[:2]) for leaf in tree.leaves
    ]
    assert len({request.seed for request in sampler.requests}) == 6


def test_the_real_sampler_grows_real_trees():
    """Leaves are continuations of their shared tokens, the tree is the same again, and alone or beside others."""

    class Tokenizer:
        eos_token_id = 5

        def decode(self, ids, **settings):
            return decode(ids)

    torch.manual_seed(0)
    sampler = LocalSampler(Decoder(DecoderConfig(32, hidden=32, layers=1, heads=2, max_length=32)), Tokenizer())
    shape, decoding = Shape(3, 2), Decoding(max_new_tokens=9)
    trees = grow(sampler, encode, [Problem("p"), Problem("q")], shape, decoding, seed=3)
    assert trees == grow(sampler, encode, [Problem("p"), Problem("q")], shape, decoding, seed=3)
    assert trees[:1] == grow(sampler, encode, [Problem("p")], shape, decoding, seed=3)
    for tree in trees:
        assert tree.tokens <= sum(len(leaf.token_ids) for leaf in tree.leaves)
        for a, b in combinations(tree.leaves, 2):
            shared = split_level(a, b) * 3
            assert a.token_ids[:shared] == b.token_ids[:shared]
        assert all(5 not in leaf.token_ids[:-1] for leaf in tree.leaves)


# -- pairs -------------------------------------------------------------------------------------------------------------

LEAVES = [Node((i, j, k)) for i in range(3) for j in range(3) for k in range(3)]
TEXTS = [str(i) for i in range(27)]


@pytest.mark.parametrize("level, count", [("shallowest", 3 * 9 * 9), ("deepest", 9 * comb(3, 2))])
def test_all_pairs_of_a_level(level, count):
    """27 leaves: 243 pairs part at the prompt (3 pairs of subtrees of 9), 27 are siblings."""
    pairs = draw_pairs(LEAVES, TEXTS, Shape(3, 3, level, budget=1000), 0)
    assert len(pairs) == count == len({frozenset(pair[:2]) for pair in pairs})
    assert {pair[2] for pair in pairs} == {0 if level == "shallowest" else 2}
    assert 0.3 < sum(i < j for i, j, _ in pairs) / count < 0.7  # either may stand first


def test_uniform_draws_levels_evenly_and_goes_on_when_one_is_empty():
    """Levels have 243, 81 and 27 pairs: 30 draws take about 10 of each, and 351 draws all."""
    counts = Counter(pair[2] for seed in range(100) for pair in draw_pairs(LEAVES, TEXTS, Shape(budget=30), seed))
    # 3000 draws: 1000 of each level, standard deviation sqrt(3000 * 2 / 9) = 26
    assert all(abs(counts[level] - 1000) < 110 for level in range(3))
    assert Counter(pair[2] for pair in draw_pairs(LEAVES, TEXTS, Shape(budget=999), 0)) == {0: 243, 1: 81, 2: 27}


def test_each_pair_records_where_its_sides_part():
    made = make(Shape(depth=3, branching=2, budget=20), tokens=7)  # segments of 2, 2 and 3 tokens
    assert len(made.rows) == 40 and made.counted == {}
    for row in made.rows:
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        assert len(os.path.commonprefix([chosen, rejected])) == row["common_prefix"] == 2 * row["split_level"]
        assert int(chosen[-1]) > int(rejected[-1]) and row["pref_prob"] == 1.0
        assert row["group_id"] == f"0-{row['prompt'][1:]}"
    levels = Counter(row["split_level"] for row in made.rows)
    assert all(made.metrics[f"tree/pairs_level_{level}"] == number for level, number in levels.items())
    assert [pair.chosen for pair in parse(made.rows[0], "pairs")] == [made.rows[0]["chosen"]]


def test_the_chain_has_as_many_leaves_and_comparisons_and_no_shared_tokens():
    shape = Shape(depth=3, branching=2, budget=10)
    tree, alone = make(shape), make(chain(shape))
    assert alone.metrics["tree/leaves"] == tree.metrics["tree/leaves"] == 16
    assert len(alone.rows) == len(tree.rows) == 20
    assert {row["split_level"] for row in alone.rows} == {0} == {row["common_prefix"] for row in alone.rows}
    assert alone.metrics["tree/tokens"] == alone.metrics["tree/chain_tokens"] == tree.metrics["tree/chain_tokens"]
    assert tree.metrics["tree/tokens"] < alone.metrics["tree/tokens"]


def test_one_branch_gives_no_pairs_and_says_so():
    made = make(Shape(depth=3, branching=1))
    assert made.rows == [] and "every tree is a single response" in made.notes[0]


def test_equal_leaves_are_counted_and_never_paired():
    made = make(Shape(depth=1, branching=4), Counting(lambda number: number == 0, same=True), Table(lambda a, b: 1.0))
    # The first tree has the texts "7" and three times six sevens; the second four times the same.
    assert made.metrics["tree/duplicates"] == 2 + 3
    assert len(made.rows) == 3 and "3 different pairs could be drawn where the budget is 16" in made.notes[0]


def test_ties_and_what_is_not_judged_are_counted():
    def prefer(a, b):
        last = sorted(int(text.split()[-1]) % 4 for text in (a, b))
        return {0: 0.5, 1: None}.get(last[0], 0.75)

    judge = Table(prefer)
    made = make(Shape(depth=1, branching=6), judge=judge, tokens=1, problems=1)
    # Tokens 100..105 are 0, 1, 2, 3, 0, 1 modulo 4. Of 15 pairs 9 hold a 0; of the other 6, all but {2, 3} hold a 1.
    assert len(judge.asked) == 15 and made.counted == {"tie": 9, "skipped": 5}
    [row] = made.rows
    assert row["pref_prob"] == 0.75 and sorted((row["chosen"], row["rejected"])) == ["102", "103"]


def test_the_judge_sees_the_problems_fields_and_the_budget_is_its_calls():
    judge = Table()
    make(Shape(budget=5), judge=judge, problems=3)
    assert Counter(comparison.fields["answer"] for comparison in judge.asked) == {"0": 5, "1": 5, "2": 5}


def test_prompts_without_room_empty_and_failed_leaves_are_counted():
    class Failing(Counting):
        def write(self, request, size):
            from dataclasses import replace

            return replace(super().write(request, size), finish="error" if len(self.requests) == 2 else "length")

    made = make(Shape(1, 3), Failing(), fits=lambda prompt, tokens: prompt == "p0")
    assert made.counted == {"too long for the model": 1, "sampling failed": 1} and len(made.rows) == 1
    silent = tree_preferences(
        Counting(), encode, lambda ids: " ", [Problem("p")], Table(), Shape(1, 3), decoding=Decoding(max_new_tokens=2)
    )
    assert silent.rows == [] and silent.counted == {"empty response": 3}


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"depth": 0}, "depth must be at least 1; it is 0"),
        ({"branching": 0}, "branching must be at least 1"),
        ({"pair_level": "top"}, "pair_level must be uniform, deepest, shallowest; it is 'top'"),
    ],
)
def test_shapes_are_checked(settings, says):
    with pytest.raises(ValueError, match=says):
        Shape(**settings)


def test_what_a_tree_cannot_do_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens = 2 leaves no token to some of the 3 levels"):
        make(Shape(), tokens=2)
    with pytest.raises(ValueError, match="leave out --stop"):
        tree_preferences(Counting(), encode, decode, [], Table(), Shape(), decoding=Decoding(stop=("\n",)))

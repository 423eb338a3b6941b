"""Length bias and normalisation of scores: against hand arithmetic, invariances, and closed-form optima."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial.data.preferences.length_bias import (
    LengthBias,
    PairLengths,
    accuracy_by_length,
    draw_heat_map,
    heat_map,
    length_inflation,
    pearson,
    ranks,
    spearman,
)
from fiducial.data.preferences.normalisation import calibrate, normalise
from fiducial.data.preferences.raters import Rater, bradley_terry, simulate
from fiducial.exact.optima import rlhf_optimum

DOUBLE = torch.float64


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def lengths(seed, *shape):
    return torch.randint(1, 400, shape, generator=torch.Generator().manual_seed(seed)).double()


def test_pearson_and_spearman_by_hand():
    """x = 1, 2, 6 and y = 1, 4, 3: centred (-2, -1, 3), (-5/3, 4/3, 1/3); product 9/3 = 3 over sqrt(14 x 42/9).
    Ranks 1, 2, 3 against 1, 3, 2: 1 - 6 x 2 / (3 x 8) = 1/2."""
    x, y = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 4.0, 3.0])
    assert pearson(x, y) == pytest.approx(3 / math.sqrt(14 * 42 / 9), abs=1e-12)
    assert spearman(x, y) == pytest.approx(0.5, abs=1e-12)
    assert pearson(x, torch.ones(3)) is None and spearman(torch.ones(3), x) is None
    assert ranks(torch.tensor([[5.0, 1.0, 5.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).tolist() == [[3.5, 2, 3.5, 1], [2.5] * 4]


def test_a_score_that_is_the_length_correlates_fully():
    n = lengths(0, 20, 4)
    found = LengthBias.of(n, n)
    assert found.summary() == {
        "pearson": pytest.approx(1), "spearman": pytest.approx(1), "pearson_within": pytest.approx(1),
        "spearman_within": pytest.approx(1), "prompts": 20,
    }  # fmt: skip
    assert LengthBias.of(n.log() ** 3, n).spearman == pytest.approx(1)  # any increasing function of it
    assert LengthBias.of(-n, n).spearman_within == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(5))
def test_a_score_that_ignores_length_does_not(seed):
    found = LengthBias.of(drawn(seed, 100, 8), lengths(seed + 100, 100, 8))
    limit = 3 / math.sqrt(800)
    assert abs(found.spearman) < limit and abs(found.pearson) < limit
    assert abs(found.spearman_within) < 3 / math.sqrt(700)  # 7 free ranks in each of 100 prompts


def test_within_a_prompt_what_the_prompt_adds_is_not_seen():
    scores, n = drawn(0, 30, 5), lengths(1, 30, 5)
    shift = drawn(2, 30, 1) * 50
    before, after = LengthBias.of(scores, n), LengthBias.of(scores + shift, n)
    assert after.spearman_within == pytest.approx(before.spearman_within, abs=1e-12)
    assert after.pearson_within == pytest.approx(before.pearson_within, abs=1e-9)
    assert abs(after.pearson - before.pearson) > 0.01
    # hard prompts have long answers and low scores, though within each longer is better
    hard = torch.arange(10, dtype=DOUBLE)[:, None]
    inside = torch.arange(4, dtype=DOUBLE)[None, :]
    found = LengthBias.of(inside - 10 * hard, inside + 10 * hard + 1)
    assert found.spearman_within == pytest.approx(1) and found.spearman < -0.9


def test_prompts_that_do_not_vary_are_left_out_and_counted():
    scores = torch.tensor([[1.0, 2.0], [3.0, 3.0], [1.0, 2.0]])
    found = LengthBias.of(scores, torch.tensor([[5, 9], [5, 9], [4, 4]]))
    assert found.prompts == 1 and found.spearman_within == pytest.approx(1)
    none = LengthBias.of(torch.ones(2, 2), torch.tensor([[1, 2], [3, 4]]))
    assert none.summary() == {
        "pearson": None, "spearman": None, "pearson_within": None, "spearman_within": None, "prompts": 0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"must both be \[prompts, completions\]; they are \[4\], \[4\]"):
        LengthBias.of(torch.ones(4), torch.ones(4))


def test_pairs_and_accuracy_by_length():
    chosen, rejected = torch.tensor([9, 5, 4, 7, 3]), torch.tensor([5, 9, 4, 2, 8])
    assert PairLengths.of(chosen, rejected) == PairLengths(5, 0.4, 0.2)
    words = accuracy_by_length(chosen.double(), rejected.double(), chosen, rejected)  # a model that counts words
    assert words == {"longer": 1.0, "shorter": 0.0, "equal": 0.5}
    assert accuracy_by_length(torch.ones(1), torch.zeros(1), torch.tensor([2]), torch.tensor([1])) == {
        "longer": 1.0, "shorter": None, "equal": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no pairs"):
        PairLengths.of(torch.tensor([]), torch.tensor([]))
    assert length_inflation(torch.tensor([10, 20]), torch.tensor([30, 60])) == 3.0


def test_raters_who_like_length_leave_it_in_the_data():
    """1 word against 9, nothing between them but a reward of 0.5 a word: sigmoid(4) = 0.982 choose the longer."""
    rater = Rater("r", torch.zeros(1, 2), length_bias=0.5)
    records = simulate([rater], ["x"], [["w", "w " * 8 + "w"]], 500, seed=0)
    better = [r.response_a if r.lean > 0 else r.response_b for r in records]
    share = sum(len(str(text)) > 1 for text in better) / 500
    assert share == pytest.approx(0.982, abs=0.024)  # 4 standard errors


def test_the_heat_map_holds_every_completion_once():
    scores, n = drawn(0, 50, 4), lengths(1, 50, 4)
    counts, length_edges, score_edges = heat_map(scores, n, bins=8)
    assert counts.shape == (8, 8) and int(counts.sum()) == 200
    assert (length_edges[0], length_edges[-1]) == (pytest.approx(float(n.min())), pytest.approx(float(n.max())))
    ratio = length_edges[1:] / length_edges[:-1]
    assert torch.allclose(ratio, ratio[0])  # a log scale
    i, j = 3, 5  # any cell, counted the long way
    inside = (n >= length_edges[i]) & (n < length_edges[i + 1])
    inside &= (scores >= score_edges[j]) & (scores < score_edges[j + 1])
    assert int(counts[i, j]) == int(inside.sum())
    corner, _, _ = heat_map(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 10.0]]), bins=2)
    assert corner.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="must be positive"):
        heat_map(torch.ones(1, 2), torch.tensor([[0.0, 1.0]]))


def test_the_heat_map_is_drawn(tmp_path):
    path = draw_heat_map(drawn(0, 30, 4), lengths(1, 30, 4), tmp_path / "heat.png", title="before")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    draw_heat_map(torch.ones(1, 2), torch.ones(1, 2), tmp_path / "one.svg")  # a single cell
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


# -- normalisation -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_normalised_scores_have_mean_zero_and_the_same_preferences(seed):
    scores = drawn(seed, 5, 4) * 3 + 7
    per_prompt, overall, scaled = (normalise(scores, mode) for mode in ("per_prompt", "global", "global_std"))
    assert per_prompt.mean(-1).abs().max() < 1e-6
    assert abs(float(overall.mean())) < 1e-6 and abs(float(scaled.mean())) < 1e-6
    assert float(scaled.std(correction=0)) == pytest.approx(1)
    for shifted in (per_prompt, overall):
        assert torch.allclose(bradley_terry(shifted), bradley_terry(scores), atol=1e-12)
    assert not torch.allclose(bradley_terry(scaled), bradley_terry(scores), atol=1e-3)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_kl_optimum_does_not_see_a_shift_and_a_scale_is_another_beta(beta):
    scores, ref = drawn(0, 3, 5), drawn(1, 3, 5).softmax(-1)
    wanted = rlhf_optimum(ref, scores, beta)
    assert torch.allclose(rlhf_optimum(ref, normalise(scores, "per_prompt"), beta), wanted, atol=1e-12)
    assert torch.allclose(rlhf_optimum(ref, normalise(scores, "global"), beta), wanted, atol=1e-12)
    _, spread = calibrate(scores, "global_std")
    scaled = rlhf_optimum(ref, normalise(scores, "global_std"), beta)
    assert torch.allclose(scaled, rlhf_optimum(ref, scores, beta * float(spread)), atol=1e-12)


def test_scores_that_cannot_be_normalised():
    with pytest.raises(ValueError, match="no standard deviation"):
        normalise(torch.ones(2, 2), "global_std")
    with pytest.raises(ValueError, match="all of them finite"):
        normalise(torch.tensor([[float("nan")]]), "global")
    with pytest.raises(ValueError, match="it is 'batch'"):
        normalise(torch.ones(2, 2), "batch")  # pyright: ignore

"""Does a score, or a judge, like length? Measures of Singhal et al. 2023 (arXiv:2310.03716).

Scores and lengths are [B, G]: G completions of each of B prompts. Pooled measures mix two things, long answers to hard
prompts and long answers that score better; within a prompt only the second is left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class LengthBias:
    """Correlations of score with length; None where one of them does not vary. `prompts` tells the two apart within."""

    pearson: float | None
    spearman: float | None
    pearson_within: float | None
    spearman_within: float | None
    prompts: int  # those in which both vary

    @classmethod
    def of(cls, scores: Tensor, lengths: Tensor) -> LengthBias:
        """From scores and lengths [B, G].

        >>> found = LengthBias.of(torch.tensor([[1.0, 2.0], [7.0, 9.0]]), torch.tensor([[10, 20], [10, 15]]))
        >>> round(found.spearman, 4), found.spearman_within
        (0.2108, 1.0)
        """
        scores, lengths = _both(scores, lengths)
        vary = (scores.amax(-1) > scores.amin(-1)) & (lengths.amax(-1) > lengths.amin(-1))
        return cls(
            pearson(scores.flatten(), lengths.flatten()),
            spearman(scores.flatten(), lengths.flatten()),
            pearson(_centred(scores[vary]), _centred(lengths[vary])),
            pearson(_centred(ranks(scores[vary])), _centred(ranks(lengths[vary]))),
            int(vary.sum()),
        )

    def summary(self) -> dict[str, float | int | None]:
        """Plain values for JSON."""
        return asdict(self)


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Correlation of two tensors of one shape; None where one of them is constant."""
    x, y = (z.double().flatten() - z.double().mean() for z in (x, y))
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float(x @ y / scale) if x.numel() and scale > 0 else None


def spearman(x: Tensor, y: Tensor) -> float | None:
    """Correlation of the ranks of two vectors; equal values share the mean of their ranks."""
    return pearson(ranks(x), ranks(y))


def ranks(x: Tensor) -> Tensor:
    """Rank of each value in its row [..., G], from 1 up; equal values share the mean of their ranks.

    >>> ranks(torch.tensor([30, 10, 10])).tolist()
    [3.0, 1.5, 1.5]
    """
    ordered = x.sort(-1).values.contiguous()
    below = torch.searchsorted(ordered, x.contiguous())  # how many are smaller
    upto = torch.searchsorted(ordered, x.contiguous(), right=True)  # or equal
    return (below + upto + 1).double() / 2


@dataclass(frozen=True)
class PairLengths:
    """Length in preference pairs: a bias of the data, before any model. Shares are of `pairs`."""

    pairs: int
    chosen_longer: float
    equal: float

    @classmethod
    def of(cls, chosen_lengths: Tensor, rejected_lengths: Tensor) -> PairLengths:
        """From lengths [N] of the two sides. ValueError for none."""
        n = len(chosen_lengths)
        if n == 0:
            raise ValueError("there are no pairs to compare the lengths of")
        longer, equal = (chosen_lengths > rejected_lengths).sum(), (chosen_lengths == rejected_lengths).sum()
        return cls(n, float(longer) / n, float(equal) / n)


def accuracy_by_length(
    chosen_scores: Tensor, rejected_scores: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor
) -> dict[str, float | None]:
    """Accuracy of a reward model on the pairs [N] whose chosen side is `longer`, `shorter` or `equal`; equal scores are
    half right, None without such pairs. A model that only counts words has 1 and 0."""
    right = ((chosen_scores > rejected_scores).double() + (chosen_scores >= rejected_scores).double()) / 2
    longer = torch.sign(chosen_lengths - rejected_lengths)
    found = {name: right[longer == side] for name, side in (("longer", 1), ("shorter", -1), ("equal", 0))}
    return {name: float(values.mean()) if len(values) else None for name, values in found.items()}


def length_inflation(before: Tensor, after: Tensor) -> float:
    """Mean length after training over the mean length before."""
    return float(after.double().mean() / before.double().mean())


def heat_map(scores: Tensor, lengths: Tensor, bins: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """How many completions fall where: (counts [bins, bins], length edges, score edges), lengths on a log scale.

    counts[i, j] is of length bin i and score bin j; every completion is in one of them. Lengths must be positive.
    """
    scores, lengths = (x.flatten() for x in _both(scores, lengths))
    if lengths.min() <= 0:
        raise ValueError("lengths on a log scale must be positive: leave empty completions out")
    length_edges, score_edges = _edges(lengths.log(), bins), _edges(scores, bins)
    i = torch.bucketize(lengths.log(), length_edges[1:-1], right=True)
    j = torch.bucketize(scores, score_edges[1:-1], right=True)
    counts = torch.bincount(i * bins + j, minlength=bins * bins).reshape(bins, bins)
    return counts, length_edges.exp(), score_edges


def draw_heat_map(scores: Tensor, lengths: Tensor, path: str | Path, title: str = "", bins: int = 24) -> Path:
    """Draw `heat_map` with logarithmic colours and length axis into a file, as its ending says; returns its path."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    counts, length_edges, score_edges = heat_map(scores, lengths, bins)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="length", ylabel="score", xscale="log")
    shown = counts.double().masked_fill(counts == 0, float("nan"))
    norm = LogNorm(1, max(float(counts.max()), 2.0))
    mesh = axes.pcolormesh(length_edges.numpy(), score_edges.numpy(), shown.T.numpy(), norm=norm, cmap="viridis")
    figure.colorbar(mesh, label="completions")
    figure.savefig(path, dpi=150)
    return Path(path)


def _both(scores: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    if scores.shape != lengths.shape or scores.ndim != 2:
        raise ValueError(
            f"scores and lengths must both be [prompts, completions]; they are {[*scores.shape]}, {[*lengths.shape]}"
        )
    return scores.double(), lengths.double()


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _edges(x: Tensor, bins: int) -> Tensor:
    low, high = float(x.min()), float(x.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)

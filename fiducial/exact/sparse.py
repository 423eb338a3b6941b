"""Learning a sparse reward from pairs against learning the dense one that DPO is left with (arXiv:2505.19770).

Pairs have Gaussian feature differences x [n, d]; the first wins with probability sigmoid(x theta). RLHF's theta has k
entries of 1; DPO's carries a dense shift of norm 1 besides, the second token's soft value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class SparsePairs(NamedTuple):
    """x [n, d]; wins [n] bool, whether the first of the pair won; theta [d]."""

    x: Tensor
    wins: Tensor
    theta: Tensor


def sparse_pairs(n: int, d: int, k: int, seed: int, dense: bool = False) -> SparsePairs:
    """n labelled pairs whose theta has k ones, and with `dense` a shift of +-1 / sqrt(d) in every entry."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    theta = (torch.arange(d) < k).double()
    signs = 2.0 * torch.randint(0, 2, (d,), generator=draw) - 1
    if dense:
        theta = theta + signs / math.sqrt(d)
    return SparsePairs(x, torch.rand(n, generator=draw, dtype=torch.float64) < (x @ theta).sigmoid(), theta)


def l1_weight(n: int, d: int) -> float:
    """sqrt(log d / n) / 2, the penalty of the order that the theory of the lasso asks for."""
    return math.sqrt(math.log(d) / n) / 2


def logistic_fit(x: Tensor, wins: Tensor, l1: float = 0.0, steps: int = 1000) -> Tensor:
    """argmin of mean log(1 + exp(-+ x theta)) + l1 |theta|_1, [d], by accelerated proximal gradient (FISTA).

    The momentum starts again whenever it points uphill. Stops when a step moves no entry by 1e-9. Without a penalty and
    with separable wins there is no minimum.
    """
    signed = torch.where(wins[:, None], x, -x)
    rate = 4 * len(x) / float(torch.linalg.matrix_norm(x, 2)) ** 2  # 1 / the Lipschitz constant of the gradient
    theta = ahead = torch.zeros(x.shape[1], dtype=torch.float64)
    momentum = 1.0
    for _ in range(steps):
        gradient = -signed.T @ torch.sigmoid(-signed @ ahead) / len(x)
        moved = ahead - rate * gradient
        new = moved.sign() * (moved.abs() - rate * l1).clamp(min=0)
        if (ahead - new) @ (new - theta) > 0:
            momentum = 1.0
        after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / after * (new - theta)
        done, theta, momentum = bool((new - theta).abs().max() < 1e-9), new, after
        if done:
            break
    return theta


def data_error(x: Tensor, estimate: Tensor, theta: Tensor) -> float:
    """mean (x (estimate - theta))^2, the squared norm that the data induce.

    >>> data_error(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([3.0, 0.0]), torch.zeros(2))
    4.5
    """
    return float((x @ (estimate - theta)).square().mean())

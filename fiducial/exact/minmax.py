"""The von Neumann winner of a preference matrix by linear programming (HiGHS, from the extra `games`).

A mix p of options that no option beats: p'(P - 1/2) >= 0 (Simpson 1969; Swamy et al. 2024, arXiv:2401.04056). It always
exists, and its value is always 1/2; it need not be the only one, for instance when an option is in the list twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fiducial.exact.games import check_preferences

TOLERANCE = 1e-6  # HiGHS meets constraints to 1e-7


@dataclass(frozen=True)
class MinmaxWinner:
    """policy [N] and what the programme's dual says of the opponent, dual [N]; value, 1/2 up to rounding.

    most [N] is the greatest mass each option can have in any winner; `is_unique` when no winner gives any option more
    than this policy does.
    """

    policy: Tensor
    dual: Tensor
    value: float
    most: Tensor

    @property
    def is_unique(self) -> bool:
        """Whether this is the only minmax winner."""
        return bool((self.most - self.policy).max() <= TOLERANCE)


def minmax_winner(preference: Tensor) -> MinmaxWinner:
    """argmax_p min_q p' P q over mixes of the options of P [N, N].

    >>> from fiducial.exact.games import four_options
    >>> winner = minmax_winner(four_options())
    >>> winner.policy, winner.is_unique
    (tensor([0.3333, 0.3333, 0.0000, 0.3333], dtype=torch.float64), True)
    """
    check_preferences(preference)
    game, size = (preference - 0.5).double(), len(preference)
    # Variables (p, v): maximise v subject to v - (P - 1/2)'p <= 0 for every answer, sum p = 1, p >= 0.
    found = _linprog(
        [0.0] * size + [-1.0],
        A_ub=torch.cat([-game.T, torch.ones(size, 1, dtype=torch.float64)], 1).numpy(),
        b_ub=[0.0] * size,
        A_eq=[[1.0] * size + [0.0]],
        b_eq=[1.0],
        bounds=[(0, None)] * size + [(None, None)],
    )
    dual = -torch.as_tensor(found.ineqlin.marginals)
    policy = torch.as_tensor(found.x[:size])
    return MinmaxWinner(policy, dual, 0.5 + float(found.x[size]), _most(game))


def _most(game: Tensor) -> Tensor:
    """The greatest mass of each option among all p with p'(P - 1/2) >= 0: [N]."""
    size = len(game)
    shared: dict[str, Any] = {"A_ub": -game.T.numpy(), "b_ub": [0.0] * size, "A_eq": [[1.0] * size], "b_eq": [1.0]}
    objectives = -torch.eye(size, dtype=torch.float64)
    return torch.tensor([-_linprog(row.tolist(), **shared).fun for row in objectives], dtype=torch.float64)


def _linprog(cost: list[float], **constraints: Any) -> Any:
    try:
        from scipy.optimize import linprog
    except ImportError:
        raise ValueError("a minmax winner needs a linear programme: pip install 'fiducial[games]'") from None
    found = linprog(cost, method="highs", **constraints)
    if not found.success:
        raise RuntimeError(f"the linear programme of the minmax winner failed: {found.message}")
    return found


def max_entropy_winner(preference: Tensor) -> Tensor:
    """Of all minmax winners the one of greatest entropy, [N]: clones share evenly, indifference is uniform.

    By its dual: p is proportional to exp((P - 1/2) y) on the options that some winner uses, with y_j >= 0 for each
    constraint p'(P - 1/2)_j >= 0, and y_j free where no winner leaves room. Accurate to about 1e-6.

    >>> max_entropy_winner(torch.full((4, 4), 0.5).double())
    tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    check_preferences(preference)
    game = (preference - 0.5).double()
    used = _most(game) > TOLERANCE
    rows = game[used]
    from scipy.optimize import minimize

    def dual(y: Any) -> tuple[float, Any]:
        energy = rows @ torch.as_tensor(y)
        return float(energy.logsumexp(0)), (energy.softmax(0) @ rows).numpy()

    bounds = [(None, None) if free else (0, None) for free in used.tolist()]
    found = minimize(
        dual,
        [0.0] * len(game),
        jac=True,
        bounds=bounds,
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-9, "maxiter": 2000},
    )
    policy = torch.zeros(len(game), dtype=torch.float64)
    policy[used] = (rows @ torch.as_tensor(found.x)).softmax(0)
    return policy

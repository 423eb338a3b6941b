"""Minimising an exactly enumerated loss, in float64, until its gradient is zero to machine precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def exact_minimise(loss: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-10) -> Tensor:
    """The parameters, shaped as `start`, where the scalar `loss` has a gradient below `tolerance` in max-norm.

    L-BFGS with a strong Wolfe line search, then Newton steps; directions in which the loss is flat are left alone, so a
    softmax table may keep its free constant. RuntimeError if there is no such point: a loss of certain pairs has none.

    >>> exact_minimise(lambda x: (x - 3).square().sum(), torch.zeros(2))
    tensor([3., 3.], dtype=torch.float64)
    """
    theta = start.detach().double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=tolerance, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theta)
        value.backward()
        return value

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    for _ in range(10):
        (gradient,) = torch.autograd.grad(loss(theta), theta)
        if gradient.abs().max() <= tolerance:
            return theta.detach()
        hessian = torch.as_tensor(torch.autograd.functional.hessian(loss, theta.detach()))
        inverse = torch.linalg.pinv(hessian.reshape(theta.numel(), -1), rtol=1e-9, hermitian=True)
        step = inverse @ gradient.flatten()
        theta = (theta.detach() - step.view_as(theta)).requires_grad_()
    raise RuntimeError(
        f"the loss has no minimum within reach: its gradient is still {float(gradient.abs().max()):.1e} "
        f"where {tolerance:g} is asked for"
    )

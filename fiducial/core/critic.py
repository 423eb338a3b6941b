"""What a critic learns from."""

import torch
from torch import Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_value: float = 0.2) -> Tensor:
    """Squared error of the forecasts, halved, per token: three [B, L] -> [B, L] (Schulman et al. 2017, as in
    arXiv:2203.02155).

        max((v - G)^2, (clip(v, v_old - clip_value, v_old + clip_value) - G)^2) / 2

    so a forecast that has moved far since the sampling learns only where that makes its error larger. 0: no clip.

    >>> value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    tensor([[1.6200]])
    """
    error = (values - returns).square()
    if clip_value:
        near = old_values + (values - old_values).clamp(-clip_value, clip_value)
        error = torch.maximum(error, (near - returns).square())
    return error / 2


def wide_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_value: float = 5.0) -> Tensor:
    """`value_loss` for forecasts that may move far in one step, as those of unscaled rewards must."""
    return value_loss(values, old_values, returns, clip_value=clip_value)


def cost_value_loss(
    cost_values: Tensor, old_cost_values: Tensor, cost_returns: Tensor, *, clip_value: float = 5.0
) -> Tensor:
    """The same of a critic that forecasts costs."""
    return value_loss(cost_values, old_cost_values, cost_returns, clip_value=clip_value)

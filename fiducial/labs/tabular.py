"""What labs on small tables share: a method's own loss on pairs of a table, and plain gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fiducial.core.method import Method


def pair_loss(
    method: Method, policy: Tensor, ref: Tensor, chosen: Tensor | int, rejected: Tensor | int, **hparams: Any
) -> Tensor:
    """The method's loss of pairs of one-token responses, from log-probs [B, A] and a response of each: [B]."""

    def pick(table: Tensor, response: Tensor | int) -> Tensor:
        where = torch.as_tensor(response).expand(table.shape[:-1])
        return table.gather(-1, where[..., None])[..., 0]

    tensors = {
        "chosen_logprobs": pick(policy, chosen),
        "rejected_logprobs": pick(policy, rejected),
        "ref_chosen_logprobs": pick(ref, chosen),
        "ref_rejected_logprobs": pick(ref, rejected),
    }
    one = torch.ones_like(tensors["chosen_logprobs"]).detach()
    return method.call_loss({**tensors, "chosen_lengths": one, "rejected_lengths": one}, method.settings(hparams))


def expected_pair_loss(
    method: Method, policy: Tensor, ref: Tensor, preference: Tensor, law: Tensor, **hparams: Any
) -> Tensor:
    """Its expectation over pairs drawn from `law` [A] and labelled by P [A, A], of log-probs [A]: a number.

    Pairs of a response with itself teach nothing and are left out.
    """
    first, second = torch.triu_indices(len(law), len(law), 1)
    weight = law[first] * law[second]
    total = torch.zeros((), dtype=policy.dtype)
    for chosen, rejected in ((first, second), (second, first)):
        many = len(chosen), len(law)
        losses = pair_loss(method, policy.expand(many), ref.expand(many), chosen, rejected, **hparams)
        total = total + (weight * preference[chosen, rejected] * losses).sum()
    return total / weight.sum()


def descend(loss: Callable[[Tensor], Tensor], start: Tensor, lr: float, steps: int) -> Tensor:
    """Plain gradient descent on a scalar loss: the parameters before each step and after the last, [steps + 1, ...]."""
    theta = start.detach().double().clone().requires_grad_()
    path = [theta.detach().clone()]
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(theta), theta)
        with torch.no_grad():
            theta -= lr * gradient
        path.append(theta.detach().clone())
    return torch.stack(path)


def normals(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

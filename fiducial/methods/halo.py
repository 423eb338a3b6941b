"""Human-aware losses (Ethayarajh et al. 2024, arXiv:2402.01306), definition 3.4.

    f = E[a v(r(x, y) - E_Q r(x, y'))] + C,    r = l(y) log pi(y)/ref(y),    a in {-1, 1}

v does not fall, and is concave on gains. `HALOS` composes methods of this kind: dpo (Q is the rejected completion,
v = log sigmoid), kto (Q has the mean log-ratio z0), ppo_clip (r - E r is the advantage A, a = 1 for what is maximised;
v = min(q A, (1 + sign(A) epsilon) A), q = pi/old). As a method the loss learns from labelled completions, with z0 as
in kto and a `value` of z = +-beta (log pi/ref - z0), + if wanted: "sigmoid" is kto; "logsigmoid" also pulls hard on
what looks mislabelled; "kahneman_tversky" is theirs (1992), a power of 1 + |z| in place of |z|, whose slope is finite.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fiducial.core.method import Method, Range


@dataclass(frozen=True)
class Halo:
    """l is `scale`, v `value`, a `sign`, C `constant`; call it with the log-ratio of y and what Q has of it."""

    value: Callable[[Tensor], Tensor]
    scale: float | Tensor = 1.0
    sign: float | Tensor = -1.0
    constant: float | Tensor = 0.0

    def __call__(self, log_ratio: Tensor, reference_point: Tensor | float) -> Tensor:
        """Per example: [B], [B] or [] -> [B]."""
        return self.sign * self.value(self.scale * (log_ratio - reference_point)) + self.constant


def _by_side(desirable: Tensor, wanted: float, unwanted: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.where(desirable, torch.tensor(wanted, dtype=dtype), torch.tensor(unwanted, dtype=dtype))


def _kto(desirable: Tensor, beta: float = 0.1, lambda_d: float = 1.0, lambda_u: float = 1.0) -> Halo:
    side, weight = _by_side(desirable, 1.0, -1.0), _by_side(desirable, lambda_d, lambda_u)
    return Halo(lambda z: weight * torch.sigmoid(side * beta * z), constant=weight)


def _ppo_clip(ratio: Tensor, epsilon: float = 0.2) -> Halo:
    return Halo(lambda z: torch.minimum(ratio * z, (1 + z.sign() * epsilon) * z), sign=1.0)


HALOS: dict[str, Callable[..., Halo]] = {
    "dpo": lambda beta=0.1: Halo(logsigmoid, scale=beta),
    "kto": _kto,
    "ppo_clip": _ppo_clip,
}


def halo(completion_logprobs: Tensor, ref_completion_logprobs: Tensor, desirable: Tensor, batch_kl: Tensor,
         *, beta: float = 0.1, lambda_d: float = 1.0, lambda_u: float = 1.0,
         value: str = "sigmoid", curvature: float = 0.88, aversion: float = 2.25) -> Tensor:  # fmt: skip
    """Loss per completion, lambda (v(inf) - v(z)), v(inf) = 0 where there is none: [B], [B], [B] bool, [] -> [B]."""

    def kahneman_tversky(z: Tensor) -> Tensor:
        losses = aversion * (1 - (1 - z.clamp(max=0)) ** curvature)
        return torch.where(z >= 0, (1 + z.clamp(min=0)) ** curvature - 1, losses)

    values = {"sigmoid": lambda z: -torch.sigmoid(-z), "logsigmoid": logsigmoid, "kahneman_tversky": kahneman_tversky}
    dtype = completion_logprobs.dtype
    weight, scale = _by_side(desirable, lambda_d, lambda_u, dtype), _by_side(desirable, beta, -beta, dtype)
    composed = Halo(lambda z: weight * values[value](z), scale=scale)  # -sigmoid(-z) = sigmoid(z) - 1
    return composed(completion_logprobs - ref_completion_logprobs, batch_kl)


METHOD = Method(
    title="Human-aware loss", family="direct alignment", paper="arXiv:2402.01306",
    feed="labels", loss=halo, per="row", target="majority",
    choices={"value": ("sigmoid", "logsigmoid", "kahneman_tversky")},
    ranges={"beta": Range(0, open="low"), "lambda_d": Range(0), "lambda_u": Range(0),
            "curvature": Range(0, 1, open="low"), "aversion": Range(0)},
)  # fmt: skip

"""What methods are to each other: limits, special cases, symmetries, on random tensors, values and gradients.

They hold for the catalogue's methods by name, so a user's own file is not asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fiducial.core.method import Method
from fiducial.methods import METHODS
from fiducial.prove.problems import Check

ROUNDING = 1e-12  # float64, the same formula written otherwise
LIMIT = 1e-3  # a hyperparameter at 1e-4 from its limit
SIZE = 256


def identities(method: Method) -> Iterator[Check]:
    """The identities that name this method first."""
    if METHODS.get(method.name) is not method:
        return
    for other, name, given, other_given, bound in SAME.get(method.name, ()):
        error = gap(method, given, METHODS[other], other_given)
        yield Check(method.name, f"{name} = {other}", error, bound)
    for name, check in SPECIAL.get(method.name, ()):
        yield Check(method.name, name, check(method), ROUNDING)


# (other method, what makes this one equal to it, this one's hyperparameters, the other's, bound)
SAME: dict[str, list[tuple[str, str, dict[str, Any], dict[str, Any], float]]] = {
    "f_dpo": [
        ("dpo", "reverse_kl", {"family": "reverse_kl"}, {}, 0.0),
        ("chi_po", "chi2_kl", {"family": "chi2_kl", "beta": 0.05}, {}, ROUNDING),
        ("dpo", "alpha near 0", {"family": "alpha", "alpha": 1e-4}, {}, LIMIT),
        ("f_dpo", "alpha near 1, forward KL", {"family": "alpha", "alpha": 1 - 1e-6}, {"family": "forward_kl"}, LIMIT),
    ],
    "spin": [("dpo", "demonstrations as chosen", {}, {}, 0.0)],
    "dpop": [("dpo", "lam = 0", {"lam": 0.0, "beta": 0.1}, {}, 0.0)],
    "dpo_nll": [("dpo", "alpha = 0", {"alpha": 0.0}, {}, 0.0)],
    "c3dpo": [("dpo", "lam = 0", {"lam": 0.0}, {}, 0.0)],
    "tr_dpo": [("dpo", "a fixed reference", {}, {}, 0.0)],
    "tr_ipo": [("ipo", "a fixed reference", {}, {}, 0.0)],
    "psi_po": [("ipo", "certain preferences, identity", {"psi": "identity"}, {}, ROUNDING)],
    "online_direct": [
        ("dpo", "sigmoid", {"loss": "sigmoid"}, {}, 0.0),
        ("ipo", "ipo", {"loss": "ipo"}, {}, 0.0),
        ("slic", "hinge", {"loss": "hinge"}, {"with_reference": True}, 0.0),
    ],
    "online_ipo": [("ipo", "its own samples", {}, {}, 0.0)],
    "llama3_loop": [("dpo_nll", "alpha = 0.2", {}, {"alpha": 0.2}, 0.0)],
    "halo": [("kto", "sigmoid value", {}, {}, ROUNDING)],
    "tr_kto": [("kto", "a fixed reference", {}, {}, 0.0)],
}


def tensors(method: Method, scale: float = 1.0) -> dict[str, Tensor]:
    """Random tensors under every name that a per-row loss of log-probs or scores may ask for, float64."""
    draw = torch.Generator().manual_seed(11)

    def normal(centre: float) -> Tensor:
        return (centre + scale * torch.randn(SIZE, generator=draw, dtype=torch.float64)).requires_grad_()

    out: dict[str, Tensor] = {}
    for side in ("chosen", "rejected", "completion"):
        out[f"ref_{side}_logprobs"] = normal(-20.0).detach()
        out[f"{side}_logprobs"] = normal(-20.0)
        out[f"{side}_lengths"] = torch.randint(1, 30, (SIZE,), generator=draw)
        out[f"{side}_scores"] = normal(0.0)
    out["margin"], out["pref_prob"] = torch.zeros(SIZE).double(), torch.ones(SIZE).double()
    out["desirable"], out["tied"] = torch.arange(SIZE) % 2 == 0, torch.zeros(SIZE).bool()
    out["batch_kl"] = torch.tensor(0.3, dtype=torch.float64)
    return out


def value_and_slopes(method: Method, given: dict[str, Any], x: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each row, and its slope in every tensor with gradient (0 where it does not appear)."""
    loss = method.call_loss(x, method.settings({**method.trial, **given}))
    leaves = {name: leaf for name, leaf in x.items() if leaf.requires_grad}
    slopes = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
    found = zip(leaves.items(), slopes, strict=True)
    return loss, {name: torch.zeros_like(leaf) if s is None else s for (name, leaf), s in found}


def gap(one: Method, given: dict[str, Any], two: Method, other_given: dict[str, Any]) -> float:
    """Largest difference of two methods' values and slopes on the same tensors."""
    x = tensors(one)
    (loss, slopes), (other, others) = value_and_slopes(one, given, x), value_and_slopes(two, other_given, x)
    worst = [(loss - other).detach().abs().max(), *((slopes[name] - others[name]).abs().max() for name in slopes)]
    return float(torch.stack(worst).max())


def shifted(method: Method, **given: Any) -> float:
    """By how much a constant added to the reference's log-probs of both sides changes the loss."""
    x = tensors(method)
    moved = {name: y + 0.7 if name.startswith("ref_") else y for name, y in x.items()}
    hparams = method.settings({**method.trial, **given})
    return float((method.call_loss(x, hparams) - method.call_loss(moved, hparams)).detach().abs().max())


def sees_shift(method: Method) -> float:
    """0 if a shift of the reference changes the loss, as it must for this method."""
    return 0.0 if shifted(method) > 1e-3 else 1.0


def swapped(method: Method, **given: Any) -> float:
    """Difference between the loss at label smoothing e, and with the sides exchanged and their weights with them."""
    e, x = 0.3, tensors(method)
    names = {"chosen": "rejected", "rejected": "chosen"}
    other = {next((n.replace(a, b) for a, b in names.items() if a in n), n): y for n, y in x.items()}
    settings = [method.settings({**given, "label_smoothing": p}) for p in (e, 0.0)]
    mixed = (1 - e) * method.call_loss(x, settings[1]) + e * method.call_loss(other, settings[1])
    return float((method.call_loss(x, settings[0]) - mixed).detach().abs().max())


def flat_past_the_margin(method: Method) -> float:
    """Slope of the hinge where beta h is beyond 1."""
    x = tensors(method, scale=0.0)
    x["chosen_logprobs"] = (x["chosen_logprobs"].detach() + 30.0).requires_grad_()
    _, slopes = value_and_slopes(method, {"with_reference": True}, x)
    return float(slopes["rejected_logprobs"].abs().max())


def steepest(method: Method) -> float:
    """How far any slope exceeds lambda beta / 4."""
    _, slopes = value_and_slopes(method, {}, tensors(method, scale=50.0))
    return max(0.0, float(slopes["completion_logprobs"].abs().max()) - 0.1 / 4)


def pulled_back(method: Method) -> float:
    """At h = 1 / beta, twice its target, IPO's slope in h is + 1 / beta: how far it is from that."""
    x = tensors(method, scale=0.0)
    x["chosen_logprobs"] = (x["chosen_logprobs"].detach() + 10.0).requires_grad_()
    _, slopes = value_and_slopes(method, {"beta": 0.1}, x)
    return float((slopes["chosen_logprobs"] - 2 * (10.0 - 5.0)).abs().max())


UNSEEN = ("a shift of the reference is not seen", shifted)
SEEN = ("a shift of the reference is seen", sees_shift)
SPECIAL: dict[str, list[tuple[str, Callable[[Method], float]]]] = {
    "dpo": [UNSEEN, ("exchanging sides and labels changes nothing", swapped)],
    "bt_reward_model": [("exchanging sides and labels changes nothing", swapped)],
    "ipo": [UNSEEN, ("an over-separated pair is pulled back", pulled_back)],
    "spin": [UNSEEN],
    "dpop": [SEEN],
    "chi_po": [SEEN],
    "kto": [SEEN, ("no slope is steeper than lambda beta / 4", steepest)],
    "slic": [("flat past the margin", flat_past_the_margin)],
}

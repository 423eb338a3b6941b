"""L28: three estimates of a KL divergence from samples.

With l = log pi/ref of a sample of pi: k1 = l is unbiased and noisy, k2 = l^2 / 2 is biased, k3 = exp(-l) - 1 + l is
unbiased and, for close policies, of little variance. Samples of another policy bias them all; importance weights
repair that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fiducial.core.divergence import kl_estimate
from fiducial.core.seeds import mix
from fiducial.exact.divergences import kl
from fiducial.labs.base import BLUE, GREY, ORANGE, Criterion, Lab, Plot, Result
from fiducial.labs.tabular import normals

ARMS = 12
MOVES = (0.05, 0.1, 0.2, 0.4, 0.8)  # standard deviations of the change in the logits
KINDS = ("k1", "k2", "k3")
OFF = ("off-policy mean", "off-policy mean, weighted")
COLOR = dict(zip(KINDS, (GREY, ORANGE, BLUE), strict=True))


def run(seed: int, fast: bool) -> Result:
    """Categorical policies at five distances from a reference; the off-policy samples are of the reference."""
    n = 100_000 if fast else 2_000_000
    ref, direction = normals(seed, ARMS).log_softmax(-1), normals(seed + 1, ARMS)
    rows: dict[str, list[float]] = {"KL": []}
    exact, biases = 0.0, {"k1": 0.0, "k3": 0.0}
    for step, move in enumerate(MOVES):
        policy = (ref + move * direction).log_softmax(-1)
        p, divergence = policy.exp(), float(kl(policy.exp(), ref.exp()))
        rows["KL"].append(divergence)
        on, off = (_sample(law.exp(), n, mix(seed, name, step)) for name, law in (("on", policy), ("off", ref)))
        for kind in KINDS:
            value = kl_estimate(policy, ref, kind)  # of each arm
            expected, sampled = float(p @ value), value[on]
            error = float(sampled.std()) / n**0.5
            found = {"exact mean": expected, "mean": float(sampled.mean()), "std": float(sampled.std())}
            found["s.e."] = error
            weighted = (policy - ref).exp() * value
            found |= {name: float(v[off].mean()) for name, v in zip(OFF, (value, weighted), strict=True)}
            for name, number in found.items():
                rows.setdefault(f"{kind} {name}", []).append(number)
            if kind in biases:
                exact = max(exact, abs(expected - divergence))
                biases[kind] = max(biases[kind], abs(found["mean"] - divergence) / error)
    criteria = [
        Criterion(f"|bias of {kind}| in standard errors, the greatest of {len(MOVES)}", bias, "<", 3.0)
        for kind, bias in biases.items()
    ]
    criteria.append(Criterion("|exact expectation of k1, k3 - KL|", exact, "<=", 1e-12))
    far = rows["k2 exact mean"][-1] / rows["KL"][-1] - 1
    note = f"k2's exact bias grows to {far:+.0%} at KL = {rows['KL'][-1]:.2f}."
    figures = {"estimators": Plot(lambda *axes: _draw(axes, rows), panels=3, width=4.0)}
    return Result({"estimators": rows}, figures, criteria, note)


def _sample(law: Tensor, n: int, seed: int) -> Tensor:
    return torch.multinomial(law, n, replacement=True, generator=torch.Generator().manual_seed(seed))


def _draw(axes: Any, rows: dict[str, list[float]]) -> None:
    divergence = torch.tensor(rows["KL"])
    for kind in KINDS:
        style = {"markersize": 3.5, "color": COLOR[kind]}
        bias, error = (torch.tensor(rows[f"{kind} {name}"]) / divergence for name in ("mean", "s.e."))
        axes[0].errorbar(divergence, bias - 1, 2 * error, fmt="o-", capsize=2, linewidth=1.5, label=kind, **style)
        axes[1].plot(divergence, torch.tensor(rows[f"{kind} std"]) / divergence, "o-", label=kind, **style)
        off, weighted = (torch.tensor(rows[f"{kind} {name}"]) for name in OFF)
        axes[2].plot(divergence, off / divergence - 1, "o-", label=kind, **style)
        axes[2].plot(divergence, weighted / divergence - 1, "s:", label=f"{kind}, weighted", **style)
    axes[0].set(title="Samples of the policy, ± 2 s.e.", ylabel="bias / KL")
    axes[1].set(title="Noise of one sample", ylabel="standard deviation / KL", yscale="log")
    axes[2].set(title="Samples of the reference", ylabel="bias / KL")
    for ax in axes:
        ax.set(xscale="log", xlabel="KL(π || ref) (nats)")
    axes[0].legend()
    axes[2].legend(fontsize=7.5, ncols=2)


LAB = Lab(
    id="L28",
    name="kl_estimators",
    title="Three estimates of the KL",
    claim="k1 is unbiased and noisy, k3 unbiased and of low variance for close policies, k2 biased; off-policy samples "
    "bias all of them.",
    source="Schulman's note 'Approximating KL divergence'",
    run=run,
)

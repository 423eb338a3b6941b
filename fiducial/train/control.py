"""Coefficients that follow what a step measured: the weight of the KL, the weight of the entropy."""

from __future__ import annotations

from dataclasses import replace

from fiducial.config import Run


def controlled(run: Run, control: dict[str, float]) -> Run:
    """The run of this step: with the coefficients that control has come to."""
    if "kl" in control:
        run = replace(run, kl=replace(run.penalty, weight=control["kl"]))
    if "entropy" in control:
        run = replace(run, entropy=replace(run.entropy, weight=control["entropy"]))
    return run


def adjusted(run: Run, control: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
    """The coefficients of the next step, from what this one measured; they are logged as they were used.

    KL (Ziegler et al. 2019): weight x (1 + e n / horizon), e = KL / target - 1 within +-0.2, n completions, KL in nats
    a completion. Entropy (Skywork-OR1, arXiv:2505.22312): `step` up while the entropy is below its target, down above,
    within [0, max].
    """
    control = dict(control)
    kl, entropy = run.penalty, run.entropy
    if kl.target:
        metrics["kl/weight"] = kl.weight
        if "kl/sequence" in metrics:
            error = min(max(metrics["kl/sequence"] / kl.target - 1, -0.2), 0.2)
            control["kl"] = kl.weight * (1 + error * run.optim.batch * run.sampling.n / kl.horizon)
    if entropy.target:
        metrics["entropy/weight"] = entropy.weight
        if "entropy" in metrics:
            moved = entropy.weight + (entropy.step if metrics["entropy"] < entropy.target else -entropy.step)
            control["entropy"] = min(max(moved, 0.0), entropy.max)
    return control

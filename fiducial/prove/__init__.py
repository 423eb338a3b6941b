"""`fiducial prove`: a method's own loss, and the trainer itself, on problems whose answer is known.

The battery holds for every method, a user's own file included: its gradient is that of its value, and does not depend
on how a step is cut (micro-batches, row order, padding, what is not masked, equal rows merged by weight). A record that
names a `target` is also held to that closed form. Expectations are enumerated with their probabilities as weights;
nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable

from fiducial.core.method import Method
from fiducial.prove.actor_critic import actor_critic, lagrangian
from fiducial.prove.battery import battery
from fiducial.prove.gradients import mean_only_gradient, policy_gradient, success_gradient
from fiducial.prove.identities import identities
from fiducial.prove.preferences import empirical_frequency, f_divergence, ipo, majority, psi, rlhf, tree_optimum
from fiducial.prove.problems import Check
from fiducial.prove.proximal import kimi_optimum, mirror_descent
from fiducial.prove.reward_models import absolute_costs, bt_rewards, davidson_rewards, preference_table
from fiducial.prove.self_play import (
    best_of_several,
    moving_reference,
    own_samples,
    regularised_nash_policy,
    self_play_step,
)

TARGETS: dict[str, Callable[[Method], list[Check]]] = {
    "empirical_frequency": empirical_frequency,
    "bt_rewards": bt_rewards,
    "rlhf_optimum": rlhf,
    "ipo_optimum": ipo,
    "f_optimum": f_divergence,
    "psi_optimum": psi,
    "tree_optimum": tree_optimum,
    "majority": majority,
    "davidson_rewards": davidson_rewards,
    "absolute_costs": absolute_costs,
    "preference_table": preference_table,
    "spin_step": self_play_step,
    "moving_reference": moving_reference,
    "own_samples": own_samples,
    "regularised_nash": regularised_nash_policy,
    "best_of_n": best_of_several,
    "policy_gradient": policy_gradient,
    "success_gradient": success_gradient,
    "mean_only_gradient": mean_only_gradient,
    "mirror_descent": mirror_descent,
    "kimi_optimum": kimi_optimum,
    "actor_critic": actor_critic,
    "lagrangian": lagrangian,
}


def prove(method: Method) -> list[Check]:
    """Every check that applies to a method. ValueError if its record names a target that does not exist."""
    if method.target is not None and method.target not in TARGETS:
        raise ValueError(f"{method.name} claims the target {method.target!r}; known are {', '.join(TARGETS)}")
    checks = [*battery(method), *identities(method)]
    if method.target is not None:
        checks += TARGETS[method.target](method)
    return checks

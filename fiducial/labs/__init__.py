"""Reproducible experiments: one file each, with pictures and a verdict. A new lab is a file here and its name below."""

from importlib import import_module

from fiducial.labs.base import Lab

NAMES = (
    "bt_vs_cycle",
    "dpo_vs_ipo_deterministic",
    "dpo_gradient_field",
    "displacement",
    "f_divergences",
    "chi_po_coverage",
    "kto_majority",
    "tr_dpo",
    "ranking_accuracy",
    "misspecification",
    "sparse_recovery",
    "overoptimisation",
    "goodhart_kinds",
    "spin",
    "token_q",
    "kl_estimators",
    "tree_vs_chain",
    "reward_normalisation",
    "label_noise",
    *("fdpo_lm_diversity", "distance_winrate", "elasticity"),  # on small language models
    *("online_offline_frontier", "negative_gradient"),  # on many bandits
    *("length_bias", "constitutional_toy"),  # simulated raters and critics
    *("grpo_dynamics", "grpo_objective", "safe_rlhf", "kl_rlhf_optimum", "offpolicy"),  # online, on trees
    *("reference_reset", "online_length_bias", "rm", "format_hacking", "dapo", "online_compare"),
)
_found: list[Lab] = [import_module(f"fiducial.labs.{name}").LAB for name in NAMES]
LABS: dict[str, Lab] = {lab.id: lab for lab in sorted(_found, key=lambda lab: lab.number)}


def lookup(name: str) -> Lab:
    """The lab of an id or a name, as "L2", "l2", "dpo_vs_ipo_deterministic" or "lab_dpo_vs_ipo_deterministic"."""
    wanted = name.removeprefix("lab_")
    for lab in LABS.values():
        if wanted.upper() == lab.id or wanted == lab.name:
            return lab
    known = ", ".join(f"{lab.id} {lab.name}" for lab in LABS.values())
    raise ValueError(f"no lab is called {name!r}; there are {known}")

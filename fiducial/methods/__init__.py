"""The catalogue: one published method per file. A new method is a file here and its name in the list."""

from importlib import import_module

from fiducial.core.method import Method

NAMES = (
    *("sft", "spin"),  # demonstrations
    *("bt_reward_model", "tie_model", "cost_model", "pairwise_preference_model"),  # reward models
    *("dpo", "dpo_nll", "dpop", "c3dpo", "tr_dpo", "f_dpo", "chi_po", "ipo", "tr_ipo", "psi_po", "slic"),  # pairs
    *("simpo", "orpo", "cpo", "token_dpo", "ipl"),
    *("kto", "tr_kto", "halo"),  # single completions, wanted or not
    *("rejection_sampling", "online_direct", "online_ipo", "llama3_loop"),  # samples, chosen among
    *("reinforce_lm", "reinforce_pp", "remax", "rloo", "mdloo", "kimi_l2_pg"),  # samples, by policy gradient
    *("grpo", "dr_grpo", "dapo", "prorl", "gspo", "cispo"),
    *("ppo_lm", "safe_rlhf"),  # the same beside critics
)
METHODS: dict[str, Method] = {name: import_module(f"fiducial.methods.{name}").METHOD for name in NAMES}


def lookup(name: str) -> Method:
    """The record of a method by its id, or of a user's file by its path (it ends in .py)."""
    from fiducial.core.method import method_from_file

    if name.endswith(".py"):
        return method_from_file(name)
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; there are {', '.join(METHODS)}, or the path of a .py file")
    return METHODS[name]

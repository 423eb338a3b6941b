"""Two processes under FSDP2 give what one gives: the same metrics, and in float64 the same final weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import die, finish, recipe, saved

from fiducial.store import RunFolder

SHORT = ("--model.dtype", "float64", "--steps", "4")
LORA = ("--model.lora.rank", "4")
KL = ("--kl.weight", "0.1", "--kl.estimator", "k3")
CASES = {
    "demonstrations": ("sft",),
    "pairs": ("dpo",),
    "reward model": ("bt_reward_model",),
    "updates in a step, KL in the loss": ("grpo", "--optim.minibatches", "2", *KL),
    "epochs in a step": ("grpo", "--optim.epochs", "2"),
    "KL in the reward": ("rloo", "--kl.weight", "0.1", "--kl.estimator", "full", "--kl.place", "reward"),
    "running baseline, credit per token": ("reinforce_lm", "--hparams.action_level", "token"),  # its own KL: k1
    "a critic, minibatches, whitened": ("ppo_lm", "--optim.minibatches", "2"),
    "two critics and a multiplier": ("safe_rlhf",),
    "drawn ahead, corrected": ("grpo", "--sampling.ahead", "2", "--correction.mode", "mask"),
    "in pieces": ("rloo", "--sampling.segment", "3", "--sampling.stop", '["e"]', "--sampling.max_new_tokens", "16"),
    "drawn again": ("grpo", "--sampling.refill", "2"),
    "steered KL and entropy": ("rloo", "--kl.target", "1.0", "--kl.horizon", "100", "--entropy.target", "3.0"),
    "a greedy baseline": ("remax",),
    "an optimizer that starts anew, epochs": ("kimi_l2_pg", "--optim.epochs", "2"),
    "pairs, LoRA": ("dpo", *LORA),
    "samples, LoRA, KL in the loss": ("grpo", *LORA, *KL),
}


def assert_same(found: Path, expected: Path) -> None:
    """Two run folders with the same weights (to 1e-10), checkpoint and metrics (but for the clock's)."""
    one, two = (load_file(out / "model" / "model.safetensors") for out in (expected, found))
    torch.testing.assert_close(two, one, atol=1e-10, rtol=0)
    one, two = saved(expected), saved(found)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor | float):
            torch.testing.assert_close(two[name], value, atol=1e-10, rtol=1e-7, msg=name)
        else:
            assert two[name] == value, name
    one, two = (RunFolder(out).read_metrics() for out in (expected, found))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if "seconds" not in name:
                assert b[name] == pytest.approx(value, rel=1e-7, abs=1e-9), (name, a["step"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tmp_path, case):
    method, *flags = CASES[case]
    path = recipe(tmp_path, method)
    for processes in (1, 2):
        finish(path, tmp_path / str(processes), *SHORT, *flags, processes=processes)
    assert_same(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 2), (1, 2), (2, 1)])
def test_a_killed_run_goes_on_with_any_number_of_processes(tmp_path, before, after):
    """Killed in step 4, after the checkpoint of step 2, with a KL and a running baseline; then resumed."""
    path = recipe(tmp_path, "reinforce_lm")
    finish(path, tmp_path / "whole", *SHORT)
    out = tmp_path / "killed"
    die(path, out, *SHORT, processes=before, killed_after=("fiducial.train.loop:update", 4))
    assert RunFolder(out).last_step() == 3
    finish(path, out, *SHORT, processes=after)
    assert_same(out, tmp_path / "whole")

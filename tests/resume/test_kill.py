"""Killed at any instant and resumed, a run ends with the same tokens, rewards, losses and weights, to the bit."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from small_runs import STEPS, die, finish, recipe, saved, start

from fiducial.store import RunFolder
from fiducial.train.checkpoint import Checkpoints, fault
from fiducial.train.parts import TrainingError

METHODS = ("sft", "bt_reward_model", "dpo", "reinforce_lm", "rloo", "remax", "kimi_l2_pg", "grpo")
METHODS += ("ppo_lm", "safe_rlhf")  # with critics
LORA = ("--model.lora.rank", "4", "--kl.weight", "0.1")  # the reference is the base model inside


def record(out: Path) -> dict:
    """Everything that must be equal to the bit. Seconds are the clock's."""
    folder = RunFolder(out)
    metrics = [{k: v for k, v in line.items() if "seconds" not in k} for line in folder.read_metrics()]
    rollouts = {step: folder.read_rollouts(step) for step in folder.rollout_steps()}
    weights = (out / "model" / "model.safetensors").read_bytes()
    return {
        "metrics": metrics,
        "journal": folder.read_journal(),
        "rollouts": rollouts,
        "weights": weights,
        "samples": folder.read_samples(),
        "checkpoint": {k: x.numpy().tobytes() if isinstance(x, torch.Tensor) else x for k, x in saved(out).items()},
    }


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once(path: Path, out: Path, draw: random.Random, *flags: str) -> None:
    """Start or resume, and SIGKILL at a random instant after a random number of steps."""
    lock = out / ".lock"
    before = lock.stat().st_mtime_ns if lock.exists() else 0
    process = start(path, out, *flags)
    target, deadline = draw.randrange(STEPS), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        begun = lock.exists() and lock.stat().st_mtime_ns > before
        if begun and lines(out / "journal.jsonl") >= target:
            break
        time.sleep(0.002)
    time.sleep(draw.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def kill_and_resume(tmp_path: Path, method: str, *flags: str, kills: int, seed: int) -> None:
    path = recipe(tmp_path, method)
    finish(path, tmp_path / "whole", *flags)
    draw, out = random.Random(seed), tmp_path / "killed"
    for _ in range(kills):
        kill_once(path, out, draw, *flags)
    finish(path, out, *flags)
    assert_same(out, tmp_path / "whole", f"{method} after {kills} kills")


def assert_same(found: Path, expected: Path, what: str) -> None:
    one, two = record(expected), record(found)
    for part in one:
        assert two[part] == one[part], f"{what}: {part} differ"


@pytest.mark.parametrize("method", ["grpo", "reinforce_lm", "safe_rlhf"])
def test_two_kills(tmp_path, method):
    kill_and_resume(tmp_path, method, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ten_kills(tmp_path, method):
    kill_and_resume(tmp_path, method, kills=10, seed=METHODS.index(method))


APART = {  # what is drawn and not yet trained on must survive
    "ahead": ("--sampling.ahead", "2"),
    "in pieces": ("--sampling.segment", "3", "--sampling.stop", '["e"]', "--sampling.max_new_tokens", "16"),
    "drawn again": ("--sampling.refill", "2"),
    "steered": ("--kl.weight", "0.1", "--kl.target", "1.0", "--kl.horizon", "100", "--entropy.target", "3.0"),
    "corrected": ("--sampling.ahead", "1", "--correction.mode", "truncate", "--optim.minibatches", "2"),
}


@pytest.mark.parametrize("case", ["ahead", "in pieces"])
def test_two_kills_of_completions_on_their_way(tmp_path, case):
    kill_and_resume(tmp_path, "grpo", *APART[case], kills=2, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("case", APART)
def test_kills_of_completions_on_their_way(tmp_path, case):
    kill_and_resume(tmp_path, "ppo_lm", *APART[case], kills=4, seed=9)


@pytest.mark.slow
def test_kills_with_an_adapter(tmp_path):
    kill_and_resume(tmp_path, "grpo", *LORA, kills=3, seed=7)
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / adapter).read_bytes() == (tmp_path / "whole" / adapter).read_bytes()


INSTANTS = {  # in the evaluation before the first step, when there is no checkpoint yet
    "sampled, not verified": ("fiducial.sampling.local:LocalSampler.sample", 1),
    "metrics written": ("fiducial.store:RunFolder.append_metrics", 1),
    "two samples of four written": ("fiducial.store:RunFolder.append_sample", 2),
}


@pytest.mark.slow
def test_killed_in_the_first_evaluation(tmp_path):
    """Only a model that is given is sampled before the first step: of random weights there is nothing to see."""
    finish(recipe(tmp_path, "sft"), tmp_path / "born", "--steps", "1")
    path = recipe(tmp_path, "grpo", model=str(tmp_path / "born" / "model"))
    finish(path, tmp_path / "whole")
    for place, (name, instant) in enumerate(INSTANTS.items()):
        out = tmp_path / str(place)
        die(path, out, killed_after=instant)
        assert RunFolder(out).holds_run and not (out / "checkpoints").exists()
        finish(path, out)
        assert_same(out, tmp_path / "whole", f"killed with {name}")
    assert [row["phase"] for row in RunFolder(tmp_path / "whole").read_samples()].count("before") == 4


DIES_WHILE_SAVING = """
import os, signal, sys
import torch
from fiducial.train import checkpoint
from fiducial.cli import main

whole, calls = torch.save, []

def half(value, file):
    calls.append(1)
    if len(calls) == 3:  # steps 0 and 2 are saved; step 4 is cut
        import io
        buffer = io.BytesIO()
        whole(value, buffer)
        file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(value, file)

torch.save = half
sys.exit(main(sys.argv[1:]))
"""


def test_killed_inside_a_checkpoint_write(tmp_path):
    path = recipe(tmp_path, "sft")
    finish(path, tmp_path / "whole")
    out = tmp_path / "cut"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DIES_WHILE_SAVING, "train", str(path), "--out", str(out)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    left = sorted(p.name for p in (out / "checkpoints").iterdir())
    assert left == [".writing-step-000004", "step-000000", "step-000002"]
    finish(path, out)
    assert_same(out, tmp_path / "whole", "sft, cut while saving")
    assert not list((out / "checkpoints").glob(".writing*"))


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path):
    """A limit on file size stands in for the disk: the checkpoint does not fit, the run says so, then goes on."""
    path = recipe(tmp_path, "dpo")
    finish(path, tmp_path / "whole")
    size = (tmp_path / "whole" / "checkpoints" / f"step-{STEPS:06d}" / "state.pt").stat().st_size // 2
    out = tmp_path / "full"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    process = start(path, out, preexec_fn=limit)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1 and "could not be written" in errors and "--resume" in errors
    finish(path, out)
    assert_same(out, tmp_path / "whole", "dpo, disk full")


# -- what a checkpoint folder may look like ----------------------------------------------------------------------------


def contents(step: int) -> dict:
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}, "optimizer": {}, "credit": {}}


def test_resuming_walks_back_to_the_newest_whole_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (2, 4, 6):
        checkpoints.save(contents(step))
    (tmp_path / "checkpoints" / "step-000006" / "state.pt").write_bytes(b"short")
    (tmp_path / "checkpoints" / "step-000004" / "manifest.json").write_text("{")
    found, passed = checkpoints.newest()
    assert found is not None and found["step"] == 2 and float(found["model"]["w"][0]) == 2
    assert len(passed) == 2 and "5 of" in passed[0] and "manifest" in passed[1]


def test_one_flipped_bit_is_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    path = checkpoints.save(contents(3)) / "state.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert fault(path.parent) is not None and checkpoints.newest()[0] is None


def test_old_checkpoints_go_and_the_first_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (0, 1, 2, 3):
        checkpoints.save(contents(step))
    assert [p.name for p in checkpoints.all()] == ["step-000000", "step-000002", "step-000003"]


def test_a_failed_write_leaves_the_earlier_ones(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(contents(1))

    def full(value, file):
        file.write(b"x" * 100)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="step 2 could not be written.*No space left.*--resume"):
        checkpoints.save(contents(2))
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    found, passed = checkpoints.newest()
    assert found is not None and found["step"] == 1 and not passed


def test_saving_before_the_first_step_leaves_the_optimizer_alone():
    """torch fills an empty optimizer's state by a step of its own; AdamW's first update must stay lr x sign(g)."""
    from fiducial.config import Optim, Run
    from fiducial.exact.tables import SoftmaxTable
    from fiducial.train.checkpoint import collect, restore
    from fiducial.train.learner import Learner
    from fiducial.train.parts import Parts, State, make_optimizer

    model = SoftmaxTable(torch.zeros(1, 2))
    parts = Parts(Learner(model), cast(Any, "no feed: nothing trains"))
    state = State(make_optimizer(Run(optim=Optim(lr=0.1)), parts.learner))
    restore(parts, state, collect(parts, state))
    model.theta.grad = torch.ones_like(model.theta)
    state.optimizer.step()
    torch.testing.assert_close(model.theta.detach(), torch.full((1, 2), -0.1).double(), atol=1e-8, rtol=0)

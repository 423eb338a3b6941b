"""Runs of a tiny model with all that has a state, started as a user starts them: by the command, in new processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fiducial.methods import METHODS
from fiducial.train.checkpoint import Checkpoints

STEPS = 8
TABLES = """
[optim]
lr = 1e-3
batch = 5
rows_per_pass = 3
warmup = 2
[eval]
every = 3
n = 4
k = 2
[checkpoint]
every = 2
"""
REWARDS = """
def length(completion):
    return len(completion) % 7

def words(completion):
    return len(completion.split()) % 4 - 1
"""
NEW = """
[model.new]
hidden = 64
layers = 2
heads = 2
max_length = 96
tokenizer = 'word'
vocab_size = 200
"""
KILLED_AFTER = Path(__file__).with_name("killed_after.py")


def recipe(folder: Path, method: str, model: str = "") -> Path:
    """A recipe of `STEPS` steps from fresh weights, or from the folder `model`. Five examples a step divide by no two.

    Pairs from a file, demonstrations of a task, or its problems with a reward that differs from completion to
    completion, so that every step has a gradient.
    """
    lines = [f"method = '{method}'", f"steps = {STEPS}", "seed = 5"]
    tables = [TABLES, f"[model]\npath = '{model}'" if model else NEW]
    if method in ("dpo", "bt_reward_model"):
        pairs = [
            {"prompt": f"say {i}", "chosen": f"yes {i} " * (1 + i % 3), "rejected": "no " * (1 + i % 4)}
            for i in range(40)
        ]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
        tables.append(f"[data]\npath = '{folder / 'pairs.jsonl'}'")
    else:
        lines.append("task = 'arith'")
        tables.append("[data]\nrows = 50\ndifficulty = {steps = 1}")
    if METHODS[method].feed == "groups":
        (folder / "reward.py").write_text(REWARDS)
        lines.append(f"reward = '{folder / 'reward.py'}:length'")
        if METHODS[method].costed:
            lines.append(f"cost = '{folder / 'reward.py'}:words'")
        tables.append("[sampling]\nn = 3\nmax_new_tokens = 10")
    path = folder / f"{method}.toml"
    path.write_text("\n".join(lines + tables))
    return path


def start(
    path: Path, out: Path, *flags: str, processes: int = 1, killed_after: tuple[str, int] | None = None, **options
) -> subprocess.Popen:
    """Train, or go on with what is in `out`. `killed_after` ("module:name", 3): SIGKILL at its third return."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(KILLED_AFTER), killed_after[0], str(killed_after[1])] if killed_after else ["-m", "fiducial"]
    command += ["train", str(path), "--out", str(out), "--resume", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def finish(path: Path, out: Path, *flags: str, processes: int = 1) -> None:
    """Train to the end."""
    process = start(path, out, *flags, processes=processes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def die(path: Path, out: Path, *flags: str, processes: int = 1, killed_after: tuple[str, int]) -> None:
    """Train until the kill, which must come."""
    process = start(path, out, *flags, processes=processes, killed_after=killed_after)
    _, errors = process.communicate(timeout=300)
    assert process.returncode not in (0, 2), errors[-3000:]
    assert processes > 1 or process.returncode == -signal.SIGKILL, errors[-3000:]


def saved(out: Path) -> dict[str, Any]:
    """Whatever the newest checkpoint holds, each tensor and number under its path: credit/mean, model/head.weight."""

    def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from leaves(inner, f"{path}/{key}" if path else str(key))
        else:
            yield path, value

    newest, _ = Checkpoints(out / "checkpoints").newest()
    found = dict(leaves(newest, ""))
    assert any(name.endswith("/exp_avg") for name in found), "a checkpoint without momentum compares nothing"
    return found

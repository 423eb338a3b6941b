"""Two processes under FSDP2 give what one gives: the same metrics and the same final weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

MODEL = """[model]
dtype = 'float64'
[model.new]
hidden = 64
layers = 2
heads = 2
max_length = 128
tokenizer = 'word'
vocab_size = 200
"""


def recipe(folder: Path, method: str) -> Path:
    lines = [f"method = '{method}'", "steps = 4", "seed = 3"]
    tables = ["[optim]\nlr = 1e-3\nbatch = 5\nrows_per_pass = 3", "[eval]\nn = 6\nk = 2", MODEL]
    if method in ("dpo", "bt_reward_model"):
        pairs = [
            {"prompt": f"say {i}", "chosen": f"yes {i} " * (1 + i % 3), "rejected": "no " * (1 + i % 4)}
            for i in range(40)
        ]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
        tables.insert(0, f"[data]\npath = '{folder / 'pairs.jsonl'}'")
    else:
        lines.append("task = 'arith'")
        tables.insert(0, "[data]\nrows = 60\ndifficulty = {steps = 1}")
    if method == "grpo":  # several updates of one batch, a KL, and prompts that do not divide by two
        lines.append("reward = 'tests_reward.py:length'".replace("tests_reward.py", str(folder / "reward.py")))
        (folder / "reward.py").write_text("def length(completion):\n    return len(completion) % 7\n")
        tables.insert(0, "[sampling]\nn = 3\nmax_new_tokens = 12")
        tables[1:1] = ["[kl]\nweight = 0.1\nestimator = 'k3'"]
        tables = [t.replace("rows_per_pass = 3", "rows_per_pass = 3\nminibatches = 2") for t in tables]
    path = folder / f"{method}.toml"
    path.write_text("\n".join(lines + tables))
    return path


def train(path: Path, out: Path, processes: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start = [sys.executable, "-m", "fiducial"]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        start += ["-m", "fiducial"]
    done = subprocess.run(
        [*start, "train", str(path), "--out", str(out)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "bt_reward_model", "grpo"])
def test_two_processes_equal_one(tmp_path, method):
    path = recipe(tmp_path, method)
    for processes in (1, 2):
        train(path, tmp_path / str(processes), processes)
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("1", "2"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-9, rtol=0, msg=name)
    lines = [
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("1", "2")
    ]
    for a, b in zip(*lines, strict=True):
        for name, value in a.items():
            if "seconds" not in name and value is not None:
                assert b[name] == pytest.approx(value, rel=1e-6, abs=1e-6), (name, a["step"])

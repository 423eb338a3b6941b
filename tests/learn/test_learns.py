"""The whole way, data to report, teaches something within seconds: thresholds that chance does not reach."""

import json

import pytest

from fiducial.config import Data, Eval, Model, NewModel, Optim, Run, Sampling
from fiducial.core.method import KL
from fiducial.store import RunFolder
from fiducial.train import train

TINY = NewModel(hidden=64, layers=2, heads=2, max_length=64, tokenizer="word", vocab_size=100)


def last(folder, name: str) -> float:
    """The last value of a metric."""
    return [row[name] for row in RunFolder(folder).read_metrics() if name in row][-1]


def silent(line: str) -> None:
    pass


def test_sft_learns_a_rule(tmp_path):
    """Copy the word: 20 words, so chance is 5 %."""
    rows = [{"prompt": f"say w{i % 20} now {i % 7}", "completion": f"w{i % 20}"} for i in range(400)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(
        method="sft", steps=120, data=Data(path=str(path)), model=Model(new=TINY), optim=Optim(lr=3e-3, batch=16),
        eval=Eval(n=40),
    )  # fmt: skip
    folder = train(run, out=tmp_path / "run", show=False, tell=silent)
    assert last(folder, "eval/mean_token_accuracy") > 0.9


@pytest.mark.parametrize("method", ["reinforce_lm", "rloo", "grpo"])
def test_rewards_rise(tmp_path, method):
    """The reward is 1 for a completion that begins with "b": from about 1 in 30 to nearly always."""
    (tmp_path / "begins.py").write_text("def b(completion):\n    return completion.startswith('b')\n")
    rows = [{"prompt": f"word {i % 5}", "answer": c, "text": "a b c d e f g h"} for i, c in enumerate("abcdefgh" * 10)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(
        method=method, steps=40, data=Data(path=str(path)), model=Model(new=TINY), reward=f"{tmp_path}/begins.py:b",
        optim=Optim(lr=3e-3, batch=8), sampling=Sampling(n=8, max_new_tokens=3), kl=KL(), eval=Eval(n=8, k=1),
        hparams={"baseline": "batch_mean"} if method == "reinforce_lm" else {},
    )  # fmt: skip
    folder = train(run, out=tmp_path / method, show=False, tell=silent)
    rewards = [row["reward"] for row in RunFolder(folder).read_metrics() if "reward" in row]
    assert sum(rewards[:3]) / 3 < 0.3 and sum(rewards[-3:]) / 3 > 0.8


def test_a_strong_kl_holds_the_policy_back(tmp_path):
    """The same run with a heavy penalty in the reward stays near the reference, and its reward stays low."""
    (tmp_path / "begins.py").write_text("def b(completion):\n    return completion.startswith('b')\n")
    rows = [{"prompt": f"word {i % 5}", "text": "a b c d e f g h"} for i in range(80)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    final = {}
    for weight in (0.0, 5.0):
        for place in ("reward", "loss"):
            run = Run(
                method="rloo", steps=25, data=Data(path=str(path)), model=Model(new=TINY),
                reward=f"{tmp_path}/begins.py:b", optim=Optim(lr=3e-3, batch=8),
                sampling=Sampling(n=8, max_new_tokens=3), eval=Eval(n=8, k=1),
                kl=KL(weight, "k2" if place == "loss" else "k1", place),
            )  # fmt: skip
            folder = train(run, out=tmp_path / f"{weight}{place}", show=False, tell=silent)
            final[weight, place] = last(folder, "reward")
    assert min(final[0.0, "reward"], final[0.0, "loss"]) > 0.7
    assert max(final[5.0, "reward"], final[5.0, "loss"]) < 0.4


@pytest.mark.parametrize("method", ["dpo", "bt_reward_model"])
def test_pairs_teach_a_preference(tmp_path, method):
    """Prefer the completion with "yes" in a crowd of other words; held-out accuracy, chance 50 %."""
    rows = []
    for i in range(240):
        words = [f"w{(i * 7 + j) % 30}" for j in range(3)]
        rows.append(
            {
                "prompt": f"ask {i % 9}",
                "chosen": " ".join([*words[:2], "yes"]),
                "rejected": " ".join([*words[1:], "no"]),
            }
        )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(
        method=method, steps=60, data=Data(path=str(path)), model=Model(new=TINY), optim=Optim(lr=1e-3, batch=16),
        eval=Eval(n=40),
    )  # fmt: skip
    folder = train(run, out=tmp_path / "run", show=False, tell=silent)
    name = "eval/accuracy" if method == "bt_reward_model" else "eval/rewards/accuracies"
    assert last(folder, name) > 0.9
    assert last(folder, f"{name}/low") > 0.75  # the interval is there too


def test_lora_trains_only_the_adapter_and_merges(tmp_path):
    from fiducial import models
    from fiducial.config import Lora

    small = Data(rows=20, difficulty={"steps": 1})
    first = Run(
        method="sft", task="arith", steps=1, data=small, model=Model(new=TINY), eval=Eval(n=2, k=1),
        optim=Optim(batch=2),
    )  # fmt: skip
    base = train(first, out=tmp_path / "base", show=False, tell=silent)
    rows = [{"prompt": "has", "completion": "more than"} for _ in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(
        method="sft", steps=40, data=Data(path=str(path)), optim=Optim(lr=1e-2, batch=8), eval=Eval(n=4),
        model=Model(path=str(base / "model"), lora=Lora(rank=4)),
    )  # fmt: skip
    folder = train(run, out=tmp_path / "lora", show=False, tell=silent)
    assert last(folder, "eval/mean_token_accuracy") > 0.9
    assert (folder / "adapter" / "adapter_config.json").exists()
    before, after = (models.load(f / "model")[0].state_dict() for f in (base, folder))
    assert before.keys() == after.keys()
    unchanged = [name for name in before if before[name].equal(after[name])]
    assert any("embed" in name for name in unchanged) and any("norm" in name for name in unchanged)
    assert not any(name.endswith("q_proj.weight") for name in unchanged)

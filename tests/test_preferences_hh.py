"""The benchmark of preference methods on a file of pairs: its table by hand, and a small run from end to end."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "preferences_hh.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("preferences_hh", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_by_hand(bench):
    """Accuracies .5, .6, .7 have mean .6 and deviation .1: half of the t interval is 4.3027 x .1 / sqrt 3 = .2484. Of
    100 pairs Wilson's interval at .5 is .5 +- 1.96 sqrt(.25 / 100 + 1.96^2 / 40000) / (1 + 1.96^2 / 100) = .0962."""
    found = {"DPO": [{"pairs": 100, "reward_accuracy": a, "kl": 2.0} for a in (0.5, 0.6, 0.7)]}
    table = bench.summary(found, {"seeds": 3, "steps": 1, "sft_steps": 2}, 12.34)
    mean, low, high = table["rows"][0]["mean"]["reward_accuracy"]
    assert mean == pytest.approx(0.6) and high - mean == pytest.approx(0.2484, abs=1e-4) == mean - low
    low, high = table["rows"][0]["seeds"][0]["reward_accuracy/wilson"]
    assert (low, high) == pytest.approx((0.5 - 0.0962, 0.5 + 0.0962), abs=1e-4)
    lines = bench.markdown(table).splitlines()
    assert lines[2] == "| DPO | 60.0 ± 24.8 % | – | – | 2 ± 0 | – | – | – | – |"
    assert "100 to 100 held-out pairs a seed" in lines[-1] and "12 s on one core" in lines[-1]


def test_one_seed_has_no_interval(bench):
    table = bench.summary({"DPO": [{"pairs": 10, "reward_accuracy": 0.5}]}, {"seeds": 1, "steps": 1, "sft_steps": 2}, 0)
    assert table["rows"][0]["mean"]["reward_accuracy"] == [0.5, None, None]
    assert "| DPO | 50.0 % |" in bench.markdown(table)


@pytest.mark.slow
def test_a_small_run(bench, tmp_path, monkeypatch, capsys):
    """On pairs that one word tells apart every method ranks held-out pairs above chance by what it has learned."""
    monkeypatch.setattr(bench, "NEW", bench.NewModel(hidden=32, layers=1, heads=1, max_length=48, vocab_size=300))
    monkeypatch.setattr(bench, "LR", 3e-3)
    monkeypatch.setattr(bench, "DECODING", bench.Decoding(max_new_tokens=8))
    rows = [
        {"prompt": f"Human: say {i % 7}.", "chosen": f" yes {i % 5}", "rejected": f" no {(i + 1) % 5}"}
        for i in range(120)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "out", "--seeds", 1, "--steps", 12]
    assert bench.main([*map(str, arguments), "--sft-steps", "12"]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    found = {row["method"]: row["seeds"][0] for row in table["rows"]}
    assert set(found) == {"sft", *bench.METHODS}
    assert found["sft"]["kl"] == 0 and found["sft"]["reward_accuracy"] == 0.5
    assert all(found[name]["reward_accuracy"] > 0.9 for name in bench.METHODS), found
    assert all(found[name]["kl"] > 0 for name in bench.METHODS if name != "reward model")
    assert (tmp_path / "out" / "table.png").stat().st_size > 1000
    assert "yes" not in capsys.readouterr().out  # no text of the data
    assert math.isfinite(found["DPO"]["entropy"])

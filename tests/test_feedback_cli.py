"""Each kind of feedback once through the command, with tiny models: what is written trains, what is wrong is told."""

import json

import pytest
import torch

from fiducial import models
from fiducial.cli.main import main
from fiducial.data import open_rows, parse
from fiducial.evals.metrics import describe
from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.models.heads import RewardModel, save_reward_model
from fiducial.models.tokenizer import train_tokenizer

TEXTS = ["which response is better, the first or the second one", "say something kind", "a harmless answer"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny language model and a tiny reward model."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TEXTS, kind="bpe", vocab_size=320)
    config = DecoderConfig(len(tokenizer), hidden=32, layers=1, heads=2, max_length=1600)
    torch.manual_seed(0)
    models.save(Decoder(config), tokenizer, folder / "policy")
    save_reward_model(RewardModel(Decoder(config)), tokenizer, folder / "reward")
    return folder


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return code, (json.loads(out) if code == 0 and "--json" in argv else out), err


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ai_feedback(capsys, tmp_path, folders):
    rows = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)]
    file = write(tmp_path / "pairs.jsonl", [*rows, {"prompt": "x", "chosen": "a", "rejected": "a"}])
    out = tmp_path / "out.jsonl"
    code, found, _ = run(capsys, "data", "ai_feedback", folders / "policy", file, "--out", out, "--json")
    assert code == 0 and found["rows"] == 4 and found["counted"] == {"equal sides": 1}
    assert found["metrics"]["judge/parse_fail_frac"] == 0 and 0 <= found["metrics"]["judge/position_bias"] <= 1
    made = open_rows(out)
    assert len(made) == 4 and all(len(parse(made[i], "pairs")) == 2 for i in range(4))  # p and 1 - p
    assert found["quantiles"]["prompt"]["max"] == 5
    code, _, err = run(capsys, "data", "ai_feedback", folders / "policy", file, "--out", out, "--mode", "text",
                       "--judge-tokens", "5")  # fmt: skip
    assert code == 2 and "100% of the judge's answers hold no verdict" in err
    code, found, _ = run(capsys, "data", "ai_feedback", folders / "reward", file, "--out", out, "--json", "--n", "2")
    assert code == 0 and found["rows"] == 2


def test_constitutional_ai_in_both_stages(capsys, tmp_path, folders):
    file = write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(2)])
    demos = write(tmp_path / "demos.jsonl", [{"prompt": "p", "completion": f"c{i}"} for i in range(3)])
    out = tmp_path / "revised.jsonl"
    policy, short = folders / "policy", ("--max-new-tokens", "8", "--json")
    code, found, _ = run(capsys, "data", "constitutional_ai", policy, file, "--out", out, "--n-revisions", "1",
                         "--helpful", demos, "--scorer", folders / "reward", *short)  # fmt: skip
    assert code == 0 and found["rows"] + sum(found["counted"].values()) == 5
    assert "harmlessness/round_1" in found["metrics"] and "3 helpful ones" in found["notes"][-1]
    rows = [open_rows(out)[i] for i in range(found["rows"])]
    assert all(len(row["rounds"]) == 1 for row in rows if row["source"] == "ai")
    assert all(len(parse(row, "demos")) == 1 for row in rows)
    out = tmp_path / "compared.jsonl"
    code, found, _ = run(capsys, "data", "constitutional_ai", policy, file, "--stage", "compare", "--out", out,
                         "--reasoning", "--judge-tokens", "6", *short)  # fmt: skip
    assert code == 0 and found["rows"] + sum(found["counted"].values()) == 2
    assert all(0.4 <= open_rows(out)[i]["pref_prob"] <= 0.6 for i in range(found["rows"]))
    code, _, err = run(capsys, "data", "constitutional_ai", policy, file, "--stage", "compare", "--out", out,
                       "--judge", folders / "reward")  # fmt: skip
    assert code == 2 and "is no language model" in err


def test_tree_preferences(capsys, tmp_path, folders):
    file = write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(2)])
    out = tmp_path / "pairs.jsonl"
    shared = ("data", "tree_preferences", folders / "policy", file, "--out", out, "--depth", "2", "--branching", "2",
              "--budget", "4", "--max-new-tokens", "8", "--json", "--judge", folders / "reward")  # fmt: skip
    code, found, _ = run(capsys, *shared)
    assert code == 0 and found["rows"] == 8 and found["metrics"]["tree/leaves"] <= 8
    assert all(describe(name) for name in found["metrics"]), found["metrics"]
    assert found["metrics"]["tree/tokens"] <= found["metrics"]["tree/chain_tokens"]
    rows = [open_rows(out)[i] for i in range(8)]
    assert {row["split_level"] for row in rows} <= {0, 1} and all(row["pref_prob"] >= 0.5 for row in rows)
    code, chained, _ = run(capsys, *shared, "--topology", "chain")
    assert code == 0 and {open_rows(out)[i]["split_level"] for i in range(chained["rows"])} == {0}
    code, _, err = run(capsys, *shared, "--branching", "1")
    assert code == 2 and "no row was made: branching is 1" in err
    code, _, err = run(capsys, *shared[:-2])
    assert code == 2 and "need --judge" in err


def test_a_win_rate(capsys, tmp_path, folders):
    file = write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(3)])
    policy = folders / "policy"
    shared = ("eval", policy, file, "--against", policy, "--k", "2", "--max-new-tokens", "4")
    code, found, _ = run(capsys, *shared, "--judge", folders / "reward", "--json")
    assert code == 0 and found["metrics"]["win_rate"] == 0.5 and found["verdicts"] == {"ties": 6, "identical": 6}
    assert all(describe(name) for name in found["metrics"]), found["metrics"]
    low, high = found["intervals"]["win_rate"]
    assert low < 0.5 < high
    # 3 prompts, all ties: 1/2 +- z / (2 sqrt(3 + z^2)) = 1/2 +- 0.3747, not a point
    assert found["intervals"]["win_rate_bootstrap"] == pytest.approx([0.1253, 0.8747], abs=1e-4)
    code, out, _ = run(capsys, *shared, "--judge", policy)
    assert code == 0 and "win_rate" in out and "6 ties" in out
    code, _, err = run(capsys, *shared)
    assert code == 2 and "needs --judge" in err
    code, _, err = run(capsys, "eval", policy, file, "--judge", policy)
    assert code == 2 and "name the second by --against" in err


def test_a_language_model_as_a_reward(capsys, tmp_path, folders):
    file = write(
        tmp_path / "rows.jsonl", [{"prompt": "say", "completion": "yes"}, {"prompt": "say", "completion": "no"}]
    )
    code, found, _ = run(capsys, "score", f"ai:{folders / 'policy'}", file, "--json")
    assert code == 0 and all(-1 <= row["value"] <= 1 for row in found) and found[0]["value"] != found[1]["value"]


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--out", "x.csv"), "--out is a .jsonl file; it is x.csv"),
        (("--out", "x.jsonl", "--n", "0"), "--n must be at least 1"),
        (("--out", "x.jsonl", "--helpful-share", "0.5"), "of the rows that --helpful names"),
    ],
)
def test_wrong_flags_are_found_before_the_work(capsys, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "data", "constitutional_ai", "nowhere", "nothing.jsonl", *flags)
    assert code == 2 and says in err

"""The command as a user runs it: what it prints, its exit codes, and what it says to bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiducial.cli.main import VERBS, main
from fiducial.store import RunFolder

SIMPO = """
from torch.nn.functional import logsigmoid
from fiducial.core.method import Method

def simpo(chosen_logprobs, rejected_logprobs, chosen_lengths, rejected_lengths, *, beta=2.0, gamma=1.0):
    margin = chosen_logprobs / chosen_lengths - rejected_logprobs / rejected_lengths
    return -logsigmoid(beta * margin - gamma)

METHOD = Method(paper="arXiv:2405.14734", feed="pairs", loss=simpo, per="row")
"""
NEW = "[model.new]\nhidden = 32\nlayers = 1\nheads = 1\nmax_length = 96\ntokenizer = 'word'\nvocab_size = 200\n"
SFT = (
    "method = 'sft'\ntask = 'arith'\nsteps = 2\n[data]\nrows = 40\ndifficulty = {steps = 1}\n"
    "[optim]\nbatch = 4\n[eval]\nn = 4\nk = 2\n" + NEW
)


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = main(list(argv))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of two SFT steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "sft.toml").write_text(SFT)
    assert main(["train", str(folder / "sft.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def recipe(folder: Path, text: str, name: str = "recipe.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def pairs_file(folder: Path, rows=None) -> Path:
    rows = rows or [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no no"} for i in range(30)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# -- what verbs give ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(capsys, verb):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and f"example: fiducial {verb}" in out


def test_methods_json_has_the_promised_shape(capsys):
    code, out, _ = run(capsys, "methods", "--json")
    found = json.loads(out)
    assert code == 0 and [m["id"] for m in found] == ["sft", "bt_reward_model", "dpo", "reinforce_lm", "rloo", "grpo"]
    dpo = next(m for m in found if m["id"] == "dpo")
    keys = {"id", "title", "paper", "family", "feed", "per", "needs", "hparams", "learners", "anchors"}
    assert keys <= set(dpo) and dpo["hparams"]["beta"] == 0.1 and dpo["anchors"] == ["ref"]


def test_a_run_leaves_what_it_promises(trained):
    folder = RunFolder(trained)
    for name in ("config.json", "metrics.jsonl", "journal.jsonl", "data.json", "report.html", "model/config.json"):
        assert (trained / name).exists(), name
    steps = [row["step"] for row in folder.read_metrics() if "loss" in row]
    assert steps == [1, 2] and [entry["step"] for entry in folder.read_journal()] == [1, 2]


def test_train_json_is_one_document(capsys, tmp_path):
    code, out, _ = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(tmp_path / "r"), "--steps", "1", "--json")
    found = json.loads(out)
    assert code == 0 and found["steps"] == 1 and found["model"].endswith("model")
    assert "eval/pass@1" in found["metrics"] and found["seconds"] > 0


def test_eval_sample_and_replay(capsys, trained):
    model = str(trained / "model")
    code, out, _ = run(capsys, "eval", model, "arith", "--n", "3", "--k", "2", "--max-new-tokens", "8", "--json")
    found = json.loads(out)
    assert code == 0 and {"task", "n", "k", "metrics", "verdicts"} <= set(found)
    assert found["n"] == 3 and sum(found["verdicts"].values()) == 6
    code, out, _ = run(
        capsys, "sample", model, "--prompt", "Gus has 17 .", "-n", "2", "--max-new-tokens", "5", "--json"
    )
    rows = json.loads(out)
    assert code == 0 and len(rows) == 2 and {"prompt", "completion", "finish", "logprobs"} <= set(rows[0])
    code, out, _ = run(capsys, "replay", str(trained), "--step", "2", "--json")
    found = json.loads(out)
    assert code == 0 and found["tokens_equal"] and found["max_logprob_error"] == 0 and found["max_grad_error"] == 0


def test_sample_trace_probabilities_multiply_to_the_completion(capsys, trained):
    argv = ["sample", str(trained / "model"), "--prompt", "Gus has", "--max-new-tokens", "4", "--trace", "3", "--json"]
    row = json.loads(run(capsys, *argv)[1])[0]
    for step, logprob in zip(row["trace"], row["logprobs"], strict=True):
        assert step["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert len(step["topk"]) == 3 and step["topk"][0]["prob"] >= step["topk"][-1]["prob"]


def test_python_face(trained):
    import fiducial

    policy = fiducial.load(trained / "model")
    ids = torch.tensor([[1, 5, 6, 7]])
    assert policy.logits(ids).shape == (1, 4, policy.model.config.vocab_size)
    logprobs = policy.logprobs("Gus has 1", "7 .")
    assert logprobs.ndim == 1 and bool((logprobs < 0).all())
    [rollout] = policy.sample(["Gus has 1"], n=1, max_new_tokens=3)
    assert 1 <= rollout.num_tokens <= 3


def test_score_keeps_order_and_accounts_for_every_row(capsys, tmp_path):
    rows = [
        {"completion": "so \\boxed{72}", "answer": "72"},
        {"completion": "#### 73", "answer": "72"},
        {"answer": "72"},
        {"completion": "no idea", "answer": "72"},
        {"completion": "72"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = run(capsys, "score", "numeric", str(path), "--json")
    found = json.loads(out)
    assert code == 0 and [row["index"] for row in found] == list(range(5))
    assert [row["verdict"] for row in found] == ["correct", "wrong", "skipped", "unparseable", "skipped"]
    assert all({"value", "why", "seconds"} <= set(row) for row in found)


def test_a_method_by_path_trains_and_proves_and_is_shown(capsys, tmp_path):
    (tmp_path / "simpo.py").write_text(SIMPO)
    method = str(tmp_path / "simpo.py")
    text = f"method = '{method}'\nsteps = 2\n[data]\npath = '{pairs_file(tmp_path)}'\n[optim]\nbatch = 4\n" + NEW
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"), "--hparams.gamma", "0.5")
    assert code == 0, err
    assert RunFolder(tmp_path / "r").read_config()["hparams"] == {"beta": 2.0, "gamma": 0.5}
    assert run(capsys, "prove", method)[0] == 0
    code, out, _ = run(capsys, "methods", method, "--json")
    assert code == 0 and json.loads(out)[0]["needs"][2] == "chosen_lengths"


def test_doctor_looks_at_a_recipe_and_at_a_run(capsys, tmp_path, trained):
    code, out, _ = run(capsys, "doctor", recipe(tmp_path, SFT), "--json")
    assert code == 0 and json.loads(out)[-1]["what"] == "the recipe runs"
    code, out, _ = run(capsys, "doctor", str(trained), "--json")
    assert code in (0, 1) and all({"severity", "what", "where", "advice"} <= set(f) for f in json.loads(out))


def test_a_reward_model_is_trained_scores_and_is_measured(capsys, tmp_path):
    path = pairs_file(tmp_path)
    text = f"method = 'bt_reward_model'\nsteps = 60\n[data]\npath = '{path}'\n[optim]\nbatch = 8\nlr = 3e-3\n" + NEW
    assert run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "rm"))[0] == 0
    model = str(tmp_path / "rm" / "model")
    code, out, _ = run(capsys, "eval", model, str(path), "--json")
    assert code == 0 and json.loads(out)["metrics"]["accuracy"] > 0.9  # "yes" against "no"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "say 1", "completion": "yes 1"}\n{"prompt": "say 1", "completion": "no no"}\n')
    code, out, _ = run(capsys, "score", model, str(rows), "--json")
    good, bad = json.loads(out)
    assert code == 0 and good["value"] > bad["value"]


# -- bad input: exit code 2 and one sentence ---------------------------------------------------------------------------

BAD_RECIPES = {
    "unknown key": (SFT.replace("rows = 40", "rowz = 40"), r"unknown key 'data.rowz': perhaps 'rows'"),
    "wrong type": (SFT.replace("steps = 2", "steps = 'two'"), r"steps must be int; it is 'two'"),
    "not TOML": ("method = sft", r"not valid TOML"),
    "no method": (SFT.replace("method = 'sft'\n", ""), r"names no method"),
    "unknown method": (SFT.replace("'sft'", "'sfd'"), r"no method is called 'sfd'"),
    "unknown setting": (SFT + "[hparams]\nbeta = 1\n", r"sft has no setting 'beta'; it has none"),
    "unknown task": (SFT.replace("'arith'", "'arit'"), r"there is no task 'arit'.*arith"),
    "task setting out of range": (SFT.replace("{steps = 1}", "{steps = 0}"), r"arith.steps must be from"),
    "no model": (SFT.replace(NEW, ""), r"has no model"),
    "no data": (SFT.replace("task = 'arith'\n", ""), r"nothing to train on"),
    "negative lr": (SFT.replace("batch = 4", "batch = 4\nlr = -1.0"), r"optim.lr must be positive"),
    "missing folder": (SFT.replace(NEW, "[model]\npath = 'nowhere'\n"), r"no model folder nowhere"),
}


@pytest.mark.parametrize("name", BAD_RECIPES)
def test_bad_recipes(capsys, tmp_path, name):
    text, message = BAD_RECIPES[name]
    code, out, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 2 and out == ""
    import re

    assert re.search(message, err), err
    assert "Traceback" not in err and not (tmp_path / "r" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.lrr", "1"], "unknown key 'optim.lrr': perhaps 'lr'"),
        (["--hparams.beta", "-1"], "hparams.beta must lie in (0, inf); it is -1"),
        (["--hparams.label-smoothing", "0.5"], "hparams.label_smoothing must lie in [0, 0.5)"),
        (["--hparams.betta", "1"], "dpo has no setting 'betta'; it has beta, label_smoothing"),
        (["--optim.lr"], "--optim.lr needs a value"),
        (["extra"], "'extra' is not a flag"),
        (["--kl.estimator", "k9"], "kl.estimator must be one of"),
        (["--per", "token"], "one number a row"),
        (["--kl.weight", "0.1", "--kl.place", "reward"], "dpo has no rewards to put a KL in"),
    ],
)
def test_bad_flags(capsys, tmp_path, flags, message):
    text = f"method = 'dpo'\nsteps = 1\n[data]\npath = '{pairs_file(tmp_path)}'\n" + NEW
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"), *flags)
    assert code == 2 and message in err


BAD_ROWS = {
    "malformed": ('{"prompt": "a", "chosen": ', r"pairs.jsonl, line 3"),
    "missing field": ('{"prompt": "a", "chosen": "b"}\n' * 9, r"missing field.*line 3"),
    "equal sides": ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 9, r"equal sides.*line 3"),
    "empty field": ('{"prompt": "a", "chosen": "", "rejected": "b"}\n' * 9, r"empty field.*line 3"),
    "wrong type": ('{"prompt": "a", "chosen": 7, "rejected": "b"}\n' * 9, r"wrong type.*line 3"),
    "too long": (json.dumps({"prompt": "a", "chosen": "yes " * 200, "rejected": "b"}) + "\n", r"line 3.*too_long"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(capsys, tmp_path, name):
    import re

    rows, message = BAD_ROWS[name]
    good = '{"prompt": "a", "chosen": "yes b", "rejected": "no c"}\n'
    path = tmp_path / "pairs.jsonl"
    path.write_text(good * 2 + rows)
    text = f"method = 'dpo'\nsteps = 1\n[data]\npath = '{path}'\n" + NEW
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 2 and re.search(message, err, re.S), err


def test_a_few_bad_rows_are_counted_and_skipped(capsys, tmp_path):
    good = [{"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no no"} for i in range(30)]
    path = pairs_file(tmp_path, [*good, {"prompt": "a", "chosen": "b", "rejected": "b"}])
    text = f"method = 'dpo'\nsteps = 1\n[data]\npath = '{path}'\n[optim]\nbatch = 4\n" + NEW
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 0 and "30 of 31 rows used" in err and "skipped 1 equal sides" in err
    assert json.loads((tmp_path / "r" / "data.json").read_text())["counted"] == {"equal sides": 1}


def test_a_second_run_in_a_used_folder_is_refused(capsys, tmp_path, trained):
    code, _, err = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(trained))
    assert code == 2 and "already holds a run (step 2): add --resume" in err
    changed = recipe(tmp_path, SFT.replace("batch = 4", "batch = 5"))
    code, _, err = run(capsys, "train", changed, "--out", str(trained), "--resume")
    assert code == 2 and "started with another optim" in err
    more_held = recipe(tmp_path, SFT.replace("[eval]\nn = 4", "[eval]\nn = 6"))  # other rows would train
    code, _, err = run(capsys, "train", more_held, "--out", str(trained), "--resume")
    assert code == 2 and "started with another eval" in err


def test_a_longer_run_goes_on_and_replays(capsys, tmp_path):
    out = str(tmp_path / "r")
    path = recipe(tmp_path, SFT)
    assert run(capsys, "train", path, "--out", out)[0] == 0
    assert run(capsys, "train", path, "--out", out, "--resume", "--steps", "4")[0] == 0
    assert RunFolder(out).read_config()["steps"] == 4
    code, out_text, _ = run(capsys, "replay", out, "--step", "4", "--json")
    assert code == 0 and json.loads(out_text)["max_grad_error"] == 0


def test_a_kl_table_overrides_only_what_it_says(tmp_path):
    """rloo's own KL is k1 in the reward: a new weight must not move it into the loss."""
    from fiducial.config import read_recipe

    text = "method = 'rloo'\ntask = 'arith'\n[kl]\nweight = 0.02\n" + NEW
    kl = read_recipe(recipe(tmp_path, text)).resolved().penalty
    assert (kl.weight, kl.estimator, kl.place) == (0.02, "k1", "reward")


def test_a_folder_in_use_is_refused(capsys, tmp_path):
    out = tmp_path / "busy"
    with RunFolder(out).lock():
        code, _, err = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(out))
    assert code == 2 and "is in use by process" in err


def model_copy(trained: Path, to: Path) -> Path:
    shutil.copytree(trained / "model", to)
    return to


def with_model(path: Path) -> str:
    return SFT.replace(NEW, f"[model]\npath = '{path}'\n")


def test_nan_weights_are_refused_by_name(capsys, tmp_path, trained):
    folder = model_copy(trained, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, err = run(capsys, "train", recipe(tmp_path, with_model(folder)), "--out", str(tmp_path / "r"))
    assert code == 2 and name in err


@pytest.mark.parametrize(
    ("remove", "message"),
    [("tokenizer.json", "tokenizer"), ("config.json", "no config.json"), ("model.safetensors", "model.safetensors")],
)
def test_a_model_folder_that_lacks_something(capsys, tmp_path, trained, remove, message):
    folder = model_copy(trained, tmp_path / "model")
    (folder / remove).unlink()
    code, _, err = run(capsys, "train", recipe(tmp_path, with_model(folder)), "--out", str(tmp_path / "r"))
    assert code == 2 and message in err


def test_weights_cut_short(capsys, tmp_path, trained):
    folder = model_copy(trained, tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    code, _, err = run(capsys, "train", recipe(tmp_path, with_model(folder)), "--out", str(tmp_path / "r"))
    assert code == 2 and "model.safetensors" in err


# -- rewards that go wrong stop the run --------------------------------------------------------------------------------

REWARDS = {
    "raises": ("def f(completion):\n    return 1 / 0\n", 1, "ZeroDivisionError"),
    "nan": ("def f(completion):\n    return float('nan')\n", 2, "nan"),
    "hangs": ("import time\ndef f(completion):\n    time.sleep(60)\n", 1, "took more than 1 s"),
    "text": ("def f(completion):\n    return 'good'\n", 2, "returned str"),
    "missing": ("def g(completion):\n    return 1\n", 2, "f"),
    "none": ("def f(completion):\n    return None\n", 1, "could not be judged, over verdicts.max_failed"),
}


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_that_fails_stops_the_run(capsys, tmp_path, trained, name):
    code_text, expected, message = REWARDS[name]
    (tmp_path / "mine.py").write_text(code_text)
    text = (
        f"method = 'grpo'\ntask = 'arith'\nsteps = 1\nreward = '{tmp_path / 'mine.py'}:f'\n[data]\nrows = 20\n"
        f"[model]\npath = '{trained / 'model'}'\n[optim]\nbatch = 2\n[sampling]\nn = 2\nmax_new_tokens = 4\n"
        "[verdicts]\ntimeout = 1.0\n[eval]\nn = 2\nk = 1\n"
    )
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == expected and message in err, err


def test_a_loss_that_is_not_finite_stops_the_run(capsys, tmp_path):
    (tmp_path / "bad.py").write_text(
        "from fiducial.core.method import Method\n"
        "def bad(logprobs):\n    return -logprobs * float('inf')\n"
        "METHOD = Method(paper='', feed='demos', loss=bad, per='token')\n"
    )
    text = SFT.replace("'sft'", f"'{tmp_path / 'bad.py'}'")
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 1 and "loss" in err and ("inf" in err or "nan" in err)


@pytest.mark.parametrize(
    "argv", [["eval", "nowhere", "arith"], ["replay", "nowhere", "--step", "1"], ["doctor", "nowhere"]]
)
def test_things_that_do_not_exist(capsys, argv):
    code, out, err = run(capsys, *argv)
    assert code == 2 and "nowhere" in err and out == ""


def test_unknown_verb_and_verifier(capsys, tmp_path):
    assert run(capsys, "fly")[0] == 2
    (tmp_path / "x.jsonl").write_text('{"completion": "1"}\n')
    code, _, err = run(capsys, "score", "nume", str(tmp_path / "x.jsonl"))
    assert code == 2 and "there is no verifier 'nume'" in err


def test_a_refused_run_does_not_hold_up_the_next(capsys, tmp_path):
    bad = SFT.replace("{steps = 1}", "{steps = 0}")
    assert run(capsys, "train", recipe(tmp_path, bad), "--out", str(tmp_path / "r"))[0] == 2
    assert run(capsys, "train", recipe(tmp_path, SFT), "--out", str(tmp_path / "r"))[0] == 0


def test_python_trains_again_and_again(tmp_path):
    import fiducial
    import fiducial.prove  # which imports the package that shares the function's name

    for i in range(2):
        path = fiducial.train(recipe(tmp_path, SFT), out=tmp_path / str(i), show=False, tell=lambda line: None)
        assert (path / "model" / "config.json").exists()


def test_resuming_from_nothing_but_damage_is_refused(capsys, tmp_path):
    out = tmp_path / "r"
    assert run(capsys, "train", recipe(tmp_path, SFT), "--out", str(out))[0] == 0
    weights = (out / "model" / "model.safetensors").read_bytes()
    for state in (out / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"cut")
    code, _, err = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(out), "--resume")
    assert code == 2 and "is whole" in err and (out / "model" / "model.safetensors").read_bytes() == weights


def test_a_loss_that_takes_the_mean_is_told(capsys, tmp_path):
    (tmp_path / "mean.py").write_text(
        "from fiducial.core.method import Method\n"
        "def mean(logprobs):\n    return -logprobs.mean()\n"
        "METHOD = Method(paper='', feed='demos', loss=mean, per='token')\n"
    )
    code, _, err = run(capsys, "prove", str(tmp_path / "mean.py"))
    assert code == 2 and "a loss is unreduced" in err


def test_unwanted_rows_are_not_imitated(capsys, tmp_path):
    rows = [{"prompt": f"say {i}", "completion": "yes", "label": i % 2 == 0} for i in range(20)]
    path = pairs_file(tmp_path, rows)
    text = f"method = 'sft'\nsteps = 1\n[data]\npath = '{path}'\n[optim]\nbatch = 4\n" + NEW
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 0 and "10 of 20 rows used" in err and "skipped 10 unwanted" in err

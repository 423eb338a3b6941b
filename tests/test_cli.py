"""The command as a user runs it: what it prints, its exit codes, and what it says to bad input."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fiducial.cli.main import VERBS, main
from fiducial.methods import METHODS
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
    assert code == 0 and [m["id"] for m in found] == list(METHODS)
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
    "wrong type": (SFT.replace("steps = 2", "steps = 'two'"), r"steps must be a whole number; it is 'two'"),
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
    "nan": ("def f(completion):\n    return float('nan')\n", 1, "returned nan on the completion"),
    "hangs": ("import time\ndef f(completion):\n    time.sleep(60)\n", 1, "raise verdicts.timeout = 1 "),
    "text": ("def f(completion):\n    return 'good'\n", 1, "returned str on the completion"),
    "syntax": ("x = 1\ndef f(completion:\n    return 1\n", 2, "mine.py:2: SyntaxError: '(' was never closed"),
    "import": ("import nowhere_to_be_found\ndef f(completion):\n    return 1\n", 2, "mine.py:1: ModuleNotFoundError"),
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
    if expected == 2:  # before the first step: one sentence, and no run
        assert "Traceback" not in err and not (tmp_path / "r" / "config.json").exists()
    else:
        assert (tmp_path / "r" / "stopped.json").exists()


STEPWISE = """
from pathlib import Path
calls = 0
def f(completion, prompt):
    global calls
    calls += 1
    if calls > 8 and not (Path(__file__).parent / "mended").exists():
        raise KeyError("lost")
    return len(completion) % 3
"""


def test_a_run_that_stopped_says_why_until_it_goes_on(capsys, tmp_path, trained):
    (tmp_path / "mine.py").write_text(STEPWISE)
    text = (
        f"method = 'grpo'\ntask = 'arith'\nsteps = 2\nreward = '{tmp_path / 'mine.py'}:f'\n[data]\nrows = 20\n"
        f"[model]\npath = '{trained / 'model'}'\n[optim]\nbatch = 2\n[sampling]\nn = 2\nmax_new_tokens = 4\n"
        "[eval]\nn = 2\nk = 1\n"
    )
    path, out = recipe(tmp_path, text), tmp_path / "r"
    code, _, err = run(capsys, "train", path, "--out", str(out))
    # 2 held-out samples and 2 greedy ones are calls 1 to 4, step 1 is calls 5 to 8: step 2 meets the mistake.
    assert code == 1 and "step 2: " in err and "f failed on the completion" in err and "of the prompt" in err, err
    stop = json.loads((out / "stopped.json").read_text())
    assert stop["step"] == 2 and stop["kind"] == "RewardError" and "KeyError: 'lost'" in stop["reason"]
    assert "raise KeyError" in stop["detail"]  # the user's own lines
    code, told, _ = run(capsys, "doctor", str(out), "--json")
    first = json.loads(told)[0]
    assert code == 1 and first["where"] == "step 2" and "KeyError: 'lost'" in first["what"]
    assert "--resume" in first["advice"]
    (tmp_path / "mended").write_text("")
    assert run(capsys, "train", path, "--out", str(out), "--resume")[0] == 0
    assert not (out / "stopped.json").exists()
    assert "the run stopped" not in run(capsys, "doctor", str(out))[1]


def test_a_run_stopped_by_hand_says_so(capsys, tmp_path, monkeypatch):
    from fiducial.train import run as module

    def interrupted(*arguments):
        yield next(steps(*arguments))
        raise KeyboardInterrupt

    steps = module.steps
    monkeypatch.setattr(module, "steps", interrupted)
    out = tmp_path / "r"
    code, _, _ = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(out))
    stop = json.loads((out / "stopped.json").read_text())
    assert code == 130 and (stop["step"], stop["reason"]) == (2, "stopped by hand")
    monkeypatch.undo()
    code, told, _ = run(capsys, "doctor", str(out), "--json")
    assert json.loads(told)[0]["what"] == "the run stopped: stopped by hand" and code == 0


def test_changed_data_is_not_resumed(capsys, tmp_path):
    path, out = pairs_file(tmp_path), tmp_path / "r"
    text = f"method = 'dpo'\nsteps = 1\n[data]\npath = '{path}'\n[optim]\nbatch = 4\n" + NEW
    made = recipe(tmp_path, text)
    assert run(capsys, "train", made, "--out", str(out))[0] == 0
    told = json.loads((out / "data.json").read_text())["sha256"]
    assert told == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    before = path.read_text()
    path.write_text(before.replace("yes 3", "yes 4"))
    for verb in (["train", made, "--out", str(out), "--resume", "--steps", "2"], ["replay", str(out), "--step", "1"]):
        code, _, err = run(capsys, *verb)
        assert code == 2 and f"{path} has changed since the run in {out} began" in err
    path.write_text(before)
    assert run(capsys, "train", made, "--out", str(out), "--resume", "--steps", "2")[0] == 0


def test_an_out_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        code, _, err = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(out))
        assert code == 2 and f"{tmp_path / 'taken'} is a file: choose another --out" in err


def test_a_reader_that_has_gone_is_no_error():
    for argv in (["methods", "--json"], ["--help"], ["tasks"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "fiducial", *argv]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert done.stderr == "" and done.returncode == (0 if argv == ["--help"] else 1)  # argparse minds no pipe


METHOD_FILES = {
    "syntax": ("x = 1\ndef f(:\n", "mine.py:2: SyntaxError: invalid syntax"),
    "import": ("import math\nimport nowhere_to_be_found\n", "mine.py:2: ModuleNotFoundError: No module named"),
    "raises": ("def f():\n    return 1 / 0\n\nf()\n", "mine.py:2: ZeroDivisionError: division by zero"),
    "record": ("from fiducial.core.method import Method\nMETHOD = Method()\n", "mine.py:2: TypeError: "),
    "exits": ("import sys\nsys.exit('no')\n", "mine.py:2: SystemExit: no"),
}


@pytest.mark.parametrize("name", METHOD_FILES)
def test_a_method_file_that_does_not_load(capsys, tmp_path, name):
    text, message = METHOD_FILES[name]
    (tmp_path / "mine.py").write_text(text)
    made = recipe(tmp_path, SFT.replace("'sft'", f"'{tmp_path / 'mine.py'}'"))
    code, _, err = run(capsys, "train", made, "--out", str(tmp_path / "r"))
    assert code == 2 and message in err and "Traceback" not in err, err
    assert len(err.strip().splitlines()) == 1


def test_text_that_the_tokenizer_does_not_know(capsys, tmp_path, trained):
    """Words that the folder's word tokenizer has never seen are told, warned of, and refused by their share."""
    model = f"[model]\npath = '{trained / 'model'}'\n"
    words = ["has"] * 99  # a known word is one token
    for number, (code, message) in {
        1: (0, "are unknown to the tokenizer"),
        60: (2, "are unknown to the tokenizer"),
    }.items():
        row = " ".join(["zyx"] * number + words[number:])
        path = pairs_file(tmp_path, [{"text": row[: 80 * 4]}] * 20)
        text = f"method = 'sft'\nsteps = 1\n[data]\npath = '{path}'\n[optim]\nbatch = 4\n" + model
        found, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / str(number)))
        assert found == code and message in err, err
    assert "[model.new]" in err and "at most 20% may be" in err
    assert not (tmp_path / "60" / "config.json").exists()


def test_the_preflight_tells_roles_and_shows_what_trains_of_a_long_prompt(capsys, tmp_path, trained):
    chat = [
        {"role": "system", "content": "has 17"},
        {"role": "user", "content": "Gus has " * 20},
        {"role": "assistant", "content": "17"},
    ]
    path = pairs_file(tmp_path, [{"messages": chat}] * 10)
    text = f"method = 'sft'\nsteps = 1\n[data]\npath = '{path}'\n[optim]\nbatch = 4\n"
    text += f"[model]\npath = '{trained / 'model'}'\n"
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    # "17" is two digits, so two tokens, and the stop token: three of each of the ten rows.
    assert (
        code == 0 and "tokens that train, by role: assistant 30 (100.0 %), system 0 (0.0 %), user 0 (0.0 %)" in err
    ), err
    assert "[[1 7 <eos>]]" in err.replace("[[1 7<eos>]]", "[[1 7 <eos>]]"), err
    kept = json.loads((tmp_path / "r" / "data.json").read_text())["trained_by_role"]
    assert kept == {"system": 0, "user": 0, "assistant": 30}


def test_the_doctor_warns_of_updates_that_nothing_corrects(capsys, tmp_path, trained):
    text = (
        "method = 'rloo'\ntask = 'arith'\n[data]\nrows = 20\n[sampling]\nn = 2\nmax_new_tokens = 4\n"
        f"[model]\npath = '{trained / 'model'}'\n[optim]\nbatch = 2\n"
    )

    def warned(*flags: str) -> list[str]:
        code, out, err = run(capsys, "doctor", recipe(tmp_path, text), "--json", *flags)
        assert code == 0, err
        return [found["advice"] for found in json.loads(out) if "off-policy" in found["what"]]

    assert warned("--optim.epochs", "2") == ["set hparams.clip = 0.2, or optim.epochs = 1 and optim.minibatches = 1"]
    assert warned() == warned("--optim.epochs", "2", "--hparams.clip", "0.2") == []
    assert len(warned("--method", "reinforce_lm", "--optim.minibatches", "2")) == 1
    assert warned("--method", "grpo", "--optim.minibatches", "2") == []


def test_updates_that_are_skipped_are_counted(capsys, tmp_path, trained):
    """Rewards are all equal and such groups are left out, so each of 2 epochs x 3 minibatches has nothing to learn."""
    (tmp_path / "same.py").write_text("def f(completion):\n    return 1.0\n")
    text = (
        f"method = 'grpo'\ntask = 'arith'\nsteps = 1\nreward = '{tmp_path / 'same.py'}:f'\n[data]\nrows = 20\n"
        f"[model]\npath = '{trained / 'model'}'\n[optim]\nbatch = 2\nepochs = 2\nminibatches = 3\n"
        "[sampling]\nn = 2\nmax_new_tokens = 4\nfilter_groups = true\n[eval]\nn = 2\nk = 1\n"
    )
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 0, err
    assert [row["skipped_updates"] for row in RunFolder(tmp_path / "r").read_metrics() if row.get("lr")] == [6]


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


# -- what the command says is what it means ----------------------------------------------------------------------------


def rows_file(folder: Path, rows: list[dict], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_plain_numbers_are_not_counted_as_right_or_wrong(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def tenths(completion):\n    return len(completion) / 10\n"
        "def yes(completion):\n    return float(completion == 'yes')\n"
    )
    rows = rows_file(tmp_path, [{"completion": "x" * n} for n in (1, 2, 4, 12)] + [{"text": "none"}])
    code, out, _ = run(capsys, "score", f"{tmp_path}/mine.py:tenths", rows)
    # 0.1, 0.2, 0.4, 1.2: mean 0.475; squares about it 0.140625 + 0.075625 + 0.005625 + 0.525625 = 0.7475, / 4, root
    # 0.4323; quartiles at places 0.75, 1.5, 2.25: 0.175, 0.3, 0.6
    assert code == 0 and "5 rows: 4 scored, 1 skipped" in out and "correct" not in out and "wrong" not in out
    assert "mean 0.475, standard deviation 0.4323" in out
    assert "min 0.1, 25 % 0.175, median 0.3, 75 % 0.6, max 1.2" in out
    found = json.loads(run(capsys, "score", f"{tmp_path}/mine.py:tenths", rows, "--json")[1])
    assert [(r["verdict"], r["graded"]) for r in found[2:]] == [("wrong", True), ("correct", True), ("skipped", False)]
    code, out, _ = run(capsys, "score", f"{tmp_path}/mine.py:yes", rows_file(tmp_path, [{"completion": "yes"}] * 2))
    assert code == 0 and "2 rows: 2 correct" in out and "mean" not in out  # only 0 and 1: these are verdicts


def test_the_list_of_verifiers_names_those_of_reasoning_gym(capsys):
    pytest.importorskip("reasoning_gym")
    listed = {entry["id"] for entry in json.loads(run(capsys, "score", "--list", "--json")[1])}
    assert {"math", "arith", "rg/chain_sum", "rg/n_queens"} <= listed and "rg/<name>" not in listed


@pytest.mark.parametrize(("head", "title"), [('"""Simple PO.\n\nMore."""\n', "Simple PO."), ("", "simpo")])
def test_a_method_of_ones_own_has_a_title(capsys, tmp_path, head, title):
    (tmp_path / "simpo.py").write_text(head + SIMPO)
    assert json.loads(run(capsys, "methods", str(tmp_path / "simpo.py"), "--json")[1])[0]["title"] == title


def test_a_runs_folder_stands_for_its_model(capsys, tmp_path, trained):
    import fiducial

    argv = ["--prompt", "Gus has", "--max-new-tokens", "2", "--json"]
    code, out, err = run(capsys, "sample", str(trained), *argv)
    assert code == 0 and f"taking its model, {trained / 'model'}" in err
    assert out == run(capsys, "sample", str(trained / "model"), *argv)[1]
    code, _, err = run(capsys, "eval", str(trained), "arith", "--n", "1", "--k", "1", "--max-new-tokens", "2", "--json")
    assert code == 0 and "taking its model" in err
    with pytest.raises(ValueError, match=f"the model is in {trained / 'model'}"):
        fiducial.load(trained)
    code, _, err = run(capsys, "train", recipe(tmp_path, with_model(trained)), "--out", str(tmp_path / "r"))
    assert code == 2 and f"the model is in {trained / 'model'}" in err


def test_a_reward_model_writes_nothing(capsys, tmp_path, trained):
    from fiducial import models

    model, tokenizer = models.load(trained / "model")
    models.save_reward_model(models.RewardModel(model), tokenizer, tmp_path / "rm")
    code, out, err = run(capsys, "sample", str(tmp_path / "rm"), "--prompt", "Gus")
    assert code == 2 and out == "" and "is a reward model, which scores texts and writes none" in err
    code, _, err = run(capsys, "eval", str(tmp_path / "rm"), "arith")
    assert code == 2 and "is a reward model, measured on a file of pairs; there is no file arith" in err
    rows = rows_file(tmp_path, [{"prompt": "Gus has", "completion": str(n)} for n in range(3)])
    code, out, _ = run(capsys, "score", str(tmp_path / "rm"), rows)
    assert code == 0 and "3 rows: 3 scored" in out and "median" in out


def test_flags_win_over_what_cannot_stand_beside_them(capsys, tmp_path, trained):
    from fiducial.config import read_recipe

    path = recipe(tmp_path, SFT)
    argv = ["--model.path", str(trained / "model"), "--out", str(tmp_path / "r"), "--steps", "1"]
    assert run(capsys, "train", path, *argv)[0] == 0
    assert RunFolder(tmp_path / "r").read_config()["model"]["new"] is None
    of_file = read_recipe(path, {"data": {"path": "rows.jsonl"}}).resolved()
    assert (of_file.task, of_file.data.path, of_file.data.difficulty, of_file.data.rows) == ("", "rows.jsonl", {}, 40)
    text = "method = 'sft'\n[data]\npath = 'a.jsonl'\nsplit = 'train'\n[model]\npath = 'm'\ndtype = 'bfloat16'\n"
    of_task = read_recipe(recipe(tmp_path, text), {"task": "kk", "model": {"new": {"layers": 1}}}).resolved()
    assert (of_task.task, of_task.data.path, of_task.data.split) == ("kk", "", "")
    assert of_task.model.new and of_task.model.new.layers == 1
    assert (of_task.model.path, of_task.model.dtype) == ("", "bfloat16")
    code, _, err = run(capsys, "train", path, "--model.path", "m", "--model.new.layers", "1")  # two flags: no winner
    assert code == 2 and "both model.path and [model.new]" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.minibatches", "5"], "optim.minibatches = 5 is more than the 4 examples of a step (optim.batch)"),
        (["--optim.batch", "41"], "optim.batch = 41 is more than the 40 examples that arith (train) gives to train on"),
        (["--sampling.stop", "x"], "sampling.stop must be a list of strings; it is 'x'"),
        (["--optim.betas", "0.9"], "optim.betas must be a list of numbers; it is 0.9"),
        (["--sampling.temperature", "0"], "sampling.temperature = 0 would draw the same completion eval.k = 2 times"),
        (["--model.new.heads", "3"], "model.new.heads must be a divisor of hidden (32); it is 3"),
        (["--model.new.tokenizer", "bpe"], "model.new.vocab_size must be at least 267 for a bpe tokenizer; it is 200"),
        (["--model.lora.rank", "-1"], "model.lora.rank must be at least 1; it is -1"),
        (["--model.lora.rank", "2", "--model.lora.targets", "['q']"], "model.lora.targets names 'q'"),
    ],
)
def test_settings_are_refused_by_their_own_names(capsys, tmp_path, flags, message):
    code, _, err = run(capsys, "train", recipe(tmp_path, SFT), "--out", str(tmp_path / "r"), *flags)
    assert code == 2 and message in err, err


def test_what_is_held_out_is_told_and_leaves_enough_to_train_on(capsys, tmp_path):
    text = f"method = 'dpo'\nsteps = 1\n[data]\npath = '{pairs_file(tmp_path)}'\n[optim]\nbatch = 4\n" + NEW
    _, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    told = "6 of 30 examples held out: those of 6 rows; eval.n = 100 asked, at most a fifth is"
    assert told in err and "say " in err
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "s"), "--optim.batch", "30")
    assert code == 2 and "the 24 examples that pairs.jsonl gives to train on (6 of 30 are held out)" in err
    _, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "q"), "--no-sample")
    assert told in err and "say " not in err


def test_a_key_that_is_there_twice_is_no_row(capsys, tmp_path):
    path = pairs_file(tmp_path)
    path.write_text(path.read_text() + '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}\n')
    text = f"method = 'dpo'\nsteps = 1\n[data]\npath = '{path}'\n[optim]\nbatch = 4\n" + NEW
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 2 and "pairs.jsonl, line 31, column 49: the key 'chosen' is there twice; keep one" in err


def test_chats_need_a_template(capsys, tmp_path, trained):
    folder = model_copy(trained, tmp_path / "model")
    for file in folder.glob("*.jinja"):
        file.unlink()
    chat = [{"role": "user", "content": "Gus"}, {"role": "assistant", "content": "has"}]
    rows = rows_file(tmp_path, [{"messages": chat}] * 8)
    text = f"method = 'sft'\nsteps = 1\n[data]\npath = '{rows}'\n[optim]\nbatch = 4\n[model]\npath = '{folder}'\n"
    code, _, err = run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))
    assert code == 2 and "the rows are chat messages, but the model's tokenizer has no chat template" in err


def test_intervals_count_weighted_pairs_for_what_they_tell(capsys, tmp_path):
    """Weights 3, 1, 1, 1 tell as much as (3 + 1 + 1 + 1)^2 / 12 = 3 equal pairs: the interval is that of 3, not 6."""
    from fiducial.evals.stats import wilson

    held = [
        {"prompt": f"say {i}", "chosen": f"yes {i}", "rejected": "no no", "weight": w}
        for i, w in enumerate([3, 1, 1, 1])
    ]
    held[3] |= {"chosen": "no no", "rejected": "yes 3"}
    rows = rows_file(tmp_path, held, "held.jsonl")
    text = (
        f"method = 'bt_reward_model'\nsteps = 1\n[data]\npath = '{pairs_file(tmp_path)}'\neval_path = '{rows}'\n"
        "[optim]\nbatch = 4\n" + NEW
    )
    assert run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "rm"))[0] == 0
    last = [row for row in RunFolder(tmp_path / "rm").read_metrics() if "eval/accuracy" in row][-1]
    expected = wilson(last["eval/accuracy"] * 3, 3)
    assert (last["eval/accuracy/low"], last["eval/accuracy/high"]) == pytest.approx((expected.low, expected.high))
    found = json.loads(run(capsys, "eval", str(tmp_path / "rm" / "model"), rows, "--json")[1])
    assert found["metrics"]["accuracy"] == pytest.approx(last["eval/accuracy"], abs=1e-6)
    assert found["intervals"]["accuracy"] == pytest.approx([expected.low, expected.high])


def test_a_reward_source_is_averaged_as_it_is_trained_on(capsys, tmp_path, trained):
    text = (
        "method = 'grpo'\ntask = 'arith'\nsteps = 1\nreward = {numeric = 1.0, format = 0.5}\n[data]\nrows = 20\n"
        f"[model]\npath = '{trained / 'model'}'\n[optim]\nbatch = 8\n[sampling]\nn = 4\nmax_new_tokens = 6\n"
        "[verdicts]\nunparseable = -0.5\n[eval]\nn = 2\nk = 1\n"
    )
    assert run(capsys, "train", recipe(tmp_path, text), "--out", str(tmp_path / "r"))[0] == 0
    folder = RunFolder(tmp_path / "r")
    scores = [row["scores"]["numeric"] for row in folder.read_rollouts(1)]
    assert None in scores  # words, or two numbers: no answer
    (logged,) = [row["rewards/numeric/mean"] for row in folder.read_metrics() if "rewards/numeric/mean" in row]
    assert logged == pytest.approx(sum(-0.5 if value is None else value for value in scores) / len(scores))

"""Judges in files, with a tiny model and a server, as every verb that takes one meets them."""

import json
import math
import statistics

import pytest
import torch
from fake_server import FakeServer, chat

from fiducial import models
from fiducial.cli.main import main
from fiducial.data import open_rows, parse
from fiducial.evals.metrics import describe
from fiducial.judges import judge, pair_judge
from fiducial.judges.tournament import Ordered, Tournament
from fiducial.models.decoder import Decoder, DecoderConfig
from fiducial.models.heads import RewardModel, save_reward_model
from fiducial.models.tokenizer import train_tokenizer

TEXTS = ["which response is better, the first or the second one", "rate it yes or no", "1 2 3 4 5 6 7 8 9 10"]
ROWS = [{"prompt": "say hello", "completion": c, "category": "kind"} for c in ("hello there", "go away", "hi")]
KINDS = {
    "pairwise": "",
    "score": "scale = [1, 5]\nrange = [0, 1]",
    "yes_no": "",
    "rubric": '[[criteria]]\nid = "kind"\ndescription = "It is kind."\nmax = 5\n[[criteria]]\nid = "rude"\n'
    'description = "It is rude."\nweight = -1',
    "spec": '[spec]\nkind = "Greet whoever greets."\nbrief = "Say little."',
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(TEXTS, kind="bpe", vocab_size=320)
    torch.manual_seed(0)
    models.save(
        Decoder(DecoderConfig(len(tokenizer), hidden=32, layers=1, heads=2, max_length=1600)), tokenizer, folder
    )
    return folder


def file(folder, kind, model, more=""):
    path = folder / f"{kind}.toml"
    path.write_text(f'kind = "{kind}"\nmodel = "{model}"\n{more}\n{KINDS[kind]}\n')
    return path


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *argv):
    code = main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return code, (json.loads(out) if code == 0 and "--json" in argv else out), err


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_scores_rows(capsys, tmp_path, model, kind):
    rows = write(tmp_path / "rows.jsonl", ROWS)
    code, found, err = run(capsys, "score", file(tmp_path, kind, model), rows, "--json")
    assert code == 0, err
    values = [row["value"] for row in found]
    assert all(row["graded"] and 0 <= row["value"] <= 1 for row in found) and len(set(values)) == 3
    assert all(describe(name) for row in found for name in row["flags"])
    if kind == "pairwise":
        assert sum(values) == pytest.approx(1.5)  # three completions, each pair shares one win
    if kind == "rubric":
        parts = [{name: part["value"] for name, part in row["parts"].items()} for row in found]
        assert values == pytest.approx([max(p["kind"] - p["rude"], 0) / 5 for p in parts])


def test_a_yes_no_judge_is_the_models_own_odds(capsys, tmp_path, model):
    template = tmp_path / "ask.txt"
    template.write_text("{prompt} {response}:")
    path = file(tmp_path, "yes_no", model, f'template = "{template}"\nchat = false')
    [score] = judge(str(path))(["hello"], [{"prompt": "say"}])
    policy = models_policy(model)
    yes, no = (float(policy.logprobs("say hello:", option)[:-1].sum().exp()) for option in (" yes", " no"))
    assert score.value == pytest.approx(yes / (yes + no), abs=1e-5)


def models_policy(folder):
    import fiducial

    return fiducial.load(folder)


def test_a_judge_of_two_in_every_place(capsys, tmp_path, model):
    path = file(tmp_path, "pairwise", model, 'disagreement = "tie"')
    assert isinstance(pair_judge(str(path)), Ordered) and isinstance(judge(str(path)), Tournament)
    pairs = write(
        tmp_path / "pairs.jsonl", [{"prompt": "say", "chosen": f"yes {i}", "rejected": "no"} for i in range(3)]
    )
    out = tmp_path / "out.jsonl"
    code, found, _ = run(capsys, "data", "ai_feedback", path, pairs, "--out", out, "--json")
    assert code == 0 and found["rows"] == 3 and {"judge/position_bias", "judge/first_wins"} <= set(found["metrics"])
    assert all(describe(name) for name in found["metrics"])
    code, _, err = run(capsys, "data", "ai_feedback", path, pairs, "--out", out, "--mode", "text")
    assert code == 2 and "--mode is of a model that is named by itself" in err
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "say"}])
    code, found, _ = run(capsys, "eval", model, prompts, "--against", model, "--judge", path, "--max-new-tokens", "3",
                         "--json")  # fmt: skip
    assert code == 0 and found["metrics"]["win_rate"] == 0.5
    code, _, err = run(capsys, "data", "constitutional_ai", model, prompts, "--stage", "compare", "--judge", path,
                       "--out", out, "--max-new-tokens", "4")  # fmt: skip
    assert code == 0 or "no pair was made" in err


ONLINE = """
method = "{method}"
steps = 2
task = "arith"
reward = '{reward}'
[model]
path = '{model}'
[data]
rows = 20
[sampling]
n = 3
max_new_tokens = 4
[optim]
batch = 2
[eval]
n = 2
k = 2
gold = '{gold}'
"""


@pytest.mark.parametrize(
    "method, kind, gold",
    [("grpo", "rubric", "spec"), ("online_ipo", "pairwise", "score"), ("grpo", "yes_no", "pairwise")],
)
def test_training_by_a_judge_with_another_as_gold(capsys, tmp_path, model, method, kind, gold):
    reward, held_out = file(tmp_path, kind, model), file(tmp_path, gold, model)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(ONLINE.format(method=method, reward=reward, model=model, gold=held_out))
    code, found, err = run(capsys, "train", recipe, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in logged for name in line}
    # A value is a finite number by a judge's word; nothing failed.
    assert all(line["verdict/crashed"] == line["verdict/skipped"] == 0 for line in logged if "verdict/crashed" in line)
    assert {"eval/gold", "eval/gold/unjudged"} <= names
    if kind == "rubric":
        assert {"rewards/kind/mean", "rewards/rude/mean", "rubric/clipped", "rubric/missing"} <= names
    if kind == "pairwise":
        assert {"judge/parse_rate", "judge/position_bias", "judge/first_wins"} <= names
    if gold == "spec":
        assert "eval/gold/spec/compliance" in names
    unknown = [name for name in names if "/judge/" in name or "/rubric/" in name or "/spec/" in name]
    assert all(describe(name.removeprefix("eval/")) for name in unknown), unknown


def test_a_judge_that_cannot_be_read_stops_the_run(capsys, tmp_path, model):
    """A model of random weights writes no rating: all verdicts are "crashed", over max_failed, and none is a number."""
    reward, gold = file(tmp_path, "score", model, 'mode = "text"\nmax_new_tokens = 3'), file(tmp_path, "spec", model)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(ONLINE.format(method="grpo", reward=reward, model=model, gold=gold))
    code, _, err = run(capsys, "train", recipe, "--out", tmp_path / "run", "--json")
    assert code == 1 and "step 1: 6 of 6 completions could not be judged" in err and "holds no verdict" in err


def test_training_by_a_server(capsys, tmp_path, model):
    """A judge over HTTP that fails now and then: those completions are left out and counted, and the run goes on."""

    def answer(path, body):
        said = body["messages"][0]["content"]
        return (
            (400, {}, b'{"message": "odd request"}')
            if sum(map(ord, said)) % 5 == 0
            else chat(f"Rating: {1 + len(said) % 5}")
        )

    with FakeServer(answer) as fake:
        reward = file(tmp_path, "score", fake.url, 'mode = "text"\n[server]\nretries = 0')
        reward.write_text(reward.read_text().replace("[server]\nretries = 0\n", "") + "[server]\nretries = 0\n")
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            ONLINE.format(method="grpo", reward=reward, model=model, gold=file(tmp_path, "yes_no", model))
        )
        code, _, err = run(capsys, "train", recipe, "--out", tmp_path / "run", "--json", "--verdicts.max-failed", "0.9")
    assert code == 0, err
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "verdict/crashed" in line]
    assert sum(line["verdict/crashed"] for line in steps) > 0 and all(math.isfinite(line["reward"]) for line in steps)
    assert any(line.get("judge/parse_rate") == 1 for line in steps)
    config = (tmp_path / "run" / "config.json").read_text()
    assert "score.toml" in config


def test_spec_distill(capsys, tmp_path, model):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"say {i}", "category": "kind"} for i in range(3)])
    out, path = tmp_path / "out.jsonl", file(tmp_path, "spec", model)
    shared = ("data", "spec_distill", model, prompts, "--judge", path, "--out", out, "--json", "--k", "6",
              "--max-new-tokens", "200", "--stop", "e")  # fmt: skip
    code, found, err = run(capsys, *shared, "--threshold", "0")
    assert code == 0, err
    assert found["rows"] + sum(found["counted"].values()) == 18
    assert all(describe(name) for name in found["metrics"])
    rows = open_rows(out)
    assert all(len(parse(rows[i], "demos")) == 1 for i in range(len(rows)))
    assert "Greet whoever greets" not in out.read_text() and rows[0]["category"] == "kind"
    code, _, err = run(capsys, *shared, "--threshold", "1.01")
    assert code == 2 and "judged below 1.01" in err
    code, _, err = run(capsys, *shared[:4], "--judge", file(tmp_path, "score", model), "--out", out)
    assert code == 2 and "holds no specification" in err


def test_a_specification_in_a_file_of_its_own(tmp_path, model):
    spec = tmp_path / "rules.toml"
    spec.write_text('kind = "Greet whoever greets."')
    path = tmp_path / "judge.toml"
    path.write_text(f'kind = "spec"\nmodel = "{model}"\nspec = "{spec}"')
    assert judge(str(path)).spec.categories == {"kind": "Greet whoever greets."}  # type: ignore[attr-defined]
    spec.write_text("kind = 3")
    with pytest.raises(ValueError, match="rules.toml: the specification's category 'kind' has no text"):
        judge(str(path))


def test_a_criterion_by_a_verifier_and_by_another_file(tmp_path, model):
    other = file(tmp_path, "yes_no", model)
    path = tmp_path / "mixed.toml"
    path.write_text(
        f'kind = "rubric"\n[[criteria]]\nid = "right"\nmax = 3\njudge = "exact"\n[[criteria]]\nid = "kind"\n'
        f'description = "It is kind."\njudge = "{other}"'
    )
    [score] = judge(str(path))(["4"], [{"prompt": "2 + 2", "answer": "4"}])
    kind = score.parts["kind"].value
    assert score.parts["right"].value == 3 and kind is not None and score.value == pytest.approx((3 + kind) / 4)


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "kind must be one of pairwise, score, yes_no, rubric, spec; it is None"),
        ('kind = "score"', "judge.toml names no model"),
        ('kind = "score"\nmodel = "m"\nswap_positions = true', "unknown key 'swap_positions'"),
        ('kind = "score"\nmodel = "m"\nscale = [1, "b"]', "scale must be a whole number"),
        ('kind = "score"\nmodel = "m"\nmode = "words"', "mode must be one of 'logprobs', 'text'"),
        ('kind = "score"\nmodel = "MODEL"\nscale = [5, 5]', "judge.toml: a scale goes from a lower to a higher number"),
        ('kind = "score"\nmodel = "MODEL"\nn_votes = 3', "judge.toml: n_votes = 3 would all be the same"),
        ('kind = "score"\nmodel = "MODEL"\ntemplate = "none.txt"', "none.txt"),
        ('kind = "spec"\nmodel = "MODEL"', "a specification needs at least one category"),
        ('kind = "rubric"\n[[criteria]]\nid = "a"', "criterion 'a' has no judge"),
        ('kind = "rubric"\nmodel = "MODEL"\n[[criteria]]\nid = "a"\nwieght = 1', "unknown key 'criteria.wieght'"),
        ('kind = "score"\nmodel = "nowhere"', "nowhere"),
        ("kind = ", "is not valid TOML"),
    ],
)
def test_files_that_are_wrong(tmp_path, monkeypatch, model, text, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.toml").write_text(text.replace("MODEL", str(model)))
    with pytest.raises(ValueError, match="judge.toml") as raised:
        judge("judge.toml")
    assert told in str(raised.value)


def test_what_is_no_reward_says_what_to_write(tmp_path):
    with pytest.raises(ValueError, match="as a reward write ai:http://h/v1#m, or a judge's file"):
        judge("http://h/v1#m")
    with pytest.raises(ValueError, match=r"judge nowhere.toml does not exist"):
        judge("nowhere.toml")


def test_a_reward_model_is_normalised_on_rows(capsys, tmp_path, model):
    policy = models_policy(model)
    save_reward_model(RewardModel(policy.model, seed=1), policy.tokenizer, tmp_path / "raw")
    rows = write(tmp_path / "rows.jsonl", ROWS)
    code, before, _ = run(capsys, "score", tmp_path / "raw", rows, "--json")
    code, after, err = run(capsys, "score", tmp_path / "raw", rows, "--normalise", "global_std", "--save",
                           tmp_path / "new", "--json")  # fmt: skip
    assert code == 0, err
    raw = [row["value"] for row in before]
    spread = statistics.pstdev(raw)
    assert [row["value"] for row in after] == pytest.approx(
        [(x - statistics.fmean(raw)) / spread for x in raw], abs=1e-4
    )
    code, again, _ = run(capsys, "score", tmp_path / "new", rows, "--json")
    assert [row["value"] for row in again] == [row["value"] for row in after]
    code, _, err = run(capsys, "score", tmp_path / "raw", rows, "--normalise", "global")
    assert code == 2 and "--save names the folder" in err

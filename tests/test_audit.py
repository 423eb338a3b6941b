"""What a run logs of itself at its evaluations, against the models it leaves; and `fiducial eval` on pairs and runs."""

import json
import math
from pathlib import Path

import pytest
import torch

import fiducial
from fiducial.cli.main import main
from fiducial.config import Run as Recipe
from fiducial.config import from_table
from fiducial.core.types import Decoding
from fiducial.evals import pairs
from fiducial.evals.metrics import describe
from fiducial.sampling.policy import Policy
from fiducial.store import RunFolder
from fiducial.train.assemble import assemble
from fiducial.train.checkpoint import Checkpoints, restore
from fiducial.train.holdout import Held
from fiducial.train.parts import State
from fiducial.train.runtime import Runtime

NEW = "hidden = 32\nlayers = 1\nheads = 1\nmax_length = 48\ntokenizer = 'word'\nvocab_size = 100"
GOLD = "def length(completion):\n    return float(len(completion.split()))\n"
HELD = [
    {"prompt": "say 1", "chosen": "yes 1", "rejected": "no no"},
    {"prompt": "say 2", "chosen": "no no", "rejected": "yes 2 2"},
    {"prompt": "say 3", "chosen": "yes 3 3", "rejected": "no"},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of two runs: `base`, one step of imitation, and `dpo` from it, which samples single tokens."""
    folder = tmp_path_factory.mktemp("audit")
    rows = [{"prompt": f"say {i % 9}", "chosen": f"yes {i % 9}", "rejected": "no no"} for i in range(30)]
    for name, content in (("pairs", rows), ("held", HELD)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "gold.py").write_text(GOLD)
    data = f"[data]\npath = '{folder / 'pairs.jsonl'}'\neval_path = '{folder / 'held.jsonl'}'\n"
    common = data + "[optim]\nbatch = 4\nlr = 0.01\n[sampling]\nmax_new_tokens = 1\ntop_k = 2\n"
    train(folder, "base", f"method = 'sft'\nsteps = 1\n{common}[model]\ndtype = 'float64'\n[model.new]\n{NEW}\n")
    train(
        folder,
        "dpo",
        f"method = 'dpo'\nsteps = 4\n{common}[model]\ndtype = 'float64'\npath = '{folder / 'base' / 'model'}'\n"
        f"[eval]\nevery = 2\nk = 3\ngold = '{folder / 'gold.py'}:length'\n[checkpoint]\nevery = 2\n",
    )
    return folder


def train(folder, name, text) -> RunFolder:
    (folder / f"{name}.toml").write_text(text)
    settings = {"show": False, "tell": lambda line: None}
    return RunFolder(fiducial.train(folder / f"{name}.toml", out=folder / name, **settings))


def evaluations(folder):
    return [row for row in RunFolder(folder).read_metrics() if "eval/loss" in row]


def weights(folder):
    return {name: x.detach() for name, x in Policy.load(folder, torch.float64).model.named_parameters()}


def next_token(policy, prompt):
    """Log-probs of the first token of a completion, [V]."""
    ids = pairs.encode(policy.tokenizer, prompt, "yes").token_ids
    start = pairs.encode(policy.tokenizer, prompt, "yes").mask.index(True)
    with torch.no_grad():
        return policy.logits(torch.tensor([ids[:start]]))[0, -1].log_softmax(-1)


def one_token_kl(policy, ref):
    """KL(policy || ref) of the first token, mean over the held-out prompts: no sample has a say in it."""
    kls = []
    for row in HELD:
        p, q = next_token(policy, row["prompt"]), next_token(ref, row["prompt"])
        kls.append(float((p.exp() * (p - q)).sum()))
    return sum(kls) / len(kls)


# -- what a run logs -----------------------------------------------------------------------------------------------


def test_every_logged_name_has_a_meaning(runs):
    names = {name for run in ("base", "dpo") for row in RunFolder(runs / run).read_metrics() for name in row}
    assert [name for name in sorted(names - {"step"}) if describe(name) is None] == []


def test_the_start_is_measured_as_no_distance_at_all(runs):
    first = evaluations(runs / "dpo")[0]
    assert first["step"] == 0 and first["weights_distance"] == first["weights_distance/relative"] == 0
    assert [first[f"eval/kl/{name}"] for name in ("k1", "k2", "k3", "exact")] == [0, 0, 0, 0]
    assert first["eval/flips/correct_wrong"] == first["eval/flips/wrong_correct"] == 0


def test_weights_distance_is_that_of_the_saved_models(runs):
    start, end = weights(runs / "base" / "model"), weights(runs / "dpo" / "model")
    moved = math.sqrt(sum(float((end[name] - start[name]).square().sum()) for name in start))
    size = math.sqrt(sum(float(value.square().sum()) for value in start.values()))
    last = evaluations(runs / "dpo")[-1]
    assert moved > 0.01
    assert last["weights_distance"] == pytest.approx(moved, rel=1e-9)
    assert last["weights_distance/relative"] == pytest.approx(moved / size, rel=1e-9)


def test_the_exact_kl_of_single_tokens_is_the_closed_form(runs):
    policy, ref = (Policy.load(runs / run / "model", torch.float64) for run in ("dpo", "base"))
    last, truth = evaluations(runs / "dpo")[-1], one_token_kl(policy, ref)
    assert truth > 1e-3
    assert last["eval/kl/exact"] == pytest.approx(truth, rel=1e-6)
    assert last["eval/kl/exact/low"] < truth < last["eval/kl/exact/high"]
    assert last["eval/kl/k1"] != pytest.approx(truth, rel=1e-3)  # three samples only


def test_held_out_samples_are_judged_kept_and_told(runs):
    """Single tokens: a gold of at most one word each, and three samples of each of three prompts."""
    last = evaluations(runs / "dpo")[-1]
    assert 0 <= last["eval/gold"] <= 1 and last["eval/gold/unjudged"] == 0
    assert last["eval/completions/mean_length"] == 1 and 0 < last["eval/distinct_1"] <= 1
    samples = RunFolder(runs / "dpo").read_samples()
    assert [(row["step"], row["phase"]) for row in samples] == [
        (step, phase) for step, phase in ((0, "before"), (2, "during"), (4, "after")) for _ in HELD
    ]
    assert [row["prompt"] for row in samples[:3]] == [row["prompt"] for row in HELD]


def test_flips_tell_both_accuracies(runs):
    first, *_, last = evaluations(runs / "dpo")
    kept, lost = last["eval/flips/correct_correct"], last["eval/flips/correct_wrong"]
    assert kept + lost == pytest.approx(first["eval/ranking_accuracy"])  # the reference is the policy as it began
    assert kept + last["eval/flips/wrong_correct"] == pytest.approx(last["eval/ranking_accuracy"])


def test_a_run_that_goes_on_is_measured_from_where_it_first_began(runs):
    """The checkpoint of step 2 restored into a fresh assembly measures what was logged then, not 0."""
    folder = RunFolder(runs / "dpo")
    run = from_table(Recipe, folder.read_config()).resolved()
    assembly = assemble(run, Runtime(), folder.path / "tokenizer", lambda line: None)
    saved, _ = Checkpoints(folder.checkpoints).newest(up_to=2)
    assert saved is not None
    restore(assembly.parts, State.begin(run, assembly.parts), saved)
    found = Held(assembly).measure(2)
    logged = next(row for row in evaluations(folder.path) if row["step"] == 2)
    assert found["weights_distance"] == logged["weights_distance"] > 0
    same = {name: value for name, value in found.items() if "seconds" not in name}
    assert same == {name: logged[name] for name in same}


def test_with_k_0_nothing_is_sampled(runs):
    text = (runs / "dpo.toml").read_text().replace("k = 3", "k = 0")
    with pytest.raises(ValueError, match="eval.gold judges samples, and dpo with eval.k = 0 draws none"):
        train(runs, "none", text)
    quiet = train(runs, "quiet", text.replace(text[text.index("gold =") : text.index("[checkpoint]")], ""))
    last = evaluations(quiet.path)[-1]
    assert "weights_distance" in last and "eval/ranking_accuracy" in last
    assert not any(name.startswith(("eval/kl", "eval/completions", "eval/gold")) for name in last)
    assert quiet.read_samples() == []


def test_a_gold_that_does_not_exist_is_refused_before_the_first_step(runs):
    text = (runs / "dpo.toml").read_text()
    gold = text[text.index("gold =") : text.index("[checkpoint]")]
    with pytest.raises(ValueError, match="eval.gold: there is no verifier 'nobody'"):
        train(runs, "nobody", text.replace(gold, "gold = 'nobody'\n"))
    assert not RunFolder(runs / "nobody").holds_run


# -- fiducial eval -------------------------------------------------------------------------------------------------


def evaluated(capsys, *argv):
    code = main(["eval", *map(str, argv), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else err


def test_a_policy_on_pairs_ranks_them_by_its_own_likelihoods(capsys, runs):
    model, policy = runs / "dpo" / "model", fiducial.load(runs / "dpo" / "model")
    sides = [[policy.logprobs(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in HELD]
    _, found = evaluated(capsys, model, runs / "held.jsonl")
    metrics = found["metrics"]
    assert metrics["ranking_accuracy"] == pytest.approx(sum(float(a.sum() > b.sum()) for a, b in sides) / 3)
    assert metrics["ranking_accuracy_len_norm"] == pytest.approx(sum(float(a.mean() > b.mean()) for a, b in sides) / 3)
    assert metrics["logps/chosen"] == pytest.approx(sum(float(a.sum()) for a, _ in sides) / 3, abs=1e-4)
    assert metrics["length/rejected"] == pytest.approx(sum(len(b) for _, b in sides) / 3)
    assert found["n"] == 3 and "rewards/accuracies" not in metrics
    low, high = found["intervals"]["ranking_accuracy"]
    assert 0 <= low <= metrics["ranking_accuracy"] <= high <= 1


def test_beside_a_reference_are_rewards_flips_and_the_kl(capsys, runs):
    model, ref = runs / "dpo" / "model", runs / "base" / "model"
    policy, other = fiducial.load(model), fiducial.load(ref)
    _, found = evaluated(
        capsys, model, runs / "held.jsonl", "--ref", ref, "--beta", "0.5", "--max-new-tokens", "1", "--top-k", "2"
    )
    metrics = found["metrics"]
    gains = [
        [float((policy.logprobs(row["prompt"], row[s]) - other.logprobs(row["prompt"], row[s])).sum()) for s in SIDES]
        for row in HELD
    ]
    assert metrics["rewards/chosen"] == pytest.approx(0.5 * sum(good for good, _ in gains) / 3, abs=1e-4)
    assert metrics["rewards/accuracies"] == pytest.approx(sum(good > bad for good, bad in gains) / 3)
    flips = sum(value for name, value in metrics.items() if name.startswith("flips/"))
    assert flips == pytest.approx(1)
    assert metrics["kl/exact"] == pytest.approx(one_token_kl(policy, other), rel=1e-4)
    assert "idealised_ranking_accuracy/max" not in metrics and "pref_prob" in found["notes"][0]
    _, same = evaluated(capsys, model, runs / "held.jsonl", "--ref", model)
    assert same["metrics"]["rewards/accuracies"] == 0.5 and same["metrics"]["kl/exact"] == 0


SIDES = ("chosen", "rejected")


def test_idealised_accuracy_comes_from_raters_or_probabilities(capsys, runs, tmp_path):
    """Majorities of 2 to 1 and of 9 to 1: by the rule itself at both ends of the grid of betas."""
    rows: list[dict] = [HELD[0], HELD[0], {**HELD[0], "chosen": HELD[0]["rejected"], "rejected": HELD[0]["chosen"]}]
    rows.append({**HELD[1], "pref_prob": 0.9})
    path = tmp_path / "raters.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ref = fiducial.load(runs / "base" / "model")
    _, found = evaluated(capsys, runs / "dpo" / "model", path, "--ref", runs / "base" / "model")
    metrics = found["metrics"]
    ratios = [
        float(ref.logprobs(row["prompt"], row["chosen"]).sum() - ref.logprobs(row["prompt"], row["rejected"]).sum())
        for row in HELD[:2]
    ]
    odds = [math.log(2), math.log(9)]
    at = {beta: sum(r + o / beta > 0 for r, o in zip(ratios, odds, strict=True)) / 2 for beta in (0.01, 10.0)}
    assert metrics["idealised_ranking_accuracy/max"] == at[0.01] == 1
    assert metrics["idealised_ranking_accuracy/min"] == at[10.0]
    assert "over 2 majorities" in found["notes"][0]


def test_likelihoods_do_not_depend_on_the_batch(runs, monkeypatch):
    policy = Policy.load(runs / "dpo" / "model", torch.float64)
    data = pairs.read_pairs(policy, str(runs / "held.jsonl"))
    items = [data[j] for j in range(3)]
    together = pairs.likelihoods(policy, items)
    monkeypatch.setattr(pairs, "ROWS", 1)
    alone = pairs.likelihoods(policy, items)
    torch.testing.assert_close(together.chosen, alone.chosen, atol=1e-10, rtol=0)
    torch.testing.assert_close(together.rejected, alone.rejected, atol=1e-10, rtol=0)


def test_the_frontier_of_a_run_is_printed_and_drawn(capsys, runs, tmp_path):
    page = tmp_path / "page.html"
    code, found = evaluated(capsys, "--frontier", runs / "dpo", "--out", page)
    rows = sorted(evaluations(runs / "dpo"), key=lambda row: row["eval/kl/exact"])
    assert code == 0 and (found["proxy"], found["gold"]) == ("eval/rewards/margins", "eval/gold")
    assert [p["distance"] for p in found["points"]] == pytest.approx([math.sqrt(r["eval/kl/exact"]) for r in rows])
    start = next(row for row in rows if row["step"] == 0)
    assert [p["gold"] for p in found["points"]] == pytest.approx([r["eval/gold"] - start["eval/gold"] for r in rows])
    assert page.read_text().count("<svg") == 2
    assert "Reward against distance" in (runs / "dpo" / "report.html").read_text()


@pytest.mark.parametrize(
    "argv, message",
    [
        (("MODEL",), "name a model, and a task or a file"),
        (("MODEL", "arith", "--ref", "MODEL"), "--ref compares two models on a file of pairs, which arith is not"),
        (("MODEL", "HELD", "--n-people", "3"), "--n-people is no setting of pairs"),
        (("MODEL", "HELD", "--gold", "eval/gold"), "--gold belongs to --frontier"),
        (("--frontier", "BASE"), "base has no evaluation with eval/kl/exact"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, runs, argv, message):
    places = {"MODEL": runs / "dpo" / "model", "HELD": runs / "held.jsonl", "BASE": runs / "base"}
    code, err = evaluated(capsys, *(places.get(word, word) for word in argv))
    assert code == 2 and message in err


def test_a_reference_of_another_vocabulary_and_no_pairs_are_refused(runs, tmp_path):
    policy = fiducial.load(runs / "dpo" / "model")
    data = pairs.read_pairs(policy, str(runs / "held.jsonl"))
    with pytest.raises(ValueError, match="the list of pairs is empty"):
        pairs.evaluate_pairs(policy, [])
    text = "method = 'sft'\nsteps = 1\n[data]\npath = 'ROWS'\n[optim]\nbatch = 4\n[eval]\nk = 0\n[model.new]\n" + NEW
    (tmp_path / "rows.jsonl").write_text('{"text": "other words"}\n' * 4)
    other = train(tmp_path, "other", text.replace("ROWS", str(tmp_path / "rows.jsonl")))
    with pytest.raises(ValueError, match="another vocabulary"):
        pairs.evaluate_pairs(policy, list(data), fiducial.load(other.model), decoding=Decoding(1))

"""Pipelines: what a stage is told, what a sample stage writes, and that a killed pipeline ends as one that was not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fiducial import models
from fiducial.cli.main import main
from fiducial.config import RECIPES, RecipeError, Run, read_recipe, read_toml, recipe_file
from fiducial.core.types import Rollout
from fiducial.data import parse, tasks
from fiducial.exact.minimise import exact_minimise
from fiducial.exact.optima import bradley_terry, bradley_terry_fit
from fiducial.exact.selection import best_of_n
from fiducial.methods import METHODS
from fiducial.store import RunFolder
from fiducial.train import gold, stages
from fiducial.train import pipeline as driver
from fiducial.train.plan import Average, Mixture, Sample, Source, is_pipeline, plan, read_pipeline, refer
from fiducial.train.runtime import Runtime

REPO = Path(__file__).resolve().parents[1]
NEW = "{ hidden = 32, layers = 1, heads = 1, max_length = 96, tokenizer = 'word', vocab_size = 200 }"
SMALL = "optim.batch = 4\neval = { n = 4, k = 1 }\nsampling.max_new_tokens = 8\n"
LOOP = f"""# A loop in small.
rounds = 2
seed = 5
[gold]
task = "arith"
n = 3
k = 2
reward = "REWARD"
against = "start"
sampling.max_new_tokens = 6
data.difficulty.steps = 1
[[stage]]
name = "start"
once = true
method = "sft"
task = "arith"
steps = 2
data = {{ rows = 40, difficulty = {{ steps = 1 }} }}
model.new = {NEW}
{SMALL}
[[stage]]
name = "answers"
kind = "sample"
model.path = "{{average|start}}"
task = "arith"
data.difficulty.steps = 1
prompts = 5
batch = 2
sampling = {{ n = 3, max_new_tokens = 9, stop = ["a", "e", "1", "2", "k"] }}
reward = "REWARD"
[[stage]]
name = "reward"
method = "bt_reward_model"
model.path = "{{start}}"
data.path = "{{answers}}/rankings.jsonl"
steps = 2
optim.batch = 2
eval.n = 1
[[stage]]
name = "best"
kind = "sample"
model.path = "{{average|start}}"
task = "arith"
data.difficulty.steps = 1
prompts = 4
sampling = {{ n = 4, max_new_tokens = 9, stop = ["a", "e", "1", "2", "k"] }}
reward = "{{reward}}"
[[stage]]
name = "dpo"
method = "dpo"
model.path = "{{average|start}}"
data.path = "{{answers}}/rankings.jsonl"
steps = 4
optim.batch = 2
eval.n = 1
checkpoint.every = 2
[[stage]]
name = "average"
kind = "average"
models = ["{{start}}", "{{dpo}}"]
"""


def loop(folder: Path, text: str = LOOP) -> str:
    """The pipeline file. Its reward is a completion's length, which random weights vary enough."""
    (folder / "reward.py").write_text("def length(completion):\n    return len(completion) % 7 / 7\n")
    path = folder / "loop.toml"
    path.write_text(text.replace("REWARD", f"{folder / 'reward.py'}:length"))
    return str(path)


def small(folder: Path, text: str) -> str:
    path = folder / "small.toml"
    path.write_text(text)
    return str(path)


# -- what a stage is told ----------------------------------------------------------------------------------------------


def test_the_plan_of_two_rounds(tmp_path):
    """Names refer to what was made last; `start` runs once; sample stages of one source share its prompts out."""
    places = plan(read_pipeline(loop(tmp_path)), Path("OUT"))
    assert [str(place.folder) for place in places] == [
        "OUT/1-start", "OUT/1-answers", "OUT/1-reward", "OUT/1-best", "OUT/1-dpo", "OUT/1-average",
        "OUT/2-answers", "OUT/2-reward", "OUT/2-best", "OUT/2-dpo", "OUT/2-average",
    ]  # fmt: skip
    works: list[Any] = [place.work for place in places]
    assert [works[i].model.path for i in (1, 4, 6, 9)] == ["OUT/1-start/model"] * 2 + ["OUT/1-average/model"] * 2
    assert works[2].data.path == "OUT/1-answers/rankings.jsonl" and works[7].data.path == "OUT/2-answers/rankings.jsonl"
    assert works[3].reward == "OUT/1-reward/model" and works[8].reward == "OUT/2-reward/model"
    assert works[10].models == ("OUT/1-start/model", "OUT/2-dpo/model")
    assert {work.seed for work in works if not isinstance(work, Average)} == {5}
    assert [place.skip for place in places if place.kind == "sample"] == [0, 5, 9, 14]  # 5 and 4 prompts, two rounds


def test_references_reach_into_tables_lists_and_names():
    text = {"reward": {"{rm}": 1.0}, "models": ["{a|b}", "{b}"], "seed": "{round}", "note": "in round {round}"}
    found = refer(text, {"rm": "R", "b": "B"}, 3)
    assert found == {"reward": {"R": 1.0}, "models": ["B", "B"], "seed": 3, "note": "in round 3"}


STAGE = "[[stage]]\nname = 'a'\nmethod = 'sft'\ntask = 'arith'\nmodel.path = 'm'\n"
BAD = {
    "no stages": ("rounds = 2\nstage = []", "it has no stages"),
    "no name": ("[[stage]]\nmethod = 'sft'", "name is small letters"),
    "two of a name": (STAGE + STAGE, "2 stages are called 'a'"),
    "a word of its own": (STAGE.replace("'a'", "'rounds'"), "cannot be called 'rounds'"),
    "no such kind": (STAGE + "kind = 'trian'", "stage 'a': kind must be one of train, sample, mix, average;"),
    "a recipe's key": (STAGE + "stepz = 3", "stage 'a': unknown key 'stepz': perhaps 'steps'"),
    "a recipe's value": (STAGE + "optim.lr = -1.0", "stage 'a': optim.lr must be positive"),
    "nothing of that name": (STAGE.replace("'m'", "'{b}'"), "stage 'a': '{b}' refers to {b}, which no stage before"),
    "not yet": (STAGE.replace("'m'", "'{a}'"), "no stage before it has made in round 1"),
    "a key of the pipeline": ("round = 3\n" + STAGE, "unknown key 'round': perhaps 'rounds'"),
    "no rounds": ("rounds = 0\n" + STAGE, "rounds must be at least 1; it is 0"),
    "once": (STAGE + "once = 1", "once must be true or false; it is 1"),
    "two starts": ("start = 'm'\n" + STAGE.replace("'a'", "'start'"), "both a stage and the setting"),
    "sample of nothing": ("[[stage]]\nname = 'a'\nkind = 'sample'\nmodel.path = 'm'", "name a task or data.path"),
    "sample, no model": ("[[stage]]\nname = 'a'\nkind = 'sample'\ntask = 'arith'", "it has no model"),
    "sample, no reward": (
        "[[stage]]\nname = 'a'\nkind = 'sample'\nmodel.path = 'm'\ndata.path = 'p.jsonl'", "need a reward",
    ),
    "average of nothing": ("[[stage]]\nname = 'a'\nkind = 'average'", "it has no models"),
    "weights": ("[[stage]]\nname = 'a'\nkind = 'average'\nmodels = ['x', 'y']\nweights = [1.0]", "weights are 2"),
    "gold against nothing": (
        "[gold]\ntask = 'arith'\nagainst = 'b'\n" + STAGE, "against = 'b' is no stage that makes a policy (a)",
    ),
    "mix of nothing": ("[[stage]]\nname = 'a'\nkind = 'mix'", "it has no sources"),
    "mix without rows": ("[[stage]]\nname = 'a'\nkind = 'mix'\nsources = [{ task = 'arith' }]", "arith: rows must be"),
    "mix of both": (
        "[[stage]]\nname = 'a'\nkind = 'mix'\nsources = [{ task = 'arith', path = 'x', rows = 1 }]",
        "a task or a path, and not both",
    ),
    "gold": ("gold = { task = 'arith', data.path = 'x' }\n" + STAGE, "[gold]: name a task or data.path"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_pipelines(tmp_path, name, capsys):
    text, message = BAD[name]
    path = small(tmp_path, text)
    assert main(["train", path, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert f"pipeline {path}: " in told and message in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_flags_reach_the_pipeline_and_its_stages(tmp_path):
    over = {"rounds": 1, "seed": 7, "dpo": {"hparams": {"beta": 0.3}, "optim": {"batch": 1}}}
    places = plan(read_pipeline(loop(tmp_path), over), Path("OUT"))
    dpo = next(place.work for place in places if place.name == "dpo")
    assert isinstance(dpo, Run) and dpo.hparams == {"beta": 0.3} and dpo.optim.batch == 1 and dpo.seed == 7
    assert {place.round for place in places} == {1}
    again = plan(read_pipeline(loop(tmp_path), {"start": {"steps": 3}}), Path("OUT"))  # a stage, though a setting too
    assert [place.work.steps for place in again if isinstance(place.work, Run)][0] == 3
    with pytest.raises(RecipeError, match="'dpoo' is no setting of a pipeline and none of its stages"):
        read_pipeline(loop(tmp_path), {"dpoo": {"steps": 1}})


def test_what_is_missing_is_told_before_anything_runs(tmp_path, capsys):
    path = small(tmp_path, STAGE.replace("'m'", f"'{tmp_path}/none'"))
    assert main(["train", path, "--out", str(tmp_path / "out")]) == 2
    assert f"stage 'a': model.path = '{tmp_path}/none' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="is a pipeline of several stages"):
        read_recipe(loop(tmp_path))


# -- the rows of a sample stage ----------------------------------------------------------------------------------------


def drawn(group: int, completion: str, reward: float | None, finish: str = "stop", verdict: str = "wrong") -> dict:
    return {"prompt": f"p{group}", "completion": completion, "reward": reward, "finish": finish, "verdict": verdict,
            "group": group, "num_tokens": 2}  # fmt: skip


ROWS = [
    drawn(0, "bad", 0.0), drawn(0, "good", 1.0), drawn(0, "good", 1.0), drawn(0, "fair", 0.5),
    drawn(0, "cut", 1.0, "length"), drawn(0, " ", 1.0), drawn(0, "lost", None, verdict="timeout"),
    drawn(1, "same", 0.5), drawn(1, "as good", 0.5),
    drawn(2, "only", 1.0),
]  # fmt: skip


def test_rows_that_scored_completions_make():
    """By hand: prompt 0 has three usable completions, prompt 1 two of equal reward, prompt 2 one."""
    work = Sample(keep=2, min_reward=0.5, slight_below=2.0, wanted_from=1.0)
    made, counted = stages.choose(work, ROWS, 3, "1-answers")
    assert [(row["prompt"], row["completion"]) for row in made["demos"]] == [
        ("p0", "good"), ("p0", "fair"), ("p1", "same"), ("p1", "as good"), ("p2", "only"),
    ]  # fmt: skip
    assert made["pairs"] == [
        {"prompt": "p0", "response_a": "good", "response_b": "bad", "rating": 1.0, "reward_a": 1.0, "reward_b": 0.0,
         "group_id": "1-answers/0"}
    ]  # fmt: skip
    assert [row["label"] for row in made["labels"]] == [False, True, False, False, False, True]
    assert made["rankings"] == [{"prompt": "p0", "completions": ["bad", "good", "fair"], "scores": [0.0, 1.0, 0.5]}]
    assert counted == {
        "completion: a copy": 1, "completion: cut short": 1, "completion: empty": 1, "completion: timeout": 1,
        "prompt: no pairs": 2, "prompt: no rankings": 2,
    }  # fmt: skip


def test_a_clear_pair_is_rated_2_and_a_close_one_is_not_made():
    made, _ = stages.choose(Sample(slight_below=1.0), ROWS, 3)
    assert [row["rating"] for row in made["pairs"]] == [2.0]  # a difference of exactly 1 is not below it
    made, counted = stages.choose(Sample(skip_if_score_gap_below=1.1), ROWS, 3)
    assert made["pairs"] == [] and counted["prompt: no pairs"] == 3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 6))
def test_the_best_come_first_and_no_completion_is_lost(rewards, keep):
    rows = [drawn(0, f"c{i}", reward) for i, reward in enumerate(rewards)]
    made, _ = stages.choose(Sample(keep=keep), rows, 0)
    assert [row["reward"] for row in made["demos"]] == sorted(rewards, reverse=True)[:keep]
    assert len(made["labels"]) == len(rewards)


def test_copies_count_where_the_policy_is_to_be_followed():
    """By hand: the policy writes "good" twice, a bad and a fair answer once each."""
    made, counted = stages.choose(Sample(copies="keep", keep=3, min_reward=0.5), ROWS[:4], 3)
    assert [row["completion"] for row in made["demos"]] == ["good", "good", "fair"]
    assert [row["label"] for row in made["labels"]] == [False, True, True, False]
    assert made["rankings"][0]["completions"] == ["bad", "good", "fair"] and "completion: a copy" not in counted
    made, _ = stages.choose(Sample(keep=3, min_reward=0.5), ROWS[:4], 3)
    assert [row["completion"] for row in made["demos"]] == ["good", "fair"]


def test_random_pairs_follow_the_policy_only_where_copies_count():
    """Nine times "good" and once "bad": of two draws without return one is "bad" in 1/5 of all: of 10 x 9 / 2 = 45
    pairs 9 are such; of the two different ones always. Never is a text compared with itself."""
    rows = [drawn(g, "bad" if i == 0 else "good", float(i > 0)) for g in range(2000) for i in range(10)]
    rule: Any = {"pair_rule": "random_two_labelled"}
    drop, keep = (stages.choose(Sample(copies=copies, **rule), rows, 7)[0]["pairs"] for copies in ("drop", "keep"))
    assert len(drop) == 2000 and abs(len(keep) / 2000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5
    assert all({pair["response_a"], pair["response_b"]} == {"good", "bad"} for pair in drop + keep)


DRAWN = st.tuples(
    st.integers(0, 2), st.sampled_from("abc"), st.sampled_from([None, 0.0, 0.5, 1.0]),
    st.sampled_from(["stop", "length"]), st.sampled_from(["correct", "wrong"]),
)  # fmt: skip


@given(st.lists(DRAWN, min_size=1, max_size=12), st.sampled_from([None, 0.5, 1.0]), st.booleans(), st.integers(1, 4))
def test_every_accepted_sample_passes(table, min_reward, only_correct, keep):
    rows = [drawn(*row) for row in table]
    work = Sample(min_reward=min_reward, only_correct=only_correct, keep=keep)
    made, _ = stages.choose(work, rows, 0)
    fine = [
        (row["prompt"], row["completion"], row["reward"])
        for row in rows
        if row["reward"] is not None and row["finish"] == "stop"
        if row["verdict"] == "correct" or not only_correct
        if min_reward is None or row["reward"] >= min_reward
    ]
    assert all((d["prompt"], d["completion"], d["reward"]) in fine for d in made["demos"])
    taken = {row["prompt"]: (row["drawn"], row["accepted"]) for row in stages.acceptance(work, rows)}
    assert taken == {
        prompt: (sum(r["prompt"] == prompt for r in rows), sum(p == prompt for p, _, _ in fine)) for prompt in taken
    }
    assert set(taken) == {row["prompt"] for row in rows}


def test_harm_is_written_for_a_cost_model():
    """What earns less than harm_below does harm: the cost model reads it as the more harmful side, first."""
    made, _ = stages.choose(Sample(harm_below=0.5), ROWS, 3)
    (pair,) = parse(made["pairs"][0], "costs")
    assert (pair.chosen, pair.rejected, pair.chosen_harm, pair.rejected_harm) == ("bad", "good", 1.0, -1.0)
    assert parse(stages.choose(Sample(), ROWS, 3)[0]["pairs"][0], "costs")[0].chosen_harm == 0.0


def test_a_mixture_has_every_row_of_its_sources_once(tmp_path):
    own = [{"prompt": f"p{i}", "completion": "c"} for i in range(9)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    easy = {"task": "arith", "difficulty": {"steps": 1}}
    work = Mixture(
        (
            Source(path=str(tmp_path / "own.jsonl"), rows=7),
            Source(**easy, rows=5, name="plain", tags=False),
            Source(**easy, rows=4, name="asked", solved=False),
            Source(**easy, rows=3),
        ),
        seed=2,
    )
    counts = {"rows": 19, "rows/own": 7, "rows/plain": 5, "rows/asked": 4, "rows/arith": 3}
    assert stages.mixed(work, tmp_path) == counts
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted(row["prompt"] for row in rows if row["source"] == "own") == [f"p{i}" for i in range(7)]
    order = [row["source"] for row in rows]
    assert order != sorted(order, key=["own", "plain", "asked", "arith"].index)  # drawn, not one after the other
    verify = tasks.get("arith").verify
    asked = {row["prompt"]: row for row in rows if row["source"] == "asked"}
    for row in rows:
        if row["source"] in ("plain", "arith"):  # the first problems of one task are the same
            assert ("<think>" in row["completion"]) == (row["source"] == "arith")
            if row["prompt"] in asked:
                assert verify(row["completion"], asked[row["prompt"]]).verdict == "correct"
    assert "completion" not in next(iter(asked.values()))
    with pytest.raises(ValueError, match="has 9 rows, not 10"):
        stages.mixed(Mixture((Source(path=str(tmp_path / "own.jsonl"), rows=10),)), tmp_path)


def scored(group: int, reward: float | None) -> Rollout:
    return Rollout("p", "c", [1, 2], [False, True], [0.0, 0.0], group, reward=reward)


def test_the_win_rate_is_over_all_pairs_of_a_problem():
    """By hand: problem 0 has (1, 0) against (0, 0): wins 2, ties 2 of 4, so 3/4. Problem 1: 0 against (1, 0): 1/4.
    Problem 2 has no reward on our side."""
    ours = [[scored(0, 1.0), scored(0, 0.0)], [scored(1, 0.0), scored(1, None)], [scored(2, None)]]
    theirs = [[scored(0, 0.0), scored(0, 0.0)], [scored(1, 1.0), scored(1, 0.0)], [scored(2, 1.0)]]
    assert gold.win_rates(ours, theirs) == [0.75, 0.25]


def test_a_policy_is_compared_with_the_one_that_gold_names(whole):
    """The divergence along each completion, from both models' whole distributions by `load` and a loop over tokens."""
    path, out = whole
    found = json.loads((out / "pipeline.json").read_text())["stages"]
    assert "gold/win_rate" not in found[0]["metrics"]
    dpo = next(stage for stage in found if stage["name"] == "dpo")["metrics"]
    assert 0 <= dpo["gold/win_rate/low"] <= dpo["gold/win_rate"] <= dpo["gold/win_rate/high"]
    settings = read_pipeline(path).gold
    policy = gold.attempt(settings, out / "1-dpo" / "model", Runtime())
    old = models.load(out / "1-start" / "model")[0]
    means = []
    for group in policy.found.rollouts:
        total = 0.0
        for r in group:
            ids = torch.tensor([r.token_ids])
            with torch.no_grad():
                p, q = (m.head(m.hidden(ids))[0].double().log_softmax(-1) for m in (policy.model, old))
            total += sum(float((p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum()) for t, own in enumerate(r.mask) if own)
        means.append(total / len(group))
    assert dpo["gold/kl/exact"] == pytest.approx(sum(means) / len(means), rel=1e-4, abs=1e-7)
    start = out / "1-start" / "model"
    again = gold.measure(settings, start, Runtime(), gold.attempt(settings, start, Runtime()))
    assert again["gold/kl/exact"] == 0 and again["gold/win_rate"] == 0.5


def test_a_file_of_prompts_begins_again_at_its_end(tmp_path):
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"question": f"q{i}", "answer": i}) + "\n" for i in range(5)))
    from fiducial.config import Data

    work = Sample(data=Data(path=str(tmp_path / "p.jsonl"), prompt_field="question"), prompts=4)
    assert [problem.prompt for problem in stages.prompts(work, 3)] == ["q3", "q4", "q0", "q1"]


def test_no_two_stages_take_the_same_problem_of_a_task():
    work = Sample(task="arith", prompts=6)
    first, second = stages.prompts(work), stages.prompts(work, 6)
    assert len({problem.prompt for problem in first + second}) == 12


# -- averages ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_the_mean_of_equal_weights_is_the_same_to_the_bit(weights, seed):
    state = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), "n": torch.tensor(seed)}
    found = stages.mean([state] * len(weights), weights)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_mean_is_weighted_and_of_one_shape():
    found = stages.mean([{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([5.0, 0.0])}], [1, 3])
    assert found["w"].tolist() == [4.0, 1.0]  # (1 + 15) / 4, (4 + 0) / 4
    with pytest.raises(ValueError, match="the weight w is not the same shape in all"):
        stages.mean([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}], [1, 1])


# -- section 3.16 of the specification: the components of a round on a table -------------------------------------------


def nll_pairs(logits: torch.Tensor, ref: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
    """dpo_nll's expected loss over all ordered pairs of single-token answers, alpha 0.2, beta 0.5."""
    logp, ref_logp = logits.log_softmax(0), ref.log()
    size = len(logp)
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    loss = METHODS["llama3_loop"].loss(
        logp[i], logp[j], ref_logp[i], ref_logp[j], torch.ones(len(i)).double(), beta=0.5, alpha=0.2
    )
    law = ref[i] * ref[j] * (i != j)
    return (law * preference[i, j] * loss).sum() / law.sum()


@pytest.mark.parametrize("seed", range(3))
def test_no_round_lowers_the_expected_gold_reward(seed):
    """Exact Bradley-Terry pairs of the policy's own answers -> reward model -> best of 10 -> its imitation -> DPO with
    likelihood -> mean of the two logits: every step moves mass to higher rewards, so no round loses any."""
    draw = torch.Generator().manual_seed(seed)
    gold = torch.randn(3, generator=draw).double()
    policy = torch.randn(3, generator=draw).double().softmax(0)
    rewards = [float(policy @ gold)]
    for _ in range(3):
        preference = bradley_terry(gold)
        fitted = bradley_terry_fit(preference, policy)
        sft = best_of_n(policy, fitted, 10)  # what imitation of the best of ten converges to
        sft = 0.9 * sft + 0.1 * policy  # and of curated data beside it, here the policy's own
        dpo = exact_minimise(lambda x, sft=sft, preference=preference: nll_pairs(x, sft, preference), sft.log(), 1e-8)
        found = stages.mean([{"theta": sft.log()}, {"theta": dpo.log_softmax(0)}], [1, 1])
        policy = found["theta"].softmax(0)
        rewards.append(float(policy @ gold))
    assert all(after >= before - 1e-9 for before, after in zip(rewards, rewards[1:], strict=False))
    assert rewards[-1] > rewards[0]


@given(st.floats(-3, 0), st.floats(-3, 0), st.floats(0.01, 3))
def test_a_shared_token_may_be_masked_iff_its_ratio_is_equal_on_both_sides(policy, ref, apart):
    """A token in both responses adds log pi / ref to each side's sum; h = (-4 + 6) - (-5 + 5.5) feels only what they
    differ by: 0 changes nothing, and a larger ratio on the chosen side lowers the loss."""
    sums = torch.tensor([[-4.0, -6.0, -5.0, -5.5]]).double()
    loss = METHODS["dpo"].loss
    masked = float(loss(*sums.T, beta=0.5))
    equal = sums + torch.tensor([policy, policy, ref, ref]).double()
    assert float(loss(*equal.T, beta=0.5)) == pytest.approx(masked, abs=1e-12)
    unequal = sums + torch.tensor([policy, policy - apart, ref, ref]).double()
    assert float(loss(*unequal.T, beta=0.5)) < masked - 1e-3 * apart


# -- killed and resumed ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a pipeline as a kill does, but in this process."""


def killed_at(monkeypatch, owner: Any, name: str, count: int) -> None:
    """The function raises after its `count`-th call from now."""
    whole, calls = getattr(owner, name), []

    def counted(*args: Any, **options: Any) -> Any:
        result = whole(*args, **options)
        calls.append(name)
        if len(calls) == count:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, counted)


def run(path: str, out: Path) -> None:
    driver.run_pipeline(path, out=out, resume=True, show=False, tell=lambda line: None)


def record(out: Path) -> dict[str, Any]:
    """All that must be equal to the bit, by file. Paths and seconds are a run's own."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if file.suffix in (".safetensors", ".parquet") or (file.suffix == ".jsonl" and file.name != "metrics.jsonl"):
            found[name] = file.read_bytes()
        if file.name == "metrics.jsonl":
            lines = RunFolder(file.parent).read_metrics()
            found[name] = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
    stages = json.loads((out / "pipeline.json").read_text())["stages"]
    quiet = [{k: v for k, v in stage["metrics"].items() if "seconds" not in k} for stage in stages]
    found["stages"] = [(s["round"], s["name"], m) for s, m in zip(stages, quiet, strict=True)]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[str, Path]:
    """The loop, run to its end without a break."""
    folder = tmp_path_factory.mktemp("loop")
    path = loop(folder)
    run(path, folder / "whole")
    return path, folder / "whole"


INSTANTS = [
    ("between two batches of samples", stages, "evaluate", 2),  # the first batch of 2 prompts is saved, the second not
    ("samples drawn, no rows written", stages, "choose", 1),
    ("inside a run", RunFolder, "append_journal", 8),  # 2 of start, 2 of reward, and the last step of dpo
    ("a stage done, not noted", driver, "last_metrics", 2),
    ("a policy measured, not noted", driver, "measure", 2),
    ("between two rounds", driver, "average", 1),
]


def test_a_pipeline_that_was_killed_ends_like_one_that_was_not(whole, tmp_path, monkeypatch):
    """One pipeline, killed at six places one after the other, each time going on from where it was."""
    path, expected = whole
    for _, owner, name, count in INSTANTS:
        with monkeypatch.context() as patch:
            killed_at(patch, owner, name, count)
            with pytest.raises(Killed):
                run(path, tmp_path / "killed")
    run(path, tmp_path / "killed")
    one, two = record(expected), record(tmp_path / "killed")
    assert one.keys() == two.keys()
    for name in one:
        assert two[name] == one[name], f"{name} differs"


def test_what_is_done_is_not_done_again(whole, monkeypatch):
    path, out = whole
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file() and file.parent != out}
    monkeypatch.setattr(driver.runs, "train", None)
    run(path, out)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_what_a_whole_pipeline_leaves(whole, capsys):
    path, out = whole
    found = json.loads((out / "pipeline.json").read_text())
    assert [f"{stage['round']}-{stage['name']}" for stage in found["stages"]] == [
        p.folder.name for p in plan(read_pipeline(path), out)
    ]
    for stage in found["stages"]:
        policy = stage["name"] in ("start", "dpo", "average")
        assert stage["seconds"] > 0 and ("gold/reward" in stage["metrics"]) == policy
    assert found["stages"][2]["metrics"]["eval/accuracy"] >= 0  # the reward model on its held-out pairs
    page = (out / "report.html").read_text()
    assert 'href="2-dpo/report.html"' in page and "Gold reward" in page
    assert main(["doctor", str(out / "1-dpo")]) in (0, 1)
    assert main(["replay", str(out / "2-dpo"), "--step", "3", "--json"]) == 0
    mean = models.load(out / "2-average" / "model")[0].state_dict()
    sides = [models.load(out / name / "model")[0].state_dict() for name in ("1-start", "2-dpo")]
    for name, x in mean.items():
        torch.testing.assert_close(x, (sides[0][name] + sides[1][name]) / 2)
    capsys.readouterr()


def test_the_command_gives_the_stages_and_more_rounds_may_follow(whole, tmp_path, capsys):
    path, out = whole
    assert main(["train", path, "--out", str(out)]) == 2
    assert "already holds a pipeline (11 stages done): add --resume" in capsys.readouterr().err
    assert main(["train", path, "--out", str(out), "--resume", "--dpo.steps", "9"]) == 2
    assert "was started with another stage" in capsys.readouterr().err
    assert main(["train", path, "--out", str(out), "--resume", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["model"] == str(out / "2-average" / "model") and len(done["stages"]) == 11
    assert done["steps"] == 2 + 2 * (2 + 4) and done["metrics"]["gold/reward"] >= 0
    assert models.load(done["model"])


@pytest.mark.slow
def test_killed_for_good_and_resumed(whole, tmp_path):
    """SIGKILL in processes of their own: in a sample stage, and inside the second round's DPO."""
    from small_runs import die, finish

    path, expected = whole
    die(Path(path), tmp_path / "killed", killed_after=("fiducial.store:RunFolder.write_rollouts", 2))
    die(Path(path), tmp_path / "killed", killed_after=("fiducial.store:RunFolder.append_journal", 9))
    finish(Path(path), tmp_path / "killed")
    assert record(tmp_path / "killed") == record(expected)


def toml(value: Any) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(inner)}" for name, inner in value.items()) + " }"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def shortened(path: Path, folder: Path) -> list[str]:
    """Flags that make a shipped pipeline tiny: two steps a stage, six prompts, one layer that has hardly learned. Its
    rewards become a completion's length, which such weights vary enough."""
    (folder / "reward.py").write_text("def length(completion):\n    return len(completion) % 7\n")
    reward, stop = f"{folder / 'reward.py'}:length", ["a", "e", "1", "2", "k"]
    table, flags = read_toml(path), []
    settings: dict[str, Any] = {"rounds": 1}
    if "gold" in table:
        settings |= {"gold.n": 3, "gold.k": 2, "gold.reward": reward, "gold.sampling.max_new_tokens": 6}
    for stage in table["stage"]:
        kind, own = stage.get("kind", "train"), {}
        if kind == "mix":
            sources = [{**source, "rows": 30 if "task" in source else 0} for source in stage["sources"]]
            own = {"sources": sources}
        elif kind == "sample":
            own = {"prompts": 6, "batch": 2, "sampling.n": 4, "reward": reward, "only_correct": False}
            own |= {"skip_if_score_gap_below": 0.0, "slight_below": 0.0}
        elif kind == "train":
            own = {"steps": 2, "optim.batch": 4, "checkpoint.every": 1, "eval.n": 4, "eval.every": 0}
            own |= {"data.rows": 40} if "task" in stage else {}
            if "new" in stage["model"]:  # a little longer, so that nothing is written which reads back as another text
                own |= {"model.new.hidden": 32, "model.new.layers": 1, "model.new.heads": 1, "steps": 30}
                own |= {"optim.warmup": 0}
            own |= {"sampling.n": 2} if METHODS[stage["method"]].feed == "groups" else {}
        if kind == "sample" or "sampling" in stage:
            own |= {"sampling.max_new_tokens": 9, "sampling.stop": stop}
        settings |= {f"{stage['name']}.{name}": value for name, value in own.items()}
    for name, value in settings.items():
        flags += [f"--{name}", toml(value)]
    return flags


KILLS = {
    "rlhf_pipeline": [
        ("fiducial.store:RunFolder.write_rollouts", 2),  # in the samples for pairs
        ("fiducial.train.pipeline:last_metrics", 1),  # the reward model is done, and nobody noted it
        ("fiducial.store:RunFolder.append_journal", 1),  # inside PPO, with its critic
    ],
    "r1_pipeline": [
        ("fiducial.train.pipeline:mixed", 2),  # the worked solutions are written, and nobody noted it
        ("fiducial.store:RunFolder.append_journal", 3),  # inside the first RL
        ("fiducial.store:RunFolder.write_rollouts", 4),  # in the samples of the general prompts
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_a_shipped_pipeline_is_killed_for_good_and_resumed(name, tmp_path):
    from small_runs import die, finish

    (path,) = RECIPES.glob(f"{name}*.toml")
    flags = shortened(path, tmp_path)
    finish(path, tmp_path / "whole", *flags)
    for place in KILLS[name]:
        die(path, tmp_path / "killed", *flags, killed_after=place)
    finish(path, tmp_path / "killed", *flags)
    one, two = record(tmp_path / "whole"), record(tmp_path / "killed")
    assert one.keys() == two.keys()
    for file in one:
        assert two[file] == one[file], f"{file} differs"


@pytest.mark.slow
def test_two_processes_make_the_same_rows(whole, tmp_path):
    """Ranks share the batches of a sample stage; what they draw does not depend on who draws it."""
    from small_runs import finish

    path, expected = whole
    finish(Path(path), tmp_path / "two", "--rounds", "1", processes=2)
    for name in ("pairs", "labels", "rankings"):
        one, two = ((out / "1-answers" / f"{name}.jsonl").read_text() for out in (expected, tmp_path / "two"))
        assert one == two, name


# -- the recipes that ship ---------------------------------------------------------------------------------------------


SHIPPED = sorted(RECIPES.glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_recipe_is_whole(path):
    if is_pipeline(path):
        assert plan(read_pipeline(path), Path("OUT"))
    else:
        read_recipe(path).resolved()


@pytest.fixture(scope="module")
def imitator(tmp_path_factory) -> Path:
    """What a recipe that goes on from another run's model is given: one that has hardly learned."""
    folder = tmp_path_factory.mktemp("imitator")
    assert main(["train", "sft-arith-laptop", "--out", str(folder / "sft"), "--steps", "2", "--eval.k", "0"]) == 0
    return folder / "sft" / "model"


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_every_shipped_recipe_takes_two_steps_and_evaluates(path, imitator, tmp_path):
    if is_pipeline(path):
        assert main(["train", str(path), "--out", str(tmp_path / "out"), *shortened(path, tmp_path)]) == 0
        stages = json.loads((tmp_path / "out" / "pipeline.json").read_text())["stages"]
        assert len(stages) == len(read_toml(path)["stage"])
        return
    run = read_recipe(path)
    if run.data.path and not (REPO / run.data.path).exists():
        pytest.skip(f"{run.data.path}, which {path.name} trains on, is not here")
    over = ["--model.path", str(imitator)] if run.model.path else []
    over += ["--steps", "2", "--eval.n", "4", "--eval.k", "1", "--optim.batch", "4"]
    assert main(["train", str(path), "--out", str(tmp_path / "out"), *over]) == 0
    last = RunFolder(tmp_path / "out").read_metrics()[-1]
    assert last["step"] == 2 and any(name.startswith("eval/") for name in last)


def test_the_verb_lists_them(capsys):
    assert main(["recipes", "--json"]) == 0
    found = {one["id"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(found) == {path.stem for path in (REPO / "recipes").glob("*.toml")}
    assert all(one["summary"] and one["stages"] for one in found.values())
    assert found["dpo-hh-laptop"]["stages"] == ["dpo"]
    assert found["dpo-hh-laptop"]["summary"].startswith("Direct preference optimisation on preference dialogues")
    loop = next(one for name, one in found.items() if name.startswith("llama3_loop"))
    assert loop["stages"] == ["start", "collect", "reward", "rejection", "sft", "dpo", "average"]
    assert main(["recipes", "llama3_loop"]) == 0
    assert "[[stage]]" in capsys.readouterr().out
    assert main(["recipes", "nothing"]) == 2
    assert "begins with 'nothing'" in capsys.readouterr().err


def test_an_id_stands_for_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("sft-arith-laptop") == RECIPES / "sft-arith-laptop.toml"
    assert read_recipe("sft-arith-laptop").method == "sft"
    (tmp_path / "sft-arith-laptop").write_text("method = 'dpo'")
    assert read_recipe("sft-arith-laptop").method == "dpo"  # a file of that name goes first


@pytest.mark.slow
def test_a_wheel_holds_the_recipes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(REPO),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {f"fiducial/recipes/{path.name}" for path in SHIPPED} <= set(names)

"""Each rule fires on a log made for it, names the metric and the step, and a healthy run gives no finding."""

import math

import pytest

from fiducial.evals.health import read_run
from fiducial.store import RunFolder

STEPS = 100


def wobble(step):
    """A small deterministic noise in [-1, 1]."""
    return math.sin(12.9898 * step)


def healthy_grpo(step):
    done = step / STEPS
    return {
        "loss": 0.01 * wobble(step),
        "reward": 0.3 + 0.4 * done + 0.03 * wobble(step),
        "reward_std": 0.4,
        "frac_reward_zero_std": 0.1 + 0.2 * done,
        "verdict/correct": 0.3 + 0.4 * done,
        "verdict/wrong": 0.68 - 0.4 * done,
        "verdict/unparseable": 0.02,
        "verdict/timeout": 0.0,
        "verdict/crashed": 0.0,
        "verdict/skipped": 0.0,
        "kl": 0.05 * done,
        "entropy": 0.5 - 0.3 * done,
        "grad_norm": 0.4 + 0.1 * wobble(step),
        "policy/approxkl": 0.002,
        "clip_ratio/low": 0.01,
        "clip_ratio/high": 0.02,
        "completions/mean_length": 40 + wobble(step),
        "completions/clipped_ratio": 0.01,
        "sampling/logp_difference/mean": 1e-5,
        "sampling/dropped_tokens": 0,
    }


def healthy_dpo(step):
    done = step / STEPS
    return {
        "loss": 0.69 - 0.3 * done + 0.02 * wobble(step),
        "rewards/chosen": 0.4 * done,
        "rewards/rejected": -0.5 * done,
        "rewards/accuracies": 0.5 + 0.35 * done + 0.03 * wobble(step),
        "grad_norm": 1.0 + 0.2 * wobble(step),
    }


def healthy_sft(step):
    return {"loss": 2 * math.exp(-step / 40) + 0.5 + 0.02 * wobble(step), "grad_norm": 1.0 + 0.2 * wobble(step)}


def healthy_reward_model(step):
    return {"loss": 0.69 - 0.003 * step + 0.02 * wobble(step), "accuracy": 0.5 + step / 300, "grad_norm": 1.0}


HEALTHY = {"grpo": healthy_grpo, "dpo": healthy_dpo, "sft": healthy_sft, "reward model": healthy_reward_model}
DATA = {
    "rows": 1000,
    "used": 998,
    "counted": {"equal sides": 2},
    "completions": 998,
    "truncated": 0,
    "stop_trained": 1.0,
}


def write(path, method, change=None, evals=(0, 50, 100), data=DATA):
    """A run of `method` whose step s logs HEALTHY[method](s) with `change(s)` over it."""
    folder = RunFolder(path).create({"method": method, "steps": STEPS})
    folder.write_json("data.json", data)
    for step in range(STEPS + 1):
        if step:
            folder.append_metrics({"step": step, **HEALTHY[method](step), **(change(step) if change else {})})
        if step in evals:
            folder.append_metrics({"step": step, "eval/loss": 2.0 - step / STEPS, "eval/unjudged": 0.0})
    return folder


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize("method", HEALTHY)
def test_a_healthy_run_gives_no_finding(tmp_path, method):
    assert read_run(write(tmp_path, method).path) == []


def from_step(start, name, before, after):
    return lambda step: {name: after if step >= start else before}


# name of the rule: (method, what is logged instead, severity, where it is found, a word of what, a word of advice)
CASES = {
    "entropy collapse": (
        "grpo",
        lambda s: {"entropy": 0.5 if s < 60 else 0.01},
        ("warning", "entropy, step 69", "entropy fell from 0.5 to 0.01", "raise clip_high"),
    ),  # means of ten: ten values of 0.01 below 0.05 only when 0.5 has left the window, at step 69
    "cheating": (
        "grpo",
        from_step(31, "hack/skip_think", 0.0, 0.4),
        ("warning", "hack/skip_think, step 33", "is 40.0 %; healthy is 0.0 % to 10.0 %", "cheats the format"),
    ),
    "truncation": (
        "grpo",
        from_step(31, "completions/clipped_ratio", 0.0, 0.4),
        ("warning", "completions/clipped_ratio, step 33", "is 40.0 %; healthy is 0.0 % to 10.0 %", "max_new_tokens"),
    ),  # mean of ten passes 0.1 with three values of 0.4
    "mostly truncated": (
        "grpo",
        from_step(1, "completions/clipped_ratio", 0.0, 0.97),
        ("error", "completions/clipped_ratio, step 1", "is 97.0 %", "max_new_tokens"),
    ),
    "kl blow-up": (
        "grpo",
        lambda s: {"kl": 3.0 if 50 <= s < 60 else 0.02},
        ("warning", "kl, step 51", "kl is 3; healthy is -0.01 to 0.5", "raise kl.weight"),
    ),
    "mismatch": (
        "grpo",
        from_step(41, "sampling/logp_difference/mean", 1e-5, 0.5),
        ("error", "sampling/logp_difference/mean, step 41", "is 0.5", "not the same policy"),
    ),
    "no signal, too easy": (
        "grpo",
        lambda s: {"frac_reward_zero_std": 0.2 if s <= 40 else 0.9, "verdict/correct": 0.9},
        ("warning", "frac_reward_zero_std, step 46", "90.0 % of the prompts", "too easy"),
    ),
    "no signal, too hard": (
        "grpo",
        lambda s: {"frac_reward_zero_std": 0.9, "verdict/correct": 0.02},
        ("warning", "frac_reward_zero_std, step 1", "90.0 % of the prompts", "too hard"),
    ),
    "timeouts": (
        "grpo",
        lambda s: {"verdict/timeout": 0.55 if s == 77 else 0.05},
        ("warning", "verdict/timeout, step 77", "5.5 % of completions are 'timeout'", "verdicts.timeout"),
    ),
    "crashes": (
        "grpo",
        lambda s: {"verdict/crashed": 0.9},
        ("error", "verdict/crashed, step 1", "90.0 % of completions are 'crashed'", "mend the verifier"),
    ),
    "unparseable": (
        "grpo",
        lambda s: {"verdict/unparseable": 0.5},
        ("warning", "verdict/unparseable, step 1", "is 50.0 %", "format"),
    ),
    "reward flat": (
        "grpo",
        lambda s: {"reward": 0.3 + 0.03 * wobble(s)},
        ("warning", "reward, step 100", "the reward stayed flat", "frac_reward_zero_std"),
    ),
    "reward falls": (
        "grpo",
        lambda s: {"reward": 0.5 - s / 300 + 0.02 * wobble(s)},
        ("warning", "reward, step 100", "the reward fell", "optim.lr"),
    ),
    "reward constant": (
        "grpo",
        lambda s: {"reward": 0.0},
        ("error", "reward, step 100", "the reward is 0 in every step", "check the verifier"),
    ),
    "large updates": (
        "grpo",
        lambda s: {"policy/approxkl": 0.3},
        ("warning", "policy/approxkl, step 1", "is 0.3", "optim.epochs"),
    ),
    "gradient spike": (
        "sft",
        lambda s: {"grad_norm": 40.0 if s == 63 else 1.0},
        ("warning", "grad_norm, step 63", "in 1 steps, at most 40", "optim.clip"),
    ),
    "displacement": (
        "dpo",
        lambda s: {"rewards/chosen": 0.1 - s / 50, "rewards/rejected": -s / 20},
        ("warning", "rewards/chosen, step 10", "chosen completions became less likely", "raise beta"),
    ),  # 0.1 - s/50 is below 0 from step 6 on; its mean over ten steps s-9..s from step 10 on: 0.1 - 5.5/50 < 0
    "displacement of what is wanted": (
        "dpo",
        lambda s: {"rewards/desirable": -s / 50, "rewards/undesirable": -s / 20},
        ("warning", "rewards/desirable, step 1", "displacement: desirable completions", "dpop"),
    ),
    "length bias": (
        "reward model",
        lambda s: {"accuracy/longer": 0.9 + 0.02 * wobble(s), "accuracy/shorter": 0.4 + 0.02 * wobble(s + 0.5)},
        ("warning", "accuracy/shorter, step 100", "right on 90.", "counts words"),
    ),
    "reward model at chance": (
        "reward model",
        lambda s: {"accuracy": 0.5 + 0.02 * wobble(s)},
        ("warning", "accuracy, step 100", "chance is 50 %", "swapped"),
    ),
    "selected completions grow": (
        "dpo",
        lambda s: {"length/chosen": 40 + s},
        ("warning", "length/chosen, step 45", "from 53 to 128 tokens", "average the loss"),
    ),
    "chance": (
        "dpo",
        lambda s: {"rewards/accuracies": 0.5 + 0.02 * wobble(s)},
        ("warning", "rewards/accuracies, step 100", "chance is 50 %", "swapped"),
    ),
    "loss flat": (
        "sft",
        lambda s: {"loss": 2.0 + 0.01 * wobble(s)},
        ("warning", "loss, step 100", "the loss stayed flat", "optim.lr"),
    ),
    "loss rises": (
        "sft",
        lambda s: {"loss": 1.0 + s / 100},
        ("warning", "loss, step 100", "the loss rose: 1.13 in the first quarter, 1.88 in the last", "optim.lr"),
    ),
    "not finite": (
        "sft",
        lambda s: {"grad_norm": math.nan if s >= 98 else 1.0},
        ("error", "grad_norm, step 98", "grad_norm not finite in 3 of 103 lines", "--step 98"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_fires_on_its_own_log_and_names_the_step(tmp_path, case):
    method, change, (severity, where, what, advice) = CASES[case]
    finding = only(read_run(write(tmp_path, method, change)))
    assert (finding.severity, finding.where) == (severity, where)
    assert what in finding.what and advice in finding.advice


def test_completions_that_grow_without_a_better_reward(tmp_path):
    def longer(step):
        return {"completions/mean_length": 40 + step, "reward": 0.3 + 0.03 * wobble(step)}

    flat, length = sorted(
        read_run(write(tmp_path / "a", "grpo", longer)), key=lambda finding: finding.where, reverse=True
    )
    assert flat.where == "reward, step 100"
    # First quarter: mean of 41..65 = 53; last: mean of 116..140 = 128. Half longer than 53 is 79.5, which the mean over
    # ten steps, 40 + s - 4.5, passes at s = 45 (80.5).
    assert length.where == "completions/mean_length, step 45" and "from 53 to 128 tokens" in length.what
    # Growing to better answers is fine.
    better = write(tmp_path / "b", "grpo", lambda step: {"completions/mean_length": 40 + step})
    assert read_run(better) == []


def test_a_margin_that_grows_from_the_rejected_side_alone_is_no_displacement(tmp_path):
    """Nor is one that falls, or two sides that are a hair below 0."""
    for number, (chosen, rejected) in enumerate(
        [(lambda s: 0.001 * s, lambda s: -s / 20), (lambda s: -s / 20, lambda s: -s / 50)]
    ):
        change = lambda s, chosen=chosen, rejected=rejected: {  # noqa: E731
            "rewards/chosen": chosen(s),
            "rewards/rejected": rejected(s),
        }
        assert read_run(write(tmp_path / str(number), "dpo", change)) == []
    hair = write(tmp_path / "hair", "dpo", lambda s: {"rewards/chosen": -0.01 + 0.05 * wobble(s)})
    assert read_run(hair) == []


def held(path, rows, method="dpo", change=None):
    """A run of `method` whose evaluations logged `rows`, at steps 0, 25, 50, ..."""
    folder = write(path, method, change, evals=())
    for number, row in enumerate(rows):
        folder.append_metrics({"step": 25 * number, "eval/unjudged": 0.0, **row})
    return folder


def between(name, value, half):
    return {f"eval/{name}": value, f"eval/{name}/low": value - half, f"eval/{name}/high": value + half}


def test_a_proxy_that_rises_while_gold_has_turned(tmp_path):
    """Gold 1, 2, 1.2 with ends of 0.2: 0.8 lost, and chance explains sqrt(0.2^2 + 0.2^2) = 0.28 of it."""
    golds, proxies = (1.0, 2.0, 1.2), (1.0, 2.0, 3.0)
    rows = [{"eval/reward": p, **between("gold", g, 0.2)} for g, p in zip(golds, proxies, strict=True)]
    finding = only(read_run(held(tmp_path / "a", rows, "grpo")))
    assert finding.where == "eval/gold, step 25" and finding.severity == "warning"
    assert "eval/gold fell from 2 to 1.2 while eval/reward rose from 2 to 3" in finding.what
    assert "beta or kl.weight" in finding.advice
    margins = [{"eval/rewards/margins": p, **between("gold", g, 0.2)} for g, p in zip(golds, proxies, strict=True)]
    assert "eval/rewards/margins rose" in only(read_run(held(tmp_path / "b", margins))).what
    noisy = [{**row, **between("gold", row["eval/gold"], 0.6)} for row in rows]  # 0.85 may be chance
    assert read_run(held(tmp_path / "c", noisy, "grpo")) == []
    both = [{**row, "eval/reward": row["eval/gold"]} for row in rows]  # no over-optimisation: the reward fell as well
    assert not any("over-optimisation" in f.what for f in read_run(held(tmp_path / "d", both, "sft")))


def test_samples_that_grow_while_no_ranking_gets_better(tmp_path):
    """40, 50, 70 tokens: 1.75 times as long, over 1.5 times from step 50 on."""
    lengths = (40.0, 50.0, 70.0)
    flat = [{"eval/completions/mean_length": n, **between("ranking_accuracy", 0.6, 0.05)} for n in lengths]
    finding = only(read_run(held(tmp_path / "a", flat)))
    assert finding.where == "eval/completions/mean_length, step 50"
    assert "from 40 to 70 tokens" in finding.what and "(60.0 %, then 60.0 %)" in finding.what
    better = [{**row, **between("ranking_accuracy", 0.5 + 0.1 * i, 0.05)} for i, row in enumerate(flat)]
    assert read_run(held(tmp_path / "b", better)) == []  # 0.5 .. 0.55 and 0.65 .. 0.75 do not overlap
    gold = [{**row, **between("gold", 1.0 + i, 0.1)} for i, row in enumerate(flat)]
    assert read_run(held(tmp_path / "c", gold)) == []
    shorter = [{**row, "eval/completions/mean_length": n} for row, n in zip(flat, (40, 50, 59), strict=True)]
    assert read_run(held(tmp_path / "d", shorter)) == []


def test_held_out_accuracy_that_chance_may_explain(tmp_path):
    rows = [between("accuracy", 0.5, 0.1), between("accuracy", 0.53, 0.1)]
    finding = only(read_run(held(tmp_path / "a", rows, "reward model")))
    assert (finding.severity, finding.where) == ("warning", "eval/accuracy, step 25")
    assert "53.0 % (43.0 % to 63.0 %): chance is not excluded" in finding.what and "eval.n" in finding.advice
    few = [rows[0], between("accuracy", 0.7, 0.25)]  # told, but it is the number of pairs that is to blame
    assert only(read_run(held(tmp_path / "b", few, "reward model"))).severity == "info"
    assert read_run(held(tmp_path / "c", [rows[0], between("accuracy", 0.7, 0.1)], "reward model")) == []


def test_wrong_completions_that_grow_are_seen_in_the_rollouts(tmp_path):
    def rollouts(path, growth):
        folder = write(path, "grpo")
        for step in (*range(1, 11), *range(91, 101)):
            lengths = {"correct": 40, "wrong": 40 + growth * step // STEPS}
            folder.write_rollouts(step, [{"verdict": v, "mask": [False] * 3 + [True] * n} for v, n in lengths.items()])
        return folder

    finding = only(read_run(rollouts(tmp_path / "a", 40)))
    # Steps 1..10 add 0..4, mean (0 0 1 1 2 2 2 3 3 4)/10 = 1.8; steps 91..100 add 36..40, mean 37.8 (36 36 37 37 38 38
    # 38 39 39 40).
    assert finding.where == "rollouts, step 91" and "wrong completions grew from 42 to 78 tokens" in finding.what
    assert "Dr. GRPO" in finding.advice
    assert read_run(rollouts(tmp_path / "b", 4)) == []


def test_a_held_out_loss_that_turns(tmp_path):
    folder = write(tmp_path, "sft", evals=())
    for step, loss in ((0, 3.0), (25, 1.0), (50, 0.8), (75, 1.1), (100, 1.4)):
        folder.append_metrics({"step": step, "eval/loss": loss})
    finding = only(read_run(folder))
    assert finding.where == "eval/loss, step 50" and "rose from 0.8 to 1.4" in finding.what


@pytest.mark.parametrize(
    "change, severity, what",
    [
        ({"truncated": 300, "max_length": 256}, "warning", "300 of 998 completions were cut at 256 tokens"),
        ({"truncated": 900, "max_length": 256}, "error", "900 of 998 completions were cut"),
        ({"stop_trained": 0.0}, "error", "the stop token never trains"),
        (
            {"counted": {"empty field": 30, "equal sides": 10}},
            "info",
            "40 of 1,000 rows (4%) are skipped: empty field 30",
        ),
        ({"counted": {"tie": 500}}, "info", "500 of 1,000 rows (50%)"),
        (
            {"counted": {"tie": 501}},
            "error",
            "most of the data does not train: 501 of 1,000 rows (50%) are skipped: tie",
        ),
    ],
)
def test_data_that_was_cut_or_skipped(tmp_path, change, severity, what):
    finding = only(read_run(write(tmp_path, "sft", data={**DATA, **change})))
    assert finding.severity == severity and what in finding.what and finding.where == "data.json"


def test_most_rows_skipped_names_the_settings_that_use_them(tmp_path):
    data = {**DATA, "counted": {"slight": 400, "too long": 300}}
    advice = only(read_run(write(tmp_path, "sft", data=data))).advice
    assert "data.ratings" in advice and "data.max_length" in advice and "data.ties" not in advice


@pytest.mark.parametrize(
    "pairs, what",
    [
        (lambda s: 0, "nothing was selected in any of the 100 steps"),
        (lambda s: 3 * (s > 51), "nothing was selected in 51 of the 100 steps"),
        (lambda s: 3 * (s > 50), ""),  # half of them
    ],
)
def test_an_online_run_that_selects_nothing_is_told(tmp_path, pairs, what):
    found = read_run(write(tmp_path, "dpo", lambda s: {"selection/examples": pairs(s), "reward_std": 0.0}))
    if not what:
        assert found == []
        return
    finding = only(found)
    assert (finding.severity, finding.where) == ("error", "selection/examples, step 1") and what in finding.what
    assert "earn the same" in finding.advice and "sampling.n" in finding.advice


@pytest.mark.parametrize("evals, often", [((), "never"), ((100,), "only once")])
def test_a_run_without_evaluation_is_told(tmp_path, evals, often):
    finding = only(read_run(write(tmp_path, "sft", evals=evals)))
    assert finding.severity == "info" and often in finding.what and "eval.every" in finding.advice


def test_an_unfinished_run_and_one_without_steps(tmp_path):
    folder = RunFolder(tmp_path / "a").create({"steps": 100})
    assert only(read_run(folder)).what == "no step was finished"
    for step in (1, 2):
        folder.append_metrics({"step": step, "loss": 1.0, "eval/loss": 1.0})
    finding = only(read_run(folder))
    assert finding.what == "the run stopped at step 2 of 100" and "--resume" in finding.advice


def test_why_a_run_stopped_comes_first(tmp_path):
    """Even by hand, which is no error, and before the errors of what was logged."""
    folder = write(tmp_path, "grpo", lambda step: {"verdict/crashed": 0.9})
    for kind, severity in (("KeyboardInterrupt", "warning"), ("TrainingError", "error")):
        folder.write_stop({"step": 37, "kind": kind, "reason": "so it was", "detail": "", "advice": "do this"})
        first, second = read_run(folder)
        assert (first.severity, first.what, first.where) == (severity, "the run stopped: so it was", "step 37")
        assert first.advice == "do this" and second.where.startswith("verdict/crashed")
        folder.forget_stop()
    assert len(read_run(folder)) == 1


def test_a_run_that_says_why_it_stopped_is_not_also_called_unfinished(tmp_path):
    folder = RunFolder(tmp_path).create({"steps": 100})
    folder.write_stop({"step": 1, "kind": "TrainingError", "reason": "nan", "detail": "", "advice": "lower it"})
    assert [finding.what for finding in read_run(folder)] == ["the run stopped: nan"]


def test_errors_come_first(tmp_path):
    def several(step):
        return {"verdict/unparseable": 0.5, "verdict/crashed": 0.9, "entropy": 0.5 if step < 60 else 0.01}

    found = [finding.severity for finding in read_run(write(tmp_path, "grpo", several, evals=()))]
    assert found == ["error", "warning", "warning", "info"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder: it has no config.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "method, change",
    [
        ("dpo", lambda s: {"rewards/chosen": 1.0 - s / 200}),  # falls, but the chosen side stays likelier than before
        ("grpo", lambda s: {"entropy": 0.01 if s == 50 else 0.5}),  # one low step is no collapse
        ("grpo", lambda s: {"completions/clipped_ratio": 0.5 if s < 20 else 0.0}),  # over before the end
        ("grpo", lambda s: {"reward": 0.99, "verdict/correct": 0.99}),  # flat because it is solved
        ("grpo", lambda s: {"loss": 1.0}),  # the loss of a policy gradient says nothing
        ("sft", lambda s: {"grad_norm": 1.0 + 7 * (s == 50)}),  # eight times the usual
    ],
)
def test_what_is_no_trouble_is_not_reported(tmp_path, method, change):
    assert read_run(write(tmp_path, method, change)) == []

"""Evaluation with a sampler whose completions are written down, so that every number can be counted by hand."""

import dataclasses
import json
import math

import pytest

from fiducial.config import Run, Sampling, Verdicts
from fiducial.core.seeds import mix
from fiducial.core.types import CORRECT, WRONG, Decoding, Problem, Rollout, Score
from fiducial.data import tasks
from fiducial.evals import stats
from fiducial.evals.evaluate import canonical_answer, compare, evaluate
from fiducial.judges import judge
from fiducial.judges.task import TaskReward

DECODING = Decoding(max_new_tokens=4, temperature=1.0)


class Script:
    """Says `sampled[i]` for problem i, in turn, and `greedy[i]` at temperature 0. A token is a character, of log-prob
    -1; "~" means that sampling failed, "..." at the end that the completion was cut."""

    def __init__(self, sampled, greedy=()):
        self.sampled, self.greedy, self.asked = sampled, greedy, []

    def sample(self, requests, decoding):
        self.asked.append((requests, decoding))
        turn, rollouts = {}, []
        for request in requests:
            j = turn[request.group] = turn.get(request.group, -1) + 1
            text = self.greedy[request.group] if decoding.temperature == 0 else self.sampled[request.group][j]
            finish = "error" if text == "~" else "length" if text.endswith("...") else "stop"
            ids, mask = (
                request.prompt_ids + [ord(c) for c in text],
                [False] * len(request.prompt_ids) + [True] * len(text),
            )
            logprobs = [-1.0 if own else 0.0 for own in mask]
            rollouts.append(
                Rollout(request.prompt, text, ids, mask, logprobs, request.group, request.seed, finish=finish)
            )
        return rollouts

    def update(self, weights, version):
        raise AssertionError("an evaluation changes no weights")


def encode(prompt):
    return [1, *(ord(c) for c in prompt)]


def verify(completion, fields):
    """Typed verdicts by what is written."""
    text = completion.removesuffix("...").strip()
    if text in ("timeout", "skipped"):
        return Score(None, text, "as asked")
    if not text.isdigit():
        return Score(None, "unparseable", "not a number")
    return CORRECT if text == fields["answer"] else WRONG


PROBLEMS = [Problem("1+1", {"answer": "2"}), Problem("2+2", {"answer": "4"}), Problem("3+3", {"answer": "6"})]
SAMPLED = [["2", "2", "3", "2"], ["5", "4", "5", "x"], ["timeout", "7", "66...", "~"]]
GREEDY = ["2", "5", "7"]


@pytest.fixture
def evaluation():
    return evaluate(Script(SAMPLED, GREEDY), encode, PROBLEMS, verify, DECODING, k=4, seed=3, task="sums")


def test_success_rates_by_hand(evaluation):
    # Correct of 4: 3, 1, 0. pass@2: 1 - C(1,2)/6 = 1; 1 - C(3,2)/6 = 1/2; 0. pass@4: 1, 1, 0. Greedy: 1, 0, 0.
    assert evaluation.per_problem["pass@1"] == pytest.approx([3 / 4, 1 / 4, 0])
    assert evaluation.per_problem["pass@2"] == pytest.approx([1, 1 / 2, 0])
    assert evaluation.per_problem["pass@4"] == pytest.approx([1, 1, 0])
    # maj@4: 2 2 3 2 -> right; 5 4 5 x -> 5, wrong. maj@2 of 2 2 3 2 by first of the tie: {2,.} all 1 but (3,2): 5/6.
    assert evaluation.per_problem["maj@4"] == [1, 0, 0]
    # of 5 4 5 x: (5,4)(5,5)(5,x) 5; (4,5)(4,x) 4: 2 of 6 right; (5,x) 5
    assert evaluation.per_problem["maj@2"] == pytest.approx([5 / 6, 2 / 6, 0])
    assert evaluation.per_problem["greedy"] == [1, 0, 0]
    metrics = evaluation.metrics
    assert metrics["pass@1"] == pytest.approx(1 / 3) and metrics["pass@4"] == pytest.approx(2 / 3)
    assert metrics["greedy"] == pytest.approx(1 / 3) and metrics["maj@4"] == pytest.approx(1 / 3)


def test_intervals_count_problems_not_samples(evaluation):
    expected = stats.proportion_interval([3 / 4, 1 / 4, 0], samples=4)
    assert evaluation.intervals["pass@1"] == (expected.low, expected.high)
    greedy = stats.wilson(1, 3)
    assert evaluation.intervals["greedy"] == (greedy.low, greedy.high)


def test_every_completion_has_its_verdict_and_failures_of_the_verifier_are_told_apart(evaluation):
    # correct 3 + 1; wrong 1 + 2 + 2 (7, 66); unparseable x; timeout; crashed: the sampler failed
    assert evaluation.verdicts == {"correct": 4, "wrong": 5, "unparseable": 1, "timeout": 1, "crashed": 1}
    assert evaluation.metrics["unjudged"] == pytest.approx(2 / 12)
    assert evaluation.metrics["reward"] == pytest.approx(4 / 10)  # unparseable earns 0; failures have none
    last = evaluation.rollouts[2][3]
    assert last.score.verdict == "crashed" and last.reward is None and "did not finish" in last.score.why
    assert evaluation.rollouts[0][0].reward == 1.0 and evaluation.greedy[1].score == WRONG


def test_lengths_and_entropy(evaluation):
    # Lengths: 1 x 4; 1 x 4; timeout 7, 1, "66..." 5, "~" 1 = 22 over 12. One of 12 was cut, one failed: 10 ended by
    # themselves with 22 - 5 - 1 = 16 tokens.
    metrics = evaluation.metrics
    assert metrics["completions/mean_length"] == pytest.approx(22 / 12)
    assert (metrics["completions/min_length"], metrics["completions/max_length"]) == (1, 7)
    assert metrics["completions/clipped_ratio"] == pytest.approx(1 / 12)
    assert metrics["completions/mean_terminated_length"] == pytest.approx(16 / 10)
    assert metrics["entropy"] == pytest.approx(1.0)


def test_diversity_by_hand():
    # Samples 2 2 | 4 5 -> distinct-1: 1/2 and 2/2; answers 1 and 2; answer entropy 0 and log 2; self-BLEU 1 and 0.1
    found = evaluate(Script([["2", "2"], ["4", "5"]], GREEDY), encode, PROBLEMS[:2], verify, DECODING, k=2).metrics
    assert found["distinct_1"] == pytest.approx(0.75) and found["distinct_2"] == 0.0
    assert found["self_bleu"] == pytest.approx((1 + 0.1) / 2)
    assert found["distinct_answers"] == pytest.approx(1.5) and found["answer_entropy"] == pytest.approx(math.log(2) / 2)


def test_each_request_has_its_own_seed_which_a_longer_evaluation_keeps():
    script = Script(SAMPLED, GREEDY)
    evaluate(script, encode, PROBLEMS, verify, DECODING, k=4, seed=3)
    (sampled, _), (greedy, decoding) = script.asked
    assert [r.seed for r in sampled] == [mix(3, "eval", i, j) for i in range(3) for j in range(4)]
    assert len({r.seed for r in sampled}) == 12
    assert decoding == dataclasses.replace(DECODING, temperature=0.0) and len(greedy) == 3
    assert sampled[4].prompt_ids == encode("2+2") and sampled[4].prompt == "2+2" and sampled[4].group == 1


def test_many_problems_are_sampled_in_whole_groups_and_progress_reaches_the_total(monkeypatch):
    monkeypatch.setattr("fiducial.evals.evaluate.CHUNK", 5)
    script, seen = Script(SAMPLED, GREEDY), []
    chunked = evaluate(script, encode, PROBLEMS, verify, DECODING, k=4, progress=lambda *now: seen.append(now))
    assert [len(requests) for requests, _ in script.asked] == [4, 4, 4, 3]
    assert seen == [(4, 15), (8, 15), (12, 15), (15, 15)]
    monkeypatch.undo()
    assert chunked == evaluate(Script(SAMPLED, GREEDY), encode, PROBLEMS, verify, DECODING, k=4)


def test_a_reward_is_called_with_whole_batches_and_the_fields_of_each_problem():
    class Table:
        name = "table"

        def __call__(self, completions, rows):
            assert [row["prompt"] for row in rows] == ["1+1"] * 4
            return [verify(completion, row) for completion, row in zip(completions, rows, strict=True)]

    found = evaluate(Script(SAMPLED), encode, PROBLEMS[:1], Table(), DECODING, k=4, greedy=False)
    assert found.metrics["pass@1"] == 0.75 and "greedy" not in found.metrics and found.greedy == []


def test_rewards_are_what_training_makes_of_verdicts():
    # correct 4 x 1, wrong 5 x 0, unparseable 1 x -0.5, timeout 1 and crashed 1 at 0.25: 4 over 12. With truncation
    # penalised by -1, "66..." (wrong) earns -1: 3 over 12. Dropped: 4 over 9.
    def reward(**settings):
        run = Run(**settings)
        return evaluate(Script(SAMPLED), encode, PROBLEMS, verify, DECODING, 4, greedy=False, reward_of=run.reward_of)

    table = Verdicts(unparseable=-0.5, failed=0.25)
    assert reward(verdicts=table).metrics["reward"] == pytest.approx((4 - 0.5 + 2 * 0.25) / 12)
    cut = reward(verdicts=table, sampling=Sampling(truncated="penalise"))
    assert cut.metrics["reward"] == pytest.approx((4 - 1 - 0.5 + 2 * 0.25) / 12)
    assert reward(verdicts=Verdicts(unparseable="drop")).metrics["reward"] == pytest.approx(4 / 9)


def test_plain_numbers_have_a_mean_and_no_success_rates():
    def brevity(completion, fields):
        return Score.of_number(1 / len(completion))

    found = evaluate(Script([["22", "2"], ["4444", "4"]], GREEDY), encode, PROBLEMS[:2], brevity, DECODING, k=2)
    assert found.metrics["reward"] == pytest.approx((0.5 + 1 + 0.25 + 1) / 4)
    assert not any(name.startswith(("pass@", "maj@", "greedy")) for name in found.metrics)
    exact = evaluate(Script([["2", "2"]], GREEDY), encode, PROBLEMS[:1], brevity, DECODING, k=2)
    assert exact.metrics["pass@1"] == 1.0  # only 0 and 1: verdicts


def test_a_task_that_runs_other_peoples_code_is_judged_in_a_process_that_is_killed(monkeypatch):
    """All boards of 12 queens, which the scorer builds first, take it seconds; those of 8 take milliseconds."""
    pytest.importorskip("reasoning_gym")
    task = tasks.get("rg/n_queens")
    (problem,) = tasks.problems(task, 1, "test", 0)
    right = f"<answer>{problem.fields['answer']}</answer>"
    monkeypatch.setattr(tasks.Task, "verify", None)  # nothing is judged here
    reward = TaskReward(task, timeout=0.5)
    assert reward.pool
    reward.pool.limit = 1
    slow = {**problem.fields, "settings": {**problem.fields["settings"], "n": 12}}
    rows = [problem.fields, problem.fields, {"answer": "1"}, slow]
    scores = reward([right, "no answer", right, right], rows)
    reward.pool.close()
    assert [score.verdict for score in scores] == ["correct", "unparseable", "skipped", "timeout"]
    assert scores[3].why == "no result within 0.5 s" and scores[3].seconds < 9 and scores[0].value == 1.0
    assert TaskReward(tasks.get("arith")).pool is None
    assert isinstance(judge("rg/n_queens"), TaskReward)


def test_json_and_log_carry_the_same_numbers(evaluation):
    shown = json.loads(json.dumps(evaluation.to_json()))
    assert {"task": "sums", "n": 3, "k": 4}.items() <= shown.items()
    assert shown["metrics"]["pass@4"] == pytest.approx(2 / 3) and shown["verdicts"]["correct"] == 4
    low, high = shown["intervals"]["pass@1"]
    assert {
        "pass@4": shown["metrics"]["pass@4"],
        "n": 3,
        "verdicts": shown["verdicts"],
    }.items() <= evaluation.summary().items()
    logged = evaluation.log()
    assert logged["eval/pass@1"] == pytest.approx(1 / 3)
    assert (logged["eval/pass@1/low"], logged["eval/pass@1/high"]) == (low, high)
    assert logged["eval/verdict/wrong"] == pytest.approx(5 / 12)


def test_compare_is_problem_by_problem(evaluation):
    better = evaluate(Script([["2"] * 4, ["4"] * 4, ["6"] * 4], GREEDY), encode, PROBLEMS, verify, DECODING, k=4)
    change = compare(evaluation, better)
    assert change["pass@1"].value == pytest.approx(2 / 3) and change["greedy"].value == 0.0
    assert change["pass@1"] == stats.mean_interval([1 / 4, 3 / 4, 1])


def test_answers_that_are_the_same_number_vote_together():
    assert canonical_answer("<answer>1,000</answer>") == canonical_answer("#### 1000.0")
    assert canonical_answer("<answer> Ana is a  knight. </answer>") == canonical_answer(
        "<answer>ana is a knight</answer>"
    )
    assert canonical_answer("no idea") is None


@pytest.mark.parametrize(
    "problems, k, temperature, message",
    [
        ([], 1, 1.0, "nothing to evaluate"),
        (PROBLEMS, 0, 1.0, "k must be at least 1 completion per problem; it is 0"),
        (PROBLEMS, 4, 0.0, "at temperature 0 all 4 samples of a problem are the same: set k = 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(problems, k, temperature, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Script(SAMPLED, GREEDY), encode, problems, verify, Decoding(temperature=temperature), k=k)


def test_at_temperature_0_one_pass_is_enough():
    script = Script(SAMPLED, GREEDY)
    found = evaluate(script, encode, PROBLEMS, verify, Decoding(temperature=0.0), k=1)
    assert found.metrics["pass@1"] == pytest.approx(1 / 3) and len(script.asked) == 1
    assert "distinct_1" not in found.metrics and "self_bleu" not in found.metrics


def test_what_each_source_of_a_reward_says():
    """By hand: of four completions three have the right answer, one of them in the form; one has no answer, which says
    0 of the sum and 0 of the form."""
    said = ["<think>a</think><answer>2</answer>", "<answer>2</answer>", "<answer>2</answer>", "none"]
    problems = [Problem("1 + 1 = ?", {"answer": "2"})]
    reward = judge({"sum": {"verifier": "arith"}, "form": {"verifier": "format", "weight": 0.2}})
    found = evaluate(Script([said]), lambda prompt: [1], problems, reward, DECODING, 4, greedy=False).metrics
    assert found["rewards/sum/mean"] == 0.75 and found["rewards/form/mean"] == 0.25
    assert found["reward"] == pytest.approx((1.2 + 1 + 1 + 0) / 4) and found["pass@1"] == 0.25

"""Verifiers: the verdict on worked cases, on real data, and what becomes of rows and rewards that go wrong."""

import json
import math
import re
import time
from pathlib import Path

import pytest

from fiducial.core.answers import gold_text, parse_number
from fiducial.core.types import Score
from fiducial.rewards import VERIFIERS, RewardError, UserReward, Weighted, build
from fiducial.rewards.exact import Exact
from fiducial.rewards.format import Format
from fiducial.rewards.math import Math
from fiducial.rewards.numeric import Numeric
from fiducial.rewards.regex import Regex

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_rows(name):
    file = DATA / name
    if not file.exists():
        pytest.skip(f"{file} is absent: the real data sets lie beside the checkout, not in it")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{"answer": row["answer"] if "answer" in row else row["solution"]} for row in rows]


def verdict(reward, completion, answer, **fields):
    (score,) = reward([completion], [{"answer": answer, **fields}])
    return score.verdict


@pytest.fixture(scope="module")
def math_reward():
    reward = Math(timeout=30, workers=2)
    yield reward
    reward.pool.close()


# ---------------------------------------------------------------- exact, numeric, format


def test_exact():
    assert verdict(Exact(), "Paris", "paris") == "correct"
    assert verdict(Exact(), "It was 1984. The answer is Paris.", "Paris") == "correct"
    assert verdict(Exact(), "In 1984 it was Paris", "Paris") == "wrong"
    assert verdict(Exact(ignore_case=False), "paris", "Paris") == "wrong"
    assert verdict(Exact(), r"\boxed{27}", 27.0) == "correct"
    assert verdict(Exact(whole=True), "The answer is Paris.", "Paris") == "wrong"
    assert verdict(Exact(), " ", "Paris") == "unparseable"


def test_numeric():
    assert verdict(Numeric(), "The answer is $1,080 per year.", "... #### 1080") == "correct"
    assert verdict(Numeric(), "the answer is 72.0", "72") == "correct"
    assert verdict(Numeric(), "the answer is 73", "72") == "wrong"
    assert verdict(Numeric(), "the answer is 71 or 72", "72") == "unparseable"  # two candidates are never half right
    assert verdict(Numeric(), "I do not know", "72") == "unparseable"
    assert verdict(Numeric(), r"\boxed{2x}", "2") == "unparseable"
    assert verdict(Numeric(), "the answer is 72", "a lot") == "skipped"
    assert verdict(Numeric(), "#### 10%", "10") == "correct"
    assert verdict(Numeric(percent="hundredth"), "#### 10%", "10") == "wrong"
    assert verdict(Numeric(percent="hundredth"), "#### 10%", "1/10") == "correct"


def test_numeric_tolerances_are_exact_at_their_border():
    # |1.01 - 1| = 1/100 exactly, which floats would miss: 1.01 - 1 = 0.010000000000000009
    assert verdict(Numeric(abs_tol=0.01), "1.01", "1") == "correct"
    assert verdict(Numeric(abs_tol=0.0099), "1.01", "1") == "wrong"
    assert verdict(Numeric(rel_tol=0.01), "202", "200") == "correct"  # 1 % of 200 is 2
    assert verdict(Numeric(rel_tol=0.01), "202.0001", "200") == "wrong"
    assert verdict(Numeric(), "0.333333", "1/3") == "wrong"
    with pytest.raises(ValueError, match="rel_tol and abs_tol must be 0 or more"):
        Numeric(rel_tol=-1)


def test_gold_answers_that_are_missing_or_unusable_are_skipped_by_name(math_reward):
    for reward in (Exact(), Numeric(), math_reward):
        scores = reward(["1"] * 4, [{}, {"answer": None}, {"answer": [1, 2]}, {"answer": "1"}])
        assert [score.verdict for score in scores] == ["skipped"] * 3 + ["correct"]
        assert scores[0].why == "the row has no field 'answer'" and scores[0].value is None
        assert "is empty" in scores[1].why and "is list" in scores[2].why


GOOD = "<think>2 + 2</think>\n<answer>4</answer>"


def test_format():
    reward = Format()
    assert verdict(reward, GOOD, "") == verdict(reward, f"\n {GOOD} \n", "") == "correct"
    for bad in (
        "4",
        f"Sure. {GOOD}",
        f"{GOOD} Done.",
        "<think>a</think> so <answer>4</answer>",
        "<answer>4</answer><think>a</think>",
        "<think>a<answer>4</answer></think>",
        "<think>a</think><answer>4",
        f"{GOOD}<answer>5</answer>",
        f"<think>{GOOD}",
    ):
        assert verdict(reward, bad, "") == "wrong", bad


def test_a_prefilled_think_tag_is_counted_once():
    rest = GOOD.removeprefix("<think>")
    assert verdict(Format(), rest, "") == "wrong"
    assert verdict(Format(), rest, "", prompt="Q: 2+2?\nA: <think>\n") == "correct"
    assert verdict(Format(), GOOD, "", prompt="Q: 2+2?\nA: <think>") == "correct"  # some engines repeat it
    assert verdict(Format(prefilled=True), rest, "") == verdict(Format(prefilled=True), GOOD, "") == "correct"
    assert verdict(Format(prefilled=True), f"<think>{GOOD}", "") == "wrong"
    assert verdict(Format(), GOOD, "", prompt=[{"role": "user", "content": "2+2?"}]) == "correct"


# ---------------------------------------------------------------- flexible matching


def test_flex_takes_any_way_of_reading():
    for completion, gold, wanted in (
        (r"\boxed{8}. I mean 7", "7", "correct"),  # the last number, beside a box
        (r"\boxed{8}. I mean 7", "8", "correct"),
        (r"\boxed{8}. I mean 7", "9", "wrong"),
        ("the answer is Paris", "paris.", "correct"),
        ("#### 1,000", "1000", "correct"),
        ("7 and then 8", "7", "wrong"),  # not the last
        (r"\boxed{\frac{1}{7}}", "7", "wrong"),  # a piece of an answer is none
        ("no idea", "7", "unparseable"),
    ):
        assert verdict(build("flex"), completion, gold) == wanted, completion
    assert verdict(build("flex(extractors=('boxed',))"), r"\boxed{8}. I mean 7", "7") == "wrong"
    with pytest.raises(ValueError, match="extractors must be some of tag, boxed"):
        build("flex(extractors=('bokshed',))")


# ---------------------------------------------------------------- regex


def test_regex_modes_and_where_the_pattern_comes_from():
    with pytest.raises(ValueError, match="is not a regular expression"):
        Regex("(")
    reward = Regex()
    rows = [{"answer": "b+"}, {"pattern": "c", "answer": "b+"}, {"answer": "("}, {}, {"answer": 5}]
    scores = reward(["abbc"] * 5, rows)
    assert [score.verdict for score in scores] == ["correct", "correct", "skipped", "skipped", "skipped"]
    assert scores[0].why == "matched 'bb'"
    full = Regex("a+b?", mode="fullmatch", flags=re.IGNORECASE)
    assert [score.verdict for score in full(["AAB", "aabc", ""], [{}] * 3)] == ["correct", "wrong", "wrong"]
    reward.pool.close()
    full.pool.close()


def test_a_catastrophic_pattern_is_aborted_and_costs_its_row_only():
    reward = Regex(timeout=1.0)
    start = time.monotonic()
    scores = reward(["a" * 60 + "b", "aaa"], [{"answer": "(a+)+$"}] * 2)
    assert [(score.verdict, score.value) for score in scores] == [("timeout", None), ("correct", 1.0)]
    assert time.monotonic() - start < 10
    reward.pool.close()


# ---------------------------------------------------------------- math

# gold, answer, verdict
EQUIVALENCES = [
    (r"\{1,3\} \cup \{2,4\}", r"\{1,2,3,4\}", "correct"),
    ("1/2", "0.5", "correct"),
    ("1/2", "50%", "correct"),
    ("x+y", "y+x", "correct"),
    ("(0,1)", r"\{0,1\}", "wrong"),  # an interval is not a set of two
    (r"\{0,1\}", "(0,1)", "wrong"),
    ("[0,1)", "(0,1)", "wrong"),
    ("(1,2)", "(2,1)", "wrong"),  # tuples are ordered
    ("(1,2,3)", r"\left\{1,2,3\right\}", "wrong"),
    ("2", "2x", "wrong"),
    ("2", "x+2", "wrong"),
    ("3", "x=3", "correct"),
    ("x=3", "3", "correct"),
    ("2", "1, 2, 3", "wrong"),  # guesses
    ("2", r"1 \text{ or } 2", "wrong"),
    ("2", r"\pm 2", "wrong"),
    ("1,2", "2,1", "correct"),  # the gold is two roots
    ("2", "", "unparseable"),
    ("2", r"\frac{", "unparseable"),
    (r"2\sqrt{3}", r"\sqrt{12}", "correct"),
    ("(x+1)^2", "x^2+2x+1", "correct"),
    (r"\frac{1}{3}", "0.333333333", "correct"),
    (r"\frac{1}{3}", "0.33", "wrong"),
    ("4.5e33", r"4.5 \times 10^{33}", "correct"),
    ("1e-7", "2e-7", "wrong"),  # rounding to six decimals would equate these
    ("1000000", "1000001", "wrong"),  # integers are exact
    ("a", "2", "wrong"),
    ("72", "72 clips", "correct"),
    (r"\text{Evelyn}", "Evelyn", "correct"),
    # several answers, sets, intervals
    ("1,2", "1", "wrong"),
    ("1,2", "1,2,3", "wrong"),
    ("1,2", "1 and 2", "correct"),
    (r"\{1,2\}", r"\{2,1\}", "correct"),
    ("[1,2]", r"\{1,2\}", "wrong"),
    (r"(-\infty,3]", r"(-\infty,3)", "wrong"),
    (r"(-\infty,3]", r"x \leq 3", "correct"),
    ("x<3", r"(-\infty,3)", "correct"),
    ("(1,3]", r"1 < x \leq 3", "correct"),
    ("(1,3]", "1 < x < 3", "wrong"),
    ("x<3", "x>3", "wrong"),
    (r"(1,2) \cup (3,4)", r"(3,4) \cup (1,2)", "correct"),
    # lists of candidates
    ("2", "2 or 3", "wrong"),
    ("2", "1;2;3", "wrong"),
    ("2", "x=1, x=2, x=3", "wrong"),
    ("2", r"\{1,2,3\}", "wrong"),
    ("7", "not 7", "wrong"),
    ("0", r"\text{not } 0", "wrong"),
    ("3", r"x \neq 3", "wrong"),
    # formulas that math-verify reads in part
    (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{2}{3} E_{2}+\frac{1}{3} E_{1}", "correct"),
    (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}+1", "wrong"),
    (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{2}{3}", "wrong"),
    # units, percent, money, degrees
    (r"5 \text{ cm}", "5", "correct"),
    ("5", r"5 \mathrm{~cm}", "correct"),
    ("5", r"50\%", "wrong"),
    ("50", r"50\%", "correct"),
    (r"90^\circ", "90", "correct"),
    ("1,000", r"\$1000.00", "correct"),
    # forms of one value
    (r"\frac{3}{2}", r"1\frac{1}{2}", "correct"),
    (r"\sqrt{2}", "1.41421356", "correct"),
    (r"\sqrt{2}", "1.41", "wrong"),
    ("3+4i", "4i+3", "correct"),
    ("3+4i", "3-4i", "wrong"),
    ("10!", "3628800", "correct"),
    (r"-\frac12", "-0.5", "correct"),
    ("-5", "5", "wrong"),
    ("y=2x+1", "1+2x", "correct"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", "wrong"),
    ("np.arcsin(10/13)", "1", "skipped"),  # the gold cannot be parsed
]


def test_mathematical_equality(math_reward):
    boxed = [rf"So it is $\boxed{{{answer}}}$." for _, answer, _ in EQUIVALENCES]
    scores = math_reward(boxed, [{"answer": gold} for gold, _, _ in EQUIVALENCES])
    got = [(gold, answer, score.verdict) for (gold, answer, _), score in zip(EQUIVALENCES, scores, strict=True)]
    # An empty box is no answer, and then the last number would be none as well.
    assert got == EQUIVALENCES
    assert all(score.why for score in scores)


def test_the_percent_rule_is_a_setting():
    reward = Math(percent="hundredth", workers=1, timeout=30)
    golds = ["1/2", "50", r"\frac{x}{2}", "50x"]
    answers = ["50%", r"50\%", r"50\% x", r"50\% x"]
    scores = reward([rf"\boxed{{{answer}}}" for answer in answers], [{"answer": gold} for gold in golds])
    assert [score.verdict for score in scores] == ["correct", "wrong", "correct", "wrong"]
    reward.pool.close()
    with pytest.raises(ValueError, match="percent must be 'either' or 'hundredth'"):
        Math(percent="maybe")  # type: ignore[arg-type]


def test_math_reads_bare_completions_and_formulas(math_reward):
    cases = [
        ("y+x", "x+y", "correct"),
        ("x+2", "2", "wrong"),
        (r"Therefore we have $\frac{2}{4}$.", "1/2", "correct"),
        ("There are 12 eggs", "12", "correct"),
        ("The answer is 1 or 2", "2", "wrong"),
        ("I do not know", "2", "unparseable"),
        ("no solution", r"\text{no solution}", "correct"),
    ]
    for completion, gold, wanted in cases:
        assert verdict(math_reward, completion, gold) == wanted, completion


def test_a_hanging_comparison_is_a_timeout_not_wrong():
    reward = Math(timeout=1.0, workers=2)
    completions = [r"\boxed{10^{10^{10}}}", r"\boxed{y+x}", r"\boxed{9^{9^{9^{9}}}}"]
    start = time.monotonic()
    scores = reward(completions, [{"answer": "1"}, {"answer": "x+y"}, {"answer": "1"}])
    assert [(score.verdict, score.value) for score in scores] == [
        ("timeout", None),
        ("correct", 1.0),
        ("timeout", None),
    ]
    assert time.monotonic() - start < 20
    reward.pool.close()


@pytest.mark.parametrize("name", ["numeric", "math"])
def test_gsm8k_golds_judge_themselves_correct_and_their_successors_wrong(name, math_reward):
    rows = real_rows("gsm8k_train.jsonl")[::20]
    assert len(rows) == 300
    reward = math_reward if name == "math" else Numeric()
    assert {score.verdict for score in reward([row["answer"] for row in rows], rows)} == {"correct"}
    golds = [parse_number(gold_text(row["answer"]) or "") for row in rows]
    off = [f"The answer is {gold + 1}." for gold in golds if gold is not None]
    assert {score.verdict for score in reward(off, rows)} == {"wrong"}


@pytest.mark.parametrize(("name", "floor"), [("aime24", 1.0), ("amc23", 1.0), ("minerva_math", 0.99)])
def test_competition_golds_judge_themselves_correct(name, floor, math_reward):
    """Measured: 30 of 30, 40 of 40, 270 of 272; the other two golds cannot be parsed and are skipped."""
    rows = real_rows(f"{name}.jsonl")
    completions = [rf"Thus \boxed{{{gold_text(row['answer'])}}}." for row in rows]
    verdicts = [score.verdict for score in math_reward(completions, rows)]
    rate = verdicts.count("correct") / len(rows)
    print(f"{name}: {rate:.3f} of {len(rows)} golds equal themselves")
    assert rate >= floor
    assert set(verdicts) <= {"correct", "skipped"}


# ---------------------------------------------------------------- a user's own reward

USER = """
import os, time

def length(completion):
    return len(completion) / 10

def keyword(completion, answer, bonus=0.0):
    return (answer in completion) + bonus

def sometimes(completion, *, kind="none"):
    return {"none": None, "true": True, "false": False, "negative": -1, "nan": float("nan"), "text": "1.0"}[kind]

def raises(completion):
    values = {}
    return values[completion]

def hangs(completion):
    time.sleep(60)

def dies(completion):
    os._exit(9)

def no_argument():
    return 1.0

count = 0

def stateful(completion):
    global count
    count += 1
    return count
"""


SCORING = """
import torch
from fiducial.core.types import Score

def everything(text, **fields):
    if fields.get("tensor"):
        return torch.tensor(0.25)
    if fields.get("bad"):
        return Score(float("inf"), "correct")
    return Score(0.5, "wrong", ",".join(sorted(fields)))
"""


@pytest.fixture(scope="module")
def user_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("user") / "rewards.py"
    file.write_text(USER)
    return str(file)


def test_a_users_function_receives_the_fields_it_names(user_file):
    row = {"answer": "4", "prompt": "2+2?", "unsendable": lambda: 1}
    keyword = build(f"{user_file}:keyword")
    scores = keyword(["it is 4", "5", "4", "4"], [row, row, {**row, "bonus": 0.5}, {"prompt": "2+2?"}])
    assert [(score.value, score.verdict) for score in scores] == [
        (1.0, "correct"),
        (0.0, "wrong"),
        (1.5, "correct"),
        (None, "skipped"),
    ]
    assert scores[3].why == "the row has no field 'answer', which keyword needs"
    assert build(f"{user_file}:length")(["four", ""], [row, row])[0].value == 0.4
    assert keyword.name == "keyword"


def test_what_a_users_function_returns(user_file):
    reward = build(f"{user_file}:sometimes")
    kinds = ["none", "true", "false", "negative"]
    scores = reward(["x"] * 4, [{"kind": kind} for kind in kinds])
    assert [(score.value, score.verdict) for score in scores] == [
        (None, "skipped"),
        (1.0, "correct"),
        (0.0, "wrong"),
        (-1.0, "wrong"),
    ]
    assert [score.graded for score in scores] == [False, False, False, True]  # 1 and 0 are verdicts, -1 is a number
    with pytest.raises(
        RewardError, match=r"rewards.py:sometimes returned nan on the completion 'y' of the prompt 'why'"
    ):
        reward(["x", "y"], [{"kind": "true"}, {"kind": "nan", "prompt": "why"}])
    with pytest.raises(RewardError, match="returned str on the completion 'x'; a reward returns a number"):
        reward(["x"], [{"kind": "text"}])
    assert [score.value for score in build(f"{user_file}:stateful")(["x"] * 5, [{}] * 5)] == [1, 2, 3, 4, 5]


def test_scores_tensors_and_all_fields(tmp_path):
    file = tmp_path / "scoring.py"
    file.write_text(SCORING)
    reward = build(f"{file}:everything")
    scores = reward(["x", "x"], [{"answer": "4", "prompt": "2+2?", "text": "not twice"}, {"tensor": True}])
    assert scores == [Score(0.5, "wrong", "answer,prompt"), Score(0.25, "wrong", graded=True)]
    with pytest.raises(RewardError, match="everything returned inf on the completion 'x'"):
        reward(["x"], [{"bad": True}])


def test_an_exception_a_hang_and_a_death_stop_the_run(user_file):
    with pytest.raises(
        RewardError,
        match=r"(?s)rewards.py:raises failed on the completion 'x' of the prompt 'a{77}...': KeyError: 'x'.*"
        r"values\[completion\]",
    ):
        build(f"{user_file}:raises")(["x"], [{"prompt": [{"role": "user", "content": "a" * 200}]}])
    start = time.monotonic()
    told = r"rewards.py:hangs took more than 0.5 s on the completion 'x'.*raise verdicts.timeout = 0.5 "
    with pytest.raises(RewardError, match=told):
        build(f"{user_file}:hangs", timeout=0.5)(["x"] * 100, [{}] * 100)
    assert time.monotonic() - start < 20  # the first hang stops it; a hundred would take 50 s
    with pytest.raises(RewardError, match="failed on the completion 'x': its process exited with code 9"):
        build(f"{user_file}:dies")(["x"], [{}])


def test_mistakes_in_a_users_reward_show_when_it_is_built(user_file, tmp_path):
    with pytest.raises(ValueError, match="there is no file absent.py"):
        build("absent.py:f")
    with pytest.raises(ValueError, match="has no function 'absent'; it has: length, keyword"):
        build(f"{user_file}:absent")
    with pytest.raises(ValueError, match="must take the completion as its first argument"):
        build(f"{user_file}:no_argument")
    with pytest.raises(ValueError, match="write a function of your own as path/file.py:function"):
        UserReward("rewards.py")
    broken = tmp_path / "broken.py"
    broken.write_text("def f(completion:\n")
    with pytest.raises(ValueError, match=r"cannot load .*broken.py:1: SyntaxError: '\(' was never closed$"):
        build(f"{broken}:f")
    importing = tmp_path / "importing.py"
    importing.write_text("import math\nimport broken\n")  # the mistake is in what it imports
    with pytest.raises(ValueError, match=r"cannot load .*broken.py:1: SyntaxError"):
        build(f"{importing}:f")
    importing.write_text("import math\nfrom math import nothing\n")
    with pytest.raises(
        ValueError, match=r"cannot load .*importing.py:2: ImportError: cannot import name 'nothing'[^\n]*$"
    ):
        build(f"{importing}:f")


# ---------------------------------------------------------------- combinations


class Fixed:
    """Scores given in advance."""

    def __init__(self, *scores):
        self.name, self.scores = "fixed", scores

    def __call__(self, completions, rows):
        return list(self.scores)


RIGHT, FALSE = Score(1.0, "correct", "yes"), Score(0.0, "wrong", "no")
LATE = Score(None, "timeout", "no result within 10 s")


def combined(weights, *parts, **options):
    (score,) = Weighted(
        {f"r{i}": (Fixed(p), w) for i, (p, w) in enumerate(zip(parts, weights, strict=True))}, **options
    )(["x"], [{}])
    return score


def test_weighted_sum_and_its_parts():
    score = combined((2.0, 0.5), RIGHT, Score(0.6, "correct"))
    assert score.value == pytest.approx(2.0 * 1.0 + 0.5 * 0.6) and score.verdict == "correct"
    assert score.parts == {"r0": RIGHT, "r1": Score(0.6, "correct")}
    assert combined((1.0, 1.0), RIGHT, FALSE).verdict == "wrong"  # correct only if every part is
    assert combined((1.0, 1.0), RIGHT, FALSE).value == 1.0
    assert combined((1.0, -0.5), RIGHT, FALSE).verdict == "correct"  # a penalty that does not apply
    for part in (RIGHT, FALSE, LATE):  # weights (1, 0) reduce to one reward
        alone = combined((1.0, 0.0), part, LATE)
        assert (alone.value, alone.verdict) == (part.value, part.verdict)


def test_a_plain_number_has_no_say_beside_a_verdict():
    short, full = Score.of_number(0.25), Score.of_number(1.5)
    assert (short.verdict, full.verdict, short.graded, full.graded) == ("wrong", "correct", True, True)
    for part in (short, full):
        assert [combined((1.0, 0.5), judged, part).verdict for judged in (RIGHT, FALSE)] == ["correct", "wrong"]
        assert not combined((1.0, 0.5), RIGHT, part).graded
    alone = combined((1.0, 2.0), short, full)
    assert alone.graded and alone.value == 3.25 and alone.verdict == "wrong"


def test_a_part_that_could_not_be_scored_leaves_the_whole_unscored():
    score = combined((1.0, 0.1), RIGHT, LATE)
    assert (score.value, score.verdict, score.why) == (None, "timeout", "r1: no result within 10 s")
    assert score.parts["r0"] == RIGHT


def test_a_gate_dominates():
    gate = {"gate": "r0", "gate_value": -1.0}
    for other in (RIGHT, FALSE, LATE):
        score = combined((0.0, 5.0), FALSE, other, **gate)
        assert (score.value, score.verdict) == (-1.0, "wrong")
    assert combined((0.0, 5.0), RIGHT, RIGHT, **gate).value == 5.0
    assert combined((0.0, 5.0), LATE, RIGHT, **gate).verdict == "timeout"  # an unscored gate decides nothing


def test_bad_combinations_are_refused():
    for weights, options, words in (
        ((0.0, -1.0), {}, "at least one weight must be above 0"),
        ((1.0, math.nan), {}, "reward.r1: the weight must be a finite number; it is nan"),
        (("1", 1.0), {}, "reward.r0: the weight must be a finite number"),
        ((1.0, 1.0), {"gate": "format"}, "the gate 'format' is not one of the parts: r0, r1"),
    ):
        with pytest.raises(ValueError, match=words):
            combined(weights, RIGHT, RIGHT, **options)


def test_build_by_name_and_by_table():
    assert {name for name in VERIFIERS} >= {"exact", "numeric", "regex", "math", "format"}
    for name, entry in VERIFIERS.items():
        assert build(name, trust=True).name == name and entry.summary
    both = build({"numeric": 1.0, "format": 0.5})
    scores = both([GOOD, "4", "<think></think><answer>5</answer>"], [{"answer": "4"}] * 3)
    assert [(score.value, score.verdict) for score in scores] == [(1.5, "correct"), (1.0, "wrong"), (0.5, "wrong")]
    assert both.name == "numeric+format"
    with pytest.raises(ValueError, match="there is no verifier 'maths'; there are: exact, numeric, flex"):
        build("maths")
    with pytest.raises(ValueError, match="name at least one verifier"):
        build({})
    assert build("math", timeout=3.0).pool.timeout == 3.0  # type: ignore[attr-defined]

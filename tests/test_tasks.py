"""Tasks: what they draw, how their problems fall into splits, and whether their verdicts are right."""

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from fractions import Fraction
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiducial.core.answers import read_number
from fiducial.core.roles import parse_roles
from fiducial.core.types import Problem
from fiducial.data import tasks
from fiducial.data.tasks import arith, base, countdown, kk, kk_logic, kk_perturbation, reasoning_gym
from fiducial.data.tasks.base import join_digits, problems, split_of

BUILT_IN = list(tasks.TASKS.values())
VARIANTS = [
    ("arith", {}),
    ("arith", {"steps": 6, "spread": 4, "operations": 6, "branch_fraction": 0.5, "distractors": 3, "max_number": 500}),
    ("arith", {"style": "sum", "steps": 4}),
    ("arith", {"style": "sum", "max_number": 9}),
    ("arith", {"style": "mod", "steps": 2}),
    ("countdown", {}),
    ("countdown", {"numbers": 6, "max_number": 100, "target_max": 1000}),
    ("countdown", {"numbers": 2, "use_all": False}),
    ("countdown", {"numbers": 5, "use_all": False}),
    ("kk", {}),
    ("kk", {"n_people": 2, "allow_self": False, "max_width": 4}),
    ("kk", {"n_people": 6, "max_depth": 3, "max_width": 3}),
]
HOSTILE = [
    "",
    "42",
    "<answer></answer>",
    "<answer>28</answer><answer>29</answer>",
    "<answer>28 or 29</answer>",
    f"<answer>{'9' * 5000}</answer>",
    f"<answer>{'9' * 400}</answer>",
    f"<answer>{'(' * 100_000}7654321{')' * 100_000}</answer>",
    f"<answer>{'(' * 240}7654321{')' * 240}</answer>",
    "<answer>1 / (2 - 2)</answer>",
    "<answer>1/0</answer>",
    "<answer>-</answer>",
    "<answer>()</answer>",
    "<answer>٣ + ²</answer>",
    "<answer>\x00\ud800</answer>",
    "<answer>__import__('os').abort()</answer>",
    "<answer>9**9**9**9</answer>",
    "<answer>(1) Zoey is a knight and a knave</answer>",
    "<answer>1e999999</answer>",
    "<think><answer>",
]


def match(pattern, text):
    """The groups of a pattern that must occur in the text."""
    found = re.search(pattern, text)
    assert found, f"{pattern} in {text}"
    return found.groups()


def verdict(task, text, problem):
    return task.verify(f"<answer>{text}</answer>", problem.fields).verdict


# ---------------------------------------------------------------- every built-in task


@pytest.mark.parametrize(("name", "difficulty"), VARIANTS)
def test_worked_solutions_are_correct_and_survive_json(name, difficulty):
    task, rng = tasks.get(name), random.Random(5)
    for _ in range(400):
        problem = task.generate(rng, **difficulty)
        stored = json.loads(json.dumps(problem.fields))
        completion = task.trace(problem, rng)
        assert re.fullmatch(r"<think>.+</think><answer>[^<>]+</answer>", completion, re.DOTALL)
        assert task.verify(completion, stored).verdict == "correct", completion
        spaced = re.sub(r"(?<=\d)(?=\d)", " ", completion)  # as a tokenizer of words and single digits decodes it
        assert task.verify(spaced, stored).verdict == "correct", spaced


def blind_guess(task, problem, rng):
    fields = problem.fields
    if task.id == "arith":
        return str(rng.randint(1, 99))
    if task.id == "kk":
        return kk.render([rng.random() < 0.5 for _ in fields["names"]], fields["names"])
    return countdown.playout(rng, fields["numbers"])[0].text


@pytest.mark.parametrize("task", BUILT_IN, ids=lambda task: task.id)
def test_blind_guesses_hit_at_the_stated_chance(task):
    rng, n = random.Random(11), 4000
    chance = task.chance()
    hits = sum(
        verdict(task, blind_guess(task, problem, rng), problem) == "correct"
        for problem in (task.generate(rng) for _ in range(n))
    )
    # The count and (for countdown) the stated chance are measured on 4000 draws each: sd of the difference sqrt(2pq/n)
    assert abs(hits / n - chance) < 4 * math.sqrt(2 * chance * (1 - chance) / n)
    assert 0 < chance < 0.2


def test_exact_chances():
    assert tasks.get("arith").chance(max_number=50) == 1 / 50
    assert tasks.get("arith").chance(style="mod", modulus=7) == 1 / 7
    assert tasks.get("kk").chance(n_people=5) == 1 / 32


@pytest.mark.parametrize("task", BUILT_IN, ids=lambda task: task.id)
def test_splits_share_no_problem_whatever_the_seed(task):
    keys = {split: set() for split in base.SPLITS}
    for split, seed in itertools.product(base.SPLITS, (0, 1, 2)):
        found = problems(task, 60, split, seed)
        assert len({p.fields["key"] for p in found}) == 60  # none twice
        assert [p.index for p in found] == list(range(60))
        keys[split] |= {p.fields["key"] for p in found}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["dev"] and not keys["dev"] & keys["test"]


def test_split_shares():
    counted = [split_of(str(n)) for n in range(20_000)]
    for split, share in (("train", 0.8), ("dev", 0.1), ("test", 0.1)):
        assert abs(counted.count(split) / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


@pytest.mark.parametrize("task", BUILT_IN, ids=lambda task: task.id)
def test_problems_are_a_function_of_task_split_seed_and_difficulty(task):
    longer = problems(task, 40, "dev", 7)
    assert problems(task, 40, "dev", 7) == longer
    assert problems(task, 15, "dev", 7) == longer[:15]
    assert problems(task, 40, "dev", 7, **task.settings()) == longer  # defaults named or not
    assert problems(task, 40, "dev", 8) != longer
    assert problems(task, 0, "dev", 7) == []


def test_problems_are_the_same_in_every_process():
    code = (
        "from fiducial.data import tasks\n"
        "print([p.prompt for t in tasks.TASKS.values() for p in tasks.problems(t, 3, 'test', 4)])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    elsewhere = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert elsewhere.strip() == str([p.prompt for task in BUILT_IN for p in problems(task, 3, "test", 4)])


def test_a_space_that_is_too_small_is_named():
    # mod: 2..9 times 2..9 mod 7 makes 64 prompts, of which the test split holds those whose hash says so
    prompts = [f"What is {a} * {b} mod 7?" for a in range(2, 10) for b in range(2, 10)]
    exist = sum(split_of(prompt) == "test" for prompt in prompts)
    tiny = {"style": "mod", "steps": 1, "max_number": 9, "modulus": 7}
    assert len(problems(arith.TASK, exist, "test", 0, **tiny)) == exist
    with pytest.raises(ValueError, match=rf"asked for 64 different test problems, but only {exist} turn up"):
        problems(arith.TASK, 64, "test", 0, **tiny)


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("arith", "steps", (1, 3, 5, 8)),
        ("countdown", "numbers", (2, 3, 4, 5, 6)),
        ("kk", "n_people", (2, 3, 4, 6, 8)),
    ],
)
def test_harder_means_longer_solutions(name, setting, values):
    task, rng = tasks.get(name), random.Random(0)
    lengths = []
    for value in values:
        drawn = [task.generate(rng, **{setting: value}) for _ in range(150)]
        lengths.append(mean(len(task.trace(problem, rng)) for problem in drawn))
    assert lengths == sorted(lengths) and lengths[-1] > 1.5 * lengths[0]


@pytest.mark.parametrize("task", BUILT_IN, ids=lambda task: task.id)
def test_hostile_completions_get_a_verdict_and_never_full_marks(task):
    problem = task.generate(random.Random(1))
    for text in HOSTILE:
        score = task.verify(text, problem.fields)
        assert score.verdict in ("wrong", "unparseable") and score.why, text[:50]


@pytest.mark.parametrize("task", BUILT_IN, ids=lambda task: task.id)
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60) | st.text("0123456789+-*/(). ", max_size=40))
def test_any_text_gets_a_verdict(task, text):
    problem = task.generate(random.Random(2))
    score = task.verify(f"<answer>{text}</answer>", problem.fields)
    assert score.verdict in ("correct", "wrong", "unparseable")
    if not re.search(r"[0-9a-z]", text):
        assert score.verdict == "unparseable"


def test_an_unfinished_thought_has_no_answer():
    problem = problems(arith.TASK, 1, "train", 0)[0]
    thought = arith.TASK.trace(problem, random.Random(0)).split("</think>")[0]
    assert thought.rstrip(".").endswith(problem.fields["answer"])  # its last number is right, and yet:
    assert arith.TASK.verify(thought, problem.fields).verdict == "unparseable"


def test_a_row_without_the_fields_is_skipped_by_name():
    score = countdown.TASK.verify("<answer>1 + 1</answer>", {"answer": "1 + 1", "numbers": [1, 1]})
    assert score.verdict == "skipped" and "'target'" in score.why


def test_settings_are_checked():
    with pytest.raises(ValueError, match="arith has no setting 'step'; its settings: style, steps"):
        arith.TASK.generate(random.Random(0), step=2)
    with pytest.raises(ValueError, match="arith.steps must be from 1 to 8; it is 9"):
        problems(arith.TASK, 1, "train", 0, steps=9)
    with pytest.raises(ValueError, match="kk.n_people must be of type int; it is True"):
        kk.TASK.chance(n_people=True)
    with pytest.raises(ValueError, match="arith.style must be one of chain, sum, mod"):
        arith.TASK.settings(style="prose")
    with pytest.raises(ValueError, match="split must be one of train, dev, test"):
        problems(arith.TASK, 1, "valid", 0)  # type: ignore[arg-type]
    assert arith.TASK.settings(reversed_fraction=1)["reversed_fraction"] == 1  # an int passes for a float


def test_unknown_ids_name_near_ones():
    with pytest.raises(ValueError, match="no task 'aritm'; did you mean arith"):
        tasks.get("aritm")
    assert [task.id for task in BUILT_IN] == ["arith", "countdown", "kk"]
    with pytest.raises(ValueError, match="kk has no imperfect teacher"):
        kk.TASK.sloppy_trace(Problem(""), random.Random(0))


def test_join_digits():
    assert join_digits("( 1 7 + 8 ) * 2 0 0") == "( 17 + 8 ) * 200"
    assert join_digits("12 3 45") == "12 3 45"  # numbers side by side, not digits
    assert join_digits("1 12") == "1 12"


# ---------------------------------------------------------------- arith


def solve_in_prose(prompt):
    """An independent reader of the English problems: solves the sentences as equations over the people."""
    known = {}
    for who, number in re.findall(r"(\w+) has (\d+)\.", prompt):
        known[who] = int(number)
    for a, number, word, b in re.findall(r"(\w+) has (\d+) (more|fewer) than (\w+)\.", prompt) * 20:
        difference = int(number) if word == "more" else -int(number)
        if b in known:
            known.setdefault(a, known[b] + difference)
        elif a in known:
            known.setdefault(b, known[a] - difference)
        for c, number, word, d in re.findall(r"(\w+) is (\d+) (ahead|short) of (\w+)\.", prompt):
            if c in known:
                known.setdefault(d, known[c] - (int(number) if word == "ahead" else -int(number)))
        for c, factor, d in re.findall(r"(\w+) has (twice|half|three times) as many as (\w+)\.", prompt):
            if d in known:
                known.setdefault(c, known[d] * {"twice": Fraction(2), "half": Fraction(1, 2), "three times": 3}[factor])
        for c, d, e in re.findall(r"(\w+) has as many as (\w+) and (\w+) together\.", prompt):
            if d in known and e in known:
                known.setdefault(c, known[d] + known[e])
    return known[match(r"How many does (\w+) have\?", prompt)[0]]


def test_chain_answers_agree_with_an_independent_reader():
    rng = random.Random(3)
    some = {"steps": 6, "operations": 6, "branch_fraction": 0.4, "distractors": 2, "reversed_fraction": 0.5}
    for _ in range(400):
        prompt = ""
        while " than " not in prompt:
            problem = arith.TASK.generate(rng, **some)
            prompt = problem.prompt
        assert solve_in_prose(prompt) == int(problem.fields["answer"]), prompt


def test_sums_and_products_agree_with_python():
    rng = random.Random(4)
    for style, steps in (("sum", 5), ("mod", 3)):
        for _ in range(300):
            problem = arith.TASK.generate(rng, style=style, steps=steps, modulus=31)
            (expression,) = match(r"What is (.*)\?", problem.prompt)
            assert eval(expression.replace("mod", "%")) == int(problem.fields["answer"])


def test_every_quantity_is_in_range_and_halves_are_whole():
    rng = random.Random(6)
    for _ in range(500):
        problem = arith.TASK.generate(rng, steps=8, operations=6, max_number=30)
        for line in arith.think(problem, rng).splitlines():
            left, sign, right, value = match(r"\w+ = (\d+) ([-+*/]) (\d+) = (\d+)\.", line)
            assert eval(f"{left} {sign} {right}") == int(value) and 1 <= int(value) <= 30


@given(st.permutations(arith.NAMES), st.integers(0, 10**6))
def test_renamed_twins_share_key_and_split(order, seed):
    problem = arith.TASK.generate(random.Random(seed))
    rename: dict[str, str] = dict(zip(arith.NAMES, order, strict=True))
    twin = re.sub("|".join(arith.NAMES), lambda name: rename[name[0]], str(problem.prompt))
    assert arith.canonical(twin) == problem.fields["key"]
    assert arith.canonical(twin.replace("1", "2")) != problem.fields["key"] or "1" not in twin


REVERSED = {"steps": 1, "reversed_fraction": 1.0, "operations": 2, "distractors": 0}


def share_right(drawn, rng, **teacher):
    return mean(
        arith.TASK.verify(arith.TASK.sloppy_trace(p, rng, **teacher), p.fields).verdict == "correct" for p in drawn
    )


def test_most_teachers_make_the_systematic_mistake_and_only_where_it_can_be_made():
    rng, drawn = random.Random(8), problems(arith.TASK, 1000, "train", 0, **REVERSED)
    # one reversed step: right exactly when the teacher is of the minority; sd sqrt(.35 * .65 / 1000) = .015
    assert abs(share_right(drawn, rng, slip_rate=0) - 0.35) < 0.06
    assert share_right(drawn, rng, slip_rate=0, systematic_rate=0.0) == 1
    # a confused teacher adds k where k is to be subtracted (or the reverse): never right, unless clipped at 0
    assert share_right(drawn, rng, slip_rate=0, systematic_rate=1.0) == 0
    plain = problems(arith.TASK, 300, "train", 0, reversed_fraction=0.0)
    assert share_right(plain, rng, slip_rate=0, systematic_rate=1.0) == 1


def hand_problem(prompt_plan, given_numbers, answer):
    return Problem("", {"answer": answer, "key": "", "given": given_numbers, "plan": prompt_plan})


@pytest.mark.parametrize(
    ("systematic", "line"),
    [
        ("none", "Dee = 17 - 8 = 9."),
        ("subtract", "Dee = 17 + 8 = 25."),
        ("reversed", "Dee = 17 + 8 = 25."),
        ("distractor", "Dee = 30 - 8 = 22."),
        ("carry", "Dee = 17 - 8 = 9."),
    ],
)
def test_each_systematic_mistake_by_hand(systematic, line):
    # Gus has 17. Zoe has 30. Gus has 8 more than Dee.
    step = {"who": "Dee", "left": "Gus", "sign": "-", "right": 8, "reversed": True, "instead": "Zoe"}
    problem = hand_problem([step], {"Gus": 17, "Zoe": 30}, "9")
    written = arith.slip(problem, random.Random(0), slip_rate=0, systematic=systematic, systematic_rate=1)
    value = line.rstrip(".").split()[-1]
    assert written == f"<think>{line}</think><answer>{value}</answer>"


def test_forgotten_carry_by_hand():
    # 17 + 8: 7 + 8 = 15, the 1 is forgotten, 15 instead of 25; 12 + 7 has no carry
    for left, right, value in ((17, 8, 15), (12, 7, 19), (95, 5, 90)):
        step = {"who": "#0", "left": left, "sign": "+", "right": right, "reversed": False, "instead": ""}
        written = arith.slip(
            hand_problem([step], {}, ""), random.Random(0), slip_rate=0, systematic="carry", systematic_rate=1
        )
        assert written == f"<think>{left} + {right} = {value}.</think><answer>{value}</answer>"


def test_random_slips_come_at_their_rate_and_keep_the_format():
    rng, drawn = random.Random(9), problems(arith.TASK, 1000, "train", 0, steps=1, distractors=0, operations=2)
    # One line, nobody else to confuse: every slip is a wrong sum or operation. Wrong 30 % of the time, sd .0145.
    assert abs(share_right(drawn, rng, slip_rate=0.3, systematic="none") - 0.7) < 0.06
    for problem in drawn[:100]:
        written = arith.slip(problem, rng, slip_rate=1.0)
        assert re.fullmatch(r"<think>\w+ = \d+ [-+*/] \d+ = \d+\.</think><answer>\d+</answer>", written)
    wrongs: list[dict] = [{"systematic": "fewer"}, {"slip_rate": 1.5}, {"systematic_rate": -0.1}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=f"teacher.{next(iter(wrong))} must be"):
            arith.slip(drawn[0], rng, **wrong)


# ---------------------------------------------------------------- countdown


@st.composite
def expressions(draw, depth=4):
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(0, 60)))
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))  # pyright: ignore
    text = f"{left}{draw(st.sampled_from(['+', ' - ', '*', ' / ']))}{right}"
    return f"({text})" if draw(st.booleans()) else text


@given(expressions())
def test_the_parser_agrees_with_python(text):
    as_python = re.sub(r"\d+", r"Fraction(\g<0>)", text)
    try:
        expected = eval(as_python)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            countdown.evaluate(countdown.parse(text))
        return
    value, used, _ = countdown.evaluate(countdown.parse(text))
    assert value == expected and used == [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize(
    "text", ["", "1 +", "+ 1", "(1", "1)", "1 (2)", "(1)(2)", "1 ** 2", "-1 + 2", "()", "1.5", "x", "1 = 1"]
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError):
        countdown.parse(text)


@pytest.mark.parametrize(
    ("text", "use_all", "expected"),
    [
        ("(3 + 4) * 5", True, "correct"),
        ("5 × (4 + 3)", True, "correct"),
        ("( 3 + 4 ) * 5", True, "correct"),
        ("3 * 5 + 4 * 5", True, "wrong"),  # 35, but 5 is used twice
        ("35", True, "wrong"),  # not one of the numbers
        ("7 * 5", True, "wrong"),
        ("3 + 4 + 5", True, "wrong"),  # 12
        ("5 * 3", True, "wrong"),
        ("3 / (4 - 4 * 5)", True, "wrong"),
        ("5 / (3 - 3) + 4", True, "wrong"),
        ("(3 + 4) * 5 = 35", True, "unparseable"),
        ("the target cannot be reached", True, "unparseable"),
    ],
)
def test_countdown_verdicts(text, use_all, expected):
    problem = Problem("", {"answer": "", "numbers": [3, 4, 5], "target": 35, "use_all": use_all})
    assert verdict(countdown.TASK, text, problem) == expected


def test_at_most_once_and_division_by_zero():
    fields = {"answer": "", "numbers": [3, 4, 4, 5], "target": 15, "use_all": False}
    assert verdict(countdown.TASK, "5 * 3", Problem("", fields)) == "correct"
    assert verdict(countdown.TASK, "5 * 3 * 4 / 4", Problem("", {**fields, "use_all": True})) == "correct"
    assert countdown.TASK.verify("<answer>5 / (4 - 4)</answer>", fields).why == "the expression divides by zero"
    # exact fractions: 5 / (3 / (4 + 5)) = 15 although 3 / 9 is no finite decimal
    assert verdict(countdown.TASK, "5 / (3 / (4 + 5))", Problem("", {**fields, "numbers": [3, 4, 5, 5]})) == "correct"


def test_order_of_the_numbers_does_not_make_a_new_problem():
    keys = set()
    for seed in range(2000):
        problem = countdown.TASK.generate(random.Random(seed), numbers=2, max_number=9, target_max=10)
        numbers, target = problem.fields["numbers"], problem.fields["target"]
        keys.add((frozenset(numbers), target) if numbers[0] != numbers[1] else (numbers[0], target))
        assert problem.fields["key"] == f"{min(numbers)},{max(numbers)}->{target}"
    assert len({str(key) for key in keys}) == len(keys)


# ---------------------------------------------------------------- knights and knaves


def holds(formula, knights):
    """An independent reading of formulas, with Python's own connectives."""
    operator, *parts = formula
    if operator in ("knight", "knave"):
        return knights[parts[0]] == (operator == "knight")
    values = [holds(part, knights) for part in parts]
    return {
        "not": lambda: not values[0],
        "and": lambda: all(values),
        "or": lambda: any(values),
        "imply": lambda: values[0] <= values[1],
        "iff": lambda: values[0] is values[1],
    }[operator]()


def enumerate_solutions(statements):
    assignments = itertools.product([False, True], repeat=len(statements))
    return [list(a) for a in assignments if all(role == holds(s, a) for role, s in zip(a, statements, strict=True))]


def random_statements(rng, n, max_depth=3):
    return [kk_logic.random_formula(rng, range(n), max_depth, 3, 4) for _ in range(n)]


def test_zoey_and_oliver():
    # Suppose Zoey is a knight: Oliver is a knave, and his "Oliver knight iff Zoey knave" (no iff no) is true: no.
    # So Zoey is a knave and Oliver a knight; his statement is (yes iff yes), true.
    problem = kk.build(["Zoey", "Oliver"], [["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])
    assert problem.fields["answer"] == "(1) Zoey is a knave\n(2) Oliver is a knight"
    assert "Zoey says: Oliver is not a knight.\n" in problem.prompt
    assert "Oliver says: Oliver is a knight if and only if Zoey is a knave.\n" in problem.prompt
    with pytest.raises(ValueError, match="2 solutions"):
        kk.build(["Zoey", "Oliver"], [["knight", 0], ["knave", 0]])


def test_one_solution_each_by_independent_enumeration():
    rng = random.Random(0)
    for n, draws in ((2, 350), (3, 350), (5, 250), (8, 50)):
        for _ in range(draws):
            problem = kk.TASK.generate(rng, n_people=n, max_depth=rng.choice((2, 3)))
            assert enumerate_solutions(problem.fields["statements"]) == [problem.fields["solution"]]
            stated = parse_roles(problem.fields["answer"], problem.fields["names"], kk_logic.LEAVES)
            assert stated == problem.fields["solution"]


def test_the_solver_agrees_with_enumeration_also_without_or_with_many_solutions():
    rng = random.Random(1)
    for _ in range(300):
        statements = random_statements(rng, rng.randint(2, 5))
        assert sorted(kk_logic.solutions(statements)) == enumerate_solutions(statements)


def test_three_valued_truth_is_sound_and_total_when_all_is_known():
    rng = random.Random(2)
    for _ in range(300):
        formula = kk_logic.random_formula(rng, range(3), 4, 3, 6)
        partial = [rng.choice((True, False, None)) for _ in range(3)]
        full = [rng.random() < 0.5 if role is None else role for role in partial]
        assert kk_logic.truth(formula, full) == holds(formula, full)
        assert kk_logic.truth(formula, partial) in (None, holds(formula, full))


def test_about_a_third_of_random_puzzles_have_one_solution():
    # The paper's generator: 25-35 % of draws for 2 to 8 people. Measured here: 40 % for 2, falling to 24 % for 8.
    rng = random.Random(3)
    rates = {}
    for n in (2, 4, 8):
        drawn = ([kk_logic.random_formula(rng, range(n), 2, 2, 4) for _ in range(n)] for _ in range(1500))
        rates[n] = mean(len(kk_logic.solutions(statements)) == 1 for statements in drawn)
    assert 0.2 < rates[8] < rates[4] < rates[2] < 0.45


def test_statement_settings_are_kept():
    rng = random.Random(4)

    def depth(formula):
        return 1 if formula[0] in kk_logic.LEAVES else 1 + max(depth(part) for part in formula[1:])

    def people(formula):
        return {formula[1]} if formula[0] in kk_logic.LEAVES else set().union(*(people(part) for part in formula[1:]))

    seen = set()
    for _ in range(200):
        problem = kk.TASK.generate(rng, n_people=4, max_depth=4, max_width=4, n_operators=3, allow_self=False)
        for speaker, statement in enumerate(problem.fields["statements"]):
            assert depth(statement) <= 4 and kk_logic.count_operators(statement) <= 3
            assert speaker not in people(statement)
            seen |= set(re.findall(r"'(\w+)'", str(statement)))
    assert seen == {"knight", "knave", "not", "and", "or", "imply", "iff"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.randoms(use_true_random=False))
def test_renamed_reordered_puzzles_share_the_canonical_form(seed, n, shuffler):
    statements = random_statements(random.Random(seed), n)
    order = list(range(n))
    shuffler.shuffle(order)  # the person now at place i was order[i]
    place = [order.index(person) for person in range(n)]

    def turned(formula):
        if formula[0] in kk_logic.LEAVES:
            return [formula[0], place[formula[1]]]
        parts = [turned(part) for part in formula[1:]]
        return [formula[0], *(parts[::-1] if formula[0] in ("and", "or", "iff") else parts)]

    assert kk_logic.canonical([turned(statements[i]) for i in order]) == kk_logic.canonical(statements)


def test_different_puzzles_have_different_canonical_forms():
    """Against the definition: the smallest text over all n! orders, with the parts of and, or, iff sorted."""

    def text(formula, place):
        if formula[0] in kk_logic.LEAVES:
            return f"{formula[0]}{place[formula[1]]}"
        parts = [text(part, place) for part in formula[1:]]
        return f"{formula[0]}({sorted(parts) if formula[0] in ('and', 'or', 'iff') else parts})"

    def brute(statements):
        return min(
            tuple(text(statements[i], [order.index(j) for j in range(len(order))]) for i in order)
            for order in itertools.permutations(range(len(statements)))
        )

    rng = random.Random(5)
    drawn = [random_statements(rng, 3, max_depth=rng.choice((1, 1, 2))) for _ in range(400)]
    by_definition, by_refinement = [brute(s) for s in drawn], [kk_logic.canonical(s) for s in drawn]
    for (a, x), (b, y) in itertools.combinations(zip(by_definition, by_refinement, strict=True), 2):
        assert (a == b) == (x == y)
    assert len(set(by_definition)) < 390  # the draws do hold twins


def test_a_ring_of_people_who_all_say_the_same_is_told_apart_from_two_rings():
    one_ring = [["knight", (i + 1) % 6] for i in range(6)]
    two_rings = [["knight", i - 2 if i % 3 == 2 else i + 1] for i in range(6)]
    assert kk_logic.canonical(one_ring) != kk_logic.canonical(two_rings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1) Zoey is a knave\n(2) Oliver is a knight", "correct"),
        ("( 2 ) Oliver is a knight ( 1 ) Zoey is a knave", "correct"),
        ("Oliver: knight, Zoey: knave", "correct"),
        ("zoey is a Knave and OLIVER is a KNIGHT.", "correct"),
        ("Zoey is a knight, Oliver is a knight", "wrong"),
        ("Zoey is a knave", "unparseable"),  # nothing about Oliver
        ("Zoey is a knave, Oliver is a knight, Oliver is a knave", "unparseable"),
        ("Zoey is a knave, Zoey is a knight", "unparseable"),
        ("Zoey is a knave, Oliver is a knight or a knave", "unparseable"),
        ("Zoey is a knave, Liam is a knight", "unparseable"),
        ("Zoey is not a knight, Oliver is a knight", "unparseable"),
        ("Zoey is a knave, Oliver is a knight, Liam is a knave", "unparseable"),
        ("knave, knight", "unparseable"),
    ],
)
def test_kk_verdicts(text, expected):
    problem = kk.build(["Zoey", "Oliver"], [["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])
    assert verdict(kk.TASK, text, problem) == expected


def test_nested_statements_read_in_one_way_only():
    names = ["Ava", "Ben"]
    nested = ["and", ["or", ["knight", 0], ["knave", 1]], ["not", ["and", ["knight", 0], ["knight", 1]]]]
    assert kk.say(nested, names) == (
        "(Ava is a knight or Ben is a knave) and (it is not so that (Ava is a knight and Ben is a knight))"
    )
    rng, texts = random.Random(6), {}
    for _ in range(2000):
        formula = kk_logic.random_formula(rng, range(2), 3, 2, 4)
        text = kk.say(formula, names)
        assert texts.setdefault(text, formula) == formula


def test_the_trace_only_claims_what_is_so():
    rng = random.Random(7)
    for _ in range(200):
        problem = kk.TASK.generate(rng, n_people=4)
        names, solution = problem.fields["names"], problem.fields["solution"]
        final = {}
        for line in kk.think(problem, rng).splitlines()[:-1]:
            name, role = match(r"(?:Suppose|So it cannot be that) (\w+) is a (knight|knave)", line)
            if line.startswith("Suppose") and " But " not in line:
                final[name] = role == "knight"
        assert [final[name] for name in names] == solution  # the last suppositions that stood are the solution


# ---------------------------------------------------------------- perturbations


@pytest.mark.parametrize("kind", kk_perturbation.KINDS)
def test_perturbed_puzzles(kind):
    rng, changed = random.Random(8), 0
    for problem in problems(kk.TASK, 60, "train", 1, n_people=3):
        try:
            other = kk_perturbation.perturb(problem, kind, rng)
        except ValueError:
            assert kind == "leaf"
            continue
        changed += 1
        assert other.prompt != problem.prompt
        assert enumerate_solutions(other.fields["statements"]) == [other.fields["solution"]]
        old, new = problem.fields, other.fields
        if kind in ("statement", "leaf"):
            assert new["solution"] != old["solution"]
            different = [(a, b) for a, b in zip(old["statements"], new["statements"], strict=True) if a != b]
            assert len(different) == 1
            if kind == "leaf":
                shape, other_shape = (re.sub(r"'kn\w+', \d", "leaf", str(statement)) for statement in different[0])
                assert shape == other_shape
        else:
            assert new["key"] == old["key"]  # words and order only
            old_roles = dict(zip(old["names"], old["solution"], strict=True))
            if kind != "uncommon_name":
                assert dict(zip(new["names"], new["solution"], strict=True)) == old_roles
    assert changed >= (50 if kind == "leaf" else 60)  # of a few small puzzles no leaf can be changed


def test_flipped_roles_flip_the_answer():
    problem = kk.build(["Zoey", "Oliver"], [["not", ["knight", 1]], ["iff", ["knight", 1], ["knave", 0]]])
    flipped = kk_perturbation.perturb(problem, "flip_role", random.Random(0))
    assert str(flipped.prompt).startswith("Knaves always tell the truth, knights always lie.")
    assert verdict(kk.TASK, "Zoey is a knight, Oliver is a knave", flipped) == "correct"
    with pytest.raises(ValueError, match="kind must be one of statement"):
        kk_perturbation.perturb(problem, "rename", random.Random(0))


def test_limem():
    rng, n, people = random.Random(9), 20_000, 3
    assert kk_perturbation.limem([True] * 5, [True] * 5) == 0  # a perfect solver
    assert kk_perturbation.limem([True, True, False, True], [False] * 4) == 0.75  # remembers old answers: Acc
    assert kk_perturbation.limem([False, False], [True, False]) == 0
    p = 2.0**-people  # a random guesser: Acc (1 - CR) with Acc = CR = p
    guessed = [[rng.random() < p for _ in range(n)] for _ in range(2)]
    assert abs(kk_perturbation.limem(*guessed) - p * (1 - p)) < 4 * math.sqrt(p / n)
    with pytest.raises(ValueError, match="one changed copy per puzzle"):
        kk_perturbation.limem([True], [])


# ---------------------------------------------------------------- reasoning-gym

needs_gym = pytest.mark.skipif(not reasoning_gym.installed(), reason="reasoning-gym is not installed")
HEAVY = ("arc_agi", "figlet_font", "group_anagrams", "knight_swap", "sokoban", "zebra_puzzles", "codeio")
JUNK = [text for text in HOSTILE if "\ud800" not in text] + [
    f"<answer>{text}</answer>"
    for text in (
        "wrong",
        "0",
        "True",
        "None",
        "[]",
        "{}",
        "[[1]]",
        '{"a": 1}',
        "nan",
        "[print(1) for _ in (1, 2)]",
        "a b",
    )
]


def adapted(name):
    return tasks.get(f"rg/{name}")


def gold_is_correct_and_junk_is_not(name, draws):
    task, rng = adapted(name), random.Random(0)
    for _ in range(draws):
        problem = task.generate(rng)
        stored = json.loads(json.dumps(problem.fields))
        gold = problem.fields["answer"]
        if name in reasoning_gym.NO_STORED_ANSWER:
            assert gold is None
            with pytest.raises(ValueError, match="stores none"):
                task.trace(problem, rng)
        else:
            for fields in (problem.fields, stored):
                assert task.verify(task.trace(problem, rng), fields).verdict == "correct", (name, gold)
    for text in JUNK:
        score = task.verify(text, problem.fields)
        answer = text.removeprefix("<answer>").removesuffix("</answer>")
        right = gold is not None and (answer == gold or answer == "0" and read_number(gold) == 0)
        assert right or score.verdict in ("wrong", "unparseable"), (name, text[:40], score)
        assert right or score.value is None or score.value < 1


@needs_gym
@pytest.mark.parametrize(
    "name", ["chain_sum", "sentence_reordering", "rearc", "polynomial_equations", "boxnet", "graph_color"]
)
def test_a_few_generators(name):
    gold_is_correct_and_junk_is_not(name, draws=4)


@needs_gym
def test_problems_without_an_answer_are_drawn_again(monkeypatch):
    drawn = iter(["-3*Integral(x*sin(3*x), x) + C", "x**2 + C"])
    entry = {"question": "integrate", "metadata": {}}
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.setattr(reasoning_gym, "_draw", lambda *_: {**entry, "answer": next(drawn)})
    assert adapted("intermediate_integration").generate(random.Random(0)).fields["answer"] == "x**2 + C"
    # codeio runs each program twice: 4 then 7 is random, 5 twice is an answer
    outputs = iter(["4", "7", "5", "5"])
    monkeypatch.setattr(reasoning_gym, "_draw", lambda *_: {**entry, "answer": next(outputs)})
    assert adapted("codeio").generate(random.Random(0)).fields["answer"] == "5"


@needs_gym
def test_an_empty_answer_can_be_right():
    # the A::B machine may reduce a program to nothing; one of 60 draws does
    task, rng = adapted("ab"), random.Random(1)
    problem = next(p for p in (task.generate(rng) for _ in range(300)) if p.fields["answer"] == "")
    assert task.verify("<think></think><answer></answer>", problem.fields).verdict == "correct"
    assert task.verify("<think></think>", problem.fields).verdict == "unparseable"


@needs_gym
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # generators that leave their files open
def test_every_generator(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(reasoning_gym.names()) >= 105
    for name in reasoning_gym.names():
        gold_is_correct_and_junk_is_not(name, draws=1 if name in HEAVY else 5)


@needs_gym
@pytest.mark.slow
def test_every_generator_draws_the_same_problem_in_every_process():
    code = (
        "from random import Random\nfrom fiducial.data import tasks\n"
        "from fiducial.data.tasks import reasoning_gym as rg\n"
        "for name in rg.names():\n"
        f"    if name not in (*rg.ORDER_OF_SETS, *{HEAVY!r}):\n"
        "        print([tasks.get('rg/' + name).generate(Random(s)).fields['answer'] for s in range(6)])\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    for one, other in zip(runs[0].splitlines(), runs[1].splitlines(), strict=True):
        assert one == other


@needs_gym
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gsm_symbolic", "GOLD or 1"),
        ("simple_integration", "Integral(INTEGRAND, x)"),
        ("complex_arithmetic", "nan"),
        ("coin_flip", "0"),
        ("game_of_life_halting", "perhaps"),
        ("puzzle24", "6 + 6 + 6 + 6"),
    ],
)
def test_answers_that_a_scorer_accepts_though_they_are_wrong(name, text):
    task, rng = adapted(name), random.Random(2)
    problem = task.generate(rng)
    gold = problem.fields["answer"]
    settings_ = tuple(sorted(problem.fields["settings"].items()))
    text = text.replace("GOLD", gold).replace("INTEGRAND", problem.fields["metadata"].get("integrand", ""))
    assert reasoning_gym._scorer(name, settings_)(text, problem.fields) == 1  # the trap is still there
    assert verdict(task, text, problem) == "wrong"
    assert verdict(task, gold, problem) == "correct"


@needs_gym
@pytest.mark.parametrize("name", ["string_insertion", "binary_matrix", "countdown", "simple_integration"])
def test_no_answer_runs_as_code(name, tmp_path):
    problem = adapted(name).generate(random.Random(3))
    mark = tmp_path / "ran"
    for code in (
        f"open({str(mark)!r}, 'w')",
        f"[open({str(mark)!r}, 'w') for _ in (1,)]",
        f"(open)({str(mark)!r}, 'w')",
    ):
        score = adapted(name).verify(f"<answer>{code}</answer>", problem.fields)
        assert score.verdict == "wrong" and not mark.exists()


@needs_gym
def test_partial_credit_is_wrong_and_keeps_its_value():
    problem = adapted("countdown").generate(random.Random(0))
    score = adapted("countdown").verify("<answer>1 + 1</answer>", problem.fields)
    assert (score.verdict, score.value) == ("wrong", 0.05)  # readable, but of other numbers


@needs_gym
def test_generators_with_a_catch_say_so(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ValueError, match="set PYTHONHASHSEED=0"):
        adapted("word_ladder").generate(random.Random(0))
    with pytest.raises(ValueError, match="rg/composite cannot be a task: it mixes other generators"):
        adapted("composite")
    with pytest.raises(ValueError, match="did you mean rg/chain_sum"):
        adapted("chain_sums")
    with pytest.raises(ValueError, match="rg/chain_sum has no setting 'terms'"):
        adapted("chain_sum").generate(random.Random(0), terms=3)
    with pytest.raises(ValueError, match="rg/chain_sum refuses its settings"):
        adapted("chain_sum").generate(random.Random(0), min_terms=5, max_terms=2)


@needs_gym
def test_settings_and_splits_of_an_adapted_task():
    task = adapted("chain_sum")
    assert task.difficulty["max_terms"].default == 6 and task.chance() is None and task.isolate
    longer = problems(task, 30, "test", 3, min_terms=2, max_terms=2, min_digits=2, max_digits=2)
    assert longer[:10] == problems(task, 10, "test", 3, min_terms=2, max_terms=2, min_digits=2, max_digits=2)
    for problem in longer:
        a, sign, b = match(r"(\d\d) ([+-]) (\d\d)", problem.prompt)
        assert eval(f"{a}{sign}{b}") == int(problem.fields["answer"])
        assert split_of(problem.fields["key"]) == "test"
    ids = tasks.task_ids()
    assert len(ids) == len(set(ids)) and "rg/composite" not in ids and "rg/sudoku" in ids
    assert [task.id for task in tasks.list_tasks()] == ids


def test_without_reasoning_gym_the_rest_works(monkeypatch):
    monkeypatch.setattr(reasoning_gym, "installed", lambda: False)
    reasoning_gym._registry.cache_clear()
    assert tasks.task_ids() == ["arith", "countdown", "kk"]
    with pytest.raises(ValueError, match=r"pip install fiducial\[tasks\]"):
        tasks.get("rg/sudoku")
    monkeypatch.undo()
    reasoning_gym._registry.cache_clear()

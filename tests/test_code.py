"""The `code` verifier: forms of tests, forms of values, verdicts, real problems, and what happens when its own plumbing
breaks."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from fiducial.cli.main import main
from fiducial.config import Verdicts
from fiducial.core.types import Score
from fiducial.rewards import VERIFIERS, build
from fiducial.rewards.code import Code, isolation
from fiducial.rewards.worker import Pool, Target
from fiducial.sandbox import isolation as isolations
from fiducial.sandbox.cgroups import Group
from fiducial.sandbox.isolation import NoIsolation, find

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "humaneval_first60.jsonl"


def sandboxed():
    try:
        return bool(isolation())
    except NoIsolation:
        return False


needs_sandbox = pytest.mark.skipif(not sandboxed(), reason="bubblewrap is absent or holds nothing here")
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name} is not beside the project")
ADD = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def code():
    return Code(timeout=20.0)


def one(verifier, completion, tests, **row):
    (score,) = verifier([completion], [{"tests": tests, **row}])
    return score


# -- forms of tests


@needs_sandbox
@pytest.mark.parametrize(
    ("field", "tests"),
    [
        ("tests", "def check(candidate):\n    assert candidate(1, 2) == 3\n"),
        ("test", "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n"),
        ("tests", "assert add(1, 2) == 3\nassert add(2, 2) == 4"),
        ("test_list", ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]),
        ("tests", '["assert add(1, 2) == 3", "assert add(2, 2) == 4"]'),  # a list as a CSV file holds it
        ("tests", [{"input": [1, 2], "output": 3}, {"input": ["a", "b"], "output": "ab"}]),
        ("input_output", {"inputs": [[1, 2], [2, 2]], "outputs": [3, 4]}),
        ("tests", "def test_small():\n    assert add(1, 2) == 3\n\ndef test_large():\n    assert add(10, 20) == 30\n"),
        (
            "tests",
            "def check(candidate):\n    for i in range(5):\n        assert candidate(i, i) == 2 * i\n    return\n",
        ),
    ],
)
def test_forms_of_tests(code, field, tests):
    row = {"prompt": "Write add.", "entry_point": "add", field: tests}
    right, wrong = code([ADD, ADD.replace("+", "-")], [row, row])
    assert (right.verdict, wrong.verdict) == ("correct", "wrong"), (right, wrong)


@needs_sandbox
def test_a_program_is_judged_by_what_it_prints(code):
    cases = [{"input": "3\n1 2\n", "output": "3 1 2\n"}, {"input": "0\n", "output": "0"}]
    echo = "import sys\nprint(*sys.stdin.read().split(), sep=' ')  \n"
    assert one(code, echo, cases).verdict == "correct"
    assert one(code, f"Read it all.\n```python\n{echo}exit()\n```", cases).verdict == "correct"
    assert one(code, "n = input()\nprint(n)", cases).why.startswith("test 1 of 2, input 3\\n1 2: it printed '3'")
    assert "ended with code 1" in one(code, echo + "raise ValueError", cases).why
    assert one(code, "if __name__ == '__main__':\n    " + "print(*open(0).read().split())", cases).verdict == "correct"


@needs_sandbox
def test_the_share_of_tests_that_pass():
    """add(a, b) = a + 2 b is right where b is 0: 2 of the 4 statements that assert. The loop is one test, and fails."""
    tests = """
def check(candidate):
    zero = 0
    assert candidate(1, zero) == 1
    assert candidate(1, 2) == 3
    for b in (0, 0, 0, 1):
        assert candidate(5, b) == 5 + b
    assert candidate(7, 0) == 7
"""
    row = {"tests": tests, "entry_point": "add"}
    half = one(Code(fraction=True), "def add(a, b):\n    return a + 2 * b", tests, entry_point="add")
    assert (half.value, half.verdict) == (0.5, "wrong") and half.why.startswith("2 of 4 tests pass; test 2 of 4")
    full, first = Code(fraction=True)([ADD, ADD], [row, {**row, "tests": tests.replace("== 7", "== 8")}])
    assert (full.value, full.verdict, first.value) == (1.0, "correct", 0.75)
    only = Code(fraction=True, max_tests=1)(["def add(a, b):\n    return a + 2 * b"], [row])[0]
    assert (only.value, only.verdict) == (1.0, "correct")


# -- values that cross from one process to the other


@needs_sandbox
@pytest.mark.parametrize(
    ("solution", "tests"),
    [
        ("def f():\n    return [1, (2.5, None), {'a': {3}}, b'x', frozenset([4]), 1j, range(3)]",
         "assert f() == [1, (2.5, None), {'a': {3}}, b'x', frozenset([4]), 1j, range(3)]"),
        ("def f():\n    return float('nan'), float('-inf'), 10 ** 6000, '\\ud800', -0.0",
         "import math\na, b, c, d, e = f()\nassert math.isnan(a) and b < -1e308 and c == 10 ** 6000\n"
         "assert d == '\\ud800' and math.copysign(1, e) == -1"),
        ("from collections import *\nfrom decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
         "P = namedtuple('P', 'x y')\ndef f():\n    return [Counter('aab'), deque([1], 5), Decimal('0.10'),"
         " Fraction(1, 3), datetime.date(2024, 2, 29), P(1, 2), defaultdict(int, a=1), OrderedDict(b=2)]",
         "from collections import deque\nfrom decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
         "assert f() == [{'a': 2, 'b': 1}, deque([1]), Decimal('0.1'), Fraction(1, 3), datetime.date(2024, 2, 29),"
         " (1, 2), {'a': 1}, {'b': 2}]"),
        ("def f(items):\n    items.sort()\n    items.append(0)", "x = [3, 1]\nassert f(x) is None and x == [1, 3, 0]"),
        ("def f(d):\n    d['b'] = [2]\n    del d['a']", "d = {'a': 1}\nf(d)\nassert d == {'b': [2]}"),
        ("def f(key, items):\n    return sorted(items, key=key)", "assert f(lambda x: -x, [1, 3, 2]) == [3, 2, 1]\n"
         "assert f(len, ['aa', 'b']) == ['b', 'aa']\nassert f(key=abs, items=[-2, 1]) == [1, -2]"),
        ("def f(g):\n    try:\n        return g(0)\n    except ZeroDivisionError:\n        return 'caught'",
         "assert f(lambda x: 1 / x) == 'caught'"),
        ("def f(n):\n    for i in range(n):\n        yield i * i",
         "assert list(f(4)) == [0, 1, 4, 9]\nassert next(f(1)) == 0\n"
         "from itertools import islice\nassert list(islice(f(10 ** 12), 2)) == [0, 1]"),
        ("def f(x):\n    raise KeyError('no ' + x)", 
         "try:\n    f('luck')\nexcept KeyError as error:\n    assert 'no luck' in str(error)\nelse:\n    assert False"),
        ("class Bad(ValueError):\n    pass\ndef f():\n    raise Bad('so')",
         "try:\n    f()\n    assert False\nexcept ValueError:\n    pass"),
        ("def f():\n    print('hello')\n    return 1",
         "import io\nfrom contextlib import redirect_stdout\nout = io.StringIO()\n"
         "with redirect_stdout(out):\n    f()\nassert out.getvalue() == 'hello\\n'"),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
         "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)\n"
         "    def __iter__(self): return iter(self.items)\n    def __contains__(self, x): return x in self.items",
         "s = Stack()\ns.push(1)\ns.push((2,))\nassert len(s) == 2 and list(s) == [1, (2,)] and 1 in s\n"
         "assert s.items == [1, (2,)]\n"
         "assert s.pop() == (2,) and not (5 in s)\ns.pop()\nassert not s"),
        ("class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
         "    def __eq__(self, o): return self.x == o.x\n    def __repr__(self): return f'V({self.x})'",
         "assert str(V(1)) == 'V(1)' and V(2) == V(2) and V(1) != V(2)"),
        ("class Node:\n    def __init__(self, v): self.v = v\ndef f():\n    return Node(3)", "assert f().v == 3"),
        ("LIMIT = 7\ndef f():\n    return LIMIT", "assert f() == LIMIT == 7"),
        ("class Color:\n    RED = 3\n    @staticmethod\n    def mix(a, b): return a + b",
         "assert Color.RED == 3 and Color.mix(1, 2) == 3"),
        ("import math\ndef f():\n    return 0.1 + 0.2", "assert math.isclose(f(), 0.3)"),
        ("class Yes:\n    def __eq__(self, other): return True\n    __hash__ = None",
         "assert Yes() != 5 and not (Yes() == [1]) and not ('a' == Yes()) and Yes() == Yes()"),
        ("import random\ndef f():\n    return random.random()", "assert f() == f() or True"),
    ],
)  # fmt: skip
def test_values_cross_as_they_are(code, solution, tests):
    score = one(code, solution, tests)
    assert score.verdict == "correct", score


@needs_sandbox
def test_classes_of_the_prompt_cross_by_value(code):
    prompt = """
from dataclasses import dataclass

class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next

@dataclass(frozen=True)
class Point:
    x: int

def poly(xs, x):
    return sum(c * x ** i for i, c in enumerate(xs))

def reverse(node, point):
    "Reverse a list, and move a point by one."
"""
    tests = """
def check(candidate):
    head, point = candidate(Node(1, Node(2)), Point(3))
    assert (head.value, head.next.value, head.next.next) == (2, 1, None)
    assert point == Point(4) and type(head) is Node
    assert poly([1, 2], 3) == 7
"""
    body = """    last = None
    while node:
        node.next, last, node = last, node, node.next
    return last, Point(point.x + 1)
"""
    assert one(code, body, tests, prompt=prompt, entry_point="reverse").verdict == "correct"
    forged = body.replace("    last = None", "    Point.__eq__ = lambda self, other: True\n    last = None").replace(
        "x + 1", "x"
    )
    assert one(code, forged, tests, prompt=prompt, entry_point="reverse").verdict == "wrong"  # judged by our own Point
    bent = "    global poly\n    poly = lambda xs, x: 7\n" + body
    assert one(code, bent, tests.replace("== 7", "== 8"), prompt=prompt, entry_point="reverse").verdict == "wrong"


# -- verdicts


@needs_sandbox
@pytest.mark.parametrize(
    ("completion", "verdict", "why"),
    [
        ("I cannot.", "unparseable", "the completion is no Python code"),
        ("```python\n\n```", "unparseable", "the completion holds no code"),
        ("```python\ndef add(a, b:\n```", "wrong", "its code does not load: SyntaxError"),
        ("def sub(a, b):\n    return a - b", "wrong", "its code does not define 'add'"),
        ("import nowhere\n" + ADD, "wrong", "its code does not load: ModuleNotFoundError"),
        ("def add(a, b):\n    return a / 0", "wrong", "ZeroDivisionError: division by zero"),
        ("def add(a):\n    return a", "wrong", "TypeError"),
        ("def add(a, b):\n    raise SystemExit(0)", "crashed", "ended the process (SystemExit: 0) in test 1 of 1"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "crashed", "(signal SIGSEGV) before a test"),
    ],
)  # fmt: skip
def test_verdicts_say_why(code, completion, verdict, why):
    score = one(code, completion, "def check(candidate):\n    assert candidate(1, 2) == 3", entry_point="add")
    assert score.verdict == verdict and why in score.why, score
    assert score.own == (verdict == "crashed") and not score.failed and score.isolation == isolation().level


@needs_sandbox
@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "the row has no field 'tests'"),
        ({"tests": []}, "the row has no field 'tests'"),
        ({"tests": 5}, "the row's field 'tests' is neither Python"),
        ({"tests": [{"input": "1"}]}, "the row's field 'tests' is neither Python"),
        ({"input_output": {"inputs": [1], "outputs": []}}, "the row's field 'input_output'"),
        ({"tests": "assert (1"}, "the row's tests are not Python"),
        ({"tests": "import nowhere_at_all\nassert add(1, 2) == 3"}, "the row's tests do not run: ModuleNotFoundError"),
        ({"tests": "# nothing"}, "the row's tests are empty"),
    ],
)
def test_a_row_whose_tests_are_broken_is_skipped(code, row, why):
    (score,) = code([ADD], [row])
    assert score.verdict == "skipped" and score.why.startswith(why) and score.failed, score


@needs_sandbox
def test_a_program_cannot_have_its_row_skipped(code):
    """Statements that prepare fail because of what it returns: that is wrong, not broken."""
    tests = "def check(candidate):\n    first, second = candidate(1, 2)\n    assert first == 3"
    assert one(code, "def add(a, b):\n    return None", tests, entry_point="add").verdict == "wrong"
    assert one(code, "x = 1", "s = Stack()\nassert s").verdict == "wrong"  # it defines no Stack
    unsayable = "LIMIT = []\nLIMIT.append(LIMIT)\ndef add(a, b):\n    return LIMIT"
    assert one(code, unsayable, "assert add(1, LIMIT) == LIMIT").verdict == "wrong"


@needs_sandbox
def test_an_endless_loop_ends_on_time_and_earns_nothing():
    began = time.monotonic()
    score = one(Code(timeout=1.0), "def add(a, b):\n    while True: pass", "assert add(1, 2) == 3")
    assert time.monotonic() - began < 1.0 + 1.0 + 2.0  # a second, and what starting takes on a busy machine
    assert (score.verdict, score.value, score.own) == ("timeout", None, True)
    assert Verdicts().reward(score) == 0.0  # the completion's own fault, as an unparseable one
    assert Verdicts(unparseable=-1.0).reward(score) == -1.0
    assert Verdicts().reward(Score(None, "timeout")) is None  # the verifier's: left out


@needs_sandbox
def test_verdicts_do_not_vary():
    """Sets have the same order, and random numbers the same seed, every time."""
    program = "import random\ndef f():\n    return list({'a', 'b', 'c', 'd'}), random.random()"
    told = {one(Code(), program, "assert f() == 0\n").why for _ in range(3)}
    shown = {one(Code(), program, "assert False, f()\n").why for _ in range(3)}
    assert len(told) == len(shown) == 1 and "0.8444218515250481" in shown.pop()  # random.seed(0); random.random()


# -- without a sandbox


def test_without_a_sandbox_it_refuses_in_one_sentence(monkeypatch):
    with pytest.raises(
        NoIsolation, match="bubblewrap is not installed.*apt-get install bubblewrap.*trust_code"
    ) as told:
        find(path="/nowhere")
    assert "\n" not in str(told.value)
    monkeypatch.setattr(isolations.shutil, "which", lambda name, path=None: "/bin/false")
    with pytest.raises(NoIsolation, match="none holds here"):  # it is there, but does not work
        find()


@pytest.mark.skipif(
    subprocess.run(
        [shutil.which("bwrap") or "false", "--unshare-all", "--ro-bind", "/", "/", "true"], stderr=subprocess.DEVNULL
    ).returncode,
    reason="bubblewrap is absent or cannot make namespaces here",
)
def test_where_bubblewrap_works_a_level_holds():
    """So that a mistake of ours does not pass for a machine without sandboxes, on which all of these are skipped."""
    assert find().bwrap


def test_a_wrapper_that_isolates_nothing_is_found_out(tmp_path):
    """A program called bwrap that only runs the command: every part of the probe must see it."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    with pytest.raises(NoIsolation, match="none holds here"):
        find(path=str(tmp_path))


def test_trusted_code_runs_as_a_process_and_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    isolation.cache_clear()
    try:
        with pytest.raises(ValueError, match="sandbox"):
            build("code")
        verifier = build("code", 1.0, trust=True)
        right, endless = verifier([ADD, "while True: pass"], [{"tests": "assert add(1, 2) == 3"}] * 2)
    finally:
        isolation.cache_clear()
    assert (right.verdict, right.isolation, endless.verdict) == ("correct", "none", "timeout")


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("cgroup.controllers", {"G/memory.max": "1000", "G/pids.max": "40", "G/cgroup.procs": "0"}),
        ("none", {"memory/G/memory.limit_in_bytes": "1000", "pids/G/pids.max": "40", "pids/G/cgroup.procs": "0"}),
    ],
)
def test_a_control_group_in_both_layouts(tmp_path, marker, expected):
    """What is written where; that the kernel then keeps the limits is for the attacks to show."""
    for folder in ("memory", "pids"):
        (tmp_path / folder / "fiducial-999999999").mkdir(parents=True)  # left by a process that is gone
    (tmp_path / marker).touch()
    group = Group(1000, 40, tmp_path)
    group.settle()
    name = f"fiducial-{os.getpid()}"
    assert {path: (tmp_path / path.replace("G", name)).read_text() for path in expected} == expected
    assert not (tmp_path / "memory" / "fiducial-999999999").exists()


# -- its own plumbing

BREAKS = """
import os, signal, time
from fiducial.sandbox.spawn import Report

def work(isolation, limits, job):
    kind = job["completion"]
    if kind == "raise":
        raise KeyError("a mistake")
    if kind == "hang":
        time.sleep(60)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "wrong type":
        return Report("done", {"verdict": "broken", "why": "no such thing"})
    return Report("done", {"verdict": "correct", "passed": 1, "of": 1, "why": "fine"})
"""


@needs_sandbox
def test_a_fault_of_the_plumbing_is_a_typed_verdict(tmp_path):
    file = tmp_path / "breaks.py"
    file.write_text(BREAKS)
    verifier = Code()
    kinds = ["fine", "raise", "die", "hang", "wrong type", "fine"]
    with Pool(Target(str(file), "work"), timeout=3.0, workers=2) as verifier.pool:
        scores = verifier(kinds, [{"tests": "assert True"}] * len(kinds))
    assert [s.verdict for s in scores] == ["correct", "crashed", "crashed", "timeout", "crashed", "correct"]
    assert all(s.failed and s.value is None for s in scores[1:-1])  # the verifier's, never a zero
    assert "a mistake" in scores[1].why and "SIGKILL" in scores[2].why and "harness failed" in scores[4].why


@needs_sandbox
def test_a_worker_that_is_killed_costs_its_row_and_leaves_no_sandbox():
    verifier = Code(timeout=30.0, workers=1)
    mark = f"fid{os.getpid() % 100000}"
    program = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{mark}', 0, 0, 0)\ntime.sleep(600)"
    killer = threading.Thread(target=_kill_worker_when, args=(verifier, mark))
    killer.start()
    hurt, well = verifier([program, ADD], [{"tests": "assert add(1, 2) == 3"}] * 2)
    killer.join()
    assert hurt.verdict == "crashed" and hurt.failed and well.verdict == "correct"
    end = time.monotonic() + 5
    while _running(mark) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _running(mark)


def _running(mark):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += [pid] * (Path("/proc", pid, "comm").read_text().strip() == mark)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def _kill_worker_when(verifier, mark):
    while not _running(mark):
        time.sleep(0.02)
    os.kill(verifier.pool._workers[0].process.pid, signal.SIGKILL)


@needs_sandbox
def test_large_jobs_pass_through_full_pipes(code):
    """Tests, a completion and a report that are larger than any pipe."""
    tests = "DATA = '" + "x" * 3_000_000 + "'\nassert len(DATA) == size(DATA) == 3_000_000, DATA"
    score = one(code, "PAD = '" + "y" * 1_000_000 + "'\ndef size(text):\n    return len(text)", tests)
    assert score.verdict == "correct", score
    assert len(one(code, "def size(text):\n    return 0", tests).why) < 1000


# -- real problems


@pytest.fixture(scope="module")
def problems():
    return [json.loads(line) for line in DATA.read_text().splitlines()]


@needs_sandbox
@needs_data
def test_the_solutions_of_humaneval_pass_in_every_form(code, problems):
    solutions = [problem["canonical_solution"] for problem in problems]
    assert Counter(s.verdict for s in code(solutions, problems)) == {"correct": 60}
    forms = {
        "fenced": lambda p: f"Here:\n```python\n{p['prompt']}{p['canonical_solution']}```\nIt works.",
        "stripped": lambda p: p["canonical_solution"].strip(),
        "runs on": lambda p: p["canonical_solution"] + "\n\ndef another(x:\n    and so",
    }
    for number, (name, form) in enumerate(forms.items()):
        some = problems[number::5]
        assert {s.verdict for s in code([form(p) for p in some], some)} == {"correct"}, name


BROKEN = {
    "returns None": lambda solution: "    return None\n",
    "is empty": lambda solution: "",
    "is no Python": lambda solution: solution.rstrip() + " +\n",
    "exits": lambda solution: "    import sys; sys.exit(0)\n" + solution,
    "raises": lambda solution: "    raise NotImplementedError\n",
    "is off by one": lambda solution: "    def inner():\n" + "".join(f"    {x}\n" for x in solution.splitlines()) + OFF,
}
OFF = """
    def off(x):
        if isinstance(x, bool) or x is None: return not x
        if isinstance(x, (int, float)): return x + 1
        if isinstance(x, str): return x + "x"
        if isinstance(x, tuple): return x + (1,)
        return list(x)[1:] if x else [1]
    return off(inner())
"""


@needs_sandbox
@needs_data
@pytest.mark.parametrize("name", BROKEN)
def test_broken_solutions_of_humaneval_do_not_pass(code, problems, name):
    some = problems[:: 2 if name == "is off by one" else 6]
    scores = code([BROKEN[name](p["canonical_solution"]) for p in some], some)
    expected = {"is empty": {"unparseable"}, "exits": {"crashed"}}.get(name, {"wrong"})
    assert {s.verdict for s in scores} == expected, Counter(s.verdict for s in scores)


@needs_sandbox
@needs_data
def test_endless_loops_in_humaneval_time_out(problems):
    some = problems[:4]
    scores = Code(timeout=1.0)(["    while True: pass\n"] * 4, some)
    assert {s.verdict for s in scores} == {"timeout"} and all(s.own for s in scores)


@needs_sandbox
def test_a_sandbox_starts_quickly():
    """40 ms in the median on a quiet machine (docs/sandbox.md); here there may be others."""
    verifier = Code(workers=1)
    seconds = [s.seconds for s in verifier([ADD] * 21, [{"tests": "assert add(1, 2) == 3"}] * 21)]
    assert statistics.median(seconds) < 0.4


@needs_sandbox
def test_the_command_scores_a_file(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"completion": c, "tests": "assert add(1, 2) == 3"} for c in (ADD, ADD.replace("+", "*"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", "code", str(file), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["verdict"], row["isolation"]) for row in found] == [
        (v, isolation().level) for v in ("correct", "wrong")
    ]
    monkeypatch.setenv("PATH", "/nowhere")
    isolation.cache_clear()
    try:
        assert main(command) == 2
        told = capsys.readouterr()
        assert "install bubblewrap" in told.err and told.err.count("\n") == 1 and not told.out
        assert main([*command, "--i-trust-this-code"]) == 0
        found = json.loads(capsys.readouterr().out)
    finally:
        isolation.cache_clear()
    assert [(row["verdict"], row["isolation"]) for row in found] == [("correct", "none"), ("wrong", "none")]


def test_the_catalogue_names_it():
    assert set(VERIFIERS["code"].options) >= {"fraction", "max_tests", "memory_mb", "trust"}


@pytest.mark.slow
@needs_sandbox
def test_a_thousand_rows_of_which_a_fifth_is_hostile():
    from attack_corpus import FORGED, HEAVY

    hostile = [p.replace("{mark}", "fidmany") for p in (*FORGED.values(), *HEAVY.values())]
    completions = [hostile[i // 5 % len(hostile)] if i % 5 == 4 else ADD for i in range(1000)]
    began = time.monotonic()
    scores = Code(timeout=2.0)(completions, [{"tests": "assert add(1, 2) == 3\nassert add(2, 2) == 4"}] * 1000)
    seconds = time.monotonic() - began
    print(f"1,000 rows in {seconds:.0f} s: {Counter(s.verdict for s in scores)}")
    assert len(scores) == 1000 and seconds < 600
    for i, score in enumerate(scores):
        assert (score.verdict == "correct") == (i % 5 != 4) and not score.failed, (completions[i], score)
    assert not _running("fidmany")

"""The attack corpus: every verifier that runs code passes all of it, on whatever isolation this machine gives."""

import os
import socket
import subprocess
import sys
import time
import uuid

import pytest
from attack_corpus import ESCAPES, FORGED, HEAVY, PRETENDED, SECRET, SOLVED, SOLVED_EVENS, TELLTALE, wins

from fiducial.rewards import VERIFIERS, build
from fiducial.rewards.code import isolation
from fiducial.rewards.math import Math
from fiducial.rewards.regex import Regex
from fiducial.sandbox.isolation import NoIsolation

QUICK = 10.0  # seconds for what ends by itself
SHORT = 0.6  # seconds for what does not
RUNNERS = [name for name, entry in VERIFIERS.items() if "trust" in entry.options]  # those that run code
FORMS = [*RUNNERS, "code(fraction=True)"]
TESTS = f"""
WORD = {TELLTALE!r}
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(20, 22) == 42, WORD
    assert sorted([candidate(2, 2), candidate(0, 1)]) == [1, 4]
"""
PROGRAM = "import sys\na, b = map(int, input().split())\n"


def sandboxed():
    try:
        return isolation().level
    except NoIsolation as error:
        return str(error) and ""


pytestmark = pytest.mark.skipif(not sandboxed(), reason="bubblewrap is absent or holds nothing here")


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What there is to be seen, reached and changed outside."""
    folder = tmp_path_factory.mktemp("outside")
    for part in (folder, *list(folder.parents)[:-1]):
        if os.stat(part).st_uid == os.getuid() and str(part) not in ("/tmp", "/root"):
            part.chmod(0o755)
    (folder / "secret").write_text("secret")
    (folder / "open").mkdir(mode=0o777)
    (folder / "open").chmod(0o777)
    mark = f"fid{uuid.uuid4().hex[:8]}"
    victim = subprocess.Popen(["sleep", "600"])
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(f"\0{mark}")
        unix.listen()
        os.environ[SECRET] = "secret"
        yield {"folder": str(folder), "port": str(tcp.getsockname()[1]), "pid": str(victim.pid), "mark": mark}
        del os.environ[SECRET]
    assert victim.poll() is None, "an attack killed a process outside"
    victim.kill()
    victim.wait()
    assert not list((folder / "open").iterdir()), "an attack wrote outside"


def judge(name, programs, outside, timeout):
    """The score of each program; all are judged at once, side by side."""
    filled = []
    for program in programs:
        for key, value in outside.items():
            program = program.replace("{" + key + "}", value)
        filled.append(program)
    row = {"prompt": "Add two numbers.", "tests": TESTS, "entry_point": "add"}
    began = time.monotonic()
    scores = build(name, timeout)(filled, [row] * len(filled))
    assert time.monotonic() - began < 10 + len(filled) * (timeout + 1), "hostile rows held the others up"
    assert {score.isolation for score in scores} == {isolation().level}
    return scores


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def forged(form, outside):
    return dict(zip(FORGED, judge(form, list(FORGED.values()), outside, QUICK), strict=True))


@pytest.fixture(scope="module", params=RUNNERS)
def escaped(request, outside):
    programs = [wins(attack) for attack in ESCAPES.values()]
    return dict(zip(ESCAPES, judge(request.param, programs, outside, QUICK), strict=True))


@pytest.fixture(scope="module", params=RUNNERS)
def held(request, outside):
    return dict(zip(HEAVY, judge(request.param, list(HEAVY.values()), outside, SHORT), strict=True))


def named(mark):
    """The processes of this name on the machine."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                found += [pid] * (file.read().strip() == mark)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def test_there_is_a_verifier_to_attack():
    assert "code" in RUNNERS


def test_a_solution_passes_and_an_attack_that_wins_would_be_told(form, outside):
    right, won, lost = judge(form, [SOLVED, wins("return True"), wins("return False")], outside, QUICK)
    assert (right.verdict, right.value) == (won.verdict, won.value) == ("correct", 1.0)
    assert (lost.verdict, lost.value) == ("wrong", 0.0)


@pytest.mark.parametrize("attack", FORGED)
def test_a_pass_is_not_forged(forged, attack):
    score = forged[attack]
    assert score.verdict not in ("correct", "skipped") and not score.failed, score
    assert score.value is None or score.value < 1, score


@pytest.mark.parametrize("attack", ESCAPES)
def test_nothing_outside_is_reached(escaped, attack):
    score = escaped[attack]
    assert (score.verdict, score.value) == ("wrong", 0.0), score  # it ran to its end, and did not get what it wanted


@pytest.mark.parametrize("attack", HEAVY)
def test_what_is_heavy_costs_its_row_only(held, attack):
    score = held[attack]
    assert score.verdict not in ("correct", "skipped") and not score.failed, score


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("attack", ["ignores signals", "fork bomb", "daemon", "zombies", "memory bomb in children"])
def test_nothing_outlives_its_row(name, outside, attack):
    judge(name, [HEAVY[attack]], outside, 0.5)
    assert not named(outside["mark"])  # at once, not a moment later


@pytest.mark.skipif(os.getuid() != 0, reason="some of what these reach is root's")
@pytest.mark.parametrize(
    "attack",
    [
        *("the users of the machine", "a file outside", "a file outside by a symbolic link", "a file written outside"),
        *("the network of the machine", "an abstract socket", "another process", "the other processes"),
        *("shared memory without limit", "control groups", "a new user namespace", "disk without limit"),
        "the environment",
    ],
)
def test_the_same_attack_wins_without_a_sandbox(outside, attack, tmp_path):
    """So that none of them is empty."""
    program = wins(ESCAPES[attack])
    for key, value in outside.items():
        program = program.replace("{" + key + "}", value)
    program = program.replace("'/tmp/link'", repr(str(tmp_path / "link")))
    program = program.replace('f"/tmp/{number}"', f'f"{tmp_path}/{{number}}"')
    program = program.replace('f"/dev/shm/{number}"', f'f"/dev/shm/{outside["mark"]}-{{number}}"')
    ends = subprocess.run([sys.executable, "-c", program + "\nprint(add(20, 22))"], capture_output=True, text=True)
    for path in os.listdir("/dev/shm"):
        if path.startswith(outside["mark"]):
            os.remove(f"/dev/shm/{path}")
    if os.path.exists(f"{outside['folder']}/open/written"):
        os.remove(f"{outside['folder']}/open/written")
    assert ends.stdout.strip() == "42", ends


BOX = """
class Box:
    def __init__(self, held):
        self.held = held

    def agrees(self, other):
        return self.held == other

def evens(n):
    "The even numbers up to n, as a set."
"""


@pytest.mark.parametrize("test", ["4 in candidate(10)", "candidate(4).issuperset({2})"])
def test_truths_are_not_pretended(form, test):
    row = {"prompt": "Write evens(n).", "tests": f"def check(candidate):\n    assert {test}", "entry_point": "evens"}
    honest, *others = build(form, QUICK)([SOLVED_EVENS, *PRETENDED.values()], [row] * (len(PRETENDED) + 1))
    assert honest.verdict == "correct", honest
    for attack, score in zip(PRETENDED, others, strict=True):
        assert score.verdict in ("wrong", "crashed") and not score.failed and score.value != 1, (attack, score)


def test_a_loop_over_calls_does_not_end_before_its_time(form):
    row = {"tests": "assert all(map(evens, [2, 4]))", "entry_point": "evens"}
    honest, forged = build(form, QUICK)([SOLVED_EVENS, "def evens(n):\n    raise StopIteration"], [row] * 2)
    assert (honest.verdict, forged.verdict) == ("correct", "wrong"), forged


def test_objects_of_the_prompts_classes_keep_its_methods(form):
    row = {"prompt": BOX, "tests": "assert evens(4).agrees({2, 4})", "entry_point": "evens"}
    programs = [
        "    return Box({2, 4})",
        "    found = Box(set())\n    found.agrees = lambda other: True\n    return found",
    ]
    honest, forged = build(form, QUICK)(programs, [row] * 2)
    assert honest.verdict == "correct", honest
    assert forged.verdict in ("wrong", "crashed") and not forged.failed, forged


def test_a_program_with_input_and_output_is_not_forged(form):
    cases = [{"input": "1 2\n", "output": "3"}, {"input": "20 22\n", "output": "42"}]
    hostile = ["sys.exit(0) at the top", "forged output", "os._exit(0) at the top", "patched grader"]
    programs = [PROGRAM + "print(a + b)", *(PROGRAM + FORGED[attack] for attack in hostile)]
    honest, *others = build(form, QUICK)(programs, [{"prompt": "", "tests": cases}] * len(programs))
    assert honest.verdict == "correct", honest
    for score in others:
        assert score.verdict in ("wrong", "crashed") and not score.failed and not score.value, score


def test_a_program_that_prints_without_end_is_cut(form):
    endless = "while True: print('x' * 100_000)"
    (score,) = build(form, 60.0)([endless], [{"prompt": "", "tests": [{"input": "", "output": "x"}]}])
    assert score.verdict == "wrong" and "more than the limit" in score.why, score
    assert score.seconds < 20, "it was cut while it was read, not at the deadline"


# -- verifiers that run no code are attacked through what they parse


def test_a_pattern_that_backtracks_costs_its_row_only():
    hostile = [(r"(a+)+$", "a" * 60 + "b"), (r"(x+x+)+y", "x" * 60), (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 80)]
    patterns, texts = zip(*hostile, ("^ab$", "ab"), strict=True)
    *slow, quick = Regex(timeout=0.5)(texts, [{"pattern": pattern} for pattern in patterns])
    assert {score.verdict for score in slow} == {"timeout"} and quick.verdict == "correct"


LATEX = {
    "a tower of powers": r"\boxed{9^{9^{9^{9^9}}}}",
    "a factorial": r"\boxed{99999999999!}",
    "braces": r"\boxed{" + "{" * 3000 + "1" + "}" * 3000 + "}",
    "open boxes": r"\boxed{" * 3000,
    "nested roots": r"\boxed{" + r"\sqrt{" * 200 + "2" + "}" * 201,
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 300 + "2" + "}" * 301,
    "digits": r"\boxed{" + "9" * 100_000 + "}",
    "a product": r"\boxed{" + "(x+1)" * 500 + "}",
    "an integral": r"\boxed{\int_0^{\infty} \frac{\sin(x^{x^x})}{x^{99999}} dx}",
    "white space": r"\boxed{" + " " * 200_000 + "}",
    "no text": "\\boxed{\x00\udcff}",
}


@pytest.fixture(scope="module")
def formulas():
    texts = [text for text in LATEX.values() for text in (text, r"\boxed{42}")]  # an honest row after each
    began = time.monotonic()
    scores = Math(timeout=1.0, workers=2)(texts, [{"answer": "42"}] * len(texts))
    assert time.monotonic() - began < 10 + 5 * len(LATEX)
    assert {score.verdict for score in scores[1::2]} == {"correct"}
    return dict(zip(LATEX, scores[::2], strict=True))


@pytest.mark.parametrize("attack", LATEX)
def test_latex_costs_its_row_only(formulas, attack):
    assert formulas[attack].verdict in ("wrong", "unparseable", "timeout", "crashed"), formulas[attack]

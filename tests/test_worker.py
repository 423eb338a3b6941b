"""Worker processes under fault injection: every row is accounted for, in bounded time, and nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fiducial.rewards.worker import Pool, RewardError, Target

FAULTS = """
import os, re, signal, subprocess, sys, threading, time

def double(x):
    return 2 * x

def pid(_=None):
    return os.getpid()

def misbehave(kind, size=0):
    if kind == "raise":
        raise KeyError("no such thing")
    if kind == "hang":
        while True:
            pass
    if kind == "hang in C":  # the regex engine holds the interpreter
        re.match(r"(a+)+$", "a" * 60 + "b")
    if kind == "sleep":
        time.sleep(60)
    if kind == "exit":
        os._exit(3)
    if kind == "sys.exit":
        sys.exit(5)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segfault":
        import ctypes
        ctypes.string_at(0)
    if kind == "big":
        return b"x" * size
    if kind == "unpicklable":
        return lambda: 1
    if kind == "noise":
        print("garbage " * 10000)
        os.write(1, b"\\x00\\xff" * 10000)
        sys.stdout.flush()
        return "quiet"
    if kind == "fork":
        return "child" if os.fork() == 0 else "parent"
    if kind == "memory":
        return len(bytearray(8 << 30))
    if kind == "grandchild":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with open(size, "w") as file:
            file.write(str(child.pid))
        time.sleep(60)
    if kind == "orphan hang":
        with open(size, "w") as file:
            file.write(str(os.getpid()))
        re.match(r"(a+)+$", "a" * 60 + "b")
    if kind == "local class":
        class Local: pass
        return Local()
    return kind

def none_missing(a, *, b=1, **rest):
    return a
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    file = tmp_path_factory.mktemp("worker") / "faults.py"
    file.write_text(FAULTS)
    return str(file)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def calls(*kinds):
    return [((kind,), {}) for kind in kinds]


def test_results_keep_the_order_of_the_calls(faults):
    with Pool(Target(faults, "double"), timeout=20, workers=2) as pool:
        outcomes = pool.map([((i,), {}) for i in range(500)])
        assert [outcome.value for outcome in outcomes] == [2 * i for i in range(500)]
        assert all(outcome.status == "result" and outcome.seconds >= 0 for outcome in outcomes)
        assert pool.map([]) == []


def test_every_fault_costs_its_own_row_only(faults, capfd):
    kinds = ["a", "raise", "exit", "b", "sys.exit", "kill", "c", "unpicklable", "noise", "segfault", "local class", "d"]
    with Pool(Target(faults, "misbehave"), timeout=20, workers=2) as pool:
        outcomes = dict(zip(kinds, pool.map(calls(*kinds)), strict=True))
    for kind in "abcd":
        assert (outcomes[kind].status, outcomes[kind].value) == ("result", kind)
    assert (outcomes["noise"].status, outcomes["noise"].value) == ("result", "quiet")
    whys = {kind: outcome.why for kind, outcome in outcomes.items() if outcome.status == "crashed"}
    assert whys["raise"] == "KeyError: 'no such thing'"
    assert whys["exit"] == "its process exited with code 3"
    assert whys["sys.exit"] == "SystemExit: 5"
    assert whys["kill"] == "its process was killed by SIGKILL"
    assert whys["segfault"] == "its process was killed by SIGSEGV"
    assert "local object" in whys["unpicklable"] and "local object" in whys["local class"]  # cannot be pickled
    assert set(whys) == set(kinds) - {"a", "b", "c", "d", "noise"}
    assert (
        outcomes["raise"].trace.startswith("Traceback") and 'raise KeyError("no such thing")' in outcomes["raise"].trace
    )
    assert "child.py" not in outcomes["raise"].trace  # the user's own lines only
    assert capfd.readouterr().out == ""  # what a verifier prints goes to standard error


def test_hangs_are_killed_on_time_even_inside_c_code(faults):
    kinds = ["hang", "ok", "hang in C", "ok", "sleep", "ok"]
    start = time.monotonic()
    with Pool(Target(faults, "misbehave"), timeout=1.0, workers=2) as pool:
        outcomes = pool.map(calls(*kinds))
    assert [outcome.status for outcome in outcomes] == ["timeout", "result"] * 3
    assert all(outcome.why == "no result within 1 s" for outcome in outcomes[::2])
    assert all(1.0 <= outcome.seconds < 6 for outcome in outcomes[::2])
    assert time.monotonic() - start < 20  # 3 limits over 2 processes, plus starting 5 of them on a busy machine


def test_large_arguments_and_results_pass_and_larger_than_the_limit_is_a_crash(faults):
    with Pool(Target(faults, "misbehave"), timeout=60, workers=2) as pool:
        big, huge, after = pool.map([(("big", 20 << 20), {}), (("big", 100 << 20), {}), (("after",), {})])
        assert big.status == "result" and big.value == b"x" * (20 << 20)
        assert huge.status == "crashed" and "more than the limit of 67108864" in huge.why
        assert after.value == "after"
        text = "y" * (10 << 20)  # both directions full at once would deadlock blocking pipes
        assert [outcome.value == text for outcome in pool.map(calls(text, text, text))] == [True] * 3


def test_a_fork_made_by_a_verifier_does_not_answer_twice(faults):
    with Pool(Target(faults, "misbehave"), timeout=20) as pool:
        outcomes = pool.map(calls("fork", "a", "fork", "b"))
    assert [outcome.value for outcome in outcomes] == ["parent", "a", "parent", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux only")
def test_memory_is_limited(faults):
    with Pool(Target(faults, "misbehave", memory=1 << 30), timeout=20) as pool:
        first, second = pool.map(calls("memory", "after"))
    assert first.status == "crashed" and first.why == "MemoryError"
    assert second.value == "after"


def test_arguments_that_cannot_be_sent_are_a_crash_of_that_row(faults):
    with Pool(Target(faults, "double"), timeout=20) as pool:
        outcomes = pool.map([((1,), {}), ((lambda: 1,), {}), ((2,), {})])
    assert [outcome.value for outcome in outcomes] == [2, None, 4]
    assert outcomes[1].status == "crashed" and outcomes[1].why.startswith("its arguments cannot be sent to a process")


def test_processes_are_reused_and_replaced_only_after_a_kill(faults):
    with Pool(Target(faults, "pid"), timeout=20) as pool:
        pids = {outcome.value for _ in range(3) for outcome in pool.map([((), {})] * 5)}
        assert len(pids) == 1
        (pid,) = pids
        os.kill(pid, signal.SIGKILL)  # dies between two rows: no row pays for it
        assert gone_within(pid, 5)
        (outcome,) = pool.map([((), {})])
        assert outcome.status == "result" and outcome.value != pid


def test_the_whole_process_group_is_killed(faults, tmp_path):
    note = tmp_path / "pid"
    with Pool(Target(faults, "misbehave"), timeout=1.5) as pool:
        (outcome,) = pool.map([(("grandchild", str(note)), {})])
    assert outcome.status == "timeout"
    assert gone_within(int(note.read_text()), 5)


def test_close_leaves_no_process_and_the_pool_can_be_used_again(faults):
    pool = Pool(Target(faults, "pid"), timeout=20, workers=2)
    pids = {outcome.value for outcome in pool.map([((), {})] * 20)}
    pool.close()
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")  # not even a zombie
    assert pool.map([((), {})])[0].value not in pids
    last = pool.map([((), {})])[0].value
    del pool  # collected: ends its processes too
    assert gone_within(last, 5)


def test_closing_the_iterator_kills_what_still_runs(faults, tmp_path):
    note = tmp_path / "pid"
    pool = Pool(Target(faults, "misbehave"), timeout=60, workers=2)
    iterator = pool.each([(("orphan hang", str(note)), {}), (("quick",), {})])
    assert next(iterator)[1].value == "quick"
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)
    iterator.close()
    assert not alive(int(note.read_text()))
    pool.close()


def test_works_from_threads_and_shares_one_pool(faults):
    values: dict[int, list[int]] = {}
    with Pool(Target(faults, "double"), timeout=20, workers=2) as pool:

        def work(k: int) -> None:
            values[k] = [outcome.value for outcome in pool.map([((k + i,), {}) for i in range(50)])]

        threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert values == {1000 * k: [2 * (1000 * k + i) for i in range(50)] for k in range(4)}


def test_what_cannot_be_loaded_is_said_at_once(tmp_path, faults):
    broken = tmp_path / "broken.py"
    broken.write_text("import json\n\nvalue = 1 / 0\n")
    with pytest.raises(RewardError, match=r"cannot load .*broken.py:3: ZeroDivisionError: division by zero$"):
        Pool(Target(str(broken), "f"), timeout=5).map([((), {})])
    with pytest.raises(ValueError, match="has no function 'absent'; it has: double, pid, misbehave"):
        Pool(Target(faults, "absent"), timeout=5).map([((), {})])
    dying = tmp_path / "dying.py"
    dying.write_text("import os\nos._exit(7)\n")
    with pytest.raises(RewardError, match=r"cannot load .*dying.py: its process exited with code 7"):
        Pool(Target(str(dying), "f"), timeout=5).map([((), {})])
    with pytest.raises(ValueError, match="timeout must be above 0"):
        Pool(Target(faults, "double"), timeout=0)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        Pool(Target(faults, "double"), timeout=1, workers=0)


def test_parameters_come_from_the_function(faults):
    with Pool(Target(faults, "none_missing"), timeout=5) as pool:
        assert pool.parameters() == [
            ("a", "POSITIONAL_OR_KEYWORD", True),
            ("b", "KEYWORD_ONLY", False),
            ("rest", "VAR_KEYWORD", False),
        ]


def run_script(tmp_path, body: str) -> subprocess.Popen:
    script = tmp_path / "script.py"  # no __main__ guard: a spawned process must not run it again
    script.write_text("from fiducial.rewards.worker import Pool, Target\n" + textwrap.dedent(body))
    return subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_children_die_with_their_parent_even_inside_c_code(tmp_path, faults):
    note, idle = tmp_path / "busy", tmp_path / "idle"
    parent = run_script(
        tmp_path,
        f"""
        idle = Pool(Target({faults!r}, "pid"), timeout=60)
        with open({str(idle)!r}, "w") as file:
            file.write(str(idle.map([((), {{}})])[0].value))
        Pool(Target({faults!r}, "misbehave"), timeout=600).map([(("orphan hang", {str(note)!r}), {{}})])
        """,
    )
    end = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    pids = [int(note.read_text()), int(idle.read_text())]
    assert all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    assert all(gone_within(pid, 5) for pid in pids)


def test_a_forked_child_starts_processes_of_its_own(tmp_path, faults):
    parent = run_script(
        tmp_path,
        f"""
        import os
        pool = Pool(Target({faults!r}, "pid"), timeout=30)
        before = pool.map([((), {{}})])[0].value
        child = os.fork()
        inside = pool.map([((), {{}})])[0].value
        if child == 0:
            pool.close()
            os._exit(0 if inside != before else 1)
        _, status = os.waitpid(child, 0)
        raise SystemExit(os.waitstatus_to_exitcode(status) or inside != before)
        """,
    )
    assert parent.wait(60) == 0


def test_buffered_files_of_a_verifier_are_written_when_the_pool_closes(tmp_path):
    log = tmp_path / "log"
    file = tmp_path / "logging_reward.py"
    file.write_text(f"log = open({str(log)!r}, 'w')\ndef f(x):\n    log.write(x)\n")
    with Pool(Target(str(file), "f"), timeout=20) as pool:
        pool.map(calls("one ", "two"))
    assert log.read_text() == "one two"


def test_a_child_imports_no_torch(tmp_path):
    """Starting is fast because the built-in checks need neither torch nor the package of rewards."""
    from fiducial.rewards.worker import CHILD

    file = tmp_path / "modules.py"
    source = CHILD.with_name("checks.py")
    file.write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('checks', {str(source)!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "def f():\n    return sorted(sys.modules)\n"
    )
    with Pool(Target(str(file), "f"), timeout=20) as pool:
        modules = pool.map([((), {})])[0].value
    assert "fiducial.core.answers" in modules
    assert not [name for name in modules if re.match(r"(torch|numpy|sympy)(\.|$)", name)]

"""The run folder: lines are whole or absent, files are old or new, one process at a time."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiducial import store
from fiducial.store import RunFolder

ROOT = Path(store.__file__).parents[1]
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def filled(folder: RunFolder, steps: int) -> RunFolder:
    """A run whose every kind of file has one record a step."""
    for step in range(1, steps + 1):
        folder.append_metrics({"step": step, "loss": 1.0 / step})
        folder.append_journal({"step": step, "seed": step * 7})
        folder.append_sample({"step": step, "phase": "during", "prompt": "p", "completion": "c"})
        folder.write_rollouts(step, [{"completion": "c", "reward": float(step)}])
    return folder


def test_create_writes_settings_and_where_they_came_from(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run").create({"method": "dpo", "hparams": {"beta": 0.1}})
    on_disk = json.loads((folder.path / "config.json").read_text())
    assert on_disk["method"] == "dpo"
    assert on_disk["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # +cpu, +cu130: not everywhere
    assert on_disk["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert folder.read_config() == {"method": "dpo", "hparams": {"beta": 0.1}}
    assert set(folder.provenance()) == {"versions", "commit"}


def test_a_used_folder_is_refused_with_its_step_and_the_way_out(tmp_path):
    folder = filled(RunFolder(tmp_path).create({}), 3)
    with pytest.raises(
        ValueError, match=r"already holds a run \(step 3\): add --resume to go on, or choose another --out"
    ):
        folder.create({})


def test_a_folder_with_other_files_may_be_used_but_a_file_may_not(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).create({})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="notes.txt is a file: choose another --out"):
        RunFolder(tmp_path / "notes.txt").create({})
    for path in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "deep" / "run"):
        with pytest.raises(ValueError, match="notes.txt is a file: choose another --out"), RunFolder(path).lock():
            pass


def test_why_a_run_stopped_is_what_the_first_process_says(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_stop() is None
    folder.write_stop({"step": 3, "reason": "the cause"})
    folder.write_stop({"step": 3, "reason": "connection closed by peer"})  # another rank, which only met the end
    assert folder.read_stop() == {"step": 3, "reason": "the cause"}
    folder.forget_stop()
    folder.forget_stop()
    assert folder.read_stop() is None and list(tmp_path.iterdir()) == []


def test_reading_a_folder_without_a_run(tmp_path):
    folder = RunFolder(tmp_path / "absent")
    assert folder.read_metrics() == [] and folder.read_samples() == [] and folder.last_step() is None
    with pytest.raises(ValueError, match="absent is not a run folder: it has no config.json"):
        folder.read_config()


def test_numbers_that_are_not_finite_become_null_and_are_counted(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics(
        {"step": 1, "loss": math.nan, "kl": torch.tensor(math.inf), "reward": torch.tensor(0.5), "x": None}
    )
    folder.append_metrics({"step": 2, "loss": 0.25})
    assert folder.read_metrics() == [
        {"step": 1, "loss": None, "kl": None, "reward": 0.5, "x": None, "nonfinite": 2},
        {"step": 2, "loss": 0.25},
    ]


@given(cut=st.integers(0, 200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_anywhere_loses_at_most_the_line_it_hits(tmp_path, cut):
    """However many bytes a killed process left, the whole lines are read, and the next line is readable too."""
    folder = RunFolder(tmp_path)
    rows = [{"step": step, "loss": step / 4} for step in range(1, 6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    cut = min(cut, len(text))
    folder.metrics.write_text(text[:cut])
    ends = [i for i, character in enumerate(text) if character == "\n"]
    survivors = sum(end <= cut for end in ends)  # cut == end keeps the object and loses only its newline
    assert folder.read_metrics() == rows[:survivors]
    folder.append_metrics({"step": 9})
    assert folder.read_metrics() == [*rows[:survivors], {"step": 9}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, is not valid JSON"):
        folder.read_metrics()


def test_a_cut_line_longer_than_one_read_is_removed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.samples.write_text('{"step": 1}\n{"completion": "' + "x" * 200_000)
    folder.append_sample({"step": 2, "phase": "after"})
    assert folder.read_samples() == [{"step": 1}, {"step": 2, "phase": "after"}]


def test_a_full_disk_names_the_folder_and_leaves_no_partial_line(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"step": 1})
    real, calls = os.write, []

    def full(handle, data):
        calls.append(1)
        if len(calls) == 1:
            return real(handle, bytes(data)[:5])  # the last free bytes
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(
            OSError, match=f"the disk is full: cannot write metrics.jsonl in {tmp_path}; free some space"
        ) as e:
            folder.append_metrics({"step": 2, "loss": 0.5})
        assert e.value.errno == errno.ENOSPC
    assert folder.metrics.read_text() == '{"step":1}\n'
    folder.append_metrics({"step": 2})
    assert [row["step"] for row in folder.read_metrics()] == [1, 2]


def test_a_full_disk_keeps_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_json("data.json", {"rows": 1})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full: cannot write data.json in"):
        folder.write_json("data.json", {"rows": 2})
    assert folder.read_json("data.json") == {"rows": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


def test_truncate_after_forgets_every_kind_of_record_beyond_the_step(tmp_path):
    folder = filled(RunFolder(tmp_path), 5)
    folder.append_metrics({"note": "a line without a step stays"})
    folder.truncate_after(3)
    assert [row.get("step") for row in folder.read_metrics()] == [1, 2, 3, None]
    assert [row["step"] for row in folder.read_journal()] == [1, 2, 3]
    assert [row["step"] for row in folder.read_samples()] == [1, 2, 3]
    assert folder.rollout_steps() == [1, 2, 3] and folder.last_step() == 3


def test_truncated_and_continued_equals_never_interrupted(tmp_path):
    """What exact resume needs of the store: the same bytes as the run that was not killed."""
    straight = filled(RunFolder(tmp_path / "a"), 6)
    resumed = filled(RunFolder(tmp_path / "b"), 4)
    resumed.metrics.write_bytes(resumed.metrics.read_bytes() + b'{"step":5,"lo')
    resumed.truncate_after(2)
    for step in range(3, 7):
        resumed.append_metrics({"step": step, "loss": 1.0 / step})
    assert resumed.metrics.read_bytes() == straight.metrics.read_bytes()


@given(rows=st.lists(st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4), max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rollouts_come_back_as_they_were(tmp_path, rows):
    folder = RunFolder(tmp_path)
    folder.write_rollouts(7, rows)
    names = {name for row in rows for name in row}
    expected = [{name: row.get(name) for name in names} for row in rows]
    assert folder.read_rollouts(7) == (expected if names else [])


def test_rollouts_have_typed_columns_where_they_can(tmp_path):
    import pyarrow.parquet as parquet

    rows = [
        {"prompt": "2+2", "token_ids": [1, 2], "mask": [False, True], "reward": 1.0, "scores": {"math": 1.0}},
        {"prompt": "half a character \ud83d", "token_ids": [], "mask": [], "reward": None, "scores": {}},
    ]
    folder = RunFolder(tmp_path)
    schema = parquet.read_schema(folder.write_rollouts(12, rows))
    assert folder.rollouts.joinpath("step-000012.parquet").exists()
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    assert kinds["token_ids"] == "list<element: int64>" and kinds["mask"] == "list<element: bool>"
    assert kinds["reward"] == "double" and kinds["scores"] == "string"
    assert folder.read_rollouts(12) == rows


def test_missing_rollouts_say_which_there_are(tmp_path):
    folder = filled(RunFolder(tmp_path), 2)
    with pytest.raises(ValueError, match="no rollouts of step 9: it has those of steps 1, 2"):
        folder.read_rollouts(9)


def test_a_sample_needs_a_known_phase(tmp_path):
    with pytest.raises(ValueError, match="phase must be one of before, during, after; it is 'later'"):
        RunFolder(tmp_path).append_sample({"phase": "later"})


def test_a_second_holder_is_refused_and_the_first_lets_go(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.lock():
        with pytest.raises(ValueError, match=f"is in use by process {os.getpid()}: wait for it, stop it"):
            with RunFolder(tmp_path).lock():
                pass
    with folder.lock():
        pass


HOLD = """
import os, sys, time
from fiducial.store import RunFolder
with RunFolder(sys.argv[1]).lock():
    if os.fork() == 0:  # a verifier's worker that outlives its parent must not keep the folder
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_kill_9_releases_the_lock_even_while_a_forked_child_lives(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"is in use by process {holder.pid}"):
            with RunFolder(tmp_path).lock():
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # it still lives
        with RunFolder(tmp_path).lock():
            assert (tmp_path / ".lock").read_text() == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


WRITE = """
import sys
from fiducial.store import RunFolder
folder = RunFolder(sys.argv[1])
print("ready", flush=True)
for step in range(1, 10**9):
    folder.append_metrics({"step": step, "text": "x" * 3000})
    folder.write_json("data.json", {"step": step, "text": "x" * 3000})
"""


def test_killed_while_writing_everything_stays_readable(tmp_path):
    for delay in (0.01, 0.04, 0.11):
        folder = RunFolder(tmp_path / str(delay))
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(folder.path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        steps = [row["step"] for row in folder.read_metrics()]
        assert steps == list(range(1, len(steps) + 1))
        whole = folder.read_json("data.json")
        assert whole is None or len(whole["text"]) == 3000


def test_commit_is_none_for_a_file_that_git_does_not_know(tmp_path, monkeypatch):
    copy = tmp_path / "store.py"
    copy.write_text("")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(store, "__file__", str(copy))
    assert store.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "add", "store.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert store.commit() == head
    copy.write_text("changed = True\n")
    assert store.commit() == head + "+changes"

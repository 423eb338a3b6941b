"""What is shown of a run while it trains, and what it leaves."""

import io
import math
import sys

import pytest

from fiducial.store import RunFolder
from fiducial.train.log import Logger, headline


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_headlines_are_those_of_the_kind_of_run():
    assert headline({"loss": 0.0123, "reward": 0.625, "kl": 0.02, "grad_norm": 1}) == "reward 0.625  kl 0.02"
    assert (
        headline({"loss": 0.69, "rewards/accuracies": 0.5, "rewards/chosen": -0.25})
        == "loss 0.69  accuracy 0.5  chosen -0.25"
    )
    assert headline({"loss": math.nan}) == headline({"loss": None}) == "loss not finite"


def test_without_a_terminal_there_is_a_line_every_tenth_and_every_step_is_kept(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    with Logger(folder, "sft", 40) as log:
        for step in range(1, 41):
            log.log(step, {"loss": 1 / step})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"step {step}/40" for step in range(4, 41, 4)]
    assert lines[0] == "sft  step 4/40  loss 0.25"
    assert folder.read_metrics() == [{"step": step, "loss": 1 / step} for step in range(1, 41)]


def test_a_held_out_value_is_on_the_line_where_it_was_measured_and_the_last_step_is_told(tmp_path, capsys):
    with Logger(RunFolder(tmp_path), "sft", 25) as log:
        log.log(0, {"eval/loss": 3.0})
        for step in range(1, 26):
            log.log(step, {"loss": 1 / step})
            if step == 13:
                log.log(step, {"eval/loss": 2.0, "eval/loss/low": 1.5})
        log.log(25, {"eval/loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "held-out" in line] == [
        "sft  step 0/25  held-out loss 3",
        "sft  step 13/25  held-out loss 2",
        "sft  step 25/25  held-out loss 1",
    ]
    assert lines[-2] == "sft  step 25/25  loss 0.04"


def test_the_last_step_of_a_run_that_went_on_is_told(tmp_path, capsys):
    """Step 39 and step 40 of 400 are in the same tenth of a longer run, but here 40 is the end."""
    with Logger(RunFolder(tmp_path), "sft", 401, start=400) as log:
        log.log(401, {"loss": 1.0})
    assert capsys.readouterr().err.splitlines() == ["sft  step 401/401  loss 1"]


def test_a_run_that_goes_on_does_not_tell_the_past_again(tmp_path, capsys):
    with Logger(RunFolder(tmp_path), "sft", 40, start=20) as log:
        for step in range(21, 41):
            log.log(step, {"loss": 1.0})
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == [
        "24/40",
        "28/40",
        "32/40",
        "36/40",
        "40/40",
    ]


def test_show_false_is_silent_but_keeps_the_numbers(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    with Logger(folder, "sft", 1, show=False) as log:
        log.log(1, {"loss": 1.0})
        log.note("quiet")
    assert capsys.readouterr() == ("", "")
    assert folder.read_metrics() == [{"step": 1, "loss": 1.0}]


def test_on_a_terminal_there_is_a_bar_with_the_latest_numbers(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "140")
    with Logger(RunFolder(tmp_path), "grpo", 10) as log:
        log.log(0, {"eval/pass@1": 0.5})
        log.log(7, {"reward": 0.625})
        log.note("a [note] about step 7")
    shown = terminal.getvalue()
    assert "7/10" in shown and "reward 0.625  pass@1 0.5" in shown  # the evaluation of step 0 stays in sight
    assert "a [note] about step 7" in shown and "step 7/10" not in shown
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown  # the cursor is back


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Logger(RunFolder(tmp_path), "sft", 2, show=False, tensorboard=True) as log:
        log.log(1, {"loss": 0.5})
        log.log(2, {"loss": 0.25, "lr": 0.1})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert events.Scalars("lr")[0].value == pytest.approx(0.1)


def test_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard = true needs a package: pip install 'fiducial\[tensorboard\]'"):
        Logger(RunFolder(tmp_path), "sft", 2, tensorboard=True)

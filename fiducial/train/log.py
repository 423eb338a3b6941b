"""What a person sees of a run while it trains, and what stays: a progress bar and metrics.jsonl."""

from __future__ import annotations

import math
import sys
from typing import Any

from fiducial.store import RunFolder

# The few numbers that matter, in the order they are shown; a run has those of its kind. The loss of a policy gradient
# says nothing, so it is shown only where there is no reward.
HEADLINES = {
    "reward": "reward",
    "loss": "loss",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen",
    "completions/mean_length": "length",
    "kl": "kl",
    "eval/pass@1": "pass@1",
    "eval/accuracy": "held-out accuracy",
    "eval/rewards/accuracies": "held-out accuracy",
    "eval/loss": "held-out loss",
}
LINES = 10  # without a terminal, about so many lines in a run


class Logger:
    """Writes each step to metrics.jsonl and shows it; use as a context manager.

    On a terminal a progress bar on standard error, with the latest numbers; elsewhere a line about every tenth of the
    run and for its last step, and one for each evaluation, each with the numbers of its own. `show` = False shows
    nothing. `start` is the step that the run goes on from. `tensorboard` also writes event files under tensorboard/.
    """

    def __init__(
        self,
        folder: RunFolder,
        run_name: str,
        total_steps: int,
        *,
        start: int = 0,
        show: bool = True,
        tensorboard: bool = False,
    ):
        self.folder, self.run_name, self.total_steps, self.show = folder, run_name, total_steps, show
        self._latest: dict[str, Any] = {}
        self._told = start * LINES // max(total_steps, 1)
        self._writer = _tensorboard_writer(folder, start) if tensorboard else None
        self._bar = _progress_bar(run_name, total_steps, start) if show and sys.stderr.isatty() else None

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Add a line: `step` steps are done (0: before the first), and this is what the last of them measured."""
        self.folder.append_metrics({"step": step, **metrics})
        self._latest.update(metrics)
        if self._writer:
            for name, value in metrics.items():
                self._writer.add_scalar(name, float(value), step)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=headline(self._latest))
        elif self._is_due(step, metrics) and (numbers := headline(metrics)):
            self.note(f"{self.run_name}  step {step}/{self.total_steps}  {numbers}")

    def _is_due(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether a line is due without a terminal."""
        if any(name.startswith("eval/") for name in metrics):
            return True
        before, self._told = self._told, step * LINES // max(self.total_steps, 1)
        return self._told > before or step == self.total_steps

    def note(self, text: str) -> None:
        """Show a sentence without disturbing the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.show:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was and finish the event files."""
        if self._bar:
            self._bar.stop()
        if self._writer:
            self._writer.close()


def headline(metrics: dict[str, Any]) -> str:
    """The few numbers that matter, as one short text.

    >>> headline({"loss": 0.01, "reward": 0.625, "completions/mean_length": 38.25, "lr": 1e-4})
    'reward 0.625  length 38.2'
    """
    shown = [name for name in HEADLINES if name in metrics and not (name == "loss" and "reward" in metrics)]
    return "  ".join(f"{HEADLINES[name]} {_short(metrics[name])}" for name in shown)


def _short(value: Any) -> str:
    number = float("nan") if value is None else float(value)
    return f"{number:.3g}" if math.isfinite(number) else "not finite"


def _progress_bar(name: str, total: int, start: int) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(name, total=total, completed=start, numbers="")
    bar.start()
    return bar


def _tensorboard_writer(folder: RunFolder, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard = true needs a package: pip install 'fiducial[tensorboard]'") from None
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=start + 1 if start else None)

"""Why a run ended before its time, left in its folder: whoever comes back to it should not have to look for a log."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fiducial.rewards import RewardError
from fiducial.store import RunFolder
from fiducial.train.parts import TrainingError

AGAIN = "mend what this names, then go on with --resume"
ANEW = (
    "mend what this names: --resume repeats the step with the same recipe; for another recipe start again with another "
    "--out"
)


@contextmanager
def told_if_stopped(folder: RunFolder, step: Callable[[], int]) -> Iterator[None]:
    """Leave stopped.json when the block ends by an error or by hand, at step `step()`; the error goes on.

    A ValueError becomes a TrainingError: the recipe and the data were checked before, so now it is the run that failed.
    """
    try:
        yield
    except BaseException as error:  # Ctrl-C too: whatever ends a run is told
        with suppress(OSError):  # the disk that stopped the run may not take this either; the error itself is raised
            folder.write_stop(describe(error, step()))
        if isinstance(error, ValueError):
            raise TrainingError(f"step {step()}: {error}") from error
        raise


def describe(error: BaseException, step: int) -> dict[str, Any]:
    """The error as stopped.json holds it: `reason` in one line, the rest of what is known in `detail`."""
    first, _, rest = str(error).partition("\n")
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        reason, detail = "stopped by hand", ""
    elif isinstance(error, TrainingError | RewardError | OSError):
        reason, detail = first, rest
    else:
        reason, detail = f"{kind}: {first}", "".join(traceback.format_exception(error))
    return {"step": step, "kind": kind, "reason": reason, "detail": detail, "advice": _advice(error)}


def _advice(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "go on with --resume"
    if isinstance(error, RewardError | OSError) or error.__cause__:  # the last: a checkpoint that could not be written
        return AGAIN
    return ANEW if isinstance(error, TrainingError) else "stopped.json holds the traceback; " + ANEW

"""What the worker processes of a verifier call; loaded there by file. They are small, so that forking them is cheap."""

from __future__ import annotations

from typing import Any

from fiducial.sandbox.isolation import NoIsolation, find
from fiducial.sandbox.spawn import Isolation, Limits, Report, group_of, run


def work(isolation: Isolation | None, limits: Limits | None, job: dict[str, Any]) -> Report | Isolation | str:
    """The report on a job. Without an isolation it is asked for: the one that holds here, or why there is none."""
    if isolation is None:
        try:
            return find(**job)
        except NoIsolation as error:
            return str(error)
    assert limits
    if isolation.cgroup:
        group_of(limits).settle()
    return run(job, limits, isolation)

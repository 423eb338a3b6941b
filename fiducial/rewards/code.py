"""Code, by running it against the row's tests in a sandbox."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fiducial.core.types import Score, Verdict
from fiducial.rewards.verdicts import score
from fiducial.rewards.worker import Outcome, Pool, RewardError, Target
from fiducial.sandbox import work
from fiducial.sandbox.isolation import NoIsolation
from fiducial.sandbox.spawn import Isolation, Limits, Report

TESTS = ("tests", "test", "test_list", "input_output")  # fields that hold tests; the first that is there counts
SETUP = ("test_setup_code", "test_imports")  # fields with source that runs before them
SLACK = 20.0  # seconds that a worker has beyond the row's limit, to end a sandbox on a busy machine
ROOM = 256  # sandboxes at once need this many MB each at most, on top of `memory_mb`
FINDING = 120.0  # seconds that finding the isolation may take

Job = dict[str, Any]


class Code:
    """Whether the completion's program passes the row's tests, run in a sandbox (docs/sandbox.md).

    The tests are the row's `tests` (or `test`, `test_list`): Python that defines `check(candidate)` or asserts, a list
    of assert strings, or a list of {"input", "output"}: text for a program's standard input and output, a list of
    arguments and a result for the function `entry_point`. The program is the completion's last fenced block, the
    completion itself, or prompt and completion together where the prompt is code that the completion goes on with.

    "correct" when all tests pass. With `fraction` the value is the share of tests that pass, the verdict still all of
    them. "timeout" and "crashed" when the program ran out of time or ended the process: that is the completion's `own`
    doing, unlike a failure of the sandbox. "skipped" when the row's tests are missing or broken.

    `timeout` is in seconds of wall clock for each row, `memory_mb` the address space of a process of the program,
    `max_tests` how many tests count (0: all). `trust` runs the program as an ordinary process where there is no
    sandbox; without it NoIsolation is raised there.
    """

    name = "code"

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        fraction: bool = False,
        max_tests: int = 0,
        memory_mb: int = 512,
        trust: bool = False,
        workers: int | None = None,
    ):
        if max_tests < 0 or memory_mb < 64:
            raise ValueError("code: max_tests must be 0 (all) or more, and memory_mb at least 64")
        self.isolation = isolation(trust)
        self.fraction, self.max_tests = fraction, max_tests
        self.limits = replace(Limits(), seconds=timeout, cpu=max(1, math.ceil(timeout)), memory=memory_mb << 20)
        self.pool = _pool(timeout + SLACK, workers or min(8, os.cpu_count() or 1))

    def __call__(self, completions: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Score]:
        jobs = [self.job(completion, row) for completion, row in zip(completions, rows, strict=True)]
        calls = [((self.isolation, self.limits, job), {}) for job in jobs if isinstance(job, dict)]
        outcomes = iter(self.pool.map(calls))
        return [self._score(next(outcomes)) if isinstance(job, dict) else job for job in jobs]

    def job(self, completion: str, row: dict[str, Any]) -> Job | Score:
        """What the sandbox is told of a row, or the score "skipped" that says what is missing."""
        name = next((name for name in TESTS if row.get(name)), None)
        if name is None:
            return score("skipped", "the row has no field 'tests' that holds tests")
        try:
            tests = _read(row[name])
        except ValueError as error:
            return score("skipped", f"the row's field {name!r} {error}")
        prompt, entry = row.get("prompt"), row.get("entry_point")
        setup = [row[field] for field in SETUP if row.get(field)]
        return {
            **{"prompt": prompt if isinstance(prompt, str) else "", "completion": completion},
            **{"entry_point": entry if isinstance(entry, str) else "", **tests},
            "setup": ["\n".join(part) if isinstance(part, list) else str(part) for part in setup],
            **{"max_tests": self.max_tests, "all": not self.fraction},
        }

    def _score(self, outcome: Outcome) -> Score:
        found = self._judged(outcome)
        return replace(found, seconds=outcome.seconds, isolation=self.isolation.level)

    def _judged(self, outcome: Outcome) -> Score:
        if outcome.status != "result":
            return score(outcome.status, outcome.why)
        report = cast(Report, outcome.value)
        found = report.found
        if found is None:
            return Score(None, cast(Verdict, report.status), report.why + _where(report), own=report.started)
        if found["verdict"] == "broken":
            return score("crashed", f"the harness failed: {found['why']}")
        verdict = cast(Verdict, found["verdict"])
        if found.get("own"):
            return Score(None, verdict, found["why"] + _where(report), own=True)
        if self.fraction and "passed" in found:
            share = found["passed"] / found["of"]
            return Score(share, verdict, f"{found['passed']} of {found['of']} tests pass; {found['why']}")
        return score(verdict, found["why"])


def _where(report: Report) -> str:
    """During which test a program came to its end."""
    at = report.progress
    return f" in test {at['test']} of {at['of']}" if at else " before a test was reached"


def _read(tests: Any) -> Job:
    """Tests in the forms that data sets have them, as {"sources", "listed", "cases"}. ValueError says what is wrong."""
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{"):  # JSON, as a CSV file holds a list
        try:
            tests = json.loads(tests)
        except ValueError:
            pass  # Python that begins with a bracket
    if isinstance(tests, str):
        return {"sources": [tests], "listed": False, "cases": []}
    if isinstance(tests, dict) and isinstance(tests.get("inputs"), list) and isinstance(tests.get("outputs"), list):
        pairs = zip(tests["inputs"], tests["outputs"], strict=True)  # ValueError where one is longer
        tests = [{"input": given, "output": expected} for given, expected in pairs]
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        return {"sources": tests, "listed": True, "cases": []}
    if isinstance(tests, list) and all(isinstance(test, dict) and {"input", "output"} <= set(test) for test in tests):
        if all(isinstance(test["input"], str) for test in tests) or all(isinstance(t["input"], list) for t in tests):
            cases = [{key: test[key] for key in ("input", "output")} for test in tests]
            return {"sources": [], "listed": False, "cases": cases}
    raise ValueError('is neither Python, nor a list of assert strings, nor a list of {"input", "output"}')


def _pool(timeout: float, workers: int) -> Pool:
    return Pool(Target(str(Path(work.__file__)), "work"), timeout=timeout, workers=workers)


@functools.cache
def isolation(trust: bool = False) -> Isolation:
    """The isolation that holds on this machine, found once in a process of its own. Raises NoIsolation."""
    with _pool(FINDING, 1) as pool:
        (outcome,) = pool.map([((None, None, {"trust": trust, "path": os.environ.get("PATH", "")}), {})])
    if outcome.status != "result":
        raise RewardError(f"what isolation this machine gives could not be found: {outcome.why}")
    if isinstance(outcome.value, str):
        raise NoIsolation(outcome.value)
    return outcome.value

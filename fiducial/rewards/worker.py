"""Verifier processes that are really killed on time.

A verifier may hang inside C code that holds the interpreter, exhaust memory or crash. So it runs in child processes
that are started once, reused, and killed with their whole process group when a row is over its limit; a fresh process
then takes the place. Every row has an outcome, and a process that dies costs only the row that it was busy with.

The children are plain subprocesses (see `child.py`), not forks: no locks or threads of torch are inherited, and scripts
without a `__main__` guard work. One loop in the calling thread feeds all of them through non-blocking pipes, so that no
pipe can block another, and pools work from any thread.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fiducial.rewards.child import HEADER, RESULT_LIMIT

START_LIMIT = 120.0  # seconds to load a verifier's file, which may import something large on a busy machine
GRACE = 2.0  # seconds for idle processes to end by themselves, so that what a user's reward has buffered gets written
CHILD = Path(__file__).with_name("child.py")
STARTING, IDLE = -2, -1  # values of _Worker.row; from 0 on it is the row being judged

Call = tuple[tuple[Any, ...], dict[str, Any]]  # args, kwargs


class RewardError(RuntimeError):
    """The code of a reward failed: it did not load, raised, hung or died. Never turned into a number."""


@dataclass(frozen=True)
class Outcome:
    """What became of one call. `value` is set when `status` is "result"; `trace` is the traceback of an exception."""

    status: Literal["result", "timeout", "crashed"]
    value: Any = None
    why: str = ""
    trace: str = ""
    seconds: float = 0.0


class Parameter(NamedTuple):
    """A parameter of the function in the workers; `kind` is the name of an `inspect.Parameter` kind."""

    name: str
    kind: str
    required: bool


@dataclass(frozen=True)
class Target:
    """What the children load: a function of a Python file, after a call of its `prepare` function if one is named.

    `path` is their `sys.path`; `memory` limits the address space of each, in bytes (None: no limit; Linux only).
    """

    file: str
    function: str
    path: list[str] = field(default_factory=lambda: list(sys.path))
    prepare: str | None = None
    memory: int | None = None


class _Worker:
    """One child process, its pipes, and the row that it is busy with."""

    def __init__(self, target: Target):
        child_requests, self.requests = os.pipe()
        self.results, child_results = os.pipe()
        child_life, self.life = os.pipe()
        theirs = (child_requests, child_results, child_life)
        try:
            # -P: the folder of child.py has a math.py and must not be on the path.
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(CHILD), *map(str, theirs)],
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a process group to kill, out of reach of the terminal's Ctrl-C
                env={**os.environ, "PYTHONHASHSEED": "0"},  # the order of sets must not change a verdict between runs
            )
        except OSError:
            self.close_pipes()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.results, False)
        self.inbox = bytearray()
        self.outbox = memoryview(b"")
        self.ended = False
        setup = {key: getattr(target, key) for key in ("file", "function", "path", "prepare", "memory")}
        self.send(STARTING, pickle.dumps(setup), START_LIMIT)

    def send(self, row: int, body: bytes, limit: float) -> None:
        """Give it a row; the reply is due within `limit` seconds from now."""
        self.row = row
        self.outbox = memoryview(HEADER.pack(max(row, 0), len(body)) + body)
        self.started = time.monotonic()
        self.deadline = self.started + limit

    def pump(self) -> None:
        """Move what the pipes take and hold at this moment."""
        try:
            while self.outbox:
                self.outbox = self.outbox[os.write(self.requests, self.outbox) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.outbox = memoryview(b"")  # it died; reading finds that out
        try:
            while chunk := os.read(self.results, 1 << 20):
                self.inbox += chunk
            self.ended = True
        except BlockingIOError:
            pass

    def reply(self) -> tuple[str, Any, str, str] | None:
        """The reply to the current row if it is complete. (status, value, why, trace)"""
        if len(self.inbox) < HEADER.size:
            return None
        number, size = HEADER.unpack_from(self.inbox)
        if number != max(self.row, 0) or size > RESULT_LIMIT + 4096:
            return "exhausted", None, "its process wrote into the pipe that replies go through", ""
        if len(self.inbox) < HEADER.size + size:
            return None
        body = bytes(self.inbox[HEADER.size : HEADER.size + size])
        del self.inbox[: HEADER.size + size]
        try:
            return pickle.loads(body)
        except Exception as error:  # unpickling runs the reading side of any class; whatever it raises is told
            return "crashed", None, f"its result cannot be read here: {type(error).__name__}: {error}", ""

    def kill(self) -> str:
        """End the process and its group at once; how it ended. An exit that already happened keeps its code."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # all of it has ended already
        code = self.process.wait()
        self.close_pipes()
        return f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"

    def hang_up(self) -> None:
        """Close the pipe of requests, at whose end an idle process ends by itself."""
        if self.requests >= 0:
            os.close(self.requests)
            self.requests = -1

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the process has closed its end of the results."""
        poller = select.poll()
        poller.register(self.results, 0)  # a hang-up is reported unasked
        poller.poll(seconds * 1000)

    def close_pipes(self) -> None:
        """Let go of the pipes, of which the end of `life` has the kernel kill what is left of the group."""
        self.hang_up()
        os.close(self.results)
        os.close(self.life)


class Pool:
    """Up to `workers` processes that call one function, each call limited to `timeout` seconds of wall clock.

    Processes start when there is work for them. Use it as a context manager or call `close`; a pool that is collected,
    or alive when the interpreter exits, ends its processes too, and so does the death of this process. After a fork the
    child starts processes of its own. What a verifier starts in a session of its own is beyond the pool's reach.
    """

    def __init__(self, target: Target, *, timeout: float, workers: int = 1):
        if not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds; it is {timeout}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1; it is {workers}")
        self.target, self.timeout, self.limit = target, timeout, workers
        self._workers: list[_Worker] = []
        self._parameters: list[Parameter] | None = None
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _end_all, self._workers)
        _POOLS.add(self)

    def map(self, calls: Sequence[Call]) -> list[Outcome]:
        """The outcome of each call, in the order of the calls."""
        outcomes = dict(self.each(calls))
        return [outcomes[row] for row in range(len(calls))]

    def each(self, calls: Sequence[Call]) -> Generator[tuple[int, Outcome], None, None]:
        """(row, outcome) as they come. Closing the iterator early kills what is still running.

        Raises RewardError when the target's file cannot be loaded, ValueError when it has no such function.
        """
        with self._lock:
            row = 0
            try:
                while row < len(calls) or any(worker.row >= 0 for worker in self._workers):
                    for worker in self._idle(len(calls) - row):
                        try:
                            worker.send(row, pickle.dumps(calls[row]), self.timeout)
                        except Exception as error:  # pickling runs the code of any class
                            why = f"its arguments cannot be sent to a process: {type(error).__name__}: {error}"
                            yield row, Outcome("crashed", why=why)
                        row += 1
                    yield from self._collect()
            finally:
                for worker in [worker for worker in self._workers if worker.row >= 0]:
                    self._end(worker)

    def parameters(self) -> list[Parameter]:
        """The parameters of the function, which is loaded for it. Raises as `each` does."""
        with self._lock:
            while self._parameters is None:
                self._idle(1)
                for _ in self._collect():
                    pass
            return self._parameters

    def close(self) -> None:
        """End the processes, by force where they do not end by themselves. Work after that starts new ones."""
        with self._lock:
            _end_all(self._workers)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _idle(self, wanted: int) -> list[_Worker]:
        """At most `wanted` idle workers, after starting what is missing up to the limit."""
        for worker in [w for w in self._workers if w.row == IDLE and w.process.poll() is not None]:
            self._end(worker)  # died between two rows
        free = sum(worker.row < 0 for worker in self._workers)
        for _ in range(min(self.limit - len(self._workers), wanted - free)):
            self._workers.append(_Worker(self.target))
        return [worker for worker in self._workers if worker.row == IDLE][:wanted]

    def _collect(self) -> Iterator[tuple[int, Outcome]]:
        """Wait until something happens, then the outcomes that are ready."""
        active = [worker for worker in self._workers if worker.row != IDLE]
        if not active:
            return
        poller = select.poll()
        for worker in active:
            poller.register(worker.results, select.POLLIN)
            if worker.outbox:
                poller.register(worker.requests, select.POLLOUT)
        remaining = min(worker.deadline for worker in active) - time.monotonic()
        poller.poll(max(0.0, remaining) * 1000 + 1)
        for worker in active:
            row, started = worker.row, worker.started
            worker.pump()
            outcome = self._outcome(worker)
            if outcome is not None:
                yield row, Outcome(*outcome, seconds=time.monotonic() - started)

    def _outcome(self, worker: _Worker) -> tuple[Any, ...] | None:
        """The fields of the outcome of the row a worker is busy with, if it has come to an end."""
        starting, reply = worker.row == STARTING, worker.reply()
        if reply is not None:
            worker.row = IDLE
            status, value, why, trace = reply
            if status in ("failed", "exhausted"):
                self._end(worker)
            if starting:
                self._started(status, value, why)
                return None
            return "crashed" if status == "exhausted" else status, value, why, trace
        if worker.ended:
            why = f"its process {self._end(worker)}"
            status = "crashed"
        elif time.monotonic() >= worker.deadline:
            self._end(worker)
            status, why = "timeout", f"no result within {self.timeout:g} s"
        else:
            return None
        if starting:
            limit = f"it took more than {START_LIMIT:g} s" if status == "timeout" else why
            raise RewardError(f"cannot load {self.target.file}: {limit}")
        return status, None, why, ""

    def _started(self, status: str, parameters: Any, why: str) -> None:
        if status == "ready":
            self._parameters = [Parameter(*fields) for fields in parameters]
        elif (missing := f"{self.target.file}: LookupError: ") in why:
            raise ValueError(why.removeprefix(missing))
        else:
            raise RewardError(f"cannot load {why}")

    def _end(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        return worker.kill()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _end_all(workers: list[_Worker]) -> None:
    idle = [worker for worker in workers if worker.row == IDLE]
    for worker in idle:
        worker.hang_up()
    deadline = time.monotonic() + GRACE
    for worker in idle:
        worker.wait_for_end(max(0.0, deadline - time.monotonic()))
    while workers:
        workers.pop().kill()


def _forget_after_fork() -> None:
    """In a forked child: the workers are the parent's. Let go of their pipes without touching the processes."""
    for pool in _POOLS:
        for worker in pool._workers:
            worker.close_pipes()
            worker.process.returncode = 0  # not ours to wait for
        pool._workers.clear()
        pool._lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)

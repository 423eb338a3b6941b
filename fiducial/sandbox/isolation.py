"""Which isolation this machine gives, found by attacking it, never by looking for a program."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fiducial.sandbox.spawn import NOBODY, Isolation, Limits, run

# What a candidate tries on the machine that it runs on. Everything must fail, or the level is not reached.
PROBE = """
import ctypes, os, socket, sys

def attack(folder, port, most):
    found = []
    if os.path.exists(folder):
        found.append("sees the files of the machine")
    try:
        open("/usr/fiducial-probe", "w").close()
        found.append("writes outside of /tmp")
    except OSError:
        pass
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        found.append("reaches the network")
    except OSError:
        pass
    if len([name for name in os.listdir("/proc") if name.isdigit()]) > 8:
        found.append("sees the processes of the machine")
    try:
        open(f"/proc/{os.getppid()}/mem", "rb").close()
        found.append("looks into the harness")
    except OSError:
        pass
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0:
        found.append("attaches to the harness")
        os.waitpid(os.getppid(), 0x40000000)
        ctypes.CDLL(None).ptrace(17, os.getppid(), 0, 0)
    started, (wait, end) = 0, os.pipe()
    try:
        while started <= most:
            if os.fork() == 0:
                os.close(end)
                os.read(wait, 1)
                os._exit(0)
            started += 1
        found.append("starts processes without limit")
    except OSError:
        pass
    return found
"""
INSTALL = "install bubblewrap (on Debian or Ubuntu: apt-get install bubblewrap)"
TRUST = (
    "or, if you trust the code, say so: verdicts.trust_code = true in a recipe, --i-trust-this-code on a command line"
)


class NoIsolation(ValueError):
    """This machine gives no sandbox that holds."""


def find(trust: bool = False, path: str | None = None) -> Isolation:
    """The best isolation that holds here: bubblewrap as another user and with a cgroup, without the one or the other,
    and with `trust` none at all. `path` is where to look for bubblewrap, as in $PATH.

    Raises NoIsolation with one sentence that says what to do. Takes a second; ask once.
    """
    bwrap = shutil.which("bwrap", path=path)
    failures = [] if bwrap else ["bubblewrap is not installed"]
    for isolation in _ladder(bwrap) if bwrap else ():
        why = _attack(isolation)
        if not why:
            return isolation
        failures.append(f"{isolation.level} with {isolation.interpreter}: {why}")
    if trust:
        return Isolation(os.path.realpath(_interpreter()))
    raise NoIsolation(
        f"code that a model writes runs only in a sandbox, and none holds here ({failures[0]}): {INSTALL}, {TRUST}"
    )


def _ladder(bwrap: str) -> Iterator[Isolation]:
    """What to try, the best first. An interpreter under root's home is out of reach of another user."""
    found = [os.path.realpath(_interpreter()), "/usr/bin/python3", "/usr/local/bin/python3"]
    interpreters = list(dict.fromkeys(os.path.realpath(path) for path in found if os.access(path, os.X_OK)))
    for uid in (NOBODY, None) if os.getuid() == 0 else (None,):
        for interpreter in interpreters:
            for cgroup in (True, False):
                yield Isolation(interpreter, bwrap, uid, cgroup)


def _interpreter() -> str:
    """The interpreter that this one's virtual environment was made of."""
    return getattr(sys, "_base_executable", None) or sys.executable


def _attack(isolation: Isolation) -> str:
    """Why this isolation does not hold; empty when it does."""
    limits = replace(Limits(), seconds=20.0)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        Path(folder).chmod(0o755)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        call = {"input": [folder, listener.getsockname()[1], limits.processes + 16], "output": []}
        job = {
            **{"prompt": "", "completion": PROBE, "entry_point": "attack", "cases": [call], "all": True},
            **{"setup": [], "sources": [], "listed": False, "max_tests": 0},
        }
        try:
            report = run(job, limits, isolation)
        except OSError as error:
            return str(error)
    if report.found is None:
        return report.why
    return "" if report.found["verdict"] == "correct" else report.found["why"]

"""Starts one sandbox, hands it a job, reads its report, and ends it with everything inside at the deadline."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import marshal
import os
import secrets
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fiducial.sandbox.box import MODULES
from fiducial.sandbox.cgroups import Group, own_group

NOBODY = 65534  # the user that a sandbox belongs to where we may choose
NONE = "none"
PATIENCE = 5.0  # seconds that bubblewrap has to end after its child
SPARE = 256 << 20  # bytes for the harness, beside the candidate's own
REPORT_LIMIT = 8 << 20  # bytes of a report, and of what bubblewrap itself says
PACKAGE = "fiducial.sandbox.box"
# What the sandbox's interpreter runs first: modules that come as code (or as text, for another version of Python).
BOOT = f"""
import marshal, os, sys, types
def read(n):
    data = b""
    while len(data) < n:
        chunk = os.read(0, n - len(data))
        if not chunk:
            os._exit(4)
        data += chunk
    return data
for name in ("fiducial", "fiducial.sandbox", "{PACKAGE}"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
box = sys.modules["{PACKAGE}"]
for name, code in marshal.loads(read(int.from_bytes(read(8), "big"))):
    module = types.ModuleType("{PACKAGE}." + name)
    sys.modules[module.__name__] = module
    setattr(box, name, module)
    exec(compile(code, name + ".py", "exec") if isinstance(code, str) else code, vars(module))
module.main()
"""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use. Memory is per process, and of the whole where cgroups are writable."""

    seconds: float = 10.0  # wall clock
    cpu: int = 10  # seconds of each process
    memory: int = 512 << 20  # bytes of address space of each process
    processes: int = 32  # processes and threads at once
    files: int = 64  # open at once, in each process
    disk: int = 32 << 20  # bytes in /tmp, which is memory; no file is larger


@dataclass(frozen=True)
class Isolation:
    """How model-written code is contained: the level, and what it takes to get there.

    The level is "bwrap", with "+uid" where it runs as a user who is nobody else, with "+cgroup" where memory and
    processes are limited as a whole; or "none": an ordinary process with resource limits.
    """

    interpreter: str
    bwrap: str = ""  # its path; empty: no sandbox
    uid: int | None = None  # that the sandbox belongs to; None: the caller's
    cgroup: bool = False

    @property
    def level(self) -> str:
        """The name of the level."""
        parts = ["bwrap" * bool(self.bwrap), "uid" * (self.uid is not None), "cgroup" * self.cgroup]
        return "+".join(filter(None, parts)) if self.bwrap else NONE


@dataclass(frozen=True)
class Report:
    """What came of a job: the harness's last report, or None with the reason why there is none.

    `status` is "done", "timeout" or "crashed". `started` says that the harness had come to the program: that there is
    no report is then the program's doing. `progress` is the test that it was at.
    """

    status: str
    found: dict[str, Any] | None = None
    why: str = ""
    started: bool = False
    progress: dict[str, Any] = field(default_factory=dict)


def run(job: dict[str, Any], limits: Limits, isolation: Isolation) -> Report:
    """The report on a job. Nothing of the sandbox is left when this returns."""
    nonce = secrets.token_hex(16)
    deadline = time.monotonic() + limits.seconds
    process, info = _start(limits, isolation)
    try:
        frames = [_bundle(isolation.interpreter), _frame(_inside(limits, isolation)), _frame({**job, "nonce": nonce})]
        said, output, ended = _converse(process, b"".join(frames), deadline)
    finally:
        _end(process, info, isolation)
    found = [message for message in _messages(output) if message.pop("nonce", None) == nonce]
    final = found[-1] if found and "verdict" in found[-1] else None
    progress = next((message for message in reversed(found) if "test" in message), {})
    if final:
        return Report("done", final, "", True, progress)
    if not ended:
        return Report("timeout", None, f"no verdict within {limits.seconds:g} s", bool(found), progress)
    code = process.returncode
    how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    why = said.decode(errors="replace").strip().splitlines()
    told = f"the sandbox ended without a report ({how}) {why[-1] if why else ''}".strip()
    return Report("crashed", None, told, bool(found), progress)


def group_of(limits: Limits) -> Group:
    """The control group of this process for sandboxes with these limits. Raises OSError where it cannot be made."""
    return own_group(limits.memory + limits.disk + SPARE, limits.processes + 8)


def _start(limits: Limits, isolation: Isolation) -> tuple[subprocess.Popen[bytes], int]:
    """Start the sandbox's first process, which reads its job from standard input and reports on standard output; beside
    it what can be read to learn its number outside, as bubblewrap says it."""
    info, say = os.pipe()
    command = [isolation.interpreter, "-s", "-S", "-P", "-c", BOOT]
    if isolation.bwrap:
        command = [*_bwrap(limits, isolation, say), *command]
    group = group_of(limits) if isolation.cgroup else None

    def prepare() -> None:  # between fork and exec; this process has one thread
        if group and not group.settled:
            group.enter()
        with contextlib.suppress(OSError):  # where memory runs out, the sandbox goes before anything else
            Path("/proc/self/oom_score_adj").write_text("500")
        if isolation.uid is not None:
            os.setgroups([])
            os.setresgid(isolation.uid, isolation.uid, isolation.uid)
            os.setresuid(isolation.uid, isolation.uid, isolation.uid)

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=not isolation.bwrap,
            pass_fds=[say] if isolation.bwrap else [],
            preexec_fn=prepare,
        )
    except OSError:
        os.close(info)
        raise
    finally:
        os.close(say)
    return process, info


def _bwrap(limits: Limits, isolation: Isolation, info: int) -> list[str]:
    """The command that a boxed command follows. Its own environment is that of `_start`: with --clearenv ours would
    still be in /proc/1/environ."""
    binds: list[str] = ["--ro-bind", "/usr", "/usr"]
    for folder in ("/lib", "/lib32", "/lib64", "/bin", "/sbin"):
        if os.path.islink(folder):
            binds += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            binds += ["--ro-bind", folder, folder]
    prefix = Path(isolation.interpreter).parent.parent
    if not prefix.is_relative_to("/usr"):
        binds += ["--ro-bind", str(prefix), str(prefix)]
    tmp = ["--perms", "0777", "--size", str(limits.disk), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [
        isolation.bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--as-pid-1", "--info-fd", str(info), "--cap-drop", "ALL", *binds, "--proc", "/proc", "--dev", "/dev", *tmp,
        "--remount-ro", "/dev", "--remount-ro", "/", "--",
    ]  # fmt: skip


def _inside(limits: Limits, isolation: Isolation) -> dict[str, Any]:
    """The limits that the harness sets, in the units of the system."""
    processes = limits.processes if isolation.bwrap else None  # outside it counts all that the user runs
    return {
        **{"cpu": limits.cpu, "memory": limits.memory, "processes": processes},
        **{"files": limits.files, "file": limits.disk},
    }


def _converse(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> tuple[bytes, bytes, bool]:
    """Write the job and read the report until the process ends or the deadline: standard error and output, each cut at
    the limit, and whether it ended by itself."""
    assert process.stdin and process.stdout and process.stderr
    rest, said, output = memoryview(data), bytearray(), bytearray()
    feeds, reads = process.stdin.fileno(), {process.stdout.fileno(): output, process.stderr.fileno(): said}
    for fd in (feeds, *reads):
        os.set_blocking(fd, False)
    while reads:
        left = deadline - time.monotonic()
        if left <= 0:
            return bytes(said), bytes(output), False
        poller = select.poll()
        for fd in reads:
            poller.register(fd, select.POLLIN)
        if rest:
            poller.register(feeds, select.POLLOUT)
        for fd, _ in poller.poll(left * 1000 + 1):
            if fd == feeds:
                rest = _written(feeds, rest)
            elif not (chunk := os.read(fd, 1 << 16)) or len(reads[fd]) > REPORT_LIMIT:
                del reads[fd]
            else:
                reads[fd] += chunk
    return bytes(said), bytes(output), True


def _written(fd: int, rest: memoryview) -> memoryview:
    """What remains to be written; nothing where nobody reads any more."""
    try:
        return rest[os.write(fd, rest) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _end(process: subprocess.Popen[bytes], info: int, isolation: Isolation) -> None:
    """Kill what still runs. The kernel ends all others with the first process of the box, and bubblewrap ends after
    that: waiting for bubblewrap is waiting for all."""
    os.set_blocking(info, False)
    with contextlib.suppress(BlockingIOError, ProcessLookupError, PermissionError):  # not started, or ended already
        if not isolation.bwrap:
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None and (said := os.read(info, 4096)):
            _kill_child(process.pid, json.loads(said)["child-pid"])
    os.close(info)
    try:
        process.wait(PATIENCE if isolation.bwrap else None)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe
        pipe.close()


def _kill_child(parent: int, pid: int) -> None:
    """Kill a process if it is a child of this parent: what we were told is not taken on trust."""
    with contextlib.suppress(FileNotFoundError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            os.kill(pid, signal.SIGKILL)


def _frame(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(8, "big") + body


def _messages(data: bytes) -> list[dict[str, Any]]:
    """The whole frames of a report."""
    found = []
    while len(data) >= 8 and len(data) >= 8 + (size := int.from_bytes(data[:8], "big")):
        found.append(json.loads(data[8 : 8 + size]))
        data = data[8 + size :]
    return found


@functools.cache
def _bundle(interpreter: str) -> bytes:
    """The modules of the box for this interpreter: compiled where it is of our version, else as text."""
    ask = [interpreter, "-S", "-P", "-c", "import importlib.util; print(importlib.util.MAGIC_NUMBER.hex())"]
    magic = subprocess.run(ask, env={}, capture_output=True, text=True, check=False, cwd="/").stdout.strip()
    same = magic == importlib.util.MAGIC_NUMBER.hex()
    modules = []
    for name in MODULES:
        text = (Path(__file__).parent / "box" / f"{name}.py").read_text(encoding="utf-8")
        modules.append((name, compile(text, f"{name}.py", "exec") if same else text))
    body = marshal.dumps(modules)
    return len(body).to_bytes(8, "big") + body

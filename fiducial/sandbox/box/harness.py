"""The first process in the sandbox: it holds the tests, asks the candidate's process for values, and judges them.

Nothing of the candidate runs in here. The candidate's process is forked before a test is read, so it inherits none; it
cannot look into this one, which is not dumpable (no ptrace, no /proc/1/mem, no /proc/1/fd), cannot kill it, as the
first process of a pid namespace takes no signals from inside, and holds none of its pipes. What it can do is to return
values, to end, or to run out of time.
"""

from __future__ import annotations

import builtins
import os
import resource
import signal
import sys
from typing import Any

from fiducial.sandbox.box import candidate
from fiducial.sandbox.box.tests import Broken, Failed, judge
from fiducial.sandbox.box.wire import Gone, Link, decode, encode, exception, instance, state

DIGITS = 200_000  # of an integer as text; results may be large, and reading digits takes quadratic time

Reply = dict[str, Any]
NO_REPLY = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError)


class Ended(BaseException):
    """The candidate's process is gone: a verdict and why. Not an Exception, so that no test can catch it."""

    def __init__(self, verdict: str, why: str):
        self.verdict, self.why = verdict, why


class Box:
    """The candidate's process as the harness sees it."""

    def __init__(self, pid: int, link: Link, cpu: int):
        self.pid, self.link, self.cpu = pid, link, cpu
        self.asked = 0  # requests so far
        self.callbacks: list[Any] = []
        self.shared: dict[str, type] = {}

    def ask(self, request: Reply) -> Reply:
        """The reply to a request; calls of the tests' own functions are answered on the way. Raises Ended."""
        self.asked += 1
        try:
            self.link.send(request)
            while "callback" in (reply := self._receive()):
                self._call_back(reply)
        except Gone:
            raise self._end() from None
        if "exit" in reply:
            raise Ended("crashed", f"its code ended the process ({str(reply['exit'])[:200]})")
        return reply

    def value(self, request: Reply, *changed: Any, made: bool = False) -> Any:
        """The value that a request comes to. Raises what it raised.

        What it printed on the way goes to standard output; `changed` are arguments that it may have changed in place.
        With `made`, an object of a class of the candidate's comes as `Made`: the tests' doing, never the candidate's.
        """
        reply = self.ask(request)
        try:
            sys.stdout.write(reply.get("output", ""))
            raised = exception(reply["raise"]) if "raise" in reply else None
            value = None if raised else self.decode(reply["value"], made)
            new = [None if message is None else [self.decode(message)] for message in reply.get("args", [])]
        except NO_REPLY as error:
            raise _no_reply(error) from None
        if raised is not None:
            raise raised
        for arg, held in zip(changed, new, strict=False):
            if held is not None:
                _restore(arg, held[0])
        return value

    def call(self, on: int | str, args: tuple[Any, ...], kwargs: dict[str, Any], made: bool = False) -> Any:
        """Call a function there."""
        request = {"on": on, "args": self.encode(list(args)), "kwargs": self.encode(kwargs)}
        return self.value(request, *args, made=made)

    def named(self, name: str, kind: str, as_class: bool = False) -> Any:
        """What the program gives this name: a function or class to be called, else its value. Whether the tests mean a
        class is for the caller to say, as the candidate might call one what should be a function."""
        if kind not in ("function", "class"):
            return self.value({"on": name, "fetch": True})
        return (Class if as_class else Function)(self, name, name)

    def encode(self, value: Any) -> Any:
        return encode(value, self._tagged)

    def decode(self, message: Any, made: bool = False) -> Any:
        return decode(message, lambda tag, parts: self._special(tag, parts, made))

    def _receive(self) -> Reply:
        try:
            reply = self.link.receive()
        except (ValueError, MemoryError) as error:
            raise _no_reply(error) from None
        if not isinstance(reply, dict):
            raise _no_reply(TypeError(f"{type(reply).__name__} in place of a table"))
        return reply

    def _call_back(self, request: Reply) -> None:
        """Call a function of the tests, which the candidate got as an argument."""
        try:
            function = self.callbacks[request["callback"]]
            args, kwargs = self.decode(request["args"]), self.decode(request["kwargs"])
        except NO_REPLY as error:
            raise _no_reply(error) from None
        try:
            answer: Reply = {"value": self.encode(function(*args, **kwargs))}
        except Exception as error:  # it is the candidate's to catch
            answer = {"raise": [type(error).__name__, type(error).__name__, str(error)[:200]]}
        self.link.send(answer)

    def _tagged(self, value: Any) -> Any:
        """The tagged form of what is no plain data."""
        if isinstance(value, Remote):
            return {"reference": value._on} if isinstance(value._on, int) else {"named": value._on}
        name = getattr(value, "__name__", "")
        if name and getattr(builtins, name, None) is value:
            return {"builtin": name}
        if self.shared.get(type(value).__name__) is type(value):
            return {"instance": [type(value).__name__, self.encode(state(value))]}
        if callable(value):
            self.callbacks.append(value)
            return {"callback": len(self.callbacks) - 1}
        return None

    def _special(self, tag: str, parts: Any, made: bool) -> Any:
        """A value that the candidate's process tagged."""
        if tag == "instance":
            kind, attributes = self.shared[parts[0]], self.decode(parts[1])
            if any(callable(getattr(kind, name, None)) for name in attributes):
                raise ValueError("an object whose attributes stand in for methods of its class")
            return instance(kind, attributes)
        if tag != "reference":
            raise ValueError(f"a value of the unknown kind {tag!r}")
        on, name, kind = parts
        return (Made if made and kind == "object" else KINDS[kind])(self, int(on), str(name))

    def _end(self) -> Ended:
        """How the process came to its end."""
        _, status, usage = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        used = usage.ru_utime + usage.ru_stime
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and used >= self.cpu - 0.5):
            return Ended("timeout", f"its code used {used:.1f} s of CPU time, over the limit of {self.cpu} s")
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        return Ended("crashed", f"its code ended the process ({how})")


def _no_reply(error: BaseException) -> Ended:
    return Ended("crashed", f"its process sent what is no reply: {type(error).__name__}: {error}"[:200])


class Remote:
    """Something that lives in the candidate's process. It is equal to nothing but itself."""

    def __init__(self, box: Box, on: int | str, name: str):
        self._box, self._on, self.__name__ = box, on, name


class Function(Remote):
    """A function or a method of the candidate's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._box.call(self._on, args, kwargs)


class Class(Remote):
    """A class of the candidate's that the tests mean as one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._box.call(self._on, args, kwargs, made=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._box.value({"on": self._on, "attribute": name}, made=True)


class Iterator(Remote):
    """A generator or iterator: its items come one by one."""

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        found = self._box.value({"on": self._on, "next": True})
        if not found:
            raise StopIteration
        return found[0]


class Object(Remote):
    """An object that a function returned. Its attributes can be read, but it cannot pass for a list or a text: a name
    that built-in types have (`startswith`, `issubset`) is refused, as are comparisons and arithmetic."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in FORBIDDEN:
            raise AttributeError(f"an object of type {self.__name__} was returned, not plain data")
        return self._box.value({"on": self._on, "attribute": name})


class Made(Object):
    """An object that a test made by calling a class of the candidate's: it means this class, so its own operators
    count, between such objects. Beside plain data it is never equal."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._box.value({"on": self._on, "attribute": name})

    def _operate(self, name: str, *args: Any) -> Any:
        return self._box.call(f"operator.{name}", (self, *args), {})

    def __len__(self) -> int:
        return self._operate("len")

    def __bool__(self) -> bool:
        return self._operate("bool")

    def __str__(self) -> str:
        return self._operate("str")

    def __repr__(self) -> str:
        return self._operate("repr")

    def __iter__(self) -> Any:
        return self._operate("iter")

    def __getitem__(self, key: Any) -> Any:
        return self._operate("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._operate("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._operate("delitem", key)

    def __contains__(self, item: Any) -> bool:
        return self._operate("contains", item)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._box.call(self._on, args, kwargs)

    def __hash__(self) -> int:
        return self._operate("hash")


def _between(name: str) -> Any:
    """An operator of two objects of the candidate's; NotImplemented beside anything else."""

    def operate(self: Made, other: Any) -> Any:
        if not isinstance(other, Made):
            return NotImplemented
        return self._box.call(f"operator.{name}", (self, other), {}, made=True)

    return operate


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "matmul", "and_", "or_", "xor"):
    setattr(Made, f"__{_name.rstrip('_')}__", _between(_name))

KINDS: dict[str, type[Remote]] = {
    "function": Function,
    "class": Function,
    "iterator": Iterator,
    "object": Object,
}
FORBIDDEN = {name for kind in (str, bytes, list, tuple, dict, set, int, float, complex, range) for name in dir(kind)}


def _restore(old: Any, new: Any) -> None:
    """Change `old` in place to what `new` holds, where both are of one type."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    else:
        for name, value in state(new).items():
            object.__setattr__(old, name, value)


def main() -> None:
    """Fork the candidate's process, read the tests, judge, report."""
    os.closerange(3, 1024)  # what bubblewrap may have left open
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.set_int_max_str_digits(DIGITS)
    report = Link(source, sink)
    limits = report.receive()
    _shut_off()
    _limit(limits)
    box = _fork(limits["cpu"])
    job = report.receive()
    nonce = job["nonce"]
    report.send({"nonce": nonce, "started": True})
    try:
        found = _judged(job, box, lambda done: report.send({"nonce": nonce, **done}))
    except BaseException as error:  # a mistake of ours: told, never a verdict on the candidate
        import traceback

        found = {"verdict": "broken", "why": "".join(traceback.format_exception(error))[-2000:]}
    report.send({"nonce": nonce, **found})
    os._exit(0)


def _judged(job: dict[str, Any], box: Box, tell: Any) -> Reply:
    """The verdict on a job, with how many tests passed of how many, and why."""
    try:
        return judge(job, box, tell)
    except Ended as ended:
        return {"verdict": ended.verdict, "why": ended.why, "own": True}
    except Failed as failed:
        return {"verdict": failed.verdict, "why": str(failed)}
    except Broken as broken:
        return {"verdict": "skipped", "why": str(broken)}


def _fork(cpu: int) -> Box:
    """The candidate's process, which has nothing of ours but its end of two pipes."""
    requests, replies = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        keep = (requests[0], replies[1])
        for fd in range(3, max(*requests, *replies) + 1):
            if fd not in keep:
                os.close(fd)
        candidate.main(Link(*keep))
    os.close(requests[0])
    os.close(replies[1])
    return Box(pid, Link(replies[0], requests[1]), cpu)


def _shut_off() -> None:
    """No other process may look into this one or interrupt it; its children end with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the first process it then takes none from inside
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        PR_SET_DUMPABLE = 4
        if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            os._exit(3)


def _limit(limits: dict[str, int | None]) -> None:
    """Resource limits for this process and all that it starts; hard ones, so that nothing can raise them."""
    for name, value in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_FSIZE", limits["file"]),
        ("RLIMIT_NOFILE", limits["files"]),
        ("RLIMIT_NPROC", limits["processes"]),
    ):
        if value is not None:
            resource.setrlimit(getattr(resource, name), (value, value))
    cpu = limits["cpu"] or 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))

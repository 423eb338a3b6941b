"""The process that runs the candidate's code, and answers what the harness asks of it.

It knows the program and the arguments of the calls, never a test or an expected value. Whatever the program does to
this process, it can only change what it returns: a reply carries values, and right or wrong is decided elsewhere.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import itertools
import operator
import os
import select
import signal
import sys
import types
from typing import Any

from fiducial.sandbox.box.program import NoCode, assemble
from fiducial.sandbox.box.wire import Gone, Link, decode, describe, encode, exception, instance, state

OUTPUT_LIMIT = 1 << 20  # bytes of standard output of one call or program; what is more is cut


class Output(io.TextIOBase):
    """Standard output of the program's functions, up to a limit."""

    def __init__(self):
        self.parts: list[str] = []
        self.room = OUTPUT_LIMIT

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.room > 0:
            self.parts.append(text[: self.room])
            self.room -= len(text)
        return len(text)

    def take(self) -> str:
        """What was written since the last time."""
        text, self.parts, self.room = "".join(self.parts), [], OUTPUT_LIMIT
        return text


class Server:
    """Runs the program and answers: calls, attributes, items of iterators."""

    def __init__(self, link: Link):
        self.link = link
        self.module = types.ModuleType("solution")
        self.objects: list[Any] = []  # what the harness holds a reference to, by number
        self.shared: list[str] = []  # classes that the prompt defines: their objects travel by value
        self.output = Output()

    def load(self, message: dict[str, Any]) -> None:
        """Run the program at its top level; with `runs` it is only made ready to be run as a whole."""
        source = assemble(message["prompt"], message["completion"], message["entry_point"])
        self.code = compile(source, "solution.py", "exec")
        if "random" in source:
            import random

            random.seed(0)  # the same verdict every time
        if message["runs"]:
            return
        self.shared = message["shared"]
        sys.modules["solution"] = self.module
        sys.stdout = self.output
        exec(self.code, vars(self.module))

    def names(self) -> dict[str, str]:
        """What the program defines: functions, classes, and other values."""
        own = {name: value for name, value in vars(self.module).items() if not name.startswith("__")}
        return {name: _kind(value) for name, value in own.items() if not isinstance(value, types.ModuleType)}

    def serve(self) -> None:
        """Answer until the harness is gone."""
        while True:
            self.answer(self.link.receive())

    def answer(self, request: dict[str, Any]) -> None:
        """One request and its reply: a value with the arguments as the call left them, or an exception."""
        try:
            reply = self.reply(request)
        except SystemExit as error:
            reply = {"exit": f"SystemExit: {error.code}"[:200]}
        except BaseException as error:  # everything that the program raises is an answer
            reply = {"raise": describe(error)}
        try:
            self.link.send({**reply, "output": self.output.take()})
        except (ValueError, RecursionError) as error:
            self.link.send({"raise": describe(error)})

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request comes to; raises what the program raises."""
        if "run" in request:
            return run_program(self.code, request["run"])
        target = self.target(request["on"])
        if "next" in request:  # a list of the next item, or an empty one
            return {"value": self.encode(list(itertools.islice(target, 1)))}
        if "fetch" in request:
            return {"value": self.encode(target)}
        if "attribute" in request:
            return {"value": self.encode(getattr(target, request["attribute"]))}
        args, kwargs = self.decode(request["args"]), self.decode(request["kwargs"])
        before = [self.changed(arg) for arg in args]
        value = self.encode(target(*args, **kwargs))
        after = [self.changed(arg) for arg in args]
        return {"value": value, "args": [a if a != b else None for a, b in zip(after, before, strict=True)]}

    def target(self, on: Any) -> Any:
        """What a request is about: a name of the program, dotted or not, or an object handed out before."""
        if isinstance(on, int):
            return self.objects[on]
        if on.startswith("operator."):
            name = on.removeprefix("operator.")
            return getattr(builtins, name, None) or getattr(operator, name)
        value: Any = self.module
        for name in on.split("."):
            value = value() if isinstance(value, type) else value  # a method of a class that holds the solution
            value = getattr(value, name)
        return value

    def changed(self, arg: Any) -> Any:
        """The form of an argument that a call may change in place; None of others."""
        mutable = isinstance(arg, list | dict | set | bytearray) or type(arg).__name__ in self.shared
        return self.encode(arg) if mutable else None

    def encode(self, value: Any) -> Any:
        return encode(value, self.other)

    def other(self, value: Any) -> Any:
        """The tagged form of what is no plain data: shared classes by value, the rest as a reference."""
        kind = type(value)
        if kind.__name__ in self.shared and vars(self.module).get(kind.__name__) is kind:
            return {"instance": [kind.__name__, self.encode(state(value))]}
        if isinstance(value, int | float | str | list | tuple | dict | set | frozenset | bytes | bytearray):
            return None  # a subclass goes as what it is derived from
        self.objects.append(value)
        return {"reference": [len(self.objects) - 1, kind.__name__, _kind(value)]}

    def decode(self, message: Any) -> Any:
        return decode(message, self.special)

    def special(self, tag: str, parts: Any) -> Any:
        """A value that the harness tagged."""
        if tag == "reference":
            return self.objects[parts]
        if tag == "named":
            return self.target(parts)
        if tag == "builtin":
            return getattr(sys.modules["builtins"], parts)
        if tag == "instance":
            return instance(vars(self.module)[parts[0]], self.decode(parts[1]))
        return lambda *args, **kwargs: self.call_back(parts, args, kwargs)

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the tests that came as an argument."""
        self.link.send({"callback": number, "args": self.encode(list(args)), "kwargs": self.encode(kwargs)})
        while "value" not in (reply := self.link.receive()):
            if "raise" in reply:
                raise exception(reply["raise"])
            self.answer(reply)  # the function itself asks something of this process
        return self.decode(reply["value"])


def main(link: Link) -> None:
    """Load the program and answer; ends the process."""
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # which `site` would define
    try:
        server = Server(link)
        message = link.receive()
        try:
            server.load(message)
            loaded: dict[str, Any] = {"names": server.names()}
        except NoCode as error:
            loaded = {"unparseable": str(error)}
        except SystemExit as error:
            loaded = {"exit": f"SystemExit: {error.code}"[:200]}
        except BaseException as error:
            loaded = {"raise": describe(error)}
        link.send(loaded)
        server.serve()
    except Gone:
        pass
    finally:
        os._exit(0)


def run_program(code: types.CodeType, text: str) -> dict[str, Any]:
    """Run a program from its start with `text` as standard input: what it printed, and how it ended."""
    input_end, feed = os.pipe()
    collect, output_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(input_end, 0)
        os.dup2(output_end, 1)
        os.closerange(3, 64)
        _run_as_main(code)
    os.close(input_end)
    os.close(output_end)
    try:
        return _converse(child, feed, collect, memoryview(text.encode()))
    finally:
        os.close(collect)


def _run_as_main(code: types.CodeType) -> None:
    """In the child: run the program as Python runs a script, and end."""
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    exit_code = 0
    try:
        exec(code, vars(module))
        sys.stdout.flush()
    except SystemExit as error:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        exit_code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        exit_code = 1
    os._exit(exit_code & 255)


def _converse(child: int, feed: int, collect: int, rest: memoryview) -> dict[str, Any]:
    """Feed a child and read what it prints, up to the limit, until it ends; what it left running is not waited for."""
    os.set_blocking(feed, False)
    os.set_blocking(collect, False)
    output, ended, status, printing = bytearray(), 0, 0, True
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            while printing and len(output) <= OUTPUT_LIMIT:
                chunk = os.read(collect, 1 << 16)
                output += chunk
                printing = bool(chunk)
        if len(output) > OUTPUT_LIMIT and not ended:
            os.kill(child, signal.SIGKILL)
        try:
            rest = rest[os.write(feed, rest) :] if rest else rest
        except BlockingIOError:
            pass
        except OSError:
            rest = rest[:0]  # it reads no more
        if not rest and feed >= 0:
            os.close(feed)
            feed = -1
        select.select([collect] if printing else [], [feed] if rest else [], [], 0 if ended else 0.01)
    if feed >= 0:
        os.close(feed)
    cut = len(output) > OUTPUT_LIMIT
    text = output[:OUTPUT_LIMIT].decode("utf-8", "replace")
    return {"printed": text, "cut": cut, "code": os.waitstatus_to_exitcode(status)}


def _kind(value: Any) -> str:
    """What a value is to the harness: "function", "class", "iterator" or "object"."""
    if isinstance(value, type):
        return "class"
    if hasattr(value, "__next__"):
        return "iterator"
    return "function" if callable(value) and hasattr(value, "__name__") else "object"

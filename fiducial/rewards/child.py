"""The process that a verifier runs in. `worker.py` starts this file as a script; it needs the standard library only.

It reads calls from one pipe and writes replies to another. A frame is a header (call number, length of the body) and a
pickled body. The first body says what to load; then each is `(args, kwargs)`. A reply is `(status, value, why, trace)`.
Standard output goes to standard error, so that what a verifier prints disturbs nothing.
"""

import contextlib
import fcntl
import importlib.util
import inspect
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import traceback

HEADER = struct.Struct(">QQ")  # call number, bytes of the body
RESULT_LIMIT = 64 << 20  # bytes; a verdict is small, and a larger result is a mistake of the verifier


def main() -> None:
    """Load the target, then answer calls until the pipe ends."""
    requests, results, life = (int(fd) for fd in sys.argv[1:4])
    for fd in (requests, results, life):
        os.set_inheritable(fd, False)  # what a verifier starts must not hold our pipes open
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # nothing is lost when this is killed
    _end_with_parent(life)
    number, body = _read(requests) or sys.exit()
    setup = pickle.loads(body)
    try:
        function = _load(**setup)
        reply = ("ready", describe_parameters(function), "", "")
    except BaseException as error:  # whatever it is, the parent is told and says it to the user
        reply = ("failed", None, _where(error, setup["file"]), "")
    _write(results, number, pickle.dumps(reply))
    own_pid = os.getpid()
    while reply[0] not in ("failed", "exhausted") and (frame := _read(requests)):
        number, body = frame
        reply, body = _answer(function, body, setup["file"])
        if os.getpid() != own_pid:
            os._exit(0)  # a fork made by the verifier came back: it must not answer in our name
        _write(results, number, body)


def _load(file: str, function: str, path: list[str], prepare: str | None, memory: int | None):
    """The function of this name in a Python file, after calling the file's `prepare` function if one is named."""
    sys.path[:] = path
    if memory and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    name = f"verifier_{os.path.basename(file).removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        there = [key for key, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == name]
        raise LookupError(f"{file} has no function {function!r}; it has: {', '.join(there) or 'none'}")
    if prepare:
        getattr(module, prepare)()
    return getattr(module, function)


def describe_parameters(function) -> list[tuple[str, str, bool]]:
    """Name, kind and whether it is required, for each parameter of the function."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.name, p.default is p.empty and not p.kind.name.startswith("VAR_")) for p in parameters]


def _answer(function, body: bytes, file: str) -> tuple[tuple, bytes]:
    """Call the function; the reply and its pickled form."""
    try:
        args, kwargs = pickle.loads(body)
        reply = ("result", function(*args, **kwargs), "", "")
        body = pickle.dumps(reply)
        if len(body) > RESULT_LIMIT:
            why = f"it returned {len(body)} bytes, more than the limit of {RESULT_LIMIT}"
            reply = ("crashed", None, why, "")
            body = pickle.dumps(reply)
    except BaseException as error:  # SystemExit too: it costs this call, not the process
        status = "exhausted" if isinstance(error, MemoryError) else "crashed"
        reply = (status, None, *_describe(error, file))
        body = pickle.dumps(reply)
    return reply, body


def _where(error: BaseException, file: str) -> str:
    """The error of a file that does not load, in one line: `file:line: what`."""
    what = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):  # it may be in a file that this one imports
        return f"{error.filename}:{error.lineno}: {what}"
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f"{file}:{lines[-1]}: {what}" if lines else f"{file}: {what}"


def _describe(error: BaseException, file: str) -> tuple[str, str]:
    """The error in one line, and its traceback from the user's file on."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename != file:
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace or error.__traceback__)
    return lines[-1].strip(), "".join(lines)


def _end_with_parent(life: int) -> None:
    """See that this process group is killed when the parent ends, however busy this process is by then.

    The parent holds the other end of `life` and never writes. Linux itself sends the signal when that end closes; a
    thread, which a long C call can keep from running, serves other systems.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
        return

    def watch() -> None:
        os.read(life, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _read(fd: int) -> tuple[int, bytes] | None:
    """The next frame; None at the end of the pipe."""
    header = _read_exactly(fd, HEADER.size)
    if header is None:
        return None
    number, size = HEADER.unpack(header)
    body = _read_exactly(fd, size)
    return None if body is None else (number, body)


def _read_exactly(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(fd, min(size - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _write(fd: int, number: int, body: bytes) -> None:
    data = memoryview(HEADER.pack(number, len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent has gone; nobody is left to tell
        main()

"""How harness and candidate speak: frames of JSON over pipes, and values that become JSON and exact values again.

Never pickle or marshal: what the candidate sends is hostile, and JSON can only become plain data. A value arrives as an
object of a built-in type, so no `__eq__` of the candidate's ever takes part in a comparison of the harness.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
from collections import deque
from collections.abc import Callable
from typing import Any

FRAME_LIMIT = 16 << 20  # bytes; a larger message is refused unread

ENDING = (StopIteration, StopAsyncIteration)

Other = Callable[[Any], Any]


class Gone(Exception):
    """The other side has closed its end or died."""


class Link:
    """Frames over two pipes: 8 bytes of length, then JSON."""

    def __init__(self, source: int, sink: int):
        self.source, self.sink = source, sink

    def send(self, message: Any) -> None:
        """Raises ValueError when the message cannot be JSON or is too large, Gone when nobody reads."""
        body = json.dumps(message).encode()
        if len(body) > FRAME_LIMIT:
            raise ValueError(f"a value of {len(body)} bytes is over the limit of {FRAME_LIMIT}")
        data = memoryview(len(body).to_bytes(8, "big") + body)
        try:
            while data:
                data = data[os.write(self.sink, data) :]
        except OSError as error:
            raise Gone from error

    def receive(self) -> Any:
        """The next message. Raises Gone at the end, ValueError when it is too large or not JSON."""
        size = int.from_bytes(self._exactly(8), "big")
        if size > FRAME_LIMIT:
            raise ValueError(f"a message of {size} bytes is over the limit of {FRAME_LIMIT}")
        try:
            return json.loads(self._exactly(size))
        except RecursionError:
            raise ValueError("a message that is nested too deeply") from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                chunk = os.read(self.source, min(size - len(data), 1 << 20))
            except OSError as error:
                raise Gone from error
            if not chunk:
                raise Gone
            data += chunk
        return bytes(data)


# tag -> type, parts of a value, the value from its parts. Dictionaries are lists of pairs: their keys need not be text.
_TAGS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "tuple": (tuple, list, tuple),
    "set": (set, list, set),
    "frozenset": (frozenset, list, frozenset),
    "deque": (deque, lambda d: [list(d), d.maxlen], lambda parts: deque(*parts)),
    "dict": (dict, lambda d: [[k, v] for k, v in dict.items(d)], dict),
    "bytes": (bytes, lambda b: b.decode("latin-1"), lambda text: text.encode("latin-1")),
    "bytearray": (bytearray, lambda b: b.decode("latin-1"), lambda text: bytearray(text, "latin-1")),
    "complex": (complex, lambda z: [z.real, z.imag], lambda parts: complex(*parts)),
    "range": (range, lambda r: [r.start, r.stop, r.step], lambda parts: range(*parts)),
}
# The same for types of modules that are imported only where a value needs them: a start must be quick.
_RARE: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "decimal.Decimal": (str, lambda kind, parts: kind(parts)),
    "fractions.Fraction": (lambda q: [q.numerator, q.denominator], lambda kind, parts: kind(*parts)),
    "datetime.datetime": (lambda d: d.isoformat(), lambda kind, parts: kind.fromisoformat(parts)),
    "datetime.date": (lambda d: d.isoformat(), lambda kind, parts: kind.fromisoformat(parts)),
    "datetime.time": (lambda d: d.isoformat(), lambda kind, parts: kind.fromisoformat(parts)),
    "datetime.timedelta": (lambda d: [d.days, d.seconds, d.microseconds], lambda kind, parts: kind(*parts)),
}
_PLAIN = (bool, int, float, str)
_TAG_OF = {kind: tag for tag, (kind, _, _) in _TAGS.items()}


def encode(value: Any, other: Other) -> Any:
    """`value` as JSON; `other` gives the tagged form of what is no plain data, or raises TypeError.

    A subclass of a plain type (a named tuple, a Counter) goes as that type, unless `other` knows it (returns not None).

    >>> decode(encode({1: (2, {3.5}), "x": [None, b"y"]}, lambda value: None), lambda tag, parts: None)
    {1: (2, {3.5}), 'x': [None, b'y']}
    """
    kind = type(value)
    if value is None or kind in _PLAIN:
        return value
    if kind is list:
        return [encode(item, other) for item in value]
    if kind in _TAG_OF:
        tag = _TAG_OF[kind]
        return {tag: encode(_TAGS[tag][1](value), other)}
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _RARE:
        return {name: encode(_RARE[name][0](value), other)}
    known = other(value)
    if known is not None:
        return known
    for plain in (int, float, str, list, *_TAG_OF):
        if isinstance(value, plain):
            return encode(_as(plain, value), other)
    raise TypeError(f"an object of type {kind.__name__} is no plain data")


def _as(plain: type, value: Any) -> Any:
    """An object of a subclass as one of the plain type itself."""
    if plain is str:
        return str.__str__(value)
    return plain.__int__(value) if plain is int else plain.__float__(value) if plain is float else plain(value)


def decode(message: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value of its JSON form; `other(tag, parts)` makes what is no plain data. ValueError of another form."""
    if message is None or type(message) in _PLAIN:
        return message
    if type(message) is list:
        return [decode(item, other) for item in message]
    if type(message) is not dict or len(message) != 1:
        raise ValueError("a message that is not in the form of values")
    ((tag, parts),) = message.items()
    if tag not in _TAGS and tag not in _RARE:
        return other(tag, parts)
    inner = decode(parts, other)
    try:
        if tag in _TAGS:
            return _TAGS[tag][2](inner)
        module, _, name = tag.partition(".")
        return _RARE[tag][1](getattr(importlib.import_module(module), name), inner)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"a {tag} that cannot be: {error}") from error


def state(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name) and not name.startswith("__")}
    return {**found, **getattr(value, "__dict__", {})}


def instance(kind: type, attributes: dict[str, Any]) -> Any:
    """An object of a class with these attributes; its `__init__` does not run."""
    made = object.__new__(kind)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def describe(error: BaseException) -> list[str]:
    """An exception as the name of the built-in class that it is or is derived from, its own name, and its message."""
    kind = type(error)
    builtin = next(base.__name__ for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        text = str(error)[:200]
    except BaseException:  # its own __str__ fails
        text = ""
    return [builtin, kind.__name__, text]


def exception(described: list[str]) -> Exception:
    """The exception that was described, as the built-in class; RuntimeError where it is none that code may catch, or
    one that would end a loop over calls before its time."""
    builtin, name, text = described
    kind = getattr(builtins, builtin, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, ENDING):
        return RuntimeError(f"{name}: {text}")
    try:
        return kind(text if builtin == name else f"{name}: {text}")
    except TypeError:  # UnicodeDecodeError and the like take more than a text
        return RuntimeError(f"{name}: {text}")

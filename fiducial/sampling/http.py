"""Talking to a server of a language model over HTTP: JSON in, JSON out, many requests at once, patience with failures.

Standard library only. Redirects are not followed, so a key is sent to no other host than the one that was named.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from fiducial.core.seeds import mix
from fiducial.core.types import Verdict

KEY = "FIDUCIAL_API_KEY"  # the environment variable that holds the key, unless another is named
BUSY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that pass: asked again
REFUSED = {400, 413, 422}  # of one request, while others may be fine
LONG = ("context length", "context_length", "context size", "too long", "maximum length")  # in a refusal: what it means
LONGEST_WAIT = 60.0  # seconds between two attempts


class EndpointError(RuntimeError):
    """A server did not answer as asked; the message names its URL and what it said.

    `verdict` is what becomes of something that was to be judged by the answer. `alone`: it may be this request's fault
    or a passing trouble, so others need not fail.
    """

    def __init__(self, message: str, verdict: Verdict = "crashed", alone: bool = False):
        super().__init__(message)
        self.verdict: Verdict = verdict
        self.alone = alone


class Server:
    """An HTTP server that takes and gives JSON.

    url: up to and including the version, `http://host:port/v1`. At most `parallel` requests run at once. One that meets
    a busy server, a broken connection or silence for `timeout` seconds is repeated up to `retries` times, after
    `backoff` seconds and twice as many each time, or as the server asks (Retry-After). The key is read from the
    environment variable `key_from` and sent as a bearer token; it is in no message and no file.
    """

    def __init__(
        self,
        url: str,
        *,
        parallel: int = 16,
        retries: int = 5,
        timeout: float = 120.0,
        backoff: float = 0.5,
        key_from: str = KEY,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the address of a server is http://HOST:PORT/v1#MODEL; it is {url!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"{parts.scheme}://{parts.hostname}: an address holds no password and no query, for it is written into "
                f"files; put a key into the environment variable {key_from}"
            )
        if parallel < 1 or retries < 0 or not timeout > 0:
            raise ValueError("a server needs parallel of at least 1, retries of at least 0 and a timeout above 0 s")
        self.url, self.parts = url.rstrip("/"), parts
        self.parallel, self.retries, self.timeout, self.backoff = parallel, retries, timeout, backoff
        self.key_from, self.key = key_from, os.environ.get(key_from, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError(f"the environment variable {key_from} holds characters that no header can carry")
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def get(self, path: str) -> Any:
        """What is at a path. One attempt: EndpointError at once if nothing answers."""
        try:
            return self._attempt("GET", path, None)
        finally:
            self._hang_up()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request. EndpointError after the last attempt."""
        for attempt in range(self.retries + 1):
            try:
                return self._attempt("POST", path, body)
            except _Passing as error:
                if attempt == self.retries:
                    tried = f" ({attempt + 1} attempts)" if attempt else ""
                    raise EndpointError(f"{error}{tried}", error.verdict, alone=True) from error
                time.sleep(self._pause(attempt, error.wait, body))
        raise AssertionError

    def each(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
        """The answer to each (path, body), in order; an EndpointError in the place of one that failed alone.

        Raises it where the server refuses as such (key, path, no JSON) and where every request failed.
        """
        if not requests:
            return []
        pool = ThreadPoolExecutor(min(self.parallel, len(requests)), thread_name_prefix="endpoint")
        try:
            found = list(pool.map(self._alone, requests))
        finally:
            pool.shutdown(cancel_futures=True)
            self._hang_up()
        failed = [reply for reply in found if isinstance(reply, EndpointError)]
        if len(failed) == len(found) and any(error.verdict != "skipped" for error in failed):
            raise next(error for error in failed if error.verdict != "skipped")
        return found

    def _alone(self, request: tuple[str, dict[str, Any]]) -> Any:
        try:
            return self._post(*request)
        except EndpointError as error:
            if not error.alone:
                raise
            return error

    def _pause(self, attempt: int, asked: float | None, body: dict[str, Any] | None) -> float:
        """Seconds until the next attempt; spread out, so that requests that failed together do not return together."""
        spread = 1 + (mix(json.dumps(body, sort_keys=True), attempt) % 1000) / 2000
        wait = self.backoff * 2**attempt * spread if asked is None else asked
        return min(wait, LONGEST_WAIT)

    def _attempt(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        where = f"{self.url}{path}"
        try:
            status, headers, data = self._exchange(method, path, body)
        except TimeoutError as error:
            raise _Passing(f"{where} gave no answer within {self.timeout:g} s", "timeout") from error
        except ssl.SSLCertVerificationError as error:
            raise EndpointError(f"{where}: its certificate cannot be trusted: {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(f"{where} cannot be reached: {_told(error)}") from error
        if status == 200:
            return _json(data, where)
        said = self._hidden(_reason(data))
        message = f"{where} answered with status {status}: {said}"
        if status in BUSY:
            raise _Passing(message, "timeout" if status == 408 else "crashed", _seconds(headers.get("Retry-After")))
        if status in REFUSED:
            long = any(words in said.lower() for words in LONG)
            raise EndpointError(message, "skipped" if long else "crashed", alone=True)
        if status in (401, 403):
            message += f"; a key is read from the environment variable {self.key_from}"
        raise EndpointError(message)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any, bytes]:
        """One request and its reply: status, headers, bytes. A kept connection that was closed meanwhile is renewed."""
        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "fiducial"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        while True:
            connection, kept = self._connection()
            try:
                connection.request(method, f"{self.parts.path.rstrip('/')}{path}", sent, headers)
                reply = connection.getresponse()
                data = reply.read()
            except ConnectionError:
                connection.close()
                if kept:
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            if not reply.will_close:
                self._idle.put(connection)
            return reply.status, reply.headers, data

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        try:
            return self._idle.get_nowait(), True
        except queue.Empty:
            kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
            return kind(self.parts.hostname or "", self.parts.port, timeout=self.timeout), False

    def _hang_up(self) -> None:
        """Close the connections that were kept for more requests of one call."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class _Passing(EndpointError):
    """A failure that may not happen again. `wait`: after how many seconds the server wants to be asked again."""

    def __init__(self, message: str, verdict: Verdict = "crashed", wait: float | None = None):
        super().__init__(message, verdict, alone=True)
        self.wait = wait


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        shown = data[:80].decode(errors="replace")
        raise EndpointError(
            f"{where} answered with something that is no JSON: {shown!r}; is the address right?"
        ) from error


def _reason(data: bytes) -> str:
    """What a refusal says, in a line."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    if isinstance(found, dict):
        found = found.get("message", found)
    return " ".join(str(found if found else text).split())[:300] or "nothing"


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; a date is not read."""
    return float(header) if header and header.strip().isdigit() else None


def _told(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()

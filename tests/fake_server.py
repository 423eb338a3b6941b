"""An OpenAI-compatible server in a thread: it answers with what a function says, and notes what it was sent."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat(text, finish="stop", logprobs=None):
    """A reply of /chat/completions. logprobs: [(token, logprob, [(other, logprob), ...]), ...]"""
    content = [
        {"token": t, "logprob": p, "top_logprobs": [{"token": o, "logprob": q} for o, q in tops]}
        for t, p, tops in logprobs or []
    ]
    message = {"role": "assistant", "content": text}
    told = {"content": content} if logprobs else None
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": told}]}


def text(text, finish="stop", logprobs=None, **more):
    """A reply of /completions."""
    told = None
    if logprobs:
        told = {
            "tokens": [t for t, _, _ in logprobs],
            "token_logprobs": [p for _, p, _ in logprobs],
            "top_logprobs": [dict(tops) for _, _, tops in logprobs],
        }
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": told, **more}]}


class FakeServer:
    """Use as a context manager. `answer(path, body)` gives what is sent: a dictionary (status 200), or
    (status, headers, bytes). `sent` lists (path, body, headers) of what came; `most` is how many were there at once."""

    def __init__(self, answer, models=("tiny",)):
        self.answer, self.models, self.sent, self.now, self.most = answer, models, [], 0, 0
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply({"data": [{"id": name} for name in fake.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.sent.append((self.path, body, dict(self.headers)))
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                try:
                    self.reply(fake.answer(self.path, body))
                finally:
                    with fake.lock:
                        fake.now -= 1

            def reply(self, given):
                status, headers, data = given if isinstance(given, tuple) else (200, {}, json.dumps(given).encode())
                if status is None:  # hang up without a word
                    self.close_connection = True
                    return
                self.send_response(status)
                length = headers.pop("Content-Length", len(data))
                for name, value in {**headers, "Content-Length": str(length)}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who asked has gone
                    self.wfile.write(data)
                if length != len(data):
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def slow(seconds, reply):
    """A reply after a while."""
    time.sleep(seconds)
    return reply

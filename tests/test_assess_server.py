"""A real OpenAI-compatible server on loopback whose answers and faults the test chooses."""

import json
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "tiny-judge"


class Fault:
    """What a reply may be instead of a text: HTTP status, cut connection, or a body that is not
    a completion."""

    def __init__(self, kind: str, status: int = 200, retry_after: str | None = None):
        self.kind, self.status, self.retry_after = kind, status, retry_after


CUT, CUT_BODY, GARBAGE = Fault("cut"), Fault("cut_body"), Fault("garbage")
TRUNCATED = Fault("truncated")  # a completion that stopped at the token limit
BUSY = Fault("status", 429, "0.05")
BROKEN = Fault("status", 500)


class Served:
    """The running server: its address, and what it was asked (prompt text -> times)."""

    def __init__(self, url: str):
        self.url = url
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.active = self.most_active = 0
        self.lock = threading.Lock()


@contextmanager
def serve(
    reply: Callable[[str, int], str | Fault], delay: float = 0.0, refuses: tuple[str, ...] = ()
) -> Iterator[Served]:
    """Runs the server; `reply(prompt, times_asked_before)` gives each answer or fault. A request
    with a parameter of `refuses` is a 400 that names it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            refused = next((name for name in refuses if name in body), None)
            if refused:
                text = f"Unsupported parameter: '{refused}' is not supported with this model."
                return self._send(400, {"error": {"message": text, "param": refused}})
            with served.lock:
                served.bodies.append(body)
                served.keys.add(self.headers["Authorization"])
                before = served.asked[prompt]
                served.asked[prompt] += 1
                served.active += 1
                served.most_active = max(served.most_active, served.active)
            try:
                time.sleep(delay)
                if body["model"] != MODEL:
                    self._send(404, {"error": {"message": f"no model {body['model']}"}})
                else:
                    self._answer(reply(prompt, before), prompt)
            finally:
                with served.lock:
                    served.active -= 1

        def _answer(self, answer, prompt):
            if isinstance(answer, str):
                self._send(200, _completion(answer, prompt))
            elif answer.kind == "status":
                self._send(answer.status, {"error": {"message": "busy"}}, answer.retry_after)
            elif answer.kind == "truncated":
                content = _completion("VERDICT: REFUSES", prompt)
                content["choices"][0]["finish_reason"] = "length"
                self._send(200, content)
            elif answer.kind == "garbage":
                self._send(200, {"hello": "world"})
            else:
                if answer.kind == "cut_body":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
                self.wfile.flush()
                linger = struct.pack("ii", 1, 0)  # reset instead of an orderly close
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True

        def _send(self, status, content, retry_after=None):
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            try:
                self.wfile.write(raw)
            except OSError:
                self.close_connection = True  # the client was killed

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(text: str, prompt: str) -> dict:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": len(prompt.split()),
            "completion_tokens": len(text.split()),
            "total_tokens": len(prompt.split()) + len(text.split()),
        },
    }


def test_the_server_serves_its_model():
    with serve(lambda prompt, before: f"{prompt} {before}") as served:
        with urllib.request.urlopen(f"{served.url}/models", timeout=5) as response:
            assert [m["id"] for m in json.load(response)["data"]] == [MODEL]

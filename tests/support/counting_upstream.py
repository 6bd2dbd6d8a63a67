"""A real OpenAI-wire server that remembers what it was asked."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class CountingUpstream:
    """Answers every prompt with an echo of it, after `delay_s`, and keeps every prompt in the order of arrival."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.asked_after_mark: list[str] = []
        self._marked: frozenset[str] = frozenset()
        self._arrived = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        """Notes a request and returns its prompt."""
        prompt = str(body["messages"][-1]["content"])
        with self._arrived:
            self.prompts.append(prompt)
            self.bodies.append(body)
            self.headers.append(headers)
            if prompt in self._marked:
                self.asked_after_mark.append(prompt)
            self._arrived.notify_all()
        return prompt

    def mark(self, finished: set[str]) -> None:
        """From now on, these prompts must not come again."""
        with self._arrived:
            self._marked |= finished

    def wait_for(self, count: int, child: Any) -> None:
        """Waits until so many prompts have come, or the child has ended."""
        with self._arrived:
            while len(self.prompts) < count and child.poll() is None:
                self._arrived.wait(0.05)


def _handler(upstream: CountingUpstream) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = upstream.take(body, dict(self.headers))
            time.sleep(upstream.delay_s)
            text = f"echo: {prompt}"
            if body.get("stream"):
                self._stream(text)
            else:
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self._send("application/json", json.dumps(_completion(choices=[choice], usage=_USAGE)).encode())

        def do_GET(self) -> None:
            self._send("application/json", json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())

        def _stream(self, text: str) -> None:
            chunks = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in text.split(" ")]
            for chunk in chunks[1:]:
                chunk["delta"] = {"content": f" {chunk['delta']['content']}"}  # type: ignore[index]  # a dict, above
            chunks.append({"index": 0, "delta": {}, "finish_reason": "stop"})
            events = [_completion(choices=[chunk]) for chunk in chunks] + [_completion(choices=[], usage=_USAGE)]
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self._send("text/event-stream", lines.encode())

        def _send(self, content_type: str, body: bytes) -> None:
            try:
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the base class's name for it
            """Says nothing."""

    return Handler


_USAGE = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


def _completion(**fields: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", **fields}

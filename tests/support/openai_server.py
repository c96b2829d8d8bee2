"""A small server in OpenAI's dialect with made-up tokens, which fails on request; also a program of its own.

python tests/support/openai_server.py --port 8000 --burst 3 --fault die --after 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

VOCAB, END = 259, 258
MODEL = "made-up"


class OpenAIServer:
    """The next token is a sum of the last three; `burst` of them come in one event."""

    def __init__(self, *, port: int = 0, burst: int = 1, fault: str = "", after: int = 0) -> None:
        """fault: what happens to every request behind the first `after` ones."""
        self.burst, self.fault, self.after = burst, fault, after
        self.wrong = False
        """The fourth token of an answer is another one."""
        self.with_ids = True
        self.num_asked = 0
        self.running = self.most_running = 0
        self.pause_s = 0.0
        """Before every event."""
        self.rounds = self.drafted = self.accepted = 0
        self._lock = Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def start(self) -> OpenAIServer:
        Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def serve(self) -> None:
        self._http.serve_forever()

    def tokens(self, prompt: Sequence[int], most: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < most and ids[-1:] != [END]:
            ids.append((sum([*prompt, *ids][-3:]) + 7 * len(ids)) % VOCAB)
            if self.wrong and len(ids) == 4:
                ids[-1] = (ids[-1] + 1) % END
        return ids

    def bursts(self, ids: list[int]) -> Iterator[list[int]]:
        yield ids[:1]
        for start in range(1, len(ids), self.burst):
            yield ids[start : start + self.burst]

    def metrics(self) -> str:
        counted = {"drafts": self.rounds, "draft_tokens": self.drafted, "accepted_tokens": self.accepted}
        if self.burst == 1:
            return ""
        return "".join(
            f'vllm:spec_decode_num_{name}_total{{engine="0",model_name="x"}} {float(number)}\n'
            for name, number in counted.items()
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    self._whole(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
                else:
                    self._whole(server.metrics() if self.path == "/metrics" else "")

            def _whole(self, text: str, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.num_asked += 1
                    server.running += 1
                    server.most_running = max(server.running, server.most_running)
                    faulty = server.fault if server.num_asked > server.after else ""
                try:
                    self._answer(asked, faulty)
                finally:
                    with server._lock:
                        server.running -= 1

            def _answer(self, asked: dict[str, Any], fault: str) -> None:
                if asked["model"] != MODEL:
                    self._whole(json.dumps({"error": {"message": f"no model {asked['model']}"}}), 404)
                    return
                if fault == "500":
                    self._whole(json.dumps({"error": {"message": "out of order"}}), 500)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                ids = server.tokens(asked["prompt"], asked["max_tokens"])
                for number, burst in enumerate(server.bursts(ids)):
                    time.sleep(server.pause_s)
                    if number == 2 and fault and self._fail(fault):
                        return
                    finish = None
                    if number and server.burst > 1:
                        server.rounds += 1
                        server.drafted += server.burst
                        server.accepted += len(burst) - 1
                    choice: dict[str, Any] = {"index": 0, "text": "x" * len(burst), "finish_reason": finish}
                    if server.with_ids:
                        choice["token_ids"] = burst
                    self._event({"id": "1", "object": "text_completion", "choices": [choice]})
                end = {"index": 0, "text": "", "finish_reason": "stop" if ids[-1] == END else "length"}
                self._event({"id": "1", "object": "text_completion", "choices": [end]})
                usage = {"prompt_tokens": 1, "completion_tokens": len(ids), "total_tokens": 1 + len(ids)}
                self._event({"id": "1", "object": "text_completion", "choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")

            def _fail(self, fault: str) -> bool:
                if fault == "die":
                    os._exit(3)
                if fault == "hang":
                    time.sleep(60)
                if fault == "garbage":
                    self.wfile.write(b"data: {no json\n\n")
                if fault == "error":
                    self._event({"error": {"message": "no memory left", "code": 500}})
                if fault == "token":
                    choice = {"index": 0, "text": "x", "finish_reason": None, "token_ids": [VOCAB]}
                    self._event({"id": "1", "object": "text_completion", "choices": [choice]})
                    return False
                return True

            def _event(self, found: dict[str, Any]) -> None:
                self.wfile.write(f"data: {json.dumps(found)}\n\n".encode())
                self.wfile.flush()

            def log_message(self, *_: object) -> None: ...

        return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--burst", type=int, default=1)
    parser.add_argument("--fault", default="")
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--children", action="store_true")
    given = parser.parse_args()
    time.sleep(given.slow)
    if given.children and os.fork() == 0:
        # As engines do: a worker in a session of its own.
        os.setsid()
        while True:
            time.sleep(1)
    server = OpenAIServer(port=given.port, burst=given.burst, fault=given.fault, after=given.after)
    print("listening", flush=True)
    server.serve()


if __name__ == "__main__":
    main()

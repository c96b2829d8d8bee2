"""OpenVINO GenAI as a small HTTP server in llama-server's dialect; runs in the engine's own environment.

    python worker.py --port 8000 --model FOLDER --threads 2 --settings '{"num_assistant_tokens": 3}'

It answers one request at a time. Only the standard library and OpenVINO are imported.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import openvino
import openvino_genai


def pipeline(model: str, threads: int, settings: dict[str, Any]) -> Any:
    """The pipeline in float32 throughout, whatever it would choose by itself."""
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    if "max_ngram_size" in settings:
        return openvino_genai.LLMPipeline(model, "CPU", prompt_lookup=True, **options)
    if "draft_model" in settings:
        draft = openvino_genai.draft_model(settings["draft_model"], "CPU", **options)
        return openvino_genai.LLMPipeline(model, "CPU", draft_model=draft, **options)
    return openvino_genai.LLMPipeline(model, "CPU", **options)


class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Hands on the tokens of each step."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self._send = send
        self.num_tokens = 0

    def write(self, tokens: Any) -> Any:
        """A step has emitted these tokens: an id or a list of them."""
        ids = [int(tokens)] if isinstance(tokens, int) else [int(one) for one in tokens]
        self.num_tokens += len(ids)
        self._send({"tokens": ids, "content": "", "stop": False})
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """The answer is complete."""


def handler(pipe: Any, settings: dict[str, Any], end_token: int) -> type[BaseHTTPRequestHandler]:
    """The request handler for a pipeline."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Health; there are no metrics."""
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def do_POST(self) -> None:
            """Answer one request as server-sent events."""
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            try:
                self._answer(asked)
            except Exception as error:  # the client must hear of it
                self._send({"error": f"{type(error).__name__}: {error}"})

        def _answer(self, asked: dict[str, Any]) -> None:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = asked["n_predict"]
            config.do_sample = False
            config.ignore_eos = asked["ignore_eos"]
            config.set_eos_token_id(end_token)
            for name in ("num_assistant_tokens", "max_ngram_size"):
                if name in settings:
                    setattr(config, name, settings[name])
            streamer = Streamer(self._send)
            made = pipe.generate(openvino.Tensor(np.array([asked["prompt"]])), config, streamer)
            ids = list(made.tokens[0])
            # The last event has what was never streamed, if anything.
            if ids[streamer.num_tokens :]:
                self._send({"tokens": [int(one) for one in ids[streamer.num_tokens :]], "stop": False})
            kind = "eos" if not asked["ignore_eos"] and int(ids[-1]) == end_token else "limit"
            self._send({"stop": True, "stop_type": kind, "timings": counted(made)})

        def _send(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    return Handler


def counted(made: Any) -> dict[str, int]:
    """Drafted and accepted tokens, where the pipeline has a draft model; empty where it counts nothing."""
    found: Any = getattr(made, "extended_perf_metrics", None)
    if not hasattr(found, "get_num_draft_tokens"):
        return {}
    return {
        "draft_n": int(found.get_num_draft_tokens()),
        "draft_n_accepted": int(found.get_num_accepted_tokens()),
    }


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--end-token", type=int, required=True)
    parser.add_argument("--settings", default="{}")
    given = parser.parse_args()
    settings = json.loads(given.settings)
    pipe = pipeline(given.model, given.threads, settings)
    server = HTTPServer(("127.0.0.1", given.port), handler(pipe, settings, given.end_token))
    server.serve_forever()


if __name__ == "__main__":
    main()

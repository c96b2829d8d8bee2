"""llama.cpp's own server out of the wheel `xllamacpp`; runs in the engine's own environment.

    python llamacpp_worker.py --port 8000 --model FILE.gguf --context 2048 --slots 1 --threads 2 --cache f32

Only the standard library and xllamacpp are imported.
"""

from __future__ import annotations

import argparse
import json
import signal
from typing import Any

import xllamacpp


def speculate(params: Any, settings: dict[str, Any], threads: int) -> None:
    """Set what the server drafts with."""
    kind = settings["type"]
    speculative = params.speculative
    name = f"COMMON_SPECULATIVE_TYPE_{kind.upper().replace('-', '_')}"
    speculative.types = [getattr(xllamacpp.common_speculative_type, name)]
    part = speculative.draft if kind.startswith("draft") else getattr(speculative, kind.replace("-", "_"))
    for key, value in settings.items():
        if key == "model":
            part.mparams.path = value
            part.cpuparams.n_threads = part.cpuparams_batch.n_threads = threads
        elif key != "type":
            setattr(part, key, value)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    for name in ("port", "context", "slots", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache", choices=["f32", "f16"], required=True)
    parser.add_argument("--settings", default="{}")
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.port = given.port
    params.n_parallel = given.slots
    params.n_ctx = given.context * given.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    cache = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{given.cache.upper()}")
    params.cache_type_k = params.cache_type_v = cache
    params.cache_ram_mib = 0
    params.fit_params = False
    if settings := json.loads(given.settings):
        speculate(params, settings, given.threads)
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    while True:
        # The server has threads of its own.
        signal.pause()


if __name__ == "__main__":
    main()

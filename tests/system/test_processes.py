"""Tensor parallelism: two processes with half of every layer each decide what one process decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config import ConfigError
from harness.store.run_store import load_run
from harness.target.random_target import TinyTarget
from harness.target.spec import TargetSpec

ROOT = Path(__file__).parents[2]
SECONDS = 600
"""After which a run counts as hanging, on a machine that has much else to do, too."""


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny target as a folder, whose files several processes can read their parts of."""
    folder = tmp_path_factory.mktemp("target")
    loaded = TinyTarget(dtype="float32").load(quiet)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def bench(
    results: Path, checkpoint: Path, num_processes: int, *more: str
) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in `num_processes` processes; a hang fails."""
    torchrun = ["torch.distributed.run", f"--nproc_per_node={num_processes}", "-m"]
    given = [
        *(
            "~experiment",
            "target=hub",
            f"target.path={checkpoint}",
            "target.name=tiny",
            "target.dtype=float32",
        ),
        *("task=smoke", "task.limit=2", "method=[ngram,eagle2]", "methods.eagle2.head=random"),
        *("methods.eagle2.tree.total_token=12", "methods.eagle2.tree.depth=2", "methods.eagle2.tree.top_k=4"),
        *("decoding=[greedy,sampled]", "measure=acceptance", "measure.batch_size=2", "max_new_tokens=8"),
        *("ladder=none", "tracker=none", f"results={results}"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", *(torchrun if num_processes > 1 else []), "harness.bench", *given, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        # torchrun ends its processes when it is asked to end, not when it is killed.
        process.terminate()
        output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def decisions(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """Key, tokens, and drafted and accepted counts of every generation of every run."""
    folders = json.loads(done.stdout.splitlines()[-1])["run_dirs"]
    return [
        (r.arm, r.conversation, r.turn, r.sample, r.repeat, r.output_ids, r.drafted, r.accepted)
        for folder in folders
        for r in load_run(Path(folder)).records
    ]


@pytest.mark.timeout(3 * SECONDS)
def test_two_processes_write_what_one_writes(checkpoint: Path, tmp_path: Path) -> None:
    one = bench(tmp_path / "one", checkpoint, 1)
    two = bench(tmp_path / "two", checkpoint, 2, "target.tensor_parallel=2")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr[-3000:]
    assert len(two.stdout.splitlines()) == 1, "one process speaks for all"
    assert {arm for arm, *_ in decisions(two)} == {"vanilla", "ngram", "eagle2"}
    assert decisions(two) == decisions(one)
    assert len(list((tmp_path / "two" / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_parallel": 2}, r"1 processes were started.*torchrun --nproc-per-node=2 -m harness\.bench"),
        ({"tensor_parallel": 2, "device_map": "auto"}, r"not together with target\.device_map=auto"),
        ({"tensor_parallel": 2, "compile": True}, r"not together with target\.compile=True"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], message: str, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        TargetSpec(path=str(checkpoint), **changes).load(quiet)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"num_kv_heads": 2, "num_heads": 4},
            r"does not divide the 4 of num_attention_heads. Allowed: 1, 2\.",
        ),
        (
            {"architecture": "gpt2"},
            r"has no plan for GPT2LMHeadModel; type target\.tensor_parallel=1",
        ),
    ],
)
def test_a_model_that_does_not_divide_is_refused_by_name(
    shape: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2Config

    monkeypatch.setenv("WORLD_SIZE", "3")
    named = shape.get("architecture") == "gpt2"
    config = GPT2Config() if named else TinyTarget(**shape).shape()
    config.architectures = ["GPT2LMHeadModel" if named else "LlamaForCausalLM"]
    spec = TargetSpec(path="x", tensor_parallel=3)
    with pytest.raises(ConfigError, match=message):
        spec.placement.check_parallel(config, spec.weights, spec.kernels)


def test_more_processes_than_the_target_wants_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    done = bench(tmp_path, checkpoint, 2, "decoding=[greedy]")
    assert done.returncode != 0
    assert "type target.tensor_parallel=2" in done.stderr
    assert not list(tmp_path.glob("runs/*/journal.jsonl"))

"""Rounds of engines beside those of our loop."""

from __future__ import annotations

from dataclasses import replace

from scripts.engine_rounds import table
from tests.support.builders import make_record, make_run


def test_counters_streams_and_our_rounds_stand_in_one_line() -> None:
    ours = make_record("eagle3_chain")
    count = len(ours.output_ids)
    served = replace(
        ours,
        arrived=[1, *([2] * ((count - 1) // 2)), *([1] * ((count - 1) % 2))],
        engine_rounds=2,
        engine_drafted=10,
        engine_accepted=3,
    )
    local, engine = make_run([ours]), make_run([served])
    cell = replace(engine.manifest.cell, engine="vllm")
    engine = replace(engine, manifest=replace(engine.manifest, cell=cell))
    lines = [line.strip("| ").split(" | ") for line in table([local, engine]).splitlines()]
    found = dict(zip(lines[0], lines[2], strict=True))
    assert len(lines) == 3
    assert (found["engine"], found["method"], found["requests"]) == ("vllm", "eagle3_chain", "1")
    assert (found["rounds by counters"], found["tau of counters"]) == ("2", "2.500")
    assert found["rounds by stream"] == str(len(served.arrived) - 1)
    assert found["our rounds"] == str(len(ours.emitted))
    (alone,) = [line.strip("| ").split(" | ") for line in table([engine]).splitlines()[2:]]
    assert alone[-2:] == ["-", "-"]

"""Rows: pooling, pairing, failures, and runs that may not stand together."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from harness.analysis.comparability import differences, refuse_mixed, variants
from harness.analysis.row import Row, json_rows
from harness.analysis.summary import pairwise, summarise
from harness.analysis.tie_rates import Quality
from harness.config import ConfigError
from harness.reports.formatting import marks
from harness.store.records import Failure, Probe, Run, Verdict
from tests.support.builders import (
    JUDGED,
    ROUND_NS,
    broken_run,
    failed_run,
    make_record,
    make_run,
    make_rung,
    sample_records,
    sample_run,
    sample_runs,
)

KEYS = [
    *("target", "task", "method", "temperature", "batch_size", "profile", "baseline", "acceptor"),
    *("engine", "scenario"),
    *("tau", "tau_ci", "tokens_per_s", "latency_s", "speedup", "speedup_ci", "speedup_vs"),
    *("verdict", "roof_fraction", "num_prompts", "num_tokens", "variant"),
    *("others_share", "disturbed_share", "quality"),
]


def rows_of(*runs: Run) -> dict[str, Row]:
    return {row.method: row for row in summarise(runs)}


def with_manifest(run: Run, **changes: Any) -> Run:
    return dataclasses.replace(run, manifest=dataclasses.replace(run.manifest, **changes))


def with_provenance(run: Run, **facts: object) -> Run:
    return with_manifest(run, provenance=facts)


def drafting(length: int, run_id: str, **changes: Any) -> Run:
    """A run of `ngram` with this draft length."""
    arms = {"vanilla": {}, "ngram": {"draft_length": length}}
    return make_run(sample_records({"ngram": 0.1 * length}), run_id, arms=arms, **changes)


def test_speedups_are_sums_of_tokens_over_sums_of_seconds() -> None:
    vanilla = [make_record("vanilla", c, [0] * n, [0] * n) for c, n in (("a", 2), ("b", 8))]
    ngram = [
        make_record("ngram", c, accepted, [2] * len(accepted)) for c, accepted in (("a", [1]), ("b", [1] * 4))
    ]
    found = rows_of(make_run([*vanilla, *ngram]))
    # 12 tokens in 2 + 10 passes against 12 tokens in 2 prefills and 5 rounds.
    assert found["ngram"].speedup == pytest.approx(12 / 7)
    assert found["ngram"].speedup_decode_only == pytest.approx(2)
    assert found["ngram"].speedup_geometric == pytest.approx(math.sqrt(3 / 2 * 9 / 5))
    assert found["ngram"].tau == 2
    assert found["vanilla"].tau == found["vanilla"].speedup == 1


def test_vanilla_against_itself_covers_one() -> None:
    found = rows_of(make_run(sample_records({"ngram": 0.5}, num_prompts=40)))["vanilla"]
    assert found.speedup_ci
    assert found.speedup_ci[0] <= 1 <= found.speedup_ci[1]
    assert 0 < found.aa_floor < 0.03


def test_exactly_repeated_times_have_a_floor_of_zero() -> None:
    records = [
        make_record("vanilla", f"c{i}", [0] * (i + 1), [0] * (i + 1), repeat=r)
        for i in range(12)
        for r in (0, 1)
    ]
    assert rows_of(make_run(records))["vanilla"].speedup_ci == (1.0, 1.0)


def test_speedups_over_each_rung_and_of_the_rung_itself() -> None:
    found = rows_of(sample_run())
    rung = "transformers.generate"
    assert found[rung].kind == "rung"
    assert math.isnan(found[rung].tau)
    assert found[rung].speedup_vs[rung] == 1
    assert found["vanilla"].speedup_vs[rung] == pytest.approx(1 / found[rung].speedup)
    ends = found["suffix"].speedup_vs_ci[rung]
    assert ends
    assert ends[0] < found["suffix"].speedup_vs[rung] < ends[1]


def test_only_prompts_that_both_have_enter_a_speedup() -> None:
    vanilla = [make_record("vanilla", c, [0] * 4, [0] * 4) for c in ("a", "b")]
    slow = make_record("vanilla", "only-vanilla", [0] * 4, [0] * 4, total_ns=1000 * ROUND_NS)
    ngram = [make_record("ngram", c, [1, 1], [1, 1]) for c in ("a", "b")]
    assert rows_of(make_run([*vanilla, slow, *ngram]))["ngram"].speedup == pytest.approx(5 / 3)


def test_replicates_are_pooled_into_narrower_intervals() -> None:
    runs = [sample_run(f"r{seed}", seed=seed) for seed in range(3)]
    one, three = rows_of(runs[0])["ngram"], rows_of(*runs)["ngram"]
    assert three.num_prompts == one.num_prompts
    assert three.num_tokens == 3 * one.num_tokens
    assert len(summarise(runs)) == len(summarise(runs[0]))


def test_methods_of_different_runs_are_compared_by_their_own_vanillas() -> None:
    """The machine was twice as slow in the second run; that says nothing of the methods."""
    first, second = (
        make_run(sample_records({"ngram": 0.5}), "r1"),
        make_run(sample_records({"suffix": 0.5}), "r2"),
    )
    slower = [dataclasses.replace(record, total_ns=2 * record.total_ns) for record in second.records]
    pairs = {(p.over, p.under): p for p in pairwise([first, dataclasses.replace(second, records=slower)])}
    assert pairs["suffix", "ngram"].ratio.value == pytest.approx(1, abs=0.02)
    assert pairs["suffix", "vanilla"].ratio.value > 1.5


def test_every_pair_of_a_cell_is_there_once() -> None:
    pairs = pairwise(sample_run())
    assert len(pairs) == 6
    found = {(p.over, p.under): p for p in pairs}
    assert found["suffix", "ngram"].difference == "faster"
    assert found["transformers.generate", "vanilla"].difference == "slower"
    rows = rows_of(sample_run())
    assert found["suffix", "ngram"].ratio.value == pytest.approx(
        rows["suffix"].speedup / rows["ngram"].speedup
    )


def test_a_method_that_does_as_vanilla_does_is_not_distinguishable() -> None:
    records = sample_records({"idle": 0.0})
    assert rows_of(make_run(records))["idle"].difference == "not distinguishable"
    assert [pair.difference for pair in pairwise(make_run(records))] == ["not distinguishable"]


def test_one_broken_record_breaks_the_row_and_its_pairs() -> None:
    found = rows_of(broken_run())
    assert found["suffix"].verdict == "broken"
    assert found["ngram"].verdict == "identical"
    assert {p.broken for p in pairwise(broken_run()) if "suffix" in (p.over, p.under)} == {True}
    assert {p.broken for p in pairwise(broken_run()) if "suffix" not in (p.over, p.under)} == {False}


def test_a_failed_cell_is_a_row_until_the_same_command_has_measured_it() -> None:
    found = rows_of(failed_run())
    assert set(found) == {"vanilla", "ngram"}
    assert all(row.failed and row.failures[0].kind == "out-of-memory" for row in found.values())
    measured = make_run(
        sample_records({"ngram": 0.5}), "later", task="humaneval", overrides=["replicate=next"]
    )
    assert not any(row.failed for row in summarise([failed_run(), measured]))
    before = with_manifest(failed_run(), created="2026-02-01")
    assert any(row.failed for row in summarise([before, with_manifest(measured, created="2026-01-01")]))
    assert any(row.failed for row in summarise([before, dataclasses.replace(measured, finished=False)]))


def test_a_failed_cell_stays_a_row_beside_the_same_cell_with_other_settings() -> None:
    lengths = [
        "methods.ngram.draft_length=0",
        "methods.ngram.draft_length=-1",
        "methods.ngram.draft_length=4",
    ]
    zero, negative = (
        with_manifest(failed_run(), run_id=text, overrides=["x=1", text]) for text in lengths[:2]
    )
    four = make_run(sample_records({"ngram": 0.5}), "four", task="humaneval", overrides=["x=1", lengths[2]])
    rows = summarise([zero, negative, four])
    assert [(row.method, row.variant, row.failed) for row in rows] == [
        ("vanilla", "", False),
        ("ngram", "", False),
        ("vanilla", "a", True),
        ("ngram", "a", True),
        ("vanilla", "b", True),
        ("ngram", "b", True),
    ]
    assert variants([zero, negative, four])[1] == [
        f"{x}: failed with {text}" for x, text in zip("ab", lengths[:2], strict=True)
    ]
    told = json_rows(rows)[-1]
    assert told["variant"] == "b"
    assert told["tau"] is told["speedup"] is told["verdict"] is None


def test_an_unfinished_run_is_partial_and_few_prompts_are_indicative() -> None:
    run = make_run(
        sample_records({"ngram": 0.5}, num_prompts=11),
        finished=False,
        failures=[Failure("interrupted", "c11", "x")],
    )
    found = rows_of(run)["ngram"]
    assert found.partial
    assert found.indicative
    assert not found.failed
    assert not rows_of(make_run(sample_records({}, num_prompts=12)))["vanilla"].indicative


def test_an_untimed_run_has_acceptance_and_no_speed() -> None:
    found = rows_of(make_run(sample_records({"ngram": 0.5}, timed=False), profile="acceptance"))["ngram"]
    assert found.tau > 1
    assert math.isnan(found.speedup)
    assert math.isnan(found.tokens_per_s)
    assert pairwise(make_run(sample_records({"ngram": 0.5}, timed=False))) == []


def test_a_lossy_acceptor_marks_its_rows_and_says_how_good_they_are() -> None:
    lossy = make_record("ngram", verdict=Verdict("lossy"), **JUDGED)
    found = rows_of(make_run([make_record("vanilla"), lossy]))
    assert found["vanilla"].lossless
    assert not found["ngram"].lossless
    assert found["ngram"].quality == Quality(agreement=2 / 4, log_likelihood=-3 / 4, score=0.5)


def test_a_lossy_row_whose_output_nobody_judged_has_no_numbers() -> None:
    found = rows_of(make_run([make_record("vanilla"), make_record("ngram", verdict=Verdict("lossy"))]))[
        "ngram"
    ]
    assert [one.kind for one in found.failures] == ["no-quality"]
    assert found.failed
    assert math.isnan(found.speedup)


def test_the_json_rows_are_strict_json_with_the_promised_keys() -> None:
    told = json_rows(summarise(sample_runs()))
    assert all(list(row) == KEYS for row in told)
    text = json.dumps(told, allow_nan=False)
    failed = next(row for row in json.loads(text) if row["num_prompts"] == 0)
    assert failed["tau"] is failed["speedup"] is failed["verdict"] is failed["speedup_ci"] is None


def test_runs_that_differ_outside_the_tables_axes_are_refused_by_name() -> None:
    first = with_provenance(sample_run("r1"), device={"name": "one"}, packages={"torch": "2.13.0"})
    second = with_provenance(sample_run("r2"), device={"name": "other"}, packages={"torch": "2.13.0"})
    with pytest.raises(ConfigError, match=r'device\.name: "one" in r1, "other" in r2.*--only.*--allow-mixed'):
        refuse_mixed([first, second])
    assert list(differences([first, second])) == ["device.name"]


def test_what_only_one_run_sets_is_a_difference_and_not_passed_over() -> None:
    """A setting that no YAML lists, a package that only one machine has."""
    plain, turned = (
        make_run(
            sample_records({"ngram": 0.5}),
            run_id,
            arms={"vanilla": {}, "ngram": {"scope": "conversation", **setting}},
            provenance={"packages": {"torch": "2.13.0", **extra}},
        )
        for run_id, setting, extra in (("r1", {}, {}), ("r2", {"min_match": 3}, {"triton": "3.5"}))
    )
    assert list(differences([plain, turned])) == ["method[tiny, ngram].min_match", "packages.triton"]
    with pytest.raises(ConfigError, match=r'packages\.triton: null in r1, "3\.5" in r2'):
        refuse_mixed([plain, turned])
    same = with_provenance(turned, packages={"torch": "2.13.0"})
    refuse_mixed([plain, same])
    assert variants([plain, same])[1] == [
        "a: method[tiny, ngram].min_match = null",
        "b: method[tiny, ngram].min_match = 3",
    ]


@pytest.mark.parametrize("fact", ["template_hash", "end_token_ids"])
def test_template_and_end_tokens_are_the_same_in_all_tasks_of_a_table(fact: str) -> None:
    runs = [
        sample_run(f"r{number}", task=f"task{number}", prompts={"hash": f"h{number}", fact: number})
        for number in (0, 1)
    ]
    with pytest.raises(ConfigError, match=rf"target\[tiny\]\.{fact}"):
        refuse_mixed(runs)
    with pytest.raises(ConfigError, match=rf"target\[tiny\]\.{fact}"):
        refuse_mixed([runs[0], sample_run("r2", task="task2", prompts={"hash": "h", fact: None})])


def test_mixed_runs_are_kept_apart_by_footnotes() -> None:
    first = with_provenance(sample_run("r1"), device={"name": "one"})
    second = with_provenance(sample_run("r2", seed=1), device={"name": "other"})
    letters, notes = variants([first, second])
    assert letters == {"r1": "a", "r2": "b"}
    assert notes == ['a: device.name = "one"', 'b: device.name = "other"']
    assert {(row.method, row.variant) for row in summarise([first, second])} >= {
        ("ngram", "a"),
        ("ngram", "b"),
    }


def test_runs_of_different_tables_need_not_compare() -> None:
    changes = [{}, {"profile": "acceptance"}, {"batch_size": 4}, {"target": "other"}]
    runs = [
        with_provenance(sample_run(f"r{number}", **change), device={"name": str(number)})
        for number, change in enumerate(changes)
    ]
    refuse_mixed(runs)
    assert variants(runs) == ({f"r{number}": "" for number in range(4)}, [])


def test_other_settings_of_an_arm_are_rows_of_their_own_in_one_table() -> None:
    runs = [drafting(4, "r4"), drafting(8, "r8"), drafting(8, "sampled", decoding="sampled", temperature=1.0)]
    refuse_mixed(runs)
    letters, notes = variants(runs)
    assert letters == {"r4": "a", "r8": "b", "sampled": "b"}
    assert notes == [
        "a: method[tiny, ngram].draft_length = 4",
        "b: method[tiny, ngram].draft_length = 8",
    ]
    assert {(row.where.temperature, row.variant) for row in summarise(runs)} == {(0, "a"), (0, "b"), (1, "b")}
    with pytest.raises(ConfigError, match=r"device\.name"):
        refuse_mixed([with_provenance(run, device={"name": run.manifest.run_id}) for run in runs])


def test_what_reading_the_clock_costs_is_a_share_of_the_rounds_and_marked_above_one_per_cent() -> None:
    records = [make_record("vanilla", accepted=[0] * 4, drafted=[0] * 4, batch_size=2)]
    shares = {}
    for cost in (ROUND_NS / 1000, ROUND_NS / 100):
        (row,) = summarise(make_run(records, probes=[Probe(1e9, cost)]))
        shares[row.clock_heavy] = row.probe_share
    # Two sequences share a round.
    assert shares == {False: pytest.approx(0.003), True: pytest.approx(0.03)}
    assert math.isnan(summarise(make_run(records))[0].probe_share)


def test_other_tasks_temperatures_methods_and_failed_cells_may_stand_together() -> None:
    refuse_mixed(sample_runs())
    assert variants(sample_runs())[1] == []


def test_the_same_task_with_other_prompts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompts\[tiny, smoke\]\.hash"):
        refuse_mixed([sample_run("r1"), sample_run("r2", prompts={"hash": "other"})])


def test_a_rung_that_was_not_run_everywhere_is_no_obstacle() -> None:
    rung = make_rung("transformers.generate", "c00", 5, ROUND_NS)
    runs = [
        make_run([make_record("vanilla"), rung], "r1"),
        make_run([make_record("vanilla")], "r2", task="b"),
    ]
    refuse_mixed(runs)
    assert [row.speedup_vs for row in summarise(runs) if row.where.task == "b"] == [{}]


def test_a_forward_stands_against_the_roof_and_a_round_against_vanillas_forward() -> None:
    """A round of the builders takes ROUND_NS, 80 % of it the forward; two sequences share a round."""
    records = [make_record(arm, batch_size=2) for arm in ("vanilla", "ngram")]
    run = make_run(records, batch_size=2, probes=[Probe(1e9, 50.0)])
    step_s = (run.manifest.target["step_bytes"] + 2 * 10 * run.manifest.target["cache_bytes_per_token"]) / 1e9
    for row in summarise([run]):
        assert row.forward_s == pytest.approx(2 * 0.8 * ROUND_NS * 1e-9)
        assert row.round_forwards == pytest.approx(1 / 0.8)
        # The mean context is a little longer than the prompts' ten tokens.
        assert row.forward_roof_fraction == pytest.approx(step_s / row.forward_s, rel=0.3)


def test_energy_is_told_only_where_every_generation_was_metered() -> None:
    metered = make_record("vanilla", energy_mj=3000)
    (row,) = summarise([make_run([metered])])
    assert row.energy_per_token_j == pytest.approx(3 / len(metered.output_ids))
    (row,) = summarise([make_run([metered, make_record("vanilla", "c01")])])
    assert math.isnan(row.energy_per_token_j)


def test_memory_is_told_by_what_it_holds() -> None:
    memory = {"weights": 400, "packed weights": 300, "ngram": 20}
    records = [make_record(arm, peak_memory_bytes=10**6) for arm in ("vanilla", "ngram")]
    run = make_run(records, probes=[Probe(1e9, 50.0, memory=memory)])
    vanilla, ngram = summarise([run])
    each = run.manifest.target["cache_bytes_per_token"]
    common = {
        "weights": 400,
        "packed weights": 300,
        "cache": each * (10 + len(records[0].output_ids)),
        "peak": 10**6,
    }
    assert vanilla.memory_bytes == common
    assert ngram.memory_bytes == {**common, "drafter": 20}


def test_the_time_to_first_token_is_a_median_of_those_that_know_it() -> None:
    records = [
        make_record("ngram", f"c{i}", [1], [4], first_token_ns=known)
        for i, known in enumerate((2_000_000_000, 4_000_000_000, None))
    ]
    vanilla = [make_record("vanilla", f"c{i}", [0], [0]) for i in range(3)]
    rows = rows_of(make_run([*vanilla, *records]))
    assert rows["ngram"].medians["first_token_s"] == pytest.approx(3.0)
    assert math.isnan(rows["vanilla"].medians["first_token_s"])


def test_a_broken_rung_has_no_ratios_and_an_arms_own_fault_strikes_its_row_alone() -> None:
    run = sample_run(failures=[Failure("error", "ngram, c03", "IndexError", "ngram")])
    rung = "transformers.generate"
    records = [
        dataclasses.replace(one, verdict=Verdict("broken", 3))
        if (one.arm, one.conversation) == (rung, "c01")
        else one
        for one in run.records
    ]
    found = rows_of(dataclasses.replace(run, records=records))
    assert found[rung].verdict == found["ngram"].verdict == "broken"
    assert found["vanilla"].verdict == found["suffix"].verdict == "identical"
    assert [bool(row.failures) for row in found.values()] == [False, True, False, False]
    assert {row.method for row in found.values() if row.is_bad} == {rung, "ngram"}
    for row in found.values():
        assert math.isnan(row.speedup_vs[rung])
        assert row.speedup_vs_ci[rung] is None
    assert not math.isnan(rows_of(run)["suffix"].speedup_vs[rung])
    whole = dataclasses.replace(run, failures=[Failure("not-finite", "vanilla, c03", "x", "vanilla")])
    assert {row.verdict for row in summarise(whole)} == {"broken"}
    assert all(row.failures for row in summarise(whole))


def test_text_that_loops_marks_its_row_and_text_that_returns_later_does_not() -> None:
    def row_with(ids: list[int]) -> Row:
        looped = make_rung("vanilla", "a", 0, 1, output_ids=ids, kind="roundless")
        (row,) = summarise(make_run([looped], arms={"vanilla": {}}))
        return row

    passage = list(range(100))
    assert row_with([7] * 40).looping_share == pytest.approx(32 / 33)
    assert row_with([7] * 40).looped
    assert marks(row_with([7] * 40)).startswith("indicative, looped 97.0 %")
    again = row_with([*passage, *passage])
    assert again.looped_share > 0.4
    assert again.looping_share == 0
    assert not again.looped
    assert not row_with([*passage, 1, 2, 3]).looped


def test_a_run_from_before_engine_and_scenario_could_be_chosen_had_the_defaults() -> None:
    old, new, other = (
        sample_run(run_id, config={"measure": {"repeats": 1}, **later})
        for run_id, later in (
            ("old", {}),
            (
                "new",
                {
                    "engine": {"_target_": "harness.engines.local.Local"},
                    "scenario": {
                        "_target_": "harness.benchmark.scenarios.multi_turn.MultiTurn",
                        "name": "multi_turn",
                        "max_turns": None,
                    },
                },
            ),
            ("other", {"engine": {"_target_": "x.Server"}}),
        )
    )
    assert differences([old, new]) == {}
    assert differences([old, other]) == {
        "config.engine._target_": {'"Local"': ["old"], '"Server"': ["other"]}
    }

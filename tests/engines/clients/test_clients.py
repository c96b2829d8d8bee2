"""Counters, arrivals and events of servers, from recorded texts."""

from __future__ import annotations

import asyncio

import pytest

from harness.engines.clients.arrivals import closed_loop, open_loop, poisson_offsets_ns
from harness.engines.clients.counters import counts_between, samples
from harness.engines.clients.native import take_generate_event
from harness.engines.clients.streams import EngineCounts, Question, Reply, parsed
from harness.engines.faults import EngineFault

QUESTION = Question(prompt=[1], max_tokens=8, temperature=0, top_k=0, top_p=1, seed=0, ignore_end=False)
VLLM = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="target"} 33.0
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="target"} 99.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="target"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="0"} 18.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="+Inf",model_name="target"} 5.0
"""


def test_counters_are_differences_and_sum_over_engines() -> None:
    later = VLLM.replace("33.0", "40.0").replace("99.0", "120.0").replace("30.0", "35.0")
    assert counts_between(VLLM, later) == EngineCounts(7, 21, 5)
    assert counts_between("", VLLM) == EngineCounts(33, 99, 30)
    double = VLLM + VLLM.replace('engine="0"', 'engine="1"')
    assert counts_between("", double) == EngineCounts(66, 198, 60)
    assert counts_between(VLLM, None) is counts_between("up 1\n", "up 2\n") is None
    assert samples('a{x="1"} 1.5e3 1700000000\nb NaN\n# c 1\nnot a line')["a"] == 1500


def test_our_own_counters_are_read_as_well() -> None:
    text = "specbench_draft_rounds_total 4\nspecbench_drafted_tokens_total 12\n"
    text += "specbench_accepted_tokens_total 5\n"
    assert counts_between("", text) == EngineCounts(4, 12, 5)


def test_arrivals_are_seeded_in_order_and_have_the_rate() -> None:
    offsets = poisson_offsets_ns(20_000, 50.0, "a")
    assert offsets == poisson_offsets_ns(20_000, 50.0, "a") != poisson_offsets_ns(20_000, 50.0, "b")
    assert offsets == sorted(offsets)
    gaps = [later - before for before, later in zip([0, *offsets], offsets, strict=False)]
    mean = sum(gaps) / len(gaps)
    # Of an exponential distribution the mean is the standard deviation; 20,000 gaps tell both within 3 %.
    assert mean == pytest.approx(1e9 / 50, rel=0.03)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("places", [1, 3, 9])
def test_a_closed_loop_keeps_its_places_full_and_answers_by_number(places: int) -> None:
    running = most = 0

    async def ask(number: int, due_ns: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 10 * number

    assert asyncio.run(closed_loop(ask, [4, 2, 0, 1, 3], places)) == [0, 10, 20, 30, 40]
    assert most == min(places, 5)


def test_an_open_loop_sends_what_is_due_without_waiting_for_answers() -> None:
    running = most = 0

    async def ask(number: int, due_ns: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return due_ns

    offsets = [0, 1_000_000, 2_000_000]
    due = asyncio.run(open_loop(ask, [2, 0, 1], offsets, None))
    assert most == 3
    assert [due[2] - due[2], due[0] - due[2], due[1] - due[2]] == offsets
    most = 0
    asyncio.run(open_loop(ask, [0, 1, 2], offsets, 1))
    assert most == 1


def test_the_first_fault_of_a_loop_cancels_the_others() -> None:
    cancelled = []

    async def ask(number: int, due_ns: int) -> int:
        if number == 0:
            raise EngineFault("engine-error", "x")
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    with pytest.raises(ExceptionGroup):
        asyncio.run(closed_loop(ask, [1, 2, 0], 3))
    assert sorted(cancelled) == [1, 2]


@pytest.mark.parametrize("cumulative", [True, False])
def test_events_of_sglang_hold_new_ids_or_all_of_them(cumulative: bool) -> None:
    reply, ids = Reply(), [5, 6, 7, 8, 9]
    for start, end in ((0, 1), (1, 3), (3, 5)):
        last = end == len(ids)
        meta = {
            "id": "a",
            "finish_reason": {"type": "length", "length": 5} if last else None,
            "prompt_tokens": 3,
            "completion_tokens": end,
            "spec_verify_ct": 2,
        }
        take_generate_event({"output_ids": ids[0 if cumulative else start : end], "meta_info": meta}, reply)
    assert (reply.ids, reply.arrived, reply.finish) == (ids, [1, 2, 2], "length")
    assert reply.counts == EngineCounts(2, 0, 2)
    meta |= {"spec_num_proposed_drafts": 10, "spec_num_correct_drafts": 1}
    take_generate_event({"output_ids": ids, "meta_info": meta}, reply)
    assert reply.counts == EngineCounts(2, 10, 1)
    with pytest.raises(EngineFault, match="without output_ids"):
        take_generate_event({"text": "a"}, Reply())


@pytest.mark.parametrize(
    ("ids", "finish", "message"),
    [
        ([1, 2], None, "without an end"),
        ([1, 300], "stop", "token 300 is outside"),
        ([1] * 9, "length", "9 tokens, where 8"),
        ([1], "abort", "because of 'abort'"),
    ],
)
def test_an_answer_that_cannot_be_one_is_refused(ids: list[int], finish: str | None, message: str) -> None:
    reply = Reply(finish=finish)
    reply.take(ids)
    with pytest.raises(EngineFault, match=message):
        reply.check(QUESTION, 259)


def test_an_end_token_that_the_engine_kept_is_added_once() -> None:
    for given, closed in (([4, 5], [4, 5, 258]), ([4, 258], [4, 258])):
        reply = Reply(finish="stop")
        reply.take(given)
        reply.close([258])
        assert reply.ids == closed
        assert reply.arrived == [2]
    cut = Reply(finish="length")
    cut.take([4])
    cut.close([258])
    assert cut.ids == [4]


@pytest.mark.parametrize("text", ["{no", "[1]", ""])
def test_what_is_no_object_is_garbage(text: str) -> None:
    with pytest.raises(EngineFault, match="no JSON"):
        parsed(text)

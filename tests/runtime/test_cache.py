"""What a cache holds from one batch of sequences to the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.sampling import DecodingParams
from harness.runtime.cache import SlotCache
from harness.runtime.write_plan import WritePlan
from methods.vanilla import Vanilla
from tests.support.targets import engine, requests


def written(cache: SlotCache, count: int) -> None:
    """Feed `count` tokens to one sequence, in two layers."""
    cache.aim(WritePlan.decode(cache.lengths, slice(0, 1), count, torch.device("cpu"), 0))
    states = torch.randn(1, 2, count, 4)
    for layer in range(2):
        cache.update(states, states, layer)
    cache.advance([count])


@pytest.mark.parametrize("graphs", [False, True])
def test_a_long_sequence_leaves_no_slots_to_the_next_one_unless_graphs_hold_them(graphs: bool) -> None:
    capture: Any = (lambda function, tame: function) if graphs else None
    cache = SlotCache(capture)
    cache.clear(1)
    written(cache, 5)
    first = cache.num_slots
    written(cache, 3 * first)
    grown, where = cache.num_slots, cache.where
    cache.clear(1)
    assert grown > first
    assert cache.num_slots == (grown if graphs else first)
    assert (cache.where == where) == graphs
    written(cache, 5)
    assert [buffer.shape[2] for buffer in cache.memory.keys] == [cache.num_slots] * 2


def test_a_new_sequence_reads_nothing_of_a_longer_one() -> None:
    params = DecodingParams(name="greedy", max_new_tokens=12)
    (short, *_), loop = requests(), engine()

    def output(request: Request) -> list[int]:
        drafter = Vanilla()
        drafter.bind(loop.target)
        return loop.generate([request], drafter, params, Coupled())[0].output_ids

    alone = output(short)
    output(Request(prompt=[5, 7] * 180, key=short.key))
    assert output(short) == alone

"""Lookahead: windows, pools and guesses are those of the authors' code, and so is what a window sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from methods.lookahead.drafter import _row
from methods.lookahead.jacobi_window import JacobiWindow

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public/lookahead"
CASES = sorted(RECORDED.glob("*.json")) if RECORDED.is_dir() else []


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_every_window_pool_and_guess_is_that_of_the_authors_code(file: Path) -> None:
    case = json.loads(file.read_text())
    params = case["params"]
    for number, call in enumerate(case["calls"]):
        window = JacobiWindow(
            call["prompt_ids"], params["LEVEL"], params["WINDOW_SIZE"], params["GUESS_SET_SIZE"]
        )
        assert window.levels == [call["initial_window"]]
        for index, told in enumerate(call["rounds"]):
            where = f"call {number}, round {index}"
            assert window.levels == [level for level in told["window"] if level is not None], where
            guesses = [list(gram) for gram in window.guesses(told["root"])]
            assert guesses == told["guesses"], where
            if "pool_before" in told:
                assert _plain(window.pool) == told["pool_before"], where
            window.advance(told["root"], told["window_results"])
        # A call that ends with an end token records neither.
        assert _plain(window.pool) == call.get("pool_after", _plain(window.pool))
        assert window.levels == call.get("window_after", window.levels)


def _plain(pool: dict[int, list[tuple[int, ...]]]) -> dict[str, list[list[int]]]:
    return {str(key): [list(gram) for gram in grams] for key, grams in pool.items()}


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_positions_and_masks_of_a_window_are_those_of_the_authors_code(file: Path) -> None:
    case, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    params, num_compared = case["params"], 0
    (call,) = case["calls"]
    window = JacobiWindow(
        call["prompt_ids"], params["LEVEL"], params["WINDOW_SIZE"], params["GUESS_SET_SIZE"]
    )
    for index, told in enumerate(call["rounds"]):
        recorded = {name: tensors.get(f"r{index}.{name}") for name in ("ids", "positions", "mask")}
        if (ids := recorded["ids"]) is not None and index > 0:
            count = sum(map(len, window.levels))
            tokens, offsets, seen = _row(window, count)
            positions, mask = recorded["positions"], recorded["mask"]
            assert positions is not None
            assert mask is not None
            assert ids[: 1 + count].tolist() == [told["root"], *tokens]
            assert (positions - positions[0])[1 : 1 + count].tolist() == offsets
            torch.testing.assert_close(mask[1 : 1 + count, : 1 + count].bool(), torch.tensor(seen))
            num_compared += 1
        window.advance(told["root"], told["window_results"])
    assert num_compared


def test_a_window_is_filled_up_with_riders_that_see_nobody_else() -> None:
    tokens, offsets, seen = _row(JacobiWindow([5], 3, 2, 1), 4)
    assert (tokens, offsets) == ([5, 5, 0, 0], [1, 2, 0, 0])
    assert seen[0] == [True, True, False, False, False]
    assert seen[3] == [True, False, False, False, True]

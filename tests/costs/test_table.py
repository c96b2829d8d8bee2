"""Cost tables: monotone whatever was measured, exact at what was measured, silent nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ConfigError
from harness.costs.grid import Grid, isotonic, repaired
from harness.costs.table import CostTable, DraftingCost, load_table, load_tables
from tests.support.builders import make_table

TABLE = make_table()
SECONDS = st.lists(st.floats(0.1, 10), min_size=1, max_size=12)


@given(SECONDS)
def test_isotonic_regression_rises_keeps_the_sum_and_leaves_what_rises(values: list[float]) -> None:
    fitted = isotonic(values)
    assert (np.diff(fitted) >= -1e-12).all()
    assert fitted.sum() == pytest.approx(sum(values))
    assert isotonic(sorted(values)) == pytest.approx(sorted(values))


def test_isotonic_regression_pools_an_inversion() -> None:
    assert isotonic([1.0, 3.0, 2.0, 4.0]).tolist() == [1.0, 2.5, 2.5, 4.0]


def test_a_repaired_table_rises_along_every_axis_and_strictly_with_tokens() -> None:
    inverted = np.array([[[2.0, 1.0, 1.5], [1.0, 1.2, 1.1]], [[1.0, 1.0, 1.0], [3.0, 2.0, 1.0]]])
    fixed = repaired(inverted)
    assert (np.diff(fixed, axis=2) > 0).all()
    assert (np.diff(fixed, axis=1) >= 0).all()
    assert (np.diff(fixed, axis=0) >= 0).all()


def test_measured_cells_come_back_and_places_between_are_linear() -> None:
    grid = TABLE.forward
    for place in np.ndindex(grid.values.shape):
        point = {name: axis[i] for (name, axis), i in zip(grid.axes.items(), place, strict=True)}
        assert TABLE.seconds(**point) == pytest.approx(grid.values[place])
    # `make_table` is linear in each axis, so that the middle is the formula itself.
    assert TABLE.seconds(1, 300, 3) == pytest.approx(make_table.seconds(1, 300, 3))
    assert TABLE.seconds(2.5, 200, 7) == pytest.approx(make_table.seconds(2.5, 200, 7))


def test_many_places_are_the_same_as_one_by_one() -> None:
    contexts, tokens = np.array([100, 150, 400]), np.array([1, 5, 8])
    many = TABLE.seconds(2, contexts, tokens)
    assert many.tolist() == [float(TABLE.seconds(2, c, t)) for c, t in zip(contexts, tokens, strict=True)]
    assert TABLE.curve(2, 150).tolist() == [float(TABLE.seconds(2, 150, t)) for t in range(1, 9)]


def test_a_short_context_is_clamped_and_everything_else_outside_refused_with_what_to_type() -> None:
    assert TABLE.seconds(1, 3, 2) == TABLE.seconds(1, 100, 2)
    for place, told in (
        ((8, 100, 2), r"batch 8 .* 1 to 4; .*costs\.batches=\[\.\.\.,8\]"),
        ((1, 501, 2), r"costs\.contexts"),
        ((1, 100, 9), r"costs\.tokens"),
        ((1, 100, 0), "tokens 0"),
    ):
        assert not TABLE.forward.covers(**dict(zip(("batch", "context", "tokens"), place, strict=True)))
        with pytest.raises(ConfigError, match=told):
            TABLE.seconds(*place)


def test_a_table_is_refused_for_another_machine_target_or_torch() -> None:
    assert TABLE.expect(TABLE.identity) is TABLE
    for part, key in (("device", "cpu"), ("target", "dtype"), ("target", "linear"), ("software", "torch")):
        other = {**TABLE.identity, part: {**TABLE.identity[part], key: "another"}}
        with pytest.raises(
            ConfigError, match=rf"{part}\.{key} is .* and 'another' here.*python -m harness\.cost"
        ):
            TABLE.expect(other)


def test_a_stored_table_is_the_same_and_keeps_the_drafters_of_an_earlier_one(tmp_path: Path) -> None:
    grid = Grid(axes={"batch": (1,), "context": (100,)}, values=np.array([[0.5]]))
    first = replace(TABLE, drafters={"ngram": DraftingCost(settings={"draft_length": 4}, round=grid)})
    first.save(tmp_path / "costs")
    place = TABLE.save(tmp_path / "costs")
    (found,) = load_tables(tmp_path)
    assert found.identity == TABLE.identity
    assert np.array_equal(found.forward.values, TABLE.forward.values)
    assert found.forward.axes == TABLE.forward.axes
    drafting = found.drafting("ngram", {"draft_length": 4})
    assert drafting is not None
    assert drafting.round.at(batch=1, context=100) == 0.5
    assert found.drafting("ngram", {"draft_length": 5}) is None
    assert replace(TABLE, identity={**TABLE.identity, "device": {}}).file != place.name


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    with pytest.raises(ConfigError, match=r"no such cost table; python -m harness\.cost"):
        load_table(file)
    for text in ("{", "{}", json.dumps({"version": 99})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="is no cost table"):
            load_table(file)


def test_the_cost_of_a_round_has_acceptance_and_commit_in_it() -> None:
    assert isinstance(TABLE, CostTable)
    settle = TABLE.settle.at(batch=1, context=100, tokens=4)
    assert TABLE.step_seconds(1, 100, 4) == pytest.approx(float(TABLE.seconds(1, 100, 4) + settle))

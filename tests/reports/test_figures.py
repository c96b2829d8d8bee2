"""Figures: which are drawn, the same bytes every time, and nobody else's settings touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.analysis.summary import summarise
from harness.reports.figures import draw, draw_once, drawing
from tests.support.builders import make_record, make_run, sample_records, sample_run, sample_runs

KINDS = ("speedup", "tau", "acceptance-by-position", "time-split")


def test_every_kind_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    written = draw(summarise(sample_run()), tmp_path / "new" / "figures", prefix="x-")
    expected = [f"x-tiny.greedy-{kind}.{suffix}" for kind in KINDS for suffix in ("png", "svg")]
    assert [path.name for path in written] == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = summarise(sample_runs())
    first, second = draw(rows, tmp_path / "a"), draw(rows, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    # Two tasks have panels in the four figures of each temperature, and one was measured at both.
    assert len(first) == 16 + 2


def test_untimed_rows_have_no_figure_of_speed(tmp_path: Path) -> None:
    run = make_run(sample_records({"ngram": 0.5}, timed=False), profile="acceptance")
    names = {path.name for path in draw(summarise(run), tmp_path)}
    assert names == {f"tiny.greedy-{kind}.{s}" for kind in KINDS[1:3] for s in ("png", "svg")}


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    assert draw([], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("num_methods", [0, 1, 8])
@pytest.mark.parametrize("tasks", [["a"], ["a", "b", "c", "d"]], ids=len)
def test_one_to_eight_methods_with_long_names_fit(
    tmp_path: Path, num_methods: int, tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, *_: object) -> list[Path]:
        FigureCanvasAgg(figure).draw()
        drawn.append(figure)
        return []

    monkeypatch.setattr(drawing, "_save", keep)
    names = [f"cost_aware_suffix_tree_{i}" for i in range(num_methods)]
    records = sample_records(dict.fromkeys(names, 0.5), num_prompts=3)
    target = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    rows = summarise([make_run(records, f"r{task}", task=task, target=target) for task in tasks])
    draw(rows, tmp_path)
    assert len(drawn) == (4 if num_methods else 3)
    for figure in drawn:
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 0, "something is cut off"
        shown = [panel.get_position() for panel in figure.axes if panel.get_visible()]
        assert len(shown) == len(tasks)
        assert min(one.width * width for one in shown) > 1.5, "no room for bars and lines"
        assert min(one.height * height for one in shown) > 0.25


def test_every_panel_shows_its_largest_values_whichever_task_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(drawing, "_save", lambda figure, folder, name: drawn.setdefault(name, figure) and [])
    rows = []
    for task, factor in (("a", 1.0), ("b", 3.0)):
        for decoding, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            run = make_run(sample_records({"ngram": 0.5}), f"{task}{decoding}", task=task)
            rows += [
                replace(
                    row,
                    where=replace(row.where, decoding=decoding, temperature=temperature),
                    tau=factor * row.tau,
                    tau_ci=(factor * row.tau, factor * row.tau + 1),
                )
                for row in summarise(run)
            ]
    draw(rows, tmp_path)
    for kind, along in (("tau", "x"), ("tau-by-temperature", "y")):
        (name,) = (name for name in drawn if name.endswith(kind) and "sampled" not in name)
        limits = [getattr(panel, f"get_{along}lim")() for panel in drawn[name].axes]
        assert min(high for _, high in limits) > max(row.tau_ci[1] for row in rows if row.tau_ci)
        assert {low for low, _ in limits} == {0.0 if along == "x" else 1.0}


def test_sets_that_differ_in_anything_have_files_of_their_own(tmp_path: Path) -> None:
    records = sample_records({"ngram": 0.5}, num_prompts=3)
    axes = [{}, {"batch_size": 4}, {"profile": "quick"}, {"temperature": 0.5}, {"target": "other/name"}]
    rows = summarise([make_run(records, f"r{i}", **changes) for i, changes in enumerate(axes)])
    written = draw(rows, tmp_path)
    # And two more figures that have the two batches and the two temperatures side by side.
    assert len(set(written)) == len(written) == len(axes) * 8 + 4
    assert all(path.is_file() for path in written)


def test_the_callers_matplotlib_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    rows = summarise(sample_run())
    plain = [path.read_bytes() for path in draw(rows, tmp_path / "a")]
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": None}):
        styled = [path.read_bytes() for path in draw(rows, tmp_path / "b")]
        assert matplotlib.rcParams["font.size"] == 30
    assert styled == plain


def test_calls_windows_and_temperatures_have_figures_where_there_are_several(tmp_path: Path) -> None:
    config = {"decoding": {}, "scenario": {"num_rounds": 2}}
    runs = []
    for name, temperature in (("greedy", 0.0), ("warm", 0.6)):
        records = [
            replace(one, turn=turn)
            for turn in (0, 1)
            for one in sample_records({"sam": 0.3 + 0.4 * turn}, num_prompts=3, num_repeats=1)
        ]
        runs.append(make_run(records, name, temperature=temperature, decoding=name, config=config))
    long = make_record("vanilla", "long", [0] * 600, [0] * 600)
    runs.append(make_run([long], "long", decoding="long", config=config))
    names = {path.name for path in draw(summarise(runs), tmp_path)}
    assert {"tiny.greedy-tau-by-call.png", "tiny.warm-tau-by-call.svg"} <= names
    assert "tiny-tau-by-temperature.png" in names
    along = [name for name in names if "tau-along" in name]
    assert sorted(along) == ["tiny.long-tau-along.png", "tiny.long-tau-along.svg"], "others have one window"


def test_drafts_have_a_figure_where_their_size_varies_along_the_output(tmp_path: Path) -> None:
    fixed = [make_record("eagle3", "a", [1] * 40, [7] * 40)]
    chosen = [make_record("cast", "a", [1] * 40, [9] * 20 + [2] * 20)]
    vanilla = [make_record("vanilla", "a", [0] * 80, [0] * 80)]
    names = {path.name for path in draw(summarise(make_run(fixed + vanilla)), tmp_path / "fixed")}
    assert not [name for name in names if "drafts-along" in name]
    rows = summarise(make_run(chosen + fixed + vanilla))
    names = {path.name for path in draw(rows, tmp_path / "chosen")}
    assert {"tiny.greedy-drafts-along.png", "tiny.greedy-drafts-along.svg"} <= names
    cast = next(row for row in rows if row.method == "cast")
    assert cast.draft_shapes[0].nodes > cast.draft_shapes[-1].nodes == 2


def test_figures_of_a_run_are_drawn_once_and_again_where_one_is_not_whole(tmp_path: Path) -> None:
    rows, folder = summarise(sample_run()), tmp_path / "figures"
    written = draw_once(rows, folder)
    before = {path.name: path.read_bytes() for path in written}
    assert before
    times = [path.stat().st_mtime_ns for path in written]
    assert draw_once(rows, folder) == written
    assert [path.stat().st_mtime_ns for path in written] == times
    written[0].write_bytes(before[written[0].name][:-100])
    draw_once(rows, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_death_while_figures_are_drawn_leaves_no_set_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, folder = summarise(sample_run()), tmp_path / "figures"
    real, calls = drawing.write_whole, 0

    def die_at_the_third(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(drawing, "write_whole", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            draw_once(rows, folder)
    assert not folder.exists()
    assert len(draw_once(rows, folder)) > 3
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]

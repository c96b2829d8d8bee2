"""The HTML report in a real browser: it opens, sorts, filters, shows trees, and runs nobody else's script."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.comparability import variants
from harness.analysis.summary import pairwise, summarise
from harness.cli.report_command import main
from harness.reports.page import document
from harness.store.records import Failure, Run
from tests.support.builders import (
    make_exhibit,
    make_record,
    make_run,
    sample_records,
    sample_runs,
    write_runs,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT_MS = 240_000
EVIL = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    '"><svg/onload=window.pwned=3> \u2028 <!--<script>',
    "{{ 7 * 7 }} ${window.pwned=4} javascript:window.pwned=5",
)


def write_page(runs: Sequence[Run], folder: Path) -> Path:
    """The page of `runs`, which need not compare."""
    path = folder / "report.html"
    path.write_text(document(summarise(runs), pairwise(runs), runs, variants(runs)[1]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="the page is tested with playwright, an extra of dev"
    )
    if CHROMIUM is None:
        pytest.skip(
            "the page is tested in Chromium, which is not installed (Debian: apt-get install chromium)"
        )
    with api.sync_playwright() as playwright:
        # As root, as in most containers, Chromium has no sandbox.
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=TIMEOUT_MS
        )
        yield opened
        opened.close()


@dataclasses.dataclass
class Opened:
    """A page in the browser, and what it said and asked for."""

    page: Any
    told: list[str]
    requests: list[str]

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]


def opened(browser: Any, path: Path, **options: Any) -> Opened:
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    result = Opened(page, [], [])
    page.on("console", lambda message: result.told.append(message.text))
    page.on("pageerror", lambda error: result.told.append(str(error)))
    page.on("request", lambda request: result.requests.append(request.url))
    page.goto(path.as_uri())
    return result


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The command's own page of two tasks at two temperatures, with a broken row and a failed cell."""
    folder = tmp_path_factory.mktemp("page")
    write_runs(sample_runs(), folder)
    assert main(["build", "--results", str(folder), "--format", "html"]) == 1
    assert [path.name for path in (folder / "tables").iterdir()] == ["report.html"]
    return opened(browser, folder / "tables" / "report.html", viewport={"width": 1280, "height": 900})


@pytest.fixture
def fresh(report: Opened) -> Iterator[Opened]:
    """The report without filters, and in the order of its cells."""
    yield report
    report.page.get_by_role("button", name="Reset").click()
    report.page.evaluate("STATE.column = null; drawBoard()")


def test_it_opens_without_a_message_or_a_request_and_draws_every_section(report: Opened) -> None:
    report.page.evaluate("document.querySelectorAll('.chart').forEach(paint)")
    for where in ("#speed", "#tau", "#by-position", "#along", "#split", "#headroom"):
        assert report.page.locator(f"{where} .chart svg[role=img]").count() == 3, where
    assert report.page.locator("#pairs table").count() == 3
    assert report.page.locator("#runs details.run").count() == 4
    assert report.told == []
    assert [url for url in report.requests if not url.startswith("file://")] == []


def test_columns_sort_by_click_and_by_key_and_unknown_numbers_come_last(fresh: Opened) -> None:
    def speedups() -> list[str]:
        return [text[:4] for text in fresh.texts("#board tbody tr:not(.failed) .speedup")]

    heading = fresh.page.locator("#board thead button", has_text="speedup")
    before = speedups()
    heading.click()
    assert fresh.page.locator("#board th[aria-sort=descending]").inner_text().startswith("speedup")
    assert speedups() == sorted(before, reverse=True) != before
    assert "failed" in (fresh.page.locator("#board tbody tr").last.get_attribute("class") or "")
    fresh.page.keyboard.press("Enter")
    assert speedups() == sorted(before)
    assert "failed" in (fresh.page.locator("#board tbody tr").last.get_attribute("class") or "")
    fresh.page.keyboard.press("Enter")
    assert speedups() == before


def test_filters_and_search_hold_for_every_section(fresh: Opened) -> None:
    fresh.page.locator("#filters select[name=T]").select_option("1")
    assert set(fresh.texts("#board tbody td:nth-child(2)")) == {"1"}
    assert fresh.page.locator("#speed figure").count() == 2
    fresh.page.locator("#filters select[name=task]").select_option("smoke")
    assert fresh.page.locator("#pairs table").count() == 1
    fresh.page.locator("#filters input").fill("suffix")
    assert fresh.texts("#board tbody th") == ["suffix"]
    assert fresh.texts("#board-count") == ["1 of 13 rows"]
    fresh.page.locator("#filters input").fill("no such thing")
    assert "Nothing passes the filters" in fresh.page.locator("#speed").inner_text()


def test_a_broken_row_is_struck_out_and_a_failed_one_says_why(report: Opened) -> None:
    assert report.texts("#board tr.broken th") == ["suffix"]
    struck = "getComputedStyle(document.querySelector('#board tr.broken th')).textDecorationLine"
    assert report.page.evaluate(struck) == "line-through"
    assert all("no room; turn down a_b" in text for text in report.texts("#board tr.failed td.text .failure"))


def test_an_answer_shows_its_rounds_and_a_round_its_tree(report: Opened) -> None:
    page = report.page
    page.locator("#explorer [data-arm=suffix]").click()
    rounds = page.locator("#explorer .answer button")
    assert rounds.count() == int(page.locator("#round h3").inner_text().split()[-1])
    with_tree = page.locator("#explorer .answer button.has-tree").first
    drafted, kept = with_tree.get_attribute("title").split(": ")[1].split(", ")[:2]
    with_tree.click()
    assert with_tree.get_attribute("aria-pressed") == "true"
    assert page.locator("#round .tree .node:not(.pending):not(.own)").count() == int(drafted.split()[0])
    assert page.locator("#round .tree .node.kept").count() == int(kept.split()[0])
    assert page.locator("#round .tree .node.pending").count() == 1
    with_tree.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#round h3").inner_text().startswith("Round 2 of")
    assert page.evaluate("document.activeElement.dataset.round") == "1"
    text = "".join(report.texts("#explorer .answer"))
    assert "t100" in text


def test_every_answer_of_the_runs_can_be_chosen(report: Opened) -> None:
    assert "12 of the 12 answers" in report.page.locator("#answers-count").inner_text()
    assert report.page.locator("select[name=prompt] option").count() == 2
    assert report.page.locator("#explorer [data-arm]").count() == 3


def test_what_can_be_used_or_scrolled_is_reached_by_the_tab_key(report: Opened) -> None:
    unreachable = report.page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, a, summary, .scroll')]
            .filter((one) => one.tabIndex < 0 && !one.matches('.answer button')).length"""
    )
    assert unreachable == 0
    assert report.page.locator("#explorer .answer button[tabindex='0']").count() == 1
    report.page.reload()
    report.page.locator("body").press("Tab")
    assert report.page.evaluate("document.activeElement.hash") == "#board"


def test_hostile_text_is_shown_and_never_run(browser: Any, tmp_path: Path) -> None:
    tag, image, breakout, template = EVIL
    records = [
        dataclasses.replace(record, conversation=image, category=breakout)
        for record in sample_records({tag: 0.6, image: 0.3}, num_prompts=1)
    ]
    exhibits = [
        make_exhibit(one, prompt=" ".join(EVIL), piece=tag + "{}") for one in records if not one.repeat
    ]
    run = make_run(
        records,
        tag,
        target=breakout,
        task=image,
        decoding=template,
        exhibits=exhibits,
        overrides=list(EVIL),
        config={tag: {image: breakout}, "decoding": {"seeds": [0]}},
        provenance={image: tag},
        failures=[Failure(tag, image, breakout)],
    )
    other = make_run([make_record("vanilla")], "other", task=tag, target=template)
    report = opened(browser, write_page([run, other], tmp_path))
    page = report.page
    page.evaluate("document.querySelectorAll('.chart').forEach(paint)")
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator(".run-facts").nth(1).wait_for()
    assert page.evaluate("window.pwned === undefined")
    assert page.locator("img, iframe, object, main script").count() == 0
    assert report.told == []
    assert [url for url in report.requests if not url.startswith("file://")] == []
    assert tag in report.texts("#board tbody th")
    assert all(text in page.locator("#explorer .prompt p").text_content() for text in EVIL)
    assert tag in page.locator("#explorer .answer").text_content()
    assert breakout in page.locator("#runs").text_content()


@pytest.mark.parametrize("width", [360, 768])
def test_at_the_width_of_a_phone_nothing_sticks_out(browser: Any, tmp_path: Path, width: int) -> None:
    report = opened(browser, write_page(sample_runs(), tmp_path), viewport={"width": width, "height": 800})
    report.page.evaluate("document.querySelectorAll('.chart').forEach(paint)")
    assert report.page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_mode_is_the_readers_choice(browser: Any, tmp_path: Path) -> None:
    path = write_page(sample_runs(), tmp_path)
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
    light, dark = (
        opened(browser, path, color_scheme=scheme).page.evaluate(shade) for scheme in ("light", "dark")
    )
    assert light > 200 > 60 > dark


def test_a_hundred_runs_open_in_under_three_seconds(browser: Any, tmp_path: Path) -> None:
    """Seconds of the page's own processor time, so that a busy machine does not fail it."""
    runs = []
    for number in range(100):
        records = sample_records({"ngram": 0.5, "suffix": 0.7, "eagle": 0.8}, num_prompts=2, seed=number)
        shown = [make_exhibit(one) for one in records if one.repeat == 0]
        runs.append(
            make_run(records, f"r{number}", task=f"task{number // 2}", temperature=number % 2, exhibits=shown)
        )
    path = write_page(runs, tmp_path)
    page = browser.new_context().new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri(), timeout=TIMEOUT_MS)
    assert page.locator("#board tbody tr").count() == 400
    spent = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    assert page.locator("#speed figure").count() == 12
    page.locator("#speed button.more").click()
    assert page.locator("#speed figure").count() == 100
    assert 0 < spent["TaskDuration"] < 3


def test_the_same_runs_give_the_same_bytes_and_old_runs_say_that_they_keep_no_answers() -> None:
    runs = [dataclasses.replace(run, exhibits=[]) for run in sample_runs()]
    first, second = (document(summarise(runs), pairwise(runs), runs, []) for _ in range(2))
    assert first == second
    assert '"num_kept":0' in first
    assert "http-equiv" in first

"""Tasks: every YAML builds, embedded prompts are as documented, mistakes are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import conf
from harness.config import ConfigError, build
from harness.tasks.sources import EmbeddedTask, HubTask, HumanEvalTask, MixedTask
from harness.tasks.task import JsonlTask, Task, TokenIdsTask

YAMLS = sorted((Path(conf.__file__).parent / "task").glob("*.yaml"))
SHARED = Path(__file__).parents[3] / "shared" / "data" / "prompts"
KINDS = ["chat", "code", "math", "summary", "translation", "extraction"]


def task(name: str, **settings: Any) -> Task:
    node = OmegaConf.load(next(path for path in YAMLS if path.stem == name))
    built: Task = build(OmegaConf.merge(node, settings), "task")
    return built


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_task_builds_without_reading_anything(path: Path) -> None:
    node = OmegaConf.load(path)
    if OmegaConf.is_missing(node, "path"):
        node.path = "nowhere.jsonl"
    assert build(node, "task").name == path.stem


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_task_lists_how_its_prompts_are_chosen(path: Path) -> None:
    # The category of token ids is always the same.
    wanted = {"name", "limit", "seed", "ids"} | (set() if path.stem == "token_ids" else {"categories"})
    assert set(OmegaConf.load(path)) >= wanted


def test_smoke_has_four_prompts_of_six_kinds_two_of_them_with_two_turns() -> None:
    found = task("smoke").load()
    assert [one.category for one in found] == [kind for kind in KINDS for _ in range(4)]
    assert [one.num_turns for one in found] == [1, 1, 2, 2] * 6


def test_tuning_and_warm_up_prompts_are_not_test_prompts() -> None:
    smoke, tune = task("smoke"), task("tune")
    sets = [
        {turn for one in conversations for turn in one.turns}
        for conversations in (smoke.load(), tune.load(), smoke.warmup(), task("humaneval").load())
    ]
    assert len(tune.load()) == 18
    assert len(smoke.warmup()) == 3
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_humaneval_comes_with_its_package() -> None:
    found = HumanEvalTask(name="humaneval").load()
    assert len(found) == 164
    assert found[0].id == "HumanEval/0"
    assert "has_close_elements" in found[0].turns[0]
    assert len(task("humaneval").load()) == 80


def test_quickstart_is_every_kind_once() -> None:
    found = task("quickstart").load()
    assert [one.id.split("/")[0] for one in found] == ["smoke"] * 5 + ["humaneval"]
    assert {one.num_turns for one in found} == {1}
    assert sorted(one.category for one in found) == sorted(KINDS)


def test_a_seeded_subset_is_stable_and_in_order() -> None:
    ids = [one.id for one in EmbeddedTask(name="smoke", limit=5, seed=1).load()]
    assert ids == [one.id for one in EmbeddedTask(name="smoke", limit=5, seed=1).load()]
    assert ids != [one.id for one in EmbeddedTask(name="smoke", limit=5, seed=2).load()]
    order = [one.id for one in EmbeddedTask(name="smoke").load()]
    assert ids == sorted(ids, key=order.index)


def test_filters_choose_and_name_what_is_not_there() -> None:
    assert {one.category for one in task("smoke", categories=["math"]).load()} == {"math"}
    assert len(task("smoke", max_turns=1, ids=["math-3"]).load()[0].turns) == 1
    with pytest.raises(ConfigError, match=r"'mth'. Did you mean math"):
        task("smoke", categories=["mth"]).load()
    with pytest.raises(ConfigError, match="no conversation matches both"):
        task("smoke", ids=["math-1"], categories=["chat"]).load()


def test_a_doubled_id_and_a_line_without_turns_are_told(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    line = json.dumps({"question_id": 1, "category": "a", "turns": ["x"]})
    file.write_text(f"{line}\n{line}\n")
    with pytest.raises(ConfigError, match="'1' appears twice"):
        JsonlTask(name="x", path=str(file)).load()
    file.write_text(f'{line}\n{{"question_id": 2}}\n')
    with pytest.raises(ConfigError, match=r"task.jsonl:2: needs"):
        JsonlTask(name="x", path=str(file)).load()


def test_only_newlines_end_lines_and_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    line = '{"question_id": 1, "category": "a", "turns": ["one\u2028two\x85three"]}\r\n'
    file.write_bytes(line.encode())
    assert JsonlTask(name="x", path=str(file)).load()[0].turns == ("one\u2028two\x85three",)
    file.write_bytes(line.encode() + b"\n\xff\n")
    with pytest.raises(ConfigError, match=r"task.jsonl:3: not JSON in UTF-8"):
        JsonlTask(name="x", path=str(file)).load()
    file.write_bytes(line.encode() + b"[1]\n")
    with pytest.raises(ConfigError, match=r"task.jsonl:2: needs a JSON object, got list"):
        JsonlTask(name="x", path=str(file)).load()
    with pytest.raises(ConfigError, match="no such file"):
        JsonlTask(name="x", path=str(tmp_path / "none.jsonl")).load()
    file.write_bytes(b"\n")
    with pytest.raises(ConfigError, match="holds no conversation"):
        JsonlTask(name="x", path=str(file)).load()


def test_rows_of_the_hub_become_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((arguments, options))
        return [{"question": "Why?", "other": 1}, {"question": "How?", "other": 2}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    made = task("gsm8k", revision="abc").load()
    assert [(one.id, one.turns) for one in made] == [("0", ("Why?",)), ("1", ("How?",))]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test", "revision": "abc"})]
    with pytest.raises(ConfigError, match=r"no column 'problem'; it has question, other"):
        task("aime24").load()


def test_an_unreachable_hub_is_told_with_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=r"no route.*task.path=FILE"):
        HubTask(name="x", dataset="a/b", split="test").load()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_hub_tasks_are_pinned_and_their_card_asks_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.load(path)
    if "dataset" not in node:
        pytest.skip("not from the hub")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    assert re.fullmatch("[0-9a-f]{40}", node.revision)
    assert build(node, "task").card()["commit"] == node.revision


def test_an_unpinned_task_offline_is_told_to_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(ConfigError, match=r"no route.*task.revision=COMMIT"):
        HubTask(name="x", dataset="a/b", split="test", revision="main").card()


def test_local_rows_may_have_the_columns_of_the_hub(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    rows = [{"id": 60, "problem": "Why?"}, {"question_id": 7, "category": "own", "turns": ["How?"]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    made = task("aime24", path=str(file)).load()
    assert [(one.id, one.category, one.turns) for one in made] == [
        ("60", "math", ("Why?",)),
        ("7", "own", ("How?",)),
    ]
    file.write_text('{"task_id": "T/1", "prompt": "def f():"}')
    assert task("humaneval", path=str(file)).load()[0].turns[0].endswith("def f():```")
    file.write_text('{"id": 1, "question": "Why?"}')
    for name, column in (("aime24", "problem"), ("humaneval", "task_id")):
        with pytest.raises(
            ConfigError, match=rf"jsonl:1: needs .* or the column '{column}'; got .* question"
        ):
            task(name, path=str(file)).load()


def test_every_source_in_a_file_is_named_with_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    cards = []
    for text in ("one", "two"):
        file.write_text(json.dumps({"question_id": 1, "turns": [text]}))
        made = [task(name, path=str(file)).card() for name in ("local", "gsm8k", "humaneval")]
        assert {card["source"] for card in made} == {"file"}
        cards.append({card["sha256"] for card in made})
    assert len(cards[0]) == len(cards[1]) == 1
    assert cards[0] != cards[1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark files beside the repository")
@pytest.mark.parametrize("file", sorted(SHARED.glob("*.jsonl")), ids=lambda file: file.stem)
def test_local_files_of_the_papers_load_whole(file: Path) -> None:
    name = {"spectts_bench": "spectts"}.get(file.stem, file.stem)
    found = task(name, path=str(file)).load()
    assert len(found) == {"spec_bench": 480, "spectts": 120, "aime24": 30}.get(name, 80)
    assert name != "mt_bench" or {one.num_turns for one in found} == {2}
    assert name != "spectts" or {one.category for one in found} == {"aime24", "aime25", "math500", "gpqa"}


def test_an_id_that_hydra_reads_as_a_number_is_found_by_its_value(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    lines = [{"id": id_, "prompt": "p"} for id_ in ("1_000", "007", "1000b")]
    file.write_text("\n".join(map(json.dumps, lines)))

    def ids(*given: int | str) -> list[str]:
        task = build(
            {"_target_": "harness.tasks.task.JsonlTask", "name": "x", "path": str(file), "ids": [*given]},
            "task",
        )
        return [one.id for one in task.load()]

    assert ids(1000, 7) == ["1_000", "007"]
    assert ids("1_000") == ["1_000"]
    with pytest.raises(ConfigError, match="has no '1001'"):
        ids(1001)
    file.write_text(file.read_text() + '\n{"id": "01000", "prompt": "p"}')
    with pytest.raises(ConfigError, match="has no '1000'"):
        ids(1000)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"id": 1, "prompt": "x"}\r\n{"id": 2, "prompt": "y"}\r\n')
    assert [one.turns for one in JsonlTask(name="x", path=str(file)).load()] == [("x",), ("y",)]


@pytest.mark.parametrize("field", ["id", "prompt", "category", "elsewhere"])
def test_half_of_a_character_is_named_with_its_line(field: str, tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    row = {"id": "1", "prompt": "x", field: "a\ud83d"}
    file.write_text('{"id": 0, "prompt": "\\ud83d\\ude00 and \\\\ud83d"}\n' + json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"task\.jsonl:2: holds half of a character.*ud83d"):
        JsonlTask(name="x", path=str(file)).load()
    file.write_text('{"id": 0, "prompt": "\\ud83d\\ude00 and \\\\ud83d"}\n')
    assert JsonlTask(name="x", path=str(file)).load()[0].turns == ("\U0001f600 and \\ud83d",)


def test_json_that_is_too_deep_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"task\.jsonl:1: not JSON"):
        JsonlTask(name="x", path=str(file)).load()


def test_token_ids_are_warmed_up_with_token_ids_that_are_not_in_the_test(tmp_path: Path) -> None:
    file = tmp_path / "ids.jsonl"
    prompts = [[5, 6, 7, 8], [9], [4, 4], [1, 2]]
    file.write_text("\n".join(json.dumps({"id": n, "input_ids": ids}) for n, ids in enumerate(prompts)))
    task = TokenIdsTask(name="x", path=str(file))
    warm = task.warmup()
    assert len(warm) == 3
    assert not any(one.turns for one in warm)
    assert not {one.input_ids for one in warm} & {one.input_ids for one in task.load()}
    assert {token for one in warm for token in one.input_ids} <= {4, 5, 6, 7, 8, 9}
    assert MixedTask(name="m", parts={"a": task}).warmup() == warm
    assert warm == task.warmup()


def test_columns_that_are_no_prompts_are_named_with_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [{"question": "Why?"}, {"question": None}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    with pytest.raises(ConfigError, match="row 2 has no question, which is a prompt"):
        HubTask(name="x", dataset="a/b", split="test", turns=("{question}",)).load()
    rows[1] = {"question": "a text"}
    with pytest.raises(ConfigError, match="question of row 1 is no list of texts"):
        HubTask(name="x", dataset="a/b", split="test", turns_column="question").load()

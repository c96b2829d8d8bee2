"""Secrets: none is in any file or message, wherever the configuration holds it; ordinary words stay."""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from harness import sweep
from harness.cli import report_command
from harness.config import configurable
from harness.store.run_store import ResultStore, load_runs
from harness.system.console import Console
from harness.system.files import append_json, print_json, write_json, write_text
from harness.system.naming import slug
from harness.system.secrets import REDACTED, learn, redact, redact_text, redact_values
from methods.vanilla import Vanilla
from tests.support.builders import make_record, make_run
from tests.support.typing_in import type_bench

ROOT = Path(__file__).parents[2]
PASSWORD, KEY, QUERY = "Pa55-w0rd-of-anna", "k3y-of-a-service", "s1gnature-of-a-url"
SECRETS = (PASSWORD, KEY, QUERY)


@configurable
class Talkative(Vanilla):
    """Has secrets among its settings, and logs one."""

    url: str
    api_key: str

    def propose(self, *given: Any) -> Any:
        logging.getLogger("talkative").warning("asking %s with %s", self.url, self.api_key)
        return super().propose(*given)


def command(folder: Path, *more: str) -> list[str]:
    """A run that holds a secret wherever a configuration can: paths, URLs, keys, dictionaries, names."""
    # A folder may have the name of a URL.
    prompts = folder / "https:" / f"anna:{PASSWORD}@example.org" / "prompts.jsonl"
    prompts.parent.mkdir(parents=True)
    line = {"question_id": 1, "category": "a", "turns": [f"see https://anna:{PASSWORD}@example.org/x"]}
    prompts.write_text(json.dumps(line) + "\n")
    return [
        *("~experiment", "target=tiny", "task=local", "method=[ngram]", "measure=acceptance"),
        *("measure.batch_size=1", "max_new_tokens=6", f"results={folder / 'results'}"),
        f"task.path='{folder}/https://anna:{PASSWORD}@example.org/prompts.jsonl'",
        f"task.name='see https://anna:{PASSWORD}@example.org'",
        "+methods.talkative._target_=tests.system.test_secrets.Talkative",
        f"+methods.talkative.url='https://example.org/head?part=1&sig={QUERY}'",
        f"+methods.talkative.api_key={KEY}",
        "tracker=wandb",
        f"tracker.tags=['https://anna:{PASSWORD}@example.org']",
        *more,
    ]


def files_with(folder: Path, *words: str) -> list[str]:
    """The files that hold a word, uncompressed; and the names that do."""
    prompts = folder / "https:"
    files = [path for path in folder.rglob("*") if prompts not in path.parents]
    texts = {path: path.read_bytes() for path in files if path.is_file()}
    return [
        f"{path.relative_to(folder)}: {word}"
        for path, content in texts.items()
        for word in words
        if word.encode() in content or word in path.name
    ]


def test_a_run_leaves_no_secret_in_any_file_message_or_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = type_bench(command(tmp_path), monkeypatch, capfd)
    assert ended[0] == 0, ended[2]
    results = tmp_path / "results"
    formats = ["md", "tex", "csv", "html", "figures"]
    assert report_command.main(["build", "--results", str(results), "--format", *formats]) == 0
    assert (
        report_command.main(
            ["diff", *[load_runs(results / "runs")[0].manifest.run_id] * 2, "--results", str(results)]
        )
        == 0
    )
    said = "".join((*ended[1:], *capfd.readouterr()))
    names = {path.name for path in results.rglob("*") if path.is_file()}
    assert {"manifest.json", "journal.jsonl", "config.yaml", "overrides.yaml", "hydra.yaml"} <= names
    assert {"outcome.json", "report.md", "report.html", "rows.csv", "report.tex"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert files_with(tmp_path, *SECRETS) == []
    assert not [secret for secret in SECRETS if secret in said]
    (run,) = load_runs(results / "runs")
    assert run.manifest.arms["talkative"]["api_key"] == REDACTED
    assert run.manifest.arms["talkative"]["url"] == f"https://example.org/head?part=1&sig={REDACTED}"
    assert "asking https://example.org/head" in said


def test_the_same_command_finds_its_finished_run_although_secrets_are_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path, "tracker=none", "~tracker.tags")
    arguments = [one for one in arguments if "tracker.tags" not in one and one != "tracker=wandb"]
    first = type_bench(arguments, monkeypatch, capsys)
    second = type_bench(arguments, monkeypatch, capsys)
    assert first[0] == second[0] == 0
    assert json.loads(first[1])["run_dirs"] == json.loads(second[1])["run_dirs"]
    assert len(load_runs(tmp_path / "results" / "runs")) == 1


def test_a_sweep_and_its_failed_cells_leave_no_secret_and_its_status_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tmp_path, "methods.ngram.draft_length=3,0", "tracker=none")
    arguments = [
        "--multirun",
        *(one for one in arguments if "tracker.tags" not in one and one != "tracker=wandb"),
    ]
    assert type_bench(arguments, monkeypatch, capsys)[0] == 1
    results = tmp_path / "results"
    assert list(results.glob("jobs/*/*/multirun.yaml"))
    assert files_with(tmp_path, *SECRETS) == []
    capsys.readouterr()
    assert sweep.main(["status", "--results", str(results)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["counts"] == {"done": 1, "running": 0, "failed": 1, "missing": 0}
    assert files_with(tmp_path, *SECRETS) == []
    assert not [secret for secret in SECRETS if secret in out + err]


@pytest.mark.parametrize(
    "place",
    ["target.path", "task.path", "methods.eagle3.head"],
)
def test_a_place_that_cannot_be_read_is_named_without_its_password(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cell fails before there is a run, so its record and the message are made of the configuration."""
    url = f"https://anna:{PASSWORD}@example.org/x?sig={QUERY}"
    chosen = {
        "target.path": ["target=hub"],
        "task.path": ["target=tiny", "task=local"],
        "methods.eagle3.head": ["target=tiny", "task=smoke", "method=[eagle3]"],
    }
    ended = type_bench(
        ["~experiment", *chosen[place], f"{place}='{url}'", f"results={tmp_path / 'results'}"],
        monkeypatch,
        capsys,
    )
    assert ended[0] in (1, 2)
    assert "example.org" in ended[2]
    assert not [secret for secret in SECRETS if secret in ended[1] + ended[2]]
    assert files_with(tmp_path, *SECRETS) == []


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("https://anna:Pa55/w0rd@host/x", "host/x"),
        ("https://anna:p@ss'w0rd@host/x", "@host/x"),
        ("https://ghp_aaaaaaaaaaaaaaaaaaaaaaaa@github.com/x", "@github.com/x"),
        ("s3://bucket/x?X-Amz-Signature=0123456789abcdef&part=2", "part=2"),
        ("https://host/x#access_token=abcdef", "https://host/x#access_token="),
        ("https://host/x?opaque=Zm9vYmFyMTIzNDU2Nzg5MDEy", "opaque="),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer "),
        ("sk-abcdefghijklmnopqrstuv and hf_abcdefghijklmnopq", " and "),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abcdef", ""),
    ],
)
def test_a_secret_is_recognised_by_its_place_or_its_shape(text: str, rest: str) -> None:
    found = redact(text)
    assert rest in found
    assert REDACTED in found
    for secret in ("Pa55", "w0rd", "ghp_", "0123456789abcdef", "abcdef", "Zm9v", "sk-", "hf_", "eyJ"):
        assert secret not in found
    assert redact(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8080/v1@latest",
        "https://huggingface.co/ORG/NAME/resolve/main/x.jsonl?download=true",
        "s3://bucket/runs, write to anna@example.org",
        "tie at token: 12, key: 3",
        "task.path=a/b@c.jsonl",
        "git+https://example.org/x",
    ],
)
def test_ordinary_addresses_and_sentences_stay(text: str) -> None:
    assert redact(text) == redact_text(text) == text


def test_a_value_that_was_learned_is_taken_out_wherever_it_stands_later() -> None:
    learn({"service": {"password": "p@ss/word 1", "user": "anna"}})
    later = {"error": "refused p@ss/word 1 of anna", "p@ss/word 1": ["p%40ss%2Fword%201"], "n": 12}
    assert redact_values(later) == {"error": f"refused {REDACTED} of anna", REDACTED: [REDACTED], "n": 12}


def test_a_short_value_is_only_redacted_where_it_stands() -> None:
    assert redact({"api_key": "abc", "note": "abc"}) == {"api_key": REDACTED, "note": "abc"}
    assert redact(["tracker={api_key: abc, mode: online}"]) == [
        f"tracker={{api_key: {REDACTED}, mode: online}}"
    ]


def test_what_stands_below_a_secret_key_is_secret_and_a_reference_to_one_is_not() -> None:
    assert redact({"credentials": {"user": "anna"}}) == {"credentials": {"user": REDACTED}}
    kept = {"api_key": "${oc.env:MY_KEY}", "token": "${target.token}"}
    assert redact(kept) == kept
    assert redact({"api_key": "${oc.env:MY_KEY,in-the-open}"}) == {"api_key": REDACTED}


def test_secrets_of_the_environment_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "0a1b2c3d4e5f")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "0a1b2c3d4e5f6")
    monkeypatch.setenv("SECRETS_FILE", "/run/secrets")
    assert redact_text("0a1b2c3d4e5f /run/secrets") == f"{REDACTED} /run/secrets"


def test_every_way_to_write_takes_secrets_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learn({"password": PASSWORD})
    text = f"before {PASSWORD} after"
    write_text(tmp_path / "a.txt", text)
    write_json(tmp_path / "b.json", {"a": [text]})
    append_json(tmp_path / "c.jsonl", [{"a": text}])
    print_json({"a": text})
    Console().table([text], [[text]], text)
    Console().error(text)
    manifest = make_run([make_record()], arms={"ngram": {"x": text}}).manifest
    with ResultStore(tmp_path / "runs").open_run(manifest) as run:
        run.begin_block(text)
    assert files_with(tmp_path, PASSWORD) == []
    out, err = capsys.readouterr()
    assert PASSWORD not in out + err
    assert len(re.findall(REDACTED, out + err)) >= 4


def test_a_name_in_a_run_id_holds_no_secret() -> None:
    assert PASSWORD not in slug(f"https://anna:{PASSWORD}@host/name")


def test_messages_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().note("a\x1b[2Jb\u202ec\x07")
    assert capsys.readouterr().err == "a\\x1b[2Jb\\u202ec\\x07\n"


MAY_WRITE = {
    "harness/cli/report_command.py: print": "a text that it redacts",
    "harness/engines/cpu/llamacpp_worker.py: print": "the address of a server",
    "harness/engines/cpu/openvino_export.py: write_text": "a model's configuration with another class name",
    "harness/engines/cpu/openvino_worker.py: write": "an answer to its client",
    "harness/engines/servers/process.py: open": "the log of a server, whose output is not read",
    "harness/engines/servers/process.py: write": "a command that it redacts",
    "harness/reports/figures/drawing.py: savefig": "a picture in memory",
    "harness/reports/figures/drawing.py: write_whole": "pictures of what the store holds",
    "harness/serve/job.py: print": "the address that it listens at",
    "harness/store/run_store.py: pwrite": "a line of the journal, which `_write` redacts",
    "harness/store/run_store.py: write_whole": "manifests and records that were redacted before",
    "harness/store/upkeep/archives.py: write": "files of the store, byte for byte",
    "harness/store/upkeep/archives.py: write_whole": "files of the store, byte for byte",
    "harness/store/upkeep/migration.py: write_whole": "manifests that it redacts",
    "harness/store/write_lock.py: pwrite": "the machine and the process that hold a lock",
    "harness/system/console.py: print": "texts that `_printable` redacts",
    "harness/system/secrets.py: write": "a traceback that it redacts",
    "harness/tasks/overlap.py: save": "hashes",
    "harness/tracking/wandb_workspace.py: print": "the address of a saved view",
    "harness/training/dialogues.py: write": "no file: a `Writer` of ours makes token ids",
    "harness/training/features.py: save_file": "tensors",
    "harness/training/folder.py: save": "tensors, and the digest of a configuration",
    "methods/shared/adapters.py: save_file": "tensors",
    "methods/rest/datastore.py: save": "token ids",
    "methods/rest/drafter.py: print": "messages of a command that reads no configuration",
    "methods/shared/block/checkpoint.py: save_file": "tensors",
    "methods/shared/eagle/checkpoint.py: save_file": "tensors",
    "methods/shared/one_call/checkpoint.py: save_file": "tensors",
    "methods/specblock/checkpoint.py: save": "tensors",
}
"""Calls that write without the functions of `harness.system.files`, and what they write."""
WRITING = {
    *("print", "write", "writelines", "pwrite", "write_text", "write_bytes", "write_whole", "writestr"),
    *("savefig", "save_file", "savetxt", "tofile", "to_csv", "to_markdown", "to_latex", "to_parquet"),
}
SAVERS = {("json", "dump"), ("yaml", "dump"), ("pickle", "dump"), ("torch", "save"), ("OmegaConf", "save")}
SAVERS |= {("np", "save"), ("np", "savez")}


def writing_calls(source: str) -> set[str]:
    """Names of the calls that may put a text into a file or on a stream."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    found = set()
    for call in calls:
        module, _, name = ast.unparse(call.func).rpartition(".")
        modes = [one.value for one in call.args[:2] if isinstance(one, ast.Constant)]
        modes += [one.value.value for one in call.keywords if isinstance(one.value, ast.Constant)]
        opens = name in ("open", "fdopen") and any(
            re.fullmatch("[rwaxbt+]*[wax+][bt+]*", str(m)) for m in modes
        )
        # `write_text` without an object is the function of `harness.system.files`.
        writes = name in WRITING and (module or name not in ("write", "write_text"))
        if writes or (module, name) in SAVERS or opens:
            found.add(name)
    return found


@pytest.mark.parametrize(
    "call",
    [
        *(
            "path.write_text(x)",
            "path.open('w')",
            "path.open(mode='ab')",
            "open(path, 'x')",
            "open(path, 'r+')",
        ),
        *("os.fdopen(number, 'wb')", "json.dump(x, file)", "print(x)", "self.rich.print(x)", "file.write(x)"),
        *("OmegaConf.save(x, path)", "np.save(path, x)", "sys.stderr.write(x)", "table.to_csv(path)"),
    ],
)
def test_a_call_that_writes_is_recognised(call: str) -> None:
    assert writing_calls(call)


@pytest.mark.parametrize("call", ["path.open()", "path.open('rb')", "json.dumps(x)", "open(path, 'r')"])
def test_a_call_that_only_reads_is_not_taken_for_one_that_writes(call: str) -> None:
    assert not writing_calls(call)


def test_no_other_code_writes_texts() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for tower in ("harness", "methods", "hydra_plugins")
        for path in (ROOT / tower).rglob("*.py")
        if path != ROOT / "harness/system/files.py"
        for name in writing_calls(path.read_text())
    }
    assert found == set(MAY_WRITE)

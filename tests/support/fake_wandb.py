"""A W&B server on this machine: as much of it as keeping runs takes, in memory; it can be made to fail."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest


@dataclass
class KeptRun:
    """A run as the server has it. history: lines by their offset, so what is sent again replaces itself."""

    name: str
    project: str
    display_name: str = ""
    group: str = ""
    job_type: str = ""
    sweep: str = ""
    state: str = "running"
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def node(self) -> dict[str, Any]:
        return {
            "id": f"id-{self.name}",
            "projectId": "1",
            "name": self.name,
            "displayName": self.display_name,
            "sweepName": self.sweep or None,
            "state": self.state,
            "group": self.group,
            "jobType": self.job_type,
            "tags": self.tags,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "description": None,
            "notes": None,
            "historyLineCount": len(self.history),
            "user": {"name": "me", "username": "me"},
        }


class FakeWandb:
    """Keeps what is sent. fail: GraphQL operations, or `file_stream`, that it answers with an error."""

    def __init__(self) -> None:
        self.runs: dict[str, KeptRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.unknown: list[tuple[str, Any]] = []
        self.fail: set[str] = set()
        self.url = ""

    def answer(self, operation: str, given: dict[str, Any], query: str) -> dict[str, Any]:
        method = getattr(self, f"_{operation}", None)
        if method is None:
            self.unknown.append((query, given))
            return {}
        result: dict[str, Any] = method(given)
        return result

    def _Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {
            "viewer": {
                "id": "u",
                "entity": "me",
                "username": "me",
                "email": "",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    _GetDefaultEntity = _Viewer

    def _Runs(self, given: dict[str, Any]) -> dict[str, Any]:
        wanted = json.loads(given["filters"])["$or"]
        in_project = [run for run in self.runs.values() if run.project == given["project"]]
        if not in_project:
            return {"project": None}
        found = [
            run.node()
            for run in in_project
            if any(all(run.node()[key] == value for key, value in one.items()) for one in wanted)
        ]
        edges = [{"node": node, "cursor": node["name"]} for node in found]
        return {
            "project": {
                "internalId": "1",
                "runCount": len(edges),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}},
            }
        }

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": None}
        tail = [json.dumps(run.history[max(run.history)])] if run.history else []
        told = {
            **run.node(),
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {
            "model": {"id": "1", "name": run.project, "entity": {"id": "e", "name": "me"}, "bucket": told}
        }

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], KeptRun(given["name"], given["project"]))
        run.state = "running"
        names = {"displayName": "display_name", "groupName": "group", "jobType": "job_type", "sweep": "sweep"}
        for key, name in {**names, "tags": "tags"}.items():
            if given.get(key):
                setattr(run, name, given[key])
        if given.get("config"):
            run.config |= {key: held["value"] for key, held in json.loads(given["config"]).items()}
        project = {"id": "1", "name": run.project, "entity": {"id": "e", "name": "me"}}
        bucket = {**run.node(), "config": None, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:
        self.views.append(given)
        view = {"id": given.get("id") or f"view{len(self.views)}", "name": given["name"]}
        return {"upsertView": {"view": view, "inserted": "id" not in given}}

    def _View(self, given: dict[str, Any]) -> dict[str, Any]:
        found = [
            {"id": f"view{number}", "displayName": view["displayName"], "spec": view["spec"]}
            for number, view in enumerate(self.views, 1)
            if view["name"] == given["viewName"]
        ]
        return {"project": {"allViews": {"edges": [{"node": node} for node in found]}}}

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        """What is said to be committed already has no files to send."""
        self.artifacts.append(given["input"])
        kept = {
            "id": "artifact",
            "state": "COMMITTED",
            "artifactSequence": {"latestArtifact": {"id": "artifact"}},
        }
        return {"createArtifact": {"artifact": kept}}

    def _ArtifactByID(self, given: dict[str, Any]) -> dict[str, Any]:
        made = self.artifacts[-1]
        project = {"id": "1", "internalId": "1", "name": made["projectName"], "entity": {"name": "me"}}
        collection = {
            "__typename": "ArtifactSequence",
            "name": made["artifactCollectionName"],
            "project": project,
        }
        unknown = dict.fromkeys(("description", "metadata", "historyStep", "updatedAt"))
        kept = {
            **unknown,
            "__typename": "Artifact",
            "id": "artifact",
            "artifactSequence": collection,
            "versionIndex": 0,
            "artifactType": {"name": made["artifactTypeName"]},
            "ttlIsInherited": True,
            "ttlDurationSeconds": -2,
            "tags": [],
            "state": "COMMITTED",
            "size": 1,
            "digest": made["digest"],
            "commitHash": "hash",
            "fileCount": 2,
            "createdAt": "2026-01-01T00:00:00",
            "aliases": [],
        }
        return {"artifact": kept}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/files/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.runs[name]
        for file, part in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]] if file != "output.log" else []
            if file == "wandb-history.jsonl":
                run.history |= dict(enumerate(lines, part["offset"]))
            if file == "wandb-summary.json":
                run.summary |= lines[-1]
        run.files |= set(sent.get("uploaded") or [])
        if sent.get("complete"):
            run.state = "failed" if sent.get("exitcode") else "finished"


@contextmanager
def served() -> Iterator[FakeWandb]:
    """The server, while the block runs."""
    kept = FakeWandb()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/graphql":
                sent = json.loads(body)
                match = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
                operation = match[1] if match else ""
                kept.asked.append(operation)
                if operation in kept.fail:
                    self.reply({"errors": [{"message": "out of order"}]}, 400)
                    return
                self.reply({"data": kept.answer(operation, sent.get("variables") or {}, sent["query"])})
            elif self.path.endswith("/file_stream"):
                if "file_stream" in kept.fail:
                    self.reply({"error": "out of order"}, 400)
                    return
                kept.stream(self.path.split("/")[-2], json.loads(body))
                self.reply({"limits": {}})
            else:
                # Telemetry, for one.
                kept.unknown.append((self.path, None))
                self.reply({})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.reply({})

        def reply(self, answer: Any, status: int = 200) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def connected(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """The server, to which W&B's client in this process talks. home: for the client's own files."""
    import wandb

    # The client reads its environment once a process.
    wandb.teardown()
    with served() as kept:
        monkeypatch.setenv("WANDB_BASE_URL", kept.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        for name in ("CACHE", "DATA", "CONFIG"):
            monkeypatch.setenv(f"WANDB_{name}_DIR", str(home))
        try:
            yield kept
        finally:
            wandb.teardown()
        # What the client asked must have been understood, or it may have been told anything.
        assert [query for query, _ in kept.unknown if not query.startswith("/sdk/otel")] == []

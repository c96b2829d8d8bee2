"""The trainer asks only a loss of a drafter: a bigram table trains, is evaluated, resumes and exports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.decoding.loop import DecodingLoop
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome
from harness.drafting.trainable import Loss, TrainableDrafter, TrainingRow, TrainingStep
from harness.target.model import Target
from harness.training.evaluation import Evaluation
from harness.training.features import Features
from harness.training.folder import CHECKPOINT, CURVES, HEAD
from harness.training.job import run_training
from harness.training.trainer import Progress, Trainer
from tests.support.targets import tiny_model
from tests.training.test_trainer import config_of, overrides, quiet, training
from tests.training.test_trainer import samples as dialogues


@configurable
class Bigram(TrainableDrafter):
    """Drafts the most probable successor of the pending token, by a trained table [V, V]."""

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> nn.Module:
        self.seen: list[tuple[int, TrainingStep]] = []
        self.student = nn.Embedding(len(counts), len(counts))
        nn.init.zeros_(self.student.weight)
        return self.student

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        self.seen.append((len(rows), step))
        losses = [
            nn.functional.cross_entropy(self.student(row.ids[row.answer]), row.best[row.answer])
            for row in rows
        ]
        # A random part, so that resuming has to restore the generator.
        return Loss(total=torch.stack(losses).mean() * (1 + 0.01 * torch.rand(())))

    @override
    def deploy(self) -> None:
        self.successors = self.student.weight.detach().argmax(-1)

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.student.state_dict(), folder / "table.pt")
        (folder / "card.json").write_text(json.dumps(card))

    @override
    def reset(self, num_rows: int) -> None:
        self.pending = [0] * num_rows

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        tokens = self.successors[torch.tensor(self.pending)][:, None]
        return Draft.chain(tokens, torch.ones(len(tokens), dtype=torch.int64))

    @override
    def observe(self, outcome: Outcome) -> None:
        rows = range(len(self.pending)) if outcome.rows is None else outcome.rows
        for row, token in zip(rows, outcome.pending, strict=True):
            self.pending[row] = token

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self.pending = [self.pending[row] for row in rows]


class Pairwise(Bigram):
    rows_per_loss: ClassVar[int] = 2


class Talkative(Bigram):
    given: ClassVar[dict[str, float]] = {"entropy of my own": 2.5}

    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        return Loss(total=super().loss(rows, step).total, numbers=self.given)


def trainer(folder: Path, drafter: TrainableDrafter | None = None, **changed: Any) -> Trainer:
    drafter = drafter or Bigram()
    engine = DecodingLoop(Target(tiny_model("llama")), (), 512, timed=False)
    drafter.bind(engine.target)
    settings = training(**{"learning_rate": 0.5, "warmup_steps": 0, **changed})
    features = Features(engine.target, drafter.taps)
    return Trainer(engine, drafter, settings, dialogues(), folder, {"a": 1}, features)


def curves(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / CURVES).read_text().splitlines()]


def test_a_drafter_that_returns_only_a_loss_learns_and_exports_the_best(tmp_path: Path) -> None:
    made = trainer(tmp_path, num_steps=30, eval_every=10)
    done = made.run(quiet, quiet)
    losses = [line["loss"] for line in curves(tmp_path) if "loss" in line]
    assert len(losses) == 30
    assert losses[-1] < 0.7 * losses[0]
    assert done.best_tau >= 1
    assert set(made.evaluate().numbers) == {"held_out/loss", "held_out/tau"}
    card = json.loads((tmp_path / HEAD / "card.json").read_text())
    assert {"step", "num_answer_tokens", "loss", "tau"} == set(card["training"])
    assert (tmp_path / HEAD / "table.pt").is_file()


@pytest.mark.parametrize("average", [0.0, 0.8])
def test_it_resumes_to_the_same_bits(average: float, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", average=average)
    whole.run(quiet, quiet)

    class Killed(Exception):
        pass

    def kill(numbers: Any, step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path / "broken", average=average).run(quiet, kill)
    torch.manual_seed(99)
    again = trainer(tmp_path / "broken", average=average)
    assert again.progress.step == 4
    again.run(quiet, quiet)
    assert torch.equal(whole.student.state_dict()["weight"], again.student.state_dict()["weight"])
    assert curves(tmp_path / "whole") == curves(tmp_path / "broken")


def test_a_loss_sees_as_many_rows_as_it_asks_for_and_its_place_in_the_training(tmp_path: Path) -> None:
    drafter = Pairwise()
    trainer(tmp_path, drafter, rows_per_step=4, num_steps=2).run(quiet, quiet)
    steps = [(count, place.number) for count, place in drafter.seen if place.number < 2]
    assert steps == [(2, 0), (2, 0), (2, 1), (2, 1)]
    assert {place.num_steps for _, place in drafter.seen} == {2}
    with pytest.raises(ConfigError, match="rows_per_step=3: give a multiple of 2"):
        trainer(tmp_path / "odd", Pairwise(), rows_per_step=3)


def test_a_drafters_own_numbers_reach_the_curves_under_its_names(tmp_path: Path) -> None:
    trainer(tmp_path, Talkative(), num_steps=2).run(quiet, quiet)
    lines = curves(tmp_path)
    assert lines[0]["entropy of my own"] == lines[-1]["held_out/entropy of my own"] == 2.5


def test_a_number_that_would_hide_the_trainers_own_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Talkative, "given", {"loss": 0.0})
    with pytest.raises(ConfigError, match="numbers named loss"):
        trainer(tmp_path, Talkative()).run(quiet, quiet)


def test_tau_decides_and_at_equal_tau_the_loss() -> None:
    def found(tau: float, loss: float) -> Evaluation:
        return Evaluation(tau=tau, loss=loss, numbers={})

    first = Progress().after(found(1.5, 2.0))
    assert (first.best_tau, first.best_loss, first.num_worse) == (1.5, 2.0, 0)
    assert first.after(found(1.5, 2.0)).num_worse == 1
    assert first.after(found(1.4, 1.0)).num_worse == 1
    assert first.after(found(1.5, 1.9)).num_worse == 0
    assert first.after(found(1.6, 3.0)).best_loss == 3.0


def test_a_checkpoint_without_a_best_loss_is_resumed(tmp_path: Path) -> None:
    trainer(tmp_path, num_steps=2).run(quiet, quiet)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    torch.save({**state, "progress": state["progress"][:4]}, tmp_path / CHECKPOINT)
    assert trainer(tmp_path, num_steps=2).progress.step == 2


def test_the_command_trains_a_method_that_has_none_of_its_options_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(*overrides(tmp_path, "method=vanilla"))
    config.methods = {"bigram": {"_target_": f"{__name__}.Bigram"}}
    run_training(config)
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 2
    assert "draft_vocab_size= has no effect: the method bigram has no field draft_vocab_size" in said.err
    assert (tmp_path / "out" / HEAD / "table.pt").is_file()


@pytest.mark.parametrize("limit", [{"num_steps": 40}, {"num_steps": 10_000, "num_tokens": 900}])
def test_the_learning_rate_ends_where_the_training_does(limit: dict[str, int], tmp_path: Path) -> None:
    made = trainer(tmp_path, eval_every=1000, final_share=0.0, warmup_steps=2, learning_rate=0.5, **limit)
    made.run(quiet, quiet)
    rates = [line["learning_rate"] for line in curves(tmp_path) if "learning_rate" in line]
    assert max(rates) == pytest.approx(0.5, rel=0.05)
    assert rates[-1] < 0.05
    assert sorted(rates[2:], reverse=True) == rates[2:]

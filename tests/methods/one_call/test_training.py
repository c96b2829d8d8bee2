"""Training: its guesses are the drafter's, files are read back, a network learns by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config import ConfigError, build
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trainable import TrainingStep
from harness.target.model import Target
from harness.training.features import Features
from harness.training.folder import CURVES, HEAD
from harness.training.job import run_training
from harness.training.trainer import Trainer
from methods.fasteagle.drafter import CascadeRecipe
from methods.fasteagle.tree import BackboneTree
from methods.shared.eagle.training import counting_rows
from methods.specblock.training import SpecBlockRecipe, Unrolling
from methods.specblock.tree import RankTree
from methods.vanilla import Vanilla
from tests.methods.eagle.test_training import DOCUMENTS, row_of
from tests.methods.one_call.drafters import METHODS, NUM_GUESSES, bound
from tests.support.targets import VOCAB, tiny_model
from tests.training.test_trainer import config_of, overrides, quiet, samples, training

STEP = TrainingStep(number=0, num_steps=1)


def begun(method: str, documents: list[list[int]] = DOCUMENTS, **options: Any) -> tuple[Any, Any]:
    """A drafter whose training has begun, and a packed row."""
    drafter = bound(method, **options)
    row = row_of(drafter._target, drafter.taps, documents, 3)
    drafter.begin_training(torch.bincount(row.ids, minlength=VOCAB), [row], seed=0)
    return drafter, row


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_outputs_of_a_packed_row_are_the_drafters(method: str) -> None:
    drafter, row = begun(method)
    places = counting_rows(row, 0).nonzero()[:, 0]
    if method == "fasteagle":
        outputs = drafter.outputs_of(row)[places]
    else:
        unrolling = Unrolling(drafter.student, row.document, row.positions, places, "decoding")
        outputs = unrolling.first(*drafter.read(row))
    drafter.deploy()
    for number, place in enumerate(places.tolist()):
        known = ((row.document == row.document[place]) & (torch.arange(len(row.ids)) <= place)).nonzero()[
            :, 0
        ]
        drafter.reset(1)
        growth = drafter.new_growth()
        growth.feed(torch.cat(row.taps, dim=-1)[known][None], row.ids[known + 1][None], [len(known)])
        torch.testing.assert_close(growth.outputs[0, 0], outputs[number], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_later_blocks_of_a_training_are_those_of_a_round() -> None:
    drafter, row = begun("specblock")
    places = counting_rows(row, 0).nonzero()[:, 0]
    unrolling = Unrolling(drafter.student, row.document, row.positions, places, "decoding")
    features, embedded = drafter.read(row)
    first = unrolling.first(features, embedded)
    tokens = torch.arange(len(places)) % 7
    embed = drafter._target.embed
    second = unrolling.later(first, 2, embed(tokens))
    third = unrolling.later(second, 1, embed(tokens + 1))
    drafter.deploy()
    for number, place in enumerate(places.tolist()):
        known = ((row.document == row.document[place]) & (torch.arange(len(row.ids)) <= place)).nonzero()[
            :, 0
        ]
        drafter.reset(1)
        growth = drafter.new_growth()
        growth.feed(torch.cat(row.taps, dim=-1)[known][None], row.ids[known + 1][None], [len(known)])
        growth.blocks(torch.tensor([[0]]), torch.tensor([[1]]), tokens[None, number : number + 1], 1)
        growth.blocks(torch.tensor([[1]]), torch.tensor([[0]]), tokens[None, number : number + 1] + 1, 1)
        torch.testing.assert_close(growth.outputs[0, 1], second[number], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(growth.outputs[0, 2], third[number], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "num_conversations"), [("fasteagle", 10), ("specblock", 2)])
def test_a_network_overfitted_on_conversations_drafts_them_to_nearly_its_full_depth(
    method: str, num_conversations: int
) -> None:
    """SpecBlock learns ten, too, in eight times as many steps."""
    target = Target(tiny_model("llama"))
    loop = DecodingLoop(target, (), 512, timed=False)
    long, short = (DecodingParams(name="greedy", max_new_tokens=number) for number in (22, 13))
    requests = [Request(prompt=[number, 5, 9], key=number) for number in range(num_conversations)]
    vanilla = Vanilla()
    vanilla.bind(target)
    answers = loop.generate(requests, vanilla, long, Coupled())
    texts = [[*one.prompt, *made.output_ids] for one, made in zip(requests, answers, strict=True)]
    options: dict[str, Any] = {"tree": BackboneTree(level_widths=(1,))}
    if method == "specblock":
        options["tree"] = RankTree(budget=12, first_width=1, widths=(1, 1, 1, 1))
        options["recipe"] = SpecBlockRecipe(num_blocks=2, prefix_from=0.5)
    drafter = bound(method, target, draft_vocab_size=None, **options)
    row = row_of(target, drafter.taps, texts, 3)
    student = drafter.begin_training(torch.bincount(row.ids, minlength=VOCAB), [row], seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=4e-3, weight_decay=0.0)
    torch.manual_seed(0)
    num_steps = 260 if method == "fasteagle" else 130
    for number in range(num_steps):
        loss = drafter.loss([row], TrainingStep(number=number, num_steps=num_steps))
        optimizer.zero_grad()
        torch.autograd.backward(loss.total)
        optimizer.step()
    drafter.deploy()
    made = loop.generate(requests, drafter, short, Coupled())
    rounds = sum(len(one.accepted) for one in made)
    assert [one.output_ids for one in made] == [one.output_ids[:13] for one in answers]
    # Of three tokens, and of six, for which the second block must start where the first ends.
    least = 2.4 if method == "fasteagle" else 3.6
    assert sum(sum(one.accepted) for one in made) / rounds > least


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_the_rows_has_the_mean_loss_of_all(method: str) -> None:
    documents = [[place * 7 % VOCAB for place in range(40)], [place * 5 % VOCAB for place in range(30)]]

    def mean_loss(share: float, num_draws: int) -> float:
        if method == "fasteagle":
            recipe: Any = CascadeRecipe(row_share=share, feature_weight=0.1)
        else:
            recipe = SpecBlockRecipe(num_blocks=1, row_share=share, rank_weight=0.0, valid_prefix=False)
        drafter, row = begun(method, documents, recipe=recipe, draft_vocab_size=None)
        torch.manual_seed(1)
        with torch.no_grad():
            return sum(float(drafter.loss([row], STEP).total) for _ in range(num_draws)) / num_draws

    whole = mean_loss(1.0, 1)
    assert mean_loss(0.5, 1) != whole
    assert mean_loss(0.5, 60) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_in_which_nothing_counts_has_a_loss_of_nothing(method: str) -> None:
    drafter = bound(method)
    row = row_of(drafter._target, drafter.taps, [[1, 2, 3, 4]], 4)
    drafter.begin_training(torch.ones(VOCAB), [row], seed=0)
    loss = drafter.loss([row], STEP).total
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0


def test_supervision_of_the_last_level_alone_leaves_the_others_out() -> None:
    losses = {}
    for supervised in ("all", "last"):
        recipe = CascadeRecipe(supervised=supervised, decay=0.5)
        drafter, row = begun("fasteagle", recipe=recipe)
        found = drafter.loss([row], STEP)
        losses[supervised] = float(found.total)
        per_level = [found.numbers[f"loss_{level}"] for level in range(NUM_GUESSES)]
    assert losses["all"] == pytest.approx(sum(one * 0.5**level for level, one in enumerate(per_level)))
    assert losses["last"] == pytest.approx(per_level[-1] * 0.5 ** (NUM_GUESSES - 1))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_an_exported_head_is_loaded_as_it_was(method: str, tmp_path: Path) -> None:
    drafter, row = begun(method)
    drafter.export(tmp_path, {"training": {"steps": 3}})
    drafter.deploy()
    again = bound(method, head=str(tmp_path), dtype="float32")
    assert again.card()["training"]["steps"] == 3
    assert again.card()["training"]["recipe"]["row_share"] == 1.0
    for name, tensor in drafter.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor, rtol=2e-3, atol=1e-4)
    student = again.begin_training(torch.ones(VOCAB), [row], seed=7)
    torch.testing.assert_close(
        student.feature_layer.weight, drafter.student.feature_layer.weight, rtol=2e-3, atol=1e-3
    )


def test_the_released_layout_is_what_is_written(tmp_path: Path) -> None:
    drafter, _ = begun("specblock")
    drafter.export(tmp_path, {})
    config, tensors = (
        json.loads((tmp_path / "config.json").read_text()),
        load_file(tmp_path / "model.safetensors"),
    )
    assert config["architectures"] == ["LlamaForCausalLMSpecBlock"]
    assert (config["diffspec_draft_token_num"], config["rank_classes"]) == (NUM_GUESSES, 4)
    assert tensors["rank_head.0.weight"].shape == (256, 64 + 15)
    assert tensors["t2d"].sum() == 24
    maps = torch.load(tmp_path / "vocab_mapping.pt", weights_only=True)
    assert torch.equal(maps["d2t"], tensors["d2t"])
    assert torch.equal(maps["t2d"], tensors["t2d"])


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_head_is_refused(method: str, tmp_path: Path) -> None:
    drafter, _ = begun(method)
    drafter.export(tmp_path, {})
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: one for name, one in tensors.items() if name != "layers.1.mlp.up_proj.weight"},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ConfigError, match=r"missing layers\.1\.mlp\.up_proj\.weight"):
        bound(method, head=str(tmp_path))
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": VOCAB + 1}))
    with pytest.raises(ConfigError, match=f"vocabulary of {VOCAB + 1}"):
        bound(method, head=str(tmp_path))


def trainer(method: str, folder: Path) -> Trainer:
    recipe: Any = CascadeRecipe(row_share=0.7) if method == "fasteagle" else SpecBlockRecipe(row_share=0.7)
    engine = DecodingLoop(Target(tiny_model("llama")), (), 512, timed=False)
    drafter = bound(method, engine.target, recipe=recipe)
    return Trainer(
        engine, drafter, training(), samples(), folder, {"a": 1}, Features(engine.target, drafter.taps)
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_goes_on_to_the_same_weights(method: str, tmp_path: Path) -> None:
    whole = trainer(method, tmp_path / "whole")
    whole.run(quiet, quiet)

    class Killed(Exception):
        pass

    def kill(numbers: Any, step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        trainer(method, tmp_path / "broken").run(quiet, kill)
    torch.manual_seed(99)
    again = trainer(method, tmp_path / "broken")
    assert again.progress.step == 4
    again.run(quiet, quiet)
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, again.student.state_dict()[name]), name
    curves = [(tmp_path / place / CURVES).read_text().splitlines() for place in ("whole", "broken")]
    assert [json.loads(line) for line in curves[0]] == [json.loads(line) for line in curves[1]]


@pytest.mark.parametrize("method", METHODS)
def test_the_command_ends_in_a_head_that_the_loader_takes(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(config_of(*overrides(tmp_path, f"method={method}")))
    told = json.loads(capsys.readouterr().out)
    card = json.loads((tmp_path / "out" / HEAD / "card.json").read_text())
    assert card["method"] == method
    assert card["training"]["num_steps"] == told["steps"] == 2
    assert card["training"]["best_held_out_tau"] >= 1
    assert card["training"]["recipe"]["row_share"] == 1.0
    target = build(config_of(*overrides(tmp_path)).target, "target").load(quiet).model
    drafter = bound(method, Target(target), head=told["head"])
    assert drafter.card()["training"]["num_answer_tokens_seen"] == told["tokens"]
    # Trained on, its card tells what it began from.
    again = [f"method={method}", f"start={told['head']}", f"out={tmp_path / 'again'}"]
    run_training(config_of(*overrides(tmp_path, *again)))
    began = json.loads((tmp_path / "again" / HEAD / "card.json").read_text())["training"]["start"]
    assert (began["path"], began["sha256"]) == (told["head"], drafter.card()["sha256"])

"""Training: rows, resume, held-out tau, and the command from dialogues to a head that the benchmark takes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file

import conf
from harness.config import ConfigError, build
from harness.decoding.loop import DecodingLoop
from harness.drafting.drafter import TRAINING_PROMPTS, HiddenTap
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from harness.tasks.overlap import Fingerprints
from harness.training.dialogues import Sample
from harness.training.features import CachedFeatures, Features
from harness.training.folder import CHECKPOINT, CURVES, HEAD
from harness.training.job import default_folder, run_training
from harness.training.row_packing import Rows, pack
from harness.training.trainer import Trainer, Training
from methods.eagle import Eagle
from methods.shared.eagle.training import EagleRecipe
from tests.methods.eagle.test_drafter import VOCAB, model_of


def samples(count: int = 24) -> list[Sample]:
    made = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        length = int(torch.randint(8, 20, (1,), generator=generator))
        ids = tuple(torch.randint(0, VOCAB, (length,), generator=generator).tolist())
        made.append(Sample(ids, (*[False] * 3, *[True] * (length - 3)), f"prompt {number}"))
    return made


def training(**changed: Any) -> Training:
    usual: dict[str, Any] = {
        "num_steps": 6,
        "row_tokens": 40,
        "warmup_steps": 2,
        "held_out": 4,
        "eval_every": 2,
        "save_every": 2,
        "eval_prompts": 2,
        "eval_tokens": 6,
    }
    return Training(**{**usual, **changed})


def trainer(folder: Path, architecture: Any = "eagle3", identity: Any = None, **changed: Any) -> Trainer:
    engine = DecodingLoop(Target(model_of("llama")), (), 512, timed=False)
    tree = DynamicTree(total_token=6, depth=2, top_k=2)
    recipe = EagleRecipe(row_share=0.7)
    drafter = Eagle(architecture=architecture, tree=tree, head="random", recipe=recipe)
    drafter.bind(engine.target)
    features = Features(engine.target, drafter.taps)
    if changed.get("features"):
        features = CachedFeatures(engine.target, drafter.taps, Path(changed["features"]), "llama", quiet)
    return Trainer(engine, drafter, training(**changed), samples(), folder, identity or {"a": 1}, features)


def quiet(*_: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("architecture", "kept", "rank"),
    [("eagle", False, None), ("eagle3", False, None), ("eagle3", True, None), ("eagle3", False, 2)],
)
def test_a_killed_training_goes_on_to_the_same_weights(
    architecture: str, kept: bool, rank: int | None, tmp_path: Path
) -> None:
    features = str(tmp_path / "features") if kept else None
    whole = trainer(tmp_path / "whole", architecture, features=features, rank=rank)
    whole.run(quiet, quiet)

    class Killed(Exception):
        pass

    def kill(numbers: Any, step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path / "broken", architecture, features=features, rank=rank).run(quiet, kill)
    torch.manual_seed(99)
    again = trainer(tmp_path / "broken", architecture, features=features, rank=rank)
    assert again.progress.step == 4
    again.run(quiet, quiet)
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, again.student.state_dict()[name]), name
    curves = [(tmp_path / place / CURVES).read_text().splitlines() for place in ("whole", "broken")]
    assert [json.loads(line) for line in curves[0]] == [json.loads(line) for line in curves[1]]


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(quiet, quiet)
    assert (tmp_path / CHECKPOINT).is_file()
    with pytest.raises(ConfigError, match="another out="):
        trainer(tmp_path, identity={"a": 2})


def test_training_stops_at_its_limits(tmp_path: Path) -> None:
    assert trainer(tmp_path / "tokens", num_tokens=60).run(quiet, quiet).step < 6
    assert trainer(tmp_path / "steps").run(quiet, quiet).step == 6
    # Neither tau nor loss changes.
    stubborn = trainer(tmp_path / "patience", num_steps=40, patience=2, learning_rate=1e-30)
    assert stubborn.run(quiet, quiet).step < 40


def test_the_heads_of_all_evaluations_can_be_kept(tmp_path: Path) -> None:
    trainer(tmp_path / "best", num_steps=4).run(quiet, quiet)
    assert [path.name for path in (tmp_path / "best").glob(f"{HEAD}*")] == [HEAD]
    trainer(tmp_path / "all", num_steps=4, keep_heads=True).run(quiet, quiet)
    kept = [load_file(tmp_path / "all" / f"{HEAD}-{step}" / "model.safetensors") for step in (2, 4)]
    assert not torch.equal(kept[0]["fc.weight"], kept[1]["fc.weight"])
    assert (tmp_path / "all" / HEAD).is_dir()


def test_too_few_dialogues_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="held_out=24: there are 24 dialogues"):
        trainer(tmp_path, held_out=24)


def test_other_answers_to_a_held_out_prompt_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [replace(one, ids=(*one.ids, 1), answer=(*one.answer, True)) for one in samples()]
    once = samples()
    monkeypatch.setattr(sys.modules[__name__], "samples", lambda: [*once, *twice])
    made = trainer(tmp_path)
    prompts = {one.prompt for one in made.held_out.samples}
    assert len(made.samples) == 2 * (24 - len(prompts))
    assert not prompts & {one.prompt for one in made.samples}


def test_every_epoch_packs_every_sample_once_and_no_row_is_too_long() -> None:
    rows = Rows(samples(), 40, seed=3)
    seen: list[Sample] = []
    number = 0
    while len(seen) < 24:
        row = rows.row(number)
        assert sum(len(sample.ids) for sample in row) <= 40
        seen += row
        number += 1
    assert sorted(seen, key=lambda one: one.prompt) == sorted(samples(), key=lambda one: one.prompt)
    # Of the next epoch, and back: a row depends on its number alone.
    assert rows.row(number) == Rows(samples(), 40, seed=3).row(number)
    assert rows.row(0) == Rows(samples(), 40, seed=3).row(0)
    assert len(list(pack(samples(), 10_000))) == 1


def test_features_of_a_packed_row_are_those_of_its_documents_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    together = made.features.row(samples()[:3])
    begin = 0
    for sample in samples()[:3]:
        alone = made.features.row([sample])
        for packed, own in zip((*together.taps, together.final), (*alone.taps, alone.final), strict=True):
            torch.testing.assert_close(packed[begin : begin + len(sample.ids)], own, atol=1e-4, rtol=1e-4)
        begin += len(sample.ids)


def test_features_on_disk_are_those_on_the_line_and_are_computed_once(tmp_path: Path) -> None:
    engine = DecodingLoop(Target(model_of("llama")), (), 512, timed=False)
    taps = (HiddenTap(1, "input"), HiddenTap(2, "input"))
    notes: list[str] = []

    def cached(taps: tuple[HiddenTap, ...]) -> CachedFeatures:
        made = CachedFeatures(engine.target, taps, tmp_path, "llama", notes.append)
        made.prepare(samples(200), 40)
        return made

    row = samples()[3:6]
    kept, fresh = cached(taps).row(row), Features(engine.target, taps).row(row)
    assert len(notes) == 2, "two files of at most 128 dialogues"
    for name in ("ids", "answer", "document", "positions", "best"):
        assert torch.equal(getattr(kept, name), getattr(fresh, name)), name
    for one, other in zip((*kept.taps, kept.final), (*fresh.taps, fresh.final), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)
    assert torch.equal(fresh.best >= 0, fresh.answer)

    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    # A head that reads less finds all it needs, by whichever number; one that reads another state has only
    # that computed.
    cached(taps[:1])
    assert torch.equal(cached((HiddenTap(0, "output"),)).row(row).taps[0], kept.taps[0])
    assert len(notes) == 2
    cached((HiddenTap(-1, "output"),))
    assert len(notes) == 4
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(times) + 2


def test_states_that_are_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    target = Target(copy.deepcopy(model_of("llama")))
    with torch.no_grad():
        target.model.get_decoder().layers[0].mlp.down_proj.weight.mul_(1e9)
    made = CachedFeatures(target, (HiddenTap(1, "input"),), tmp_path, "llama", quiet)
    with pytest.raises(ConfigError, match=r"type training\.features=null"):
        made.prepare(samples(4), 40)


def test_processes_share_the_work_of_the_features(tmp_path: Path) -> None:
    target = Target(model_of("llama"))
    both = [CachedFeatures(target, (HiddenTap(1, "input"),), tmp_path, "llama", quiet) for _ in range(2)]
    for process, made in enumerate(both):
        assert len(list(tmp_path.rglob("*.safetensors"))) == 3 * process
        made.prepare(samples(200), 40, process, 2)
    assert len(both[0].row(samples(200)[150:152]).ids) == len(both[1].row(samples(200)[150:152]).ids)


def overrides(tmp_path: Path, *more: str) -> list[str]:
    dialogues = tmp_path / "dialogues.jsonl"
    lines = [
        {"user": f"say {number}", "assistant": "one two one two", "complete": True} for number in range(20)
    ]
    dialogues.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return [
        "target=tiny",
        "target.num_layers=7",
        f"data.path={dialogues}",
        "tracker=none",
        f"out={tmp_path / 'out'}",
        "training.num_steps=2",
        "training.row_tokens=128",
        "training.held_out=4",
        "training.eval_prompts=2",
        "training.eval_tokens=4",
        "draft_vocab_size=60",
        "exclude={}",
        *more,
    ]


def config_of(*given: str) -> Any:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=list(given), return_hydra_config=True)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


@pytest.mark.parametrize("method", ["eagle2", "eagle3"])
def test_the_command_ends_in_a_head_that_the_loader_takes(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(config_of(*overrides(tmp_path, f"method={method}")))
    told = json.loads(capsys.readouterr().out)
    assert told["head"] == str(tmp_path / "out" / HEAD)
    card = json.loads((tmp_path / "out" / HEAD / "card.json").read_text())
    assert card["training"]["num_steps"] == told["steps"] == 2
    assert card["training"]["num_dialogues"] == 16
    assert "features" not in card["training"]["settings"], "a folder of one machine"
    assert card["training"]["categories"][""]["dialogues"] == 16
    node = OmegaConf.load(Path(conf.__file__).parent / "method" / f"{method}.yaml")
    drafter = build({**node, "head": told["head"], "tree": {**node.tree}}, method)
    spec = build(config_of(*overrides(tmp_path)).target, "target")
    drafter.bind(Target(spec.load(quiet).model))
    assert drafter.card()["training"]["num_answer_tokens_seen"] == told["tokens"]
    assert card["training"]["start"] is None
    (prompts,) = drafter.training_prompts
    assert not Fingerprints.load(prompts).share(["say 3"]), "three words are too few to tell prompts by"
    # Trained on, its card tells what it began from, whose prompts it has seen, too.
    earlier = " ".join("abcdefghijklm")
    Fingerprints.of([earlier]).save(prompts)
    run_training(
        config_of(*overrides(tmp_path, f"method={method}", f"start={told['head']}", f"out={tmp_path}"))
    )
    began = json.loads((tmp_path / HEAD / "card.json").read_text())["training"]["start"]
    assert (began["path"], began["sha256"]) == (told["head"], drafter.card()["sha256"])
    assert began["training"]["num_steps"] == 2
    assert Fingerprints.load(tmp_path / HEAD / TRAINING_PROMPTS).share([earlier])


@pytest.mark.parametrize(
    "method", ["eagle2", "eagle3", "fasteagle", "specblock", "dflash", "dspark", "peagle"]
)
def test_a_head_that_is_trained_on_begins_with_the_numbers_in_its_files(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target in bfloat16 does not round them. A step this short changes nothing."""
    given = [f"method={method}", "target.dtype=bfloat16", "training.num_steps=1", "training.warmup_steps=0"]
    heads = []
    for start, rate in (("random", 1e-3), (str(tmp_path / "0" / HEAD), 1e-30)):
        out = tmp_path / str(len(heads))
        more = (f"start={start}", f"training.learning_rate={rate}", f"out={out}")
        run_training(config_of(*overrides(tmp_path, *given, *more)))
        heads.append(load_file(out / HEAD / "model.safetensors"))
    first, second = heads
    for name, tensor in first.items():
        # Features are scaled to be read, and the layer that reads them by the inverse: one digit may change.
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=0, msg=name)
    floats = [tensor for tensor in first.values() if tensor.is_floating_point()]
    assert any(not torch.equal(tensor.bfloat16().half(), tensor) for tensor in floats), "it shows nothing"


def test_a_sweep_leaves_no_file_where_it_was_typed_and_no_secret_in_its_own(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    typed = overrides(tmp_path, "method=eagle2", "training.seed=0,1", f"results={tmp_path}")
    typed += [f"out={tmp_path}/${{training.seed}}", "+note=hf_abcdefghijklmnopqrstuvwxyz0123"]
    command = [sys.executable, "-m", "harness.train", "--multirun", *typed]
    subprocess.run(command, cwd=here, check=True, capture_output=True, timeout=240)
    assert list(here.iterdir()) == []
    (written,) = tmp_path.glob("jobs/*/*/multirun.yaml")
    assert "hf_abcdefghij" not in written.read_text()


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    common = overrides(tmp_path, "method=eagle3", "training.rows_per_step=2", "training.features=null")
    run_training(config_of(*common, f"out={tmp_path / 'one'}"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "harness.train"]
    done = subprocess.run(
        [*launch, *common, f"out={tmp_path / 'two'}"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 1, "one process speaks for all"
    one, two = (torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("one", "two"))
    assert one["progress"] == two["progress"]
    for name, tensor in one["student"].items():
        torch.testing.assert_close(two["student"][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_a_head_to_begin_from_that_is_not_there_is_told_as_it_was_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^start=nowhere/at/all: no such folder"):
        run_training(config_of(*overrides(tmp_path, "method=eagle3", "start=nowhere/at/all")))
    with pytest.raises(ConfigError, match=r"^methods\.eagle3\.tree: "):
        run_training(config_of(*overrides(tmp_path, "method=eagle3", "methods.eagle3.tree.top_k=61")))


def test_a_method_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method=ngram: has nothing to train"):
        run_training(config_of(*overrides(tmp_path, "method=ngram")))


@pytest.mark.parametrize(
    "option", sorted(f.stem for f in (Path(conf.__file__).parent / "data").glob("*.yaml"))
)
def test_every_source_of_dialogues_composes_and_builds(option: str) -> None:
    needed = {
        "given": ["data.path=x.jsonl"],
        "answered": ["data.task.path=x.jsonl"],
        "mixed": ["data.parts.given.path=x.jsonl", "data.parts.answered.task.path=x.jsonl"],
    }.get(option, [])
    assert build(config_of(f"data={option}", *needed).data, "data").limit is None


def test_what_a_target_is_measured_with_does_not_end_a_training_and_another_vocabulary_does(
    tmp_path: Path,
) -> None:
    run_training(config_of(*overrides(tmp_path, "method=eagle3")))
    run_training(config_of(*overrides(tmp_path, "method=eagle3", "target.cache=static")))
    with pytest.raises(ConfigError, match="another out="):
        run_training(config_of(*overrides(tmp_path, "method=eagle3", "draft_vocab_size=50")))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("smollm2_135m", "r/heads/smollm2_135m-eagle3"),
        ("Qwen3-0.6B", "r/heads/Qwen3-0.6B-eagle3"),
        ("a/../b c", "r/heads/a-b-c-eagle3"),
    ],
)
def test_a_training_writes_into_a_folder_of_its_targets_name(name: str, folder: str) -> None:
    assert default_folder("r", name, "eagle3") == folder


def test_a_target_of_the_hub_gives_its_trainings_a_folder_of_their_own() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["target=hub", "target.path=org/Some-Model"])
    assert config.out is None
    assert build(config.target, "target").name == "Some-Model"

"""One training from its composed configuration to a head with its card."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError, build
from harness.decoding.loop import LocalEngine
from harness.drafting.drafter import Drafter
from harness.drafting.trainable import TrainableDrafter
from harness.system import naming, provenance
from harness.system.console import Console
from harness.system.machine_lock import machine_lock, units_of
from harness.system.naming import class_names
from harness.system.processes import refuse_shared
from harness.target.chat_template import render
from harness.target.model import Target
from harness.target.spec import LoadedWeights, TargetSpec
from harness.tasks.task import JsonlTask, Task
from harness.tracking.tracker import NoTracker
from harness.training.dialogues import Dialogues, Sample, Writer, without_overlap
from harness.training.features import CachedFeatures, Features
from harness.training.trainer import HEAD, Progress, Trainer, Training

_IDENTITY = ("start", "draft_vocab_size", "methods", "training", "data", "exclude", "exclude_paths")
_NOT_OF_A_TRAINING = ("heads", "cache", "compile")
"""Fields of a target that say how it is measured."""


def run_training(config: DictConfig) -> None:
    """Train, write the head's card, print the JSON line.

    Raises:
        ConfigError: what cannot be trained, and what to type instead.
    """
    spec: TargetSpec = build(config.target, "target")
    refuse_shared(spec.tensor_parallel, "training")
    processes = PartialState(cpu=spec.resolved_device().type == "cpu")
    if spec.device == "auto" and processes.num_processes > 1:
        spec = dataclasses.replace(spec, device=str(processes.device))
    # Of several processes the first speaks and writes.
    console = Console(None if processes.is_main_process else io.StringIO())
    settings: Any = OmegaConf.to_container(config, resolve=True)
    name, drafter = _drafter(config)
    training: Training = build(config.training, "training")
    tracker: NoTracker = build(config.tracker, "tracker") if processes.is_main_process else NoTracker()
    tracker.require()
    data: Dialogues = build(config.data, "data")
    with machine_lock(units_of(spec.resolved_device(), spec.device_map is not None), False, console.note):
        weights = spec.load(console.note)
        target = Target(weights.model, spec.attention, spec.linear)
        engine = LocalEngine(target, weights.end_token_ids, weights.max_context, timed=False)
        _bind(name, drafter, target)
        with processes.main_process_first():
            writer = _writer(build(config.writer, "writer"), engine, weights, spec, console)
            samples, num_dropped, excluded = _samples(config, data, writer)
        folder, features = Path(settings["out"]), Features(target, drafter.taps)
        if training.features:
            made_by = [weights.card.get(key) for key in ("path", "revision", "fingerprint")]
            features = CachedFeatures(target, drafter.taps, Path(training.features), made_by, console.note)
        trainer = Trainer(engine, drafter, training, samples, folder, _identity(settings), features)
        done = trainer.run(console.note, tracker.curves(f"{spec.name}-{name}", naming.redact(settings)))
    if not processes.is_main_process:
        return
    card = {
        "target": {key: weights.card[key] for key in ("path", "revision", "source")},
        "method": name,
        "training": {
            "start": _begun_from(drafter.card()),
            "data": data.card(),
            "excluded_tasks": excluded,
            "num_dropped": num_dropped,
            **_told(trainer, done),
        },
    }
    _complete(folder / HEAD / "card.json", card)
    console.note(f"the head is in {folder / HEAD}; try it: methods.{name}.head={folder / HEAD}")
    told = {"head": str(folder / HEAD), "tau": done.best_tau, "steps": done.step, "tokens": done.num_tokens}
    print(json.dumps(told), flush=True)


def _samples(config: DictConfig, data: Dialogues, writer: Writer) -> tuple[list[Sample], int, list[str]]:
    """The dialogues to train on; how many were dropped for what they share with which evaluation tasks."""
    exclude: list[Task] = [build(node, f"exclude.{key}") for key, node in config.exclude.items()]
    exclude += [JsonlTask(name=Path(path).stem, path=path) for path in config.exclude_paths]
    samples, num_dropped = without_overlap(data.load(writer), exclude)
    usable = [sample for sample in samples if any(sample.answer) and not sample.answer[0]]
    writer.note(
        f"{len(usable)} dialogues, {sum(sum(one.answer) for one in usable)} answer tokens;"
        f" {num_dropped} dropped that share 13 words with an evaluation prompt"
    )
    return usable, num_dropped, [task.name for task in exclude]


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that must match to resume from a checkpoint."""
    target = {key: value for key, value in settings["target"].items() if key not in _NOT_OF_A_TRAINING}
    found: dict[str, Any] = class_names({"target": target, **{key: settings[key] for key in _IDENTITY}})
    return found


def _told(trainer: Trainer, done: Progress) -> dict[str, Any]:
    """What a head's card says of its training."""
    return {
        "num_dialogues": len(trainer.samples),
        "num_held_out": len(trainer.held_out),
        "num_steps": done.step,
        "num_answer_tokens_seen": done.num_tokens,
        "best_held_out_tau": done.best_tau,
        "settings": dataclasses.asdict(trainer.training),
        "git": provenance.git_state(),
        "packages": {key: provenance.packages().get(key) for key in ("torch", "transformers")},
    }


def _bind(name: str, drafter: TrainableDrafter, target: Target) -> None:
    try:
        drafter.bind(target)
    except ConfigError as error:
        message = str(error)
        # The head is typed as `start=` here.
        head = message.removeprefix("head=")
        raise ConfigError(f"start={head}" if head != message else f"methods.{name}.{message}") from error


def _begun_from(card: dict[str, Any]) -> dict[str, Any] | None:
    """Of a head that was trained on: which it is, and what its own card says of its training."""
    if card.get("path") is None:
        return None
    return {key: card[key] for key in ("path", "revision", "sha256", "training") if key in card}


def _drafter(config: DictConfig) -> tuple[str, TrainableDrafter]:
    methods = dict(config.methods or {})
    if len(methods) != 1:
        raise ConfigError(f"method: exactly one is trained, not {len(methods)}; type method=eagle3")
    ((name, node),) = methods.items()
    container: Any = OmegaConf.to_container(node, resolve=True)
    if not issubclass(get_class(container["_target_"]), TrainableDrafter):
        raise ConfigError(f"method={name}: has nothing to train; type method=eagle3 or method=eagle2")
    known = {"head": config.start, "draft_vocab_size": config.draft_vocab_size}
    drafter: TrainableDrafter = build({**container, **known}, f"methods.{name}")
    return str(name), drafter


def _writer(
    drafter: Drafter, engine: LocalEngine, weights: LoadedWeights, spec: TargetSpec, console: Console
) -> Writer:
    tokenizer = weights.tokenizer
    drafter.bind(engine.target)
    return Writer(
        engine=engine,
        drafter=drafter,
        render=lambda messages: render(tokenizer, messages, spec),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        encode=lambda text: [int(token) for token in tokenizer.encode(text, add_special_tokens=False)],
        note=console.note,
    )


def _complete(file: Path, card: dict[str, Any]) -> None:
    """Add to the card that the best head was written with; what is there already stays."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    training = {**known.get("training", {}), **card["training"]}
    file.write_text(json.dumps({**known, **card, "training": training}, indent=2) + "\n", encoding="utf-8")

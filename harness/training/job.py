"""One training, from its composed configuration to a trained head with its card."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

import conf
from harness.config import SERVE, ConfigError, build
from harness.decoding.loop import DecodingLoop
from harness.drafting.drafter import TRAINING_PROMPTS, Drafter
from harness.drafting.trainable import TrainableDrafter
from harness.system import provenance
from harness.system.console import Console
from harness.system.files import print_json, write_json
from harness.system.machine_lock import machine_lock, units_of
from harness.system.naming import class_names, slug
from harness.system.processes import refuse_shared
from harness.system.secrets import redact
from harness.target.chat_template import render
from harness.target.model import Target
from harness.target.spec import LoadedWeights, TargetSpec
from harness.tasks.overlap import Fingerprints
from harness.tasks.task import JsonlTask, Task
from harness.tracking.tracker import NoTracker, Tracker
from harness.training.dialogues import Dialogues, Sample
from harness.training.features import CachedFeatures, Features
from harness.training.folder import HEAD
from harness.training.overlap import without_overlap
from harness.training.trainer import Progress, Trainer, Training
from harness.training.writer import Writer

_IDENTITY = ("methods", "training", "data", "exclude", "exclude_paths")
_NOT_OF_A_TRAINING = ("heads", "cache", "compile")
"""Fields of a target that concern measuring only."""


def run_training(config: DictConfig) -> None:
    """Train, write the head's card and print the JSON line.

    Raises:
        ConfigError: something cannot be trained; the text says what to type instead.
    """
    spec: TargetSpec = build(config.target, "target")
    refuse_shared(spec.tensor_parallel, "training")
    processes = PartialState(cpu=spec.resolved_device().type == "cpu")
    if spec.device == "auto" and processes.num_processes > 1:
        spec = dataclasses.replace(spec, device=str(processes.device))
    # Of several processes, only the first prints and writes.
    console = Console(None if processes.is_main_process else io.StringIO())
    settings: Any = OmegaConf.to_container(config, resolve=True)
    name, drafter = _drafter(config, console)
    training: Training = build(config.training, "training")
    tracker: Tracker = build(config.tracker, "tracker") if processes.is_main_process else NoTracker()
    tracker.require()
    data: Dialogues = build(config.data, "data")
    with machine_lock(units_of(spec.resolved_device(), spec.device_map is not None), False, console.note):
        weights = spec.load(console.note)
        target = Target(weights.model, spec.attention, spec.linear)
        engine = DecodingLoop(target, weights.end_token_ids, weights.max_context, timed=False)
        _bind(name, drafter, target, settings["options"])
        seen = drafter.training_prompts  # of the head that the training starts from
        with processes.main_process_first():
            writer = _writer(build(config.writer, "writer"), engine, weights, spec, console)
            samples, num_dropped, excluded = _samples(config, data, writer)
        folder = Path(settings["out"] or default_folder(settings["results"], spec.name, name))
        features = _features(training, target, drafter, weights, console)
        trainer = Trainer(engine, drafter, training, samples, folder, _identity(settings), features)
        if processes.is_main_process:
            _complete_model(drafter, weights, folder / HEAD)
        done = trainer.run(console.note, tracker.curves(f"{spec.name}-{name}", redact(settings)))
    if not processes.is_main_process:
        return
    source = {"data": data.card(), "excluded_tasks": excluded, "num_dropped": num_dropped}
    training_card = {"start": _start(drafter.card()), **source, **_summary(trainer, done)}
    known = {key: weights.card[key] for key in ("path", "revision", "source")}
    card = {"target": known, "method": name, "training": training_card}
    _complete(folder, card, _prompts(samples, seen))
    console.note(_how_to_try(name, drafter, folder / HEAD))
    outcome = {
        "head": str(folder / HEAD),
        "tau": done.best_tau,
        "steps": done.step,
        "tokens": done.num_tokens,
    }
    print_json(outcome)


def _how_to_try(name: str, drafter: TrainableDrafter, folder: Path) -> str:
    """What to type next."""
    if not drafter.exports_model:
        return f"the head is in {folder}; try it: methods.{name}.head={folder}"
    return f"the model is in {folder}; try it: target=hub target.path={folder} method={name}"


def _complete_model(drafter: TrainableDrafter, weights: LoadedWeights, folder: Path) -> None:
    """Write the tokenizer that a whole model needs; one of an interrupted training needs it, too."""
    if drafter.exports_model:
        weights.tokenizer.save_pretrained(folder)


def default_folder(results: str, target: str, method: str) -> str:
    """Where a training writes unless `out` is given. target: its name, which is known once it is built."""
    # Most names serve as they are, and a resumed training must find its folder.
    plain = target if re.fullmatch(r"[\w.-]+", target, re.ASCII) else slug(target)
    return f"{results}/heads/{plain}-{method}"


def _features(
    training: Training, target: Target, drafter: Drafter, weights: LoadedWeights, console: Console
) -> Features:
    if not training.features:
        return Features(target, drafter.taps)
    identity = [weights.card.get(key) for key in ("path", "revision", "fingerprint")]
    return CachedFeatures(target, drafter.taps, Path(training.features), identity, console.note)


def _samples(config: DictConfig, data: Dialogues, writer: Writer) -> tuple[list[Sample], int, list[str]]:
    """The dialogues to train on, the number dropped, and the evaluation tasks that they overlap with."""
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
    keys = (*_IDENTITY, *settings["options"])
    methods = {
        name: {key: value for key, value in node.items() if key != SERVE}
        for name, node in settings["methods"].items()
    }
    settings = {**settings, "methods": methods}
    identity: dict[str, Any] = class_names({"target": target, **{key: settings[key] for key in keys}})
    return identity


def _summary(trainer: Trainer, done: Progress) -> dict[str, Any]:
    """The training as a head's card describes it; the folder of the features means nothing elsewhere."""
    settings = dataclasses.asdict(trainer.training)
    del settings["features"]
    return {
        "num_dialogues": len(trainer.samples),
        "categories": _categories(trainer.samples),
        "num_held_out": len(trainer.held_out.samples),
        "num_steps": done.step,
        "num_answer_tokens_seen": done.num_tokens,
        "best_held_out_tau": done.best_tau,
        "settings": settings,
        "git": provenance.git_state(),
        "packages": {key: provenance.packages().get(key) for key in ("torch", "transformers")},
    }


def _categories(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Dialogues and answer tokens of each kind, the kind with most tokens first."""
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        counts = found.setdefault(sample.category, {"dialogues": 0, "answer_tokens": 0})
        counts["dialogues"] += 1
        counts["answer_tokens"] += sum(sample.answer)
    return dict(sorted(found.items(), key=lambda item: -item[1]["answer_tokens"]))


def _bind(name: str, drafter: TrainableDrafter, target: Target, options: dict[str, str]) -> None:
    try:
        drafter.bind(target)
    except ConfigError as error:
        message = str(error)
        # A field that an option of this command sets is named as it was typed.
        for option, field in options.items():
            if message.startswith(f"{field}="):
                raise ConfigError(f"{option}={message.removeprefix(f'{field}=')}") from error
        raise ConfigError(f"methods.{name}.{message}") from error


def _start(card: dict[str, Any]) -> dict[str, Any] | None:
    """The head that the training started from, with its own training; None for fresh weights."""
    if card.get("path") is None:
        return None
    return {key: card[key] for key in ("path", "revision", "sha256", "training") if key in card}


def _drafter(config: DictConfig, console: Console) -> tuple[str, TrainableDrafter]:
    methods = dict(config.methods or {})
    if len(methods) != 1:
        raise ConfigError(
            f"method: exactly one is trained, not {len(methods)};"
            f" type method=NAME, one of {_trainable_methods()}"
        )
    ((name, node),) = methods.items()
    container: Any = OmegaConf.to_container(node, resolve=True)
    cls = get_class(container["_target_"])
    if not issubclass(cls, TrainableDrafter):
        raise ConfigError(
            f"method={name}: has nothing to train; type method=NAME, one of {_trainable_methods()}"
        )
    known = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for option, field in config.options.items():
        if field in known:
            container[field] = config[option]
        else:
            console.note(f"{option}= has no effect: the method {name} has no field {field}")
    if container.get("dtype") == "target":
        # In the bfloat16 of a target, a head would not start from the numbers that its files hold.
        container["dtype"] = "float32"
    drafter: TrainableDrafter = build(container, f"methods.{name}")
    return str(name), drafter


def _trainable_methods() -> str:
    """The names in `conf/method` whose class can be trained."""
    files = sorted((Path(conf.__file__).parent / "method").glob("*.yaml"))
    nodes = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in files}
    classes = {name: get_class(node["_target_"]) for name, node in nodes.items() if isinstance(node, dict)}
    return ", ".join(name for name, cls in classes.items() if issubclass(cls, TrainableDrafter))


def _writer(
    drafter: Drafter, engine: DecodingLoop, weights: LoadedWeights, spec: TargetSpec, console: Console
) -> Writer:
    tokenizer = weights.tokenizer
    drafter.bind(engine.target)
    return Writer(
        engine=engine,
        drafter=drafter,
        render=lambda messages: render(tokenizer, messages, spec.chat),
        eos_token_id=tokenizer.eos_token_id,
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        encode=lambda text: [int(token) for token in tokenizer.encode(text, add_special_tokens=False)],
        note=console.note,
    )


def _prompts(samples: Sequence[Sample], seen: Sequence[Path]) -> Fingerprints:
    """The prompts of the dialogues and of the files `seen`."""
    prompts = Fingerprints.of(sample.prompt for sample in samples)
    for file in seen:
        prompts |= Fingerprints.load(file)
    return prompts


def _complete(folder: Path, card: dict[str, Any], prompts: Fingerprints) -> None:
    """Complete the cards that the best head and those that were kept were written with; entries that they
    already have stay. Beside each the fingerprints of the prompts are kept."""
    for head in sorted(folder.glob(f"{HEAD}*")):
        file = head / "card.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        training = {**known.get("training", {}), **card["training"]}
        write_json(file, {**known, **card, "training": training}, indent=2)
        prompts.save(head / TRAINING_PROMPTS)

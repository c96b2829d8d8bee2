"""Hydra applications: running one, its exit status, and readable messages for mistakes."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from harness.cli.interrupts import interrupts_on_signals
from harness.cli.method_parts import as_options
from harness.cli.outcome import FAILED, GOOD, WRONG, Collect, hand_over
from harness.config import ConfigError, near
from harness.store.run_store import unwritable
from harness.system.console import Console
from harness.system.processes import is_follower
from harness.system.progress import waiting
from harness.system.secrets import guard_process

_GRACE_S = 10
"""Seconds that a failed follower leaves to the first process to report; its exit then ends all of them."""
_HINTS = ("See https://hydra.cc", "Set the environment variable")
"""Openings of lines in Hydra's messages that do not help users of this harness."""


def main(job: Callable[[], Any]) -> int:
    """Run a Hydra application. Returns the exit status of the process, unless a callback exits first."""
    # Hydra would report errors itself, with exit status 1 and hints about its internals; this makes it raise.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = as_options(sys.argv[1:])
    guard_process()
    try:
        with interrupts_on_signals():
            job()
    except ConfigError as error:
        return _wrong(str(error))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ValueError) and not _from_hydra(error):
            raise
        return _wrong(explain(error))
    except OSError as error:
        # Hydra creates the folder of a job before the job could check that it can be written.
        return _wrong(str(unwritable(error.filename or "results", error)))
    except KeyboardInterrupt as error:
        Console().error(str(error) or "stopped by the user")
        return FAILED
    return GOOD


def _wrong(text: str) -> int:
    if is_follower():
        # The first process finds the same mistake, and must live long enough to report it.
        return GOOD
    Console().error(text)
    return WRONG


def run_job(config: DictConfig) -> None:
    """Measure one composed configuration, and write its outcome into Hydra's folder for `Collect`."""
    hydra = HydraConfig.get()
    sweeping = hydra.mode == RunMode.MULTIRUN
    # As typed: iterating would replace a reference to a secret by the secret.
    overrides: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    follows = is_follower()
    console = Console(io.StringIO() if follows else None)
    with console.watching():
        # Imported here, as they take seconds, which `--help` and a misspelt key need not cost.
        with waiting("loading torch and transformers", usual_s=10):
            from harness.benchmark.dry_run.survey import Survey
            from harness.benchmark.job import Job

        job: Survey | Job = Survey(config, overrides) if config.dry_run else Job(config, overrides, console)
        job.run(sweeping)
    if follows:
        if job.outcome()["status"] == FAILED and not sweeping:
            # If all processes failed, the first one must report it before torchrun ends it. If only this one
            # failed, the others wait for it, so it must end.
            time.sleep(_GRACE_S)
            raise SystemExit(FAILED)
        return
    folder = Path(hydra.runtime.output_dir)
    hand_over(folder, job.outcome())
    # A launcher that runs jobs in other processes is interrupted too, and collects the outcomes itself.
    if job.interrupted and sweeping and str(hydra.launcher["_target_"]).endswith("BasicLauncher"):
        # Not by its setting, which holds the time and would be another folder if it were resolved again.
        Collect().end_sweep(folder.parents[len(Path(str(hydra.sweep.subdir)).parts) - 1])


def explain(error: Exception) -> str:
    """The message for an error of Hydra or OmegaConf: what is wrong, what is allowed and what to type."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and key not in parent:
        return _unknown_key(parent, str(key), str(getattr(cause, "full_key", None) or key))
    option = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", str(error))
    if option:
        return _unknown_option(*option.groups())
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(_HINTS)]
    if isinstance(error, OverrideParseException):
        reasons = [line for line in lines if line.strip() != "^" and not line.startswith("LexerNo")]
        return _unreadable_override(str(error.override), reasons[-1] if reasons else "a sign has no meaning")
    return " ".join(lines)


def _unreadable_override(override: str, reason: str) -> str:
    """The message for an argument outside Hydra's grammar, such as a path with `=` or `[`."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: cannot be read ({reason}). Type KEY=VALUE"
    value = value.strip("'\"")
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    typed = shlex.quote(f'{key}="{quoted}"')
    return f"{override}: cannot be read ({reason}). Quote a value with special signs twice: {typed}"


def _unknown_key(parent: DictConfig, key: str, full_key: str) -> str:
    """The message for a key that the composed configuration does not have."""
    known = [str(name) for name in parent if not str(name).startswith(("_", "hydra"))]
    hidden = [name for name in _fields(parent.get("_target_")) if name not in known]
    if key in hidden:
        return f"{full_key}: not in the YAML but in its class; type +{full_key}=..."
    if parent._get_parent() is None:
        hidden = [name for name in _options() if name not in known]
    known += hidden
    return f"{full_key}: unknown key.{near(key, known)} Allowed: {', '.join(known)}."


def _unknown_option(group: str, name: str) -> str:
    """The message for an option that a group does not have."""
    options = _options(group)
    if not options:
        return f"{group}: no such group.{near(group, _options())} Groups: {', '.join(_options())}."
    return f"{group}={name}: no such option.{near(name, options)} Options: {', '.join(options)}."


def _options(group: str = "") -> list[str]:
    """Names of the options of a group, or of all groups."""
    root = Path(conf.__file__).parent / group
    if not group:
        return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] not in "_.")
    return sorted(path.stem for path in root.glob("*.yaml"))


def _fields(target: str | None) -> list[str]:
    cls = get_class(target) if target else None
    return [field.name for field in fields(cls) if field.init] if is_dataclass(cls) else []


def _from_hydra(error: Exception) -> bool:
    """Whether Hydra raised the error: it reports some mistakes by a plain ValueError."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__")).startswith("hydra.")

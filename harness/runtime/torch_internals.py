"""Private interfaces of torch, all in one place; tried with torch 2.11 (CUDA) and 2.13 (CPU).

torch promises nothing about these names. When a new version breaks something here, the tests of
tests/runtime and the compiled steps of tests/decoding fail. `torch.ops.mkldnn`, which `packed_linear` looks
up itself to see whether it exists, was tried with the same versions.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config


def assert_on_device(condition: Tensor, text: str) -> None:
    """Fail where a bool scalar on the device is False, without making the host wait for it."""
    torch._assert_async(condition, text)


def mark_dynamic(tensor: Tensor, axis: int) -> None:
    """Tell torch.compile that the size of this axis varies, so that it is not a constant of the program."""
    torch._dynamo.mark_dynamic(tensor, axis)


def fail_at_recompile_limit(most: int) -> None:
    """Allow `most` programs of one function, and fail at one more instead of running it eagerly.

    These are settings of the process: every `torch.compile` of it follows them.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = most


def num_programs() -> int:
    """The number of programs that torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def own_code(function: Callable[..., Any]) -> Any:
    """The same function or method with a code object of its own.

    torch.compile keeps programs by code object and chooses among them by guards. Two targets share the code
    of their steps, and the guards that would tell their modules apart are dropped (see `outside`), so a
    shared code object would hand one target's program to the other.
    """
    inner: Any = getattr(function, "__func__", function)
    copy = FunctionType(
        inner.__code__.replace(), inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copy.__kwdefaults__ = inner.__kwdefaults__
    return MethodType(copy, function.__self__) if isinstance(function, MethodType) else copy


def outside(guards: Sequence[Any]) -> list[bool]:
    """A guard filter for torch.compile: keep the conditions on anything but the insides of modules.

    There are thousands of those, and checking them before every call takes longer than some layers.
    """
    return ["_modules" not in guard.name for guard in guards]


def programs_folder() -> Path:
    """The folder for what is compiled ahead of time, in inductor's own (`TORCHINDUCTOR_CACHE_DIR`)."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "specbench"


def machine_facts() -> tuple[str, ...]:
    """What machine code depends on: versions, the processor and the number of threads."""
    cpu = Path("/proc/cpuinfo")
    flags = (
        {line for line in cpu.read_text().splitlines() if line.startswith(("model name", "flags"))}
        if (cpu.is_file())
        else {platform.processor()}
    )
    return torch.__version__, platform.machine(), str(sorted(flags)), str(torch.get_num_threads())


@cache
def runtime_code() -> str:
    """A hash of the code below this folder, which decides what programs compute and how long steps take."""
    files = sorted(file for kind in ("*.py", "*.cpp") for file in Path(__file__).parent.rglob(kind))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


AHEAD_OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}
"""Inductor's options for what is compiled ahead of time."""


def exported(
    module: torch.nn.Module, inputs: list[Tensor], varying: list[set[int]]
) -> torch.export.ExportedProgram:
    """The graph of a function of a list of tensors.

    varying: per input, the dimensions that are not constants of the graph.
    """
    shapes = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None for axes in varying]
    with warnings.catch_warnings():
        # Of torch's own code about itself.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.export.export(module, (inputs,), dynamic_shapes=(shapes,), strict=False)


def compile_exported(graph: torch.export.ExportedProgram, file: Path) -> None:
    """Compile a graph ahead of time into a file (.pt2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch._inductor.aoti_compile_and_package(
            graph, package_path=str(file), inductor_configs=AHEAD_OPTIONS
        )


def compile_ahead(module: torch.nn.Module, inputs: list[Tensor], varying: list[set[int]], file: Path) -> None:
    """Compile a function of a list of tensors ahead of time into a file (.pt2); varying: see `exported`."""
    compile_exported(exported(module, inputs, varying), file)


def load_compiled(file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """A program that was compiled ahead of time, called without any check of its inputs."""
    loaded = torch._inductor.aoti_load_package(str(file))
    # The package's own call would flatten and reorder the inputs first.
    run: Callable[[list[Tensor]], list[Tensor]] = loaded.loader.run
    return run


def any_sizes() -> AbstractContextManager[Any]:
    """Within it, programs for any size keep sizes apart that happen to be equal.

    Otherwise a prompt as long as a head is wide, or as many prompts as rows, would be a program of its own.
    """
    made: AbstractContextManager[Any] = _config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    return made

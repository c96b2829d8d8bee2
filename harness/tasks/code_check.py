"""Runs the code of an answer against the tests of its problem, in a process of its own.

The process has an empty folder, an empty environment, Python without site packages, and
limits on time, memory and the size of files; where the system allows it (`unshare`), no network either. That
stops accidents. It is no wall against code that means harm, and therefore runs only where it is asked for.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
import tempfile
from functools import cache

_SECONDS = 10
_MEMORY, _FILE = 2**30, 2**20
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_DONE = "all tests passed"


def passes(text: str, prompt: str, test: str, entry_point: str) -> bool:
    """Whether the code of an answer passes.

    text: the answer. prompt: the beginning of the program, with a function's head. test: defines `check`.
    entry_point: the function's name.
    """
    parts = [prompt + _completion(text, entry_point), test, f"check({entry_point})", f"print({_DONE!r})"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = subprocess.run(
                [*_without_network(), sys.executable, "-I", "-S", "-c", "\n".join(parts)],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
                preexec_fn=_limit,
            )
        except subprocess.TimeoutExpired:
            return False
    return made.returncode == 0 and made.stdout.decode(errors="replace").strip().endswith(_DONE)


def _completion(text: str, entry_point: str) -> str:
    """What follows the prompt: a body that ends its function, then the answer's own code, if it has a block.

    A whole function replaces the one that the prompt began; text without a block continues it.
    """
    blocks: list[str] = _BLOCK.findall(text)
    own = next((block for block in blocks if f"def {entry_point}" in block), None)
    if own is not None:
        return f"\n    pass\n\n{own}\n"
    return (blocks[0] if blocks else text) + "\n"


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@cache
def _without_network() -> tuple[str, ...]:
    """A command to start a program without network; empty where the system does not allow it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--net", "--")
    return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else ()

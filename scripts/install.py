"""Install packages with pip, with a line of progress; what pip says is shown only if it fails.

    python scripts/install.py [ARGUMENTS OF pip install]

The exit status is pip's. It needs nothing but the interpreter whose environment it fills.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.system.progress.waits import Wait

_USUAL_S = 110
"""What the packages of the benchmark take from an index nearby."""
_FIRST_LINE_S = 5.0
_WIDTH = 99


def install(arguments: Sequence[str]) -> int:
    """Run `pip install ARGUMENTS`; its exit status."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    wait, over = Wait("installing packages", usual_s=_USUAL_S), threading.Event()
    said: list[str] = []
    shower = threading.Thread(target=_show, args=(wait, over), daemon=True)
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        assert pip.stdout is not None
        shower.start()
        try:
            for line in pip.stdout:
                said.append(line)
                if line.startswith(("Collecting", "Installing")):
                    wait.now = " ".join(line.split()[:2]).lower()
        except KeyboardInterrupt:
            pip.terminate()
            raise
        finally:
            over.set()
            shower.join()
    if pip.returncode:
        sys.stderr.write("".join(said))
    return pip.returncode


def _show(wait: Wait, over: threading.Event) -> None:
    """Keep one line on a terminal; elsewhere print a line ever more rarely."""
    on_terminal, due_s = sys.stderr.isatty(), _FIRST_LINE_S
    while not over.wait(0.5):
        line = f"{wait.what}: {wait.message()}"[:_WIDTH]
        if on_terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
        elif wait.elapsed_s >= due_s:
            due_s = 2 * wait.elapsed_s
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    if on_terminal:
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    try:
        sys.exit(install(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

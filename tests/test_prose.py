"""House rules of harness/, methods/ and scripts/: limits of size, and plain English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_CLASS_LINES, MAX_METHODS = 350, 50, 200, 20
MAX_FILES, MAX_FILES_AT_THE_TOP = 12, 7
BAD_OPENING = re.compile(r"(Of|See)\b")
PRIVATE_WORDS = re.compile(r"\b(laws?|told|(go|goes|going|gone) on)\b", re.IGNORECASE)
"""Field terms instead: distribution; given, reported, known; resume, continue."""
PACKAGES = sorted(
    {
        ".".join(file.parent.relative_to(ROOT).parts)
        for tower in ("harness", "methods", "scripts")
        for file in (ROOT / tower).rglob("*.py")
    }
)


def faults_of_package(package: str) -> list[str]:
    """Every broken rule of the files directly in a package's folder."""
    folder = ROOT.joinpath(*package.split("."))
    files = sorted(folder.glob("*.py"))
    most = MAX_FILES_AT_THE_TOP if package == "harness" else MAX_FILES
    faults = [f"{package}: {len(files)} files, at most {most}"] if len(files) > most else []
    for file in files:
        faults += [f"{file.relative_to(ROOT)}:{fault}" for fault in faults_of_source(file.read_text())]
    return faults


def faults_of_source(source: str) -> Iterator[str]:
    """Every broken rule of one file, as `line: what is wrong`."""
    tree, num_lines = ast.parse(source), source.count("\n")
    if num_lines > MAX_FILE_LINES:
        yield f"1: {num_lines} lines in the file, at most {MAX_FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from size_faults(node)
    for line, text in documentation(tree):
        if BAD_OPENING.match(text):
            yield f"{line}: opens with {text.split()[0]!r}: {text.splitlines()[0]}"
    for line, text in [*documentation(tree), *comments(source)]:
        for found in PRIVATE_WORDS.finditer(text):
            yield f"{line}: private word {found[0]!r}: {' '.join(text.split())[:90]}"


def size_faults(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Iterator[str]:
    assert node.end_lineno is not None
    num_lines = node.end_lineno - node.lineno + 1
    is_class = isinstance(node, ast.ClassDef)
    most = MAX_CLASS_LINES if is_class else MAX_FUNCTION_LINES
    if num_lines > most:
        yield f"{node.lineno}: {node.name} has {num_lines} lines, at most {most}"
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    if is_class and len(methods) > MAX_METHODS:
        yield f"{node.lineno}: {node.name} has {len(methods)} methods, at most {MAX_METHODS}"


def documentation(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string that stands alone: docstrings, and those below a field or constant."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value.strip()


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_keeps_the_house_rules(package: str) -> None:
    faults = faults_of_package(package)
    assert not faults, "\n".join(faults)


BROKEN = {
    "1: 351 lines in the file": "\n" * 351,
    "1: f has 51 lines": "def f():\n" + "    pass\n" * 50,
    "1: C has 201 lines": "class C:\n" + "    x = 1\n" * 200,
    "1: C has 21 methods": "class C:\n" + "    def f(self): ...\n" * 21,
    "1: opens with 'Of'": '"""Of the others, the last."""\n',
    "3: opens with 'See'": 'class C:\n    def f(self):\n        """See `D`."""\n',
    "2: opens with 'Of'": 'x = 1\n"""Of a folder."""\n',
    "1: private word 'law'": '"""The law of the next token."""\n',
    "1: private word 'told'": "# What it was told.\n",
    "1: private word 'goes on'": '"""The same command goes on."""\n',
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_rule_is_found_and_its_line_named(fault: str) -> None:
    (found,) = faults_of_source(BROKEN[fault])
    assert found.startswith(fault)


def test_sound_code_has_no_fault() -> None:
    within = "def f():\n" + "    pass\n" * 49
    prose = '"""Seeds are drawn from the distribution; the caller resumes it. Often lawful, untold."""\n'
    assert list(faults_of_source(prose + within)) == []

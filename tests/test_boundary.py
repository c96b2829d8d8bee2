"""The harness names no method: what the import contract cannot see, because it stands in strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import harness

ROOT = Path(harness.__file__).parent
METHOD = re.compile(r"eagle|\bmethods\.(?!NAME\b)\w", re.IGNORECASE)
CONVENTIONS = {
    # Published tables count tau in the ways of three codes, and columns are called after them.
    "analysis/metrics.py": {"as_eagle"},
    "reports/replication.py": {"ours as EAGLE", "our_tau_as_eagle", "as_eagle", "_as_eagle"},
    "reports/tables.py": {"as EAGLE", "as_eagle"},
    # As official checkpoints spell them.
    "engines/heads.py": {"eagle_config", "eagle_aux_hidden_state_layer_ids"},
    # Words of other engines' own interfaces, by which they are asked for what they have.
    "engines/cpu/engines.py": {"draft-eagle3"},
    "engines/cpu/gguf_head.py": {
        *("eagle3", "eagle3.target_layers", "eagle3.target_hidden_size", "eagle3.norm_before_residual"),
    },
    "engines/cpu/openvino_export.py": {"LlamaForCausalLMEagle3"},
    "engines/servers/sglang.py": {"EAGLE", "EAGLE3", "--speculative-eagle-topk"},
    "engines/servers/vllm.py": {"eagle", "eagle3"},
    # The order of top-p and top-k in the code of that name; stored settings hold it.
    "decoding/sampling.py": {"eagle"},
}
"""Names of conventions, and words of other programs: none of them says which method of ours ran."""


def words(tree: ast.Module) -> Iterator[str]:
    """Identifiers and strings of a module but its docstrings, which may cite papers."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value
        for name in ("id", "attr", "name", "arg", "module"):
            if isinstance(value := getattr(node, name, None), str):
                yield value


def test_the_harness_names_no_method_outside_its_conformance_cases() -> None:
    found: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).as_posix()
        if name.startswith(("conformance/eagle/", "conformance/eagle31/", "conformance/peagle/")):
            continue
        named = {word for word in words(ast.parse(file.read_text())) if METHOD.search(word)}
        if left := named - CONVENTIONS.get(name, set()):
            found[name] = left
    assert found == {}


def test_the_search_finds_what_it_looks_for() -> None:
    code = 'node = {"_target_": "methods.vanilla.Vanilla"}\nEagleThing = f"methods.{node}"\n'
    assert {word for word in words(ast.parse(code)) if METHOD.search(word)} == {
        "methods.vanilla.Vanilla",
        "EagleThing",
    }

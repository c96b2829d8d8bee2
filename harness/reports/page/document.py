"""Document: the template of the page with its styles, scripts and data in it. Pure, the same bytes each time.

Text of models, prompts and configurations comes in as JSON only, and the page's scripts put it into text
nodes only. A content security policy lets no script run but the page's own, by their hashes, and lets
nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.analysis.row import Pair, Row
from harness.reports.page.answers import MAX_SHOWN, answers
from harness.reports.page.content import content
from harness.store.records import Run
from harness.system.secrets import redact_values

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "vendor/d3.min.js",
    "vendor/plot.min.js",
    "assets/elements.js",
    "assets/board.js",
    "assets/charts.js",
    "assets/panels.js",
    "assets/answers.js",
    "assets/runs.js",
    "assets/page.js",
)
"""In the order in which they need one another."""
# What could end a script element or begin a comment in it.
_UNSAFE = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


def document(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    runs: Sequence[Run],
    notes: Sequence[str],
    max_shown: int = MAX_SHOWN,
) -> str:
    """The page as HTML. rows, pairs, notes: of `runs`, as the tables have them. max_shown: see `answers`."""
    scripts = [(_FOLDER / name).read_text(encoding="utf-8").strip() + "\n" for name in _SCRIPTS]
    assert not any("</script" in script.lower() for script in scripts), "a script would end its element"
    text: str = _template().render(
        style=(_FOLDER / "assets/page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=" ".join(_hash(script) for script in scripts),
        content=script_json(content(rows, pairs, runs, notes)),
        answers=script_json(answers(runs, max_shown)),
    )
    return text


def script_json(data: Any) -> str:
    """JSON that can stand in a script element whatever its strings hold."""
    text = json.dumps(redact_values(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def _template() -> Any:
    loader = FileSystemLoader(_FOLDER / "assets")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")


def _hash(script: str) -> str:
    """The source expression by which a content security policy knows a script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"

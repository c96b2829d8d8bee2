"""Redaction: what counts as a secret, and how secrets are taken out of every text that is written.

A secret is recognised once (by the key it stands under, as a part of a URL, by its shape, or by the name of
an environment variable) and from then on by its value, wherever that value appears. All files are written
through `harness.system.files` and all messages through `harness.system.console`, and both call this module.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

REDACTED = "<redacted>"
"""Replacement for a secret."""
_SHORTEST_LEARNED = 8
"""Shorter values are only redacted where they stand, because ordinary words would match them elsewhere."""

# A bare `token` is a secret, `mask_token` or `max_new_tokens` is not.
_SECRET_KEY = re.compile(
    r"(^|[_.+~])(api_?key|access_key|private_key|wandb_key|secret(_key)?|passw(or)?d|credentials?"
    r"|authorization|(hf|hub|auth|access|bearer|api|wandb|github)_?token)$|(^|[.+])token$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r"(?!.*_(FILE|PATH|DIR)$).*(SECRET|PASSW(OR)?D|(^|_)(API_?KEY|ACCESS_KEY|PRIVATE_KEY|TOKEN|CREDENTIALS?)$)",
    re.IGNORECASE,
)
_SECRET_PARAMETER = re.compile(r"token|key|sig|secret|passw|pwd|auth|cred|session|jwt", re.IGNORECASE)
_RANDOM_VALUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.~%+/-]{20,}={0,2}")
# Forty hex digits may be a git revision as well as a W&B key, so they are judged by their key alone.
_SHAPE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|(?<=Bearer )[\w.~+/-]{8,}=*|(?<=Basic )[A-Za-z0-9+/]{12,}=*|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
# The second form is for a password with an unescaped slash; `host:8080/a@b` has none.
_USER = re.compile(r"(?<=://)(?:[^/?#\s]+(?=@)|[^/?#\s:@]+:(?!\d+(?:[/?#]|$))[^\s@]+(?=@))")
# In running text, a quotation mark, comma or bar ends a URL.
_USER_IN_TEXT = re.compile(r"(?<=://)[^/?#\s\"'`,|<>]+(?=@)")
_PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#?\s\"'|]+)=([^&;#\s\"'`,|<>]+)")
_URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*://(?:{REDACTED}|[^\s\"'`<>])+")
_OVERRIDE = re.compile(r"([+~]{0,2}[\w./@:-]+)=(.+)", re.DOTALL)
_PAIR = re.compile(r"([\w.]+)(\s*:\s*)([^\s,{}\[\]][^,{}\[\]]*)")
"""A key with its value within a dict of an override, as in `tracker={api_key:...}`."""
_REFERENCE = re.compile(r"\$\{(oc\.env:)?[\w.]+\}")
"""An interpolation without a default value: it names a secret and does not hold one."""

_learned: set[str] = set()


def learn(value: Any, key: str = "") -> None:
    """Remember the secrets in a configuration (nested dicts and lists, also of `key=value` overrides).

    key: the key that `value` has in its parent.
    """
    for secret in _secrets(value, key):
        forms = (secret, unquote(secret), quote(secret, safe=""))
        _learned.update(form for form in forms if len(form) >= _SHORTEST_LEARNED)


def redact(value: Any, key: str = "") -> Any:
    """A copy of a configuration, as in `learn`, with secrets replaced: those of its keys, and learned ones.

    key: the key that `value` has in its parent, by which secrets are recognised.
    """
    learn(value, key)
    return _copy(value, key, by_key=True, known=_known())


def redact_values(value: Any) -> Any:
    """A copy of data (nested dicts and lists) with secrets replaced in all texts, under whatever key."""
    return _copy(value, "", by_key=False, known=_known())


def redact_text(text: str) -> str:
    """`text`, as in a message or a table, with secrets replaced."""
    return _without_secrets(text, _known(), _USER_IN_TEXT)


def guard_process() -> None:
    """Have this process's log records and tracebacks pass through `redact_text`; learns the command line."""
    learn(sys.argv[1:])
    sys.excepthook = _print_traceback
    if not isinstance(logging.getLogRecordFactory(), _RedactedRecords):
        logging.setLogRecordFactory(_RedactedRecords(logging.getLogRecordFactory()))


class _RedactedRecords:
    """A factory of log records whose texts are complete and redacted."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **kwargs)
        try:
            record.msg, record.args = redact_text(record.getMessage()), ()
        except (TypeError, ValueError):
            # Logging itself reports a message that does not fit its arguments.
            record.msg = redact_text(str(record.msg))
        return record


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact_text("".join(traceback.format_exception(kind, error, trace))))


def _secrets(value: Any, key: str) -> Iterator[str]:
    """The secrets of a configuration, by their keys and as parts of URLs."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, key if _SECRET_KEY.search(key) else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item, key)
    elif isinstance(value, str):
        if _SECRET_KEY.search(key) and not _REFERENCE.fullmatch(value):
            yield value
        if given := _OVERRIDE.fullmatch(value):
            pairs = [(given[1], given[2]), *((found[1], found[3]) for found in _PAIR.finditer(given[2]))]
            for name, item in pairs:
                if _SECRET_KEY.search(name) and not _REFERENCE.fullmatch(item):
                    yield item.strip("'\"")
        for found in _USER.finditer(value):
            _, colon, password = found[0].partition(":")
            if _is_reference(found[0]):
                continue
            if colon or _RANDOM_VALUE.fullmatch(found[0]):
                yield from (found[0], password)
        for url in _URL.finditer(value):
            yield from (found[2] for found in _PARAMETER.finditer(url[0]) if _is_secret_parameter(found))


def _is_reference(user: str) -> bool:
    """Whether the part of a URL before the host consists of interpolations only."""
    return not _REFERENCE.sub("", user).strip(":")


def _is_secret_parameter(found: re.Match[str]) -> bool:
    """Whether a parameter of a URL holds a secret: by its name, or because its value looks random."""
    if _REFERENCE.fullmatch(found[2]):
        return False
    return bool(_SECRET_PARAMETER.search(found[1]) or _RANDOM_VALUE.fullmatch(found[2]))


def _known() -> re.Pattern[str] | None:
    """A pattern of every learned secret and of every secret of the environment."""
    from_environment: Iterable[str] = (
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_LEARNED and _SECRET_VARIABLE.match(name)
    )
    values = sorted({*_learned, *from_environment} - {REDACTED}, key=lambda value: (-len(value), value))
    return re.compile("|".join(map(re.escape, values))) if values else None


def _copy(value: Any, key: str, by_key: bool, known: re.Pattern[str] | None) -> Any:
    secret = by_key and _SECRET_KEY.search(key) is not None
    if isinstance(value, Mapping):
        return {
            _copy(name, "", False, known): _copy(item, key if secret else str(name), by_key, known)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_copy(item, key, by_key, known) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if secret:
        return value if value == "" or _REFERENCE.fullmatch(str(value)) else REDACTED
    if not isinstance(value, str):
        return value
    given = _OVERRIDE.fullmatch(value) if by_key else None
    if given and _SECRET_KEY.search(given[1]) and not _REFERENCE.fullmatch(given[2]):
        return f"{given[1]}={REDACTED}"
    if given and "{" in given[2]:
        value = f"{given[1]}={_PAIR.sub(_without_item, given[2])}"
    return _without_secrets(value, known, _USER)


def _without_item(found: re.Match[str]) -> str:
    secret = _SECRET_KEY.search(found[1]) and not _REFERENCE.fullmatch(found[3])
    return f"{found[1]}{found[2]}{REDACTED}" if secret else found[0]


def _without_secrets(text: str, known: re.Pattern[str] | None, user: re.Pattern[str]) -> str:
    if known:
        text = known.sub(REDACTED, text)
    if "://" in text:
        text = user.sub(lambda found: found[0] if _is_reference(found[0]) else REDACTED, text)
        text = _URL.sub(lambda url: _PARAMETER.sub(_without_value, url[0]), text)
    return _SHAPE.sub(REDACTED, text)


def _without_value(found: re.Match[str]) -> str:
    return f"{found[1]}={REDACTED}" if _is_secret_parameter(found) else found[0]

"""Configuration as objects: validated keyword-only dataclasses, built from YAML by `_target_`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

T = TypeVar("T")

_PARTS = ("tree", "policy")
"""Keys whose value may be the name of a YAML in the folder conf/KEY."""


SERVE = "serve"
"""Key of a method's YAML: per engine other than our own, how it is set to draft in the same way."""


class ConfigError(ValueError):
    """A mistake of the user; the text names what was given, what is allowed and what to type."""


@dataclass_transform(kw_only_default=True)
def configurable(cls: type[T]) -> type[T]:
    """Make `cls` a keyword-only dataclass that checks the types of its fields and refuses unknown keys.

    Constructors do no work: they read no weights and use no network before a method such as `load` is
    called, so every YAML of `conf/` can be built in milliseconds.
    """
    # Numbers count as texts, because Hydra reads `task.ids=[9]` and an all-digit revision as integers.
    config = pydantic.ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, validate_default=True, coerce_numbers_to_str=True
    )
    decorated: Any = dataclass(cls, kw_only=True, config=config)
    return cast("type[T]", decorated)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put `where` before the text of a ConfigError, which begins with the name of a field."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from error


def near(name: str, known: Iterable[str]) -> str:
    """The hint " Did you mean X?" if `known` has a name close to `name`, otherwise ""."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def build(node: Any, where: str) -> Any:
    """Instantiate the `_target_` of a configuration node.

    node: a config node or dict; see `with_parts`. where: its name in messages, as in `task` or
    `methods.ngram`.

    Raises:
        ConfigError: an unknown key, a value out of range, or a class that cannot be imported.
    """
    container: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(container, dict) or "_target_" not in container:
        raise ConfigError(f"{where}: needs a `_target_`, the class to build; got {container!r}")
    container = with_parts(container, where)
    _refuse_unknown(container, where)
    try:
        built = instantiate(DictConfig(container), _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error
    _refuse_altered(container, built, where)
    return built


def with_parts(container: Any, where: str) -> Any:
    """A resolved configuration in which every `tree` and `policy` that is a name is the YAML of that name.

    So `methods.eagle2.tree=cost_aware` takes conf/tree/cost_aware.yaml as a whole. A `serve` is left out: it
    is no setting of a method, but says how other engines are set to use it (`Engine.arm`).

    Raises:
        ConfigError: there is no such YAML.
    """
    if not isinstance(container, dict):
        return container
    found = {}
    for key, value in container.items():
        if key == SERVE:
            continue
        if key in _PARTS and isinstance(value, str):
            folder = files("conf") / key
            known = sorted(one.name.removesuffix(".yaml") for one in folder.iterdir())
            if value not in known:
                raise ConfigError(
                    f"{where}.{key}={value}: no such {key}.{near(value, known)} Allowed: {', '.join(known)}"
                )
            text = (folder / f"{value}.yaml").read_text(encoding="utf-8")
            value = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
        found[key] = with_parts(value, f"{where}.{key}")
    return found


def _refuse_altered(given: Any, built: Any, where: str) -> None:
    """Raise ConfigError if a name was read as a decimal number: 1e5 has become 100000.0, and 1.10 is 1.1."""
    if isinstance(given, float) and isinstance(built, str):
        raise ConfigError(
            f"{where}: a name is expected, and what was given was read as the number {given}. Quote it twice:"
            f" '{where}=\"...\"'"
        )
    if isinstance(given, list) and isinstance(built, list | tuple):
        for index, pair in enumerate(zip(given, built, strict=False)):
            _refuse_altered(*pair, f"{where}[{index}]" if isinstance(pair[0], list | dict) else where)
    if isinstance(given, dict) and "_target_" in given:
        for key, value in given.items():
            _refuse_altered(value, getattr(built, key, None), f"{where}.{key}")


def _refuse_unknown(container: dict[str, Any], where: str) -> None:
    """Raise ConfigError for keys, at any depth, that the class behind `_target_` does not have."""
    try:
        cls = get_class(container["_target_"])
    except Exception as error:
        raise ConfigError(f"{where}: cannot import {container['_target_']!r}: {error}") from error
    if dataclasses.is_dataclass(cls):
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        for key in container:
            if not key.startswith("_") and key not in known:
                raise ConfigError(
                    f"{where}.{key}: unknown key.{near(key, known)} Allowed: {', '.join(known)}."
                )
    for key, value in container.items():
        if isinstance(value, dict) and "_target_" in value:
            _refuse_unknown(value, f"{where}.{key}")


def _explain(error: InstantiationException) -> str:
    """The reason inside Hydra's wrapper, one clause per field."""
    cause = error.__cause__ or error
    if isinstance(cause, pydantic.ValidationError):
        return "; ".join(map(_problem, cause.errors()))
    return str(cause)


def _problem(found: ErrorDetails) -> str:
    """A field, what is wrong with it and what was given; of several fields together, what is wrong alone."""
    if found["loc"]:
        return f"{'.'.join(map(str, found['loc']))}: {found['msg']}, got {found['input']!r}"
    return found["msg"].removeprefix("Value error, ")

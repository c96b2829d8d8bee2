"""Configuration is the object: validated keyword-only dataclasses, built from YAML by `_target_`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic.dataclasses import dataclass

T = TypeVar("T")


class ConfigError(ValueError):
    """The user gave something that cannot be run; the text names it, what is allowed and what to type."""


@dataclass_transform(kw_only_default=True)
def configurable(cls: type[T]) -> type[T]:
    """Make `cls` a keyword-only dataclass whose fields are type-checked and whose unknown keys are refused.

    Constructors do no work: no weights are read and no network is used before a method such as
    `load` is called, so every YAML of `conf/` can be built in milliseconds.
    """
    # Numbers as text: Hydra reads `task.ids=[9]` and an all-digit revision as integers.
    config = pydantic.ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, validate_default=True, coerce_numbers_to_str=True
    )
    decorated: Any = dataclass(cls, kw_only=True, config=config)
    return cast("type[T]", decorated)


def near(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' where `known` has something close to `name`, else ''."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def build(node: Any, where: str) -> Any:
    """Instantiate the `_target_` of `node` (a config node named `where` in messages).

    Raises:
        ConfigError: an unknown key, a value out of range or an unimportable class.
    """
    container: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(container, dict) or "_target_" not in container:
        raise ConfigError(f"{where}: needs a `_target_`, the class to build; got {container!r}")
    _refuse_unknown(container, where)
    try:
        return instantiate(DictConfig(container), _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def _refuse_unknown(container: dict[str, Any], where: str) -> None:
    """Raise for keys that the class behind `_target_` does not have, in `container` and below it."""
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
    """The reason inside Hydra's wrapper, one clause a field."""
    cause = error.__cause__ or error
    if isinstance(cause, pydantic.ValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}, got {item['input']!r}"
            for item in cause.errors()
        )
    return str(cause)

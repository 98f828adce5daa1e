"""TOML tables → frozen dataclasses: no key unknown, every value of its field's type."""

from __future__ import annotations

from dataclasses import is_dataclass
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin, get_type_hints

from runtime import grid
from runtime.errors import MetasrganError, ScaleError

_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class ConfigError(MetasrganError, ValueError):
    """A configuration that no run can have."""


def require(fits: bool, name: str, value: Any, expected: str) -> None:
    """Raise ConfigError, which names a value and what is expected of it, unless it fits."""
    if not fits:
        raise ConfigError(f"{name} is {value!r}: give {expected}")


def build(kind: type[Any], table: dict[str, Any], where: str) -> Any:
    """The dataclass `kind` from a table that lies at `where`. Raises ConfigError; nested dataclasses are nested tables."""
    known = get_type_hints(kind)
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}.{key} is unknown: use {', '.join(known)}")
    try:
        return kind(**{key: typed(value, known[key], f"{where}.{key}") for key, value in table.items()})
    except ConfigError as error:  # what the dataclass itself requires does not know where it is
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}.{error}") from None


def typed(value: Any, kind: Any, where: str) -> Any:
    """A TOML value as the type of a field, or ConfigError. A whole number serves as a float, a list as a tuple."""
    if is_dataclass(kind) and isinstance(kind, type):
        require(isinstance(value, dict), where, value, "a table")
        return build(kind, value, where)
    if get_origin(kind) is tuple:
        items = get_args(kind)
        variable = items[-1] is Ellipsis
        require(isinstance(value, (list, tuple)) and (variable or len(value) == len(items)), where, value, "a list")
        return tuple(typed(item, items[0 if variable else k], where) for k, item in enumerate(value))
    if get_origin(kind) is Literal:
        require(value in get_args(kind), where, value, " or ".join(get_args(kind)))
        return value
    if kind is Fraction:
        try:
            return grid.parse_scale(str(value))
        except ScaleError as error:
            raise ConfigError(f"{where}: {error}") from None
    if kind is float and type(value) is int:
        value = float(value)
    require(type(value) is kind, where, value, _TYPES[kind])
    return value

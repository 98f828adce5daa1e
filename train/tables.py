"""Plain tables of TOML and JSON → frozen dataclasses, by pydantic: no key unknown, no value of another type or out of range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runtime.errors import MetasrganError


class ConfigError(MetasrganError, ValueError):
    """A configuration that no run can have."""


def require(fits: bool, name: str, value: Any, expected: str) -> None:
    """Raise ConfigError, which names a value and what is expected of it, unless it fits."""
    if not fits:
        raise ConfigError(f"{name} is {value!r}: give {expected}")


def checked(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A value of a type, from a table that lies at `where`. Raises ConfigError."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(table, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{where}: {'.'.join(map(str, first['loc']))}"
        if first["type"] == "value_error":
            raise ConfigError(f"{name}: {first['ctx']['error']}") from None
        if first["type"] == "unexpected_keyword_argument":
            schema = TypeAdapter(kind).json_schema()
            known = [key for part in (schema, *schema.get("$defs", {}).values()) for key in part.get("properties", {})]
            near = get_close_matches(str(first["loc"][-1]), known, 1)
            advice = f"did you mean {near[0]}?" if near else "docs/training.md says where all keys are described"
            raise ConfigError(f"{name} is unknown: {advice}") from None
        raise ConfigError(f"{name} is {first['input']!r}: {first['msg'].replace('Input', 'it')}") from None

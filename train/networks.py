"""Every network that can be trained, by kind and configuration: what a TOML file or a checkpoint names is built here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from . import baselines, generator
from .baselines import EdsrConfig, SrganConfig
from .generator import GeneratorConfig
from .tables import build as build_config
from .tables import require

Config = GeneratorConfig | EdsrConfig | SrganConfig

NAMED: dict[str, Config] = {**generator.CONFIGS, **baselines.CONFIGS}
_KINDS: dict[str, tuple[type[Any], type[nn.Module]]] = {
    "meta": (GeneratorConfig, generator.Generator),
    "edsr": (EdsrConfig, baselines.Edsr),
    "srgan": (SrganConfig, baselines.Srgan),
}


def configure(table: dict[str, Any], where: str = "generator") -> Config:
    """A network's configuration from a table: its `kind` (meta without it), or the `name` of one, and the fields that differ.

    Raises ConfigError for an unknown kind, name or field and for a value that no network can have.
    """
    require(isinstance(table, dict), where, table, "a table")
    values = dict(table)
    require(not {"kind", "name"} <= values.keys(), where, "both a kind and a name", "one of the two")
    if "name" in values:
        name = values.pop("name")
        require(isinstance(name, str) and name in NAMED, f"{where}.name", name, f"one of {', '.join(NAMED)}")
        values = plain(NAMED[name]) | values
    kind = values.pop("kind", "meta")
    require(isinstance(kind, str) and kind in _KINDS, f"{where}.kind", kind, f"one of {', '.join(_KINDS)}")
    config: Config = build_config(_KINDS[kind][0], values, where)
    return config


def plain(config: Config) -> dict[str, Any]:
    """A configuration in plain types, for a checkpoint: `configure` reads it again."""
    kind = next(kind for kind, (of, _) in _KINDS.items() if type(config) is of)
    return {"kind": kind, **asdict(config)}


def build(config: Config) -> nn.Module:
    """A network with new weights: `forward(image (N, 1, H, W), scales) → (N, 1, h, w)`, and its `config`."""
    return next(network for of, network in _KINDS.values() if type(config) is of)(config)

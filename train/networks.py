"""Every network that can be trained, by kind and configuration: what a TOML file or a checkpoint names is built here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from . import baselines, generator
from .baselines import EdsrConfig, SrganConfig
from .generator import GeneratorConfig
from .tables import checked, require

Config = Annotated[GeneratorConfig | EdsrConfig | SrganConfig, Field(discriminator="kind")]

NAMED: dict[str, GeneratorConfig | EdsrConfig | SrganConfig] = {**generator.CONFIGS, **baselines.CONFIGS}
_NETWORKS: dict[str, type[nn.Module]] = {"meta": generator.Generator, "edsr": baselines.Edsr, "srgan": baselines.Srgan}


def named(table: Any, where: str) -> dict[str, Any]:
    """A network's table with the fields of the one that its `name` names, where it has one. Raises ConfigError."""
    require(isinstance(table, dict), f"{where}: generator", table, "a table")
    if "name" not in table:
        return {"kind": "meta", **table}
    name = table["name"]
    require("kind" not in table, f"{where}: generator", "both a kind and a name", "one of the two")
    require(isinstance(name, str) and name in NAMED, f"{where}: generator.name", name, f"one of {', '.join(NAMED)}")
    return asdict(NAMED[name]) | {key: value for key, value in table.items() if key != "name"}


def configure(table: dict[str, Any], where: str = "the network") -> Config:
    """A network's configuration from a table: its `kind` (meta without it), or the `name` of one, and the fields that differ.

    Raises ConfigError for an unknown kind, name or field and for a value that no network can have.
    """
    config: Config = checked(Config, named(table, where), where)
    return config


def build(config: Config) -> nn.Module:
    """A network with new weights: `forward(image (N, 1, H, W), scales, told) → (N, 1, h, w)`, and its `config`."""
    return _NETWORKS[config.kind](config)

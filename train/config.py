"""What a run is: a network and the stages of its training, read from TOML. All that decides a result, beside the data."""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from runtime import grid
from runtime.errors import reason

from . import networks, resample
from .augment import Augment, Probability
from .tables import ConfigError, checked, require

CONFIGS = Path(__file__).parent / "configs"

DegradationName = Literal[resample.Method, "scanner"]  # scanner: `scanner.canonical_patch`
Count = Annotated[int, Field(ge=1, lt=2**31)]
Number = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[Fraction, BeforeValidator(grid.parse_scale), PlainSerializer(str)]


@dataclass(frozen=True)
class Stage:
    """One stage of training: its data, its inputs, its losses, its schedule. An update is one batch."""

    data: str = ""  # folder of image slices or NIfTI volumes
    validation: str = ""  # folder of other subjects; without it a tenth of the subjects of `data`
    pattern: str = "*"  # only files whose name matches
    truths: Literal["stored", "acquired"] = "stored"  # acquired: zero-filled slices are cropped to what was measured first
    subject: str = ""  # regular expression that finds the subject in a file's path; without it the folders tell
    seed: Number = 0
    validate_every: Count = 1_000  # updates between validations and checkpoints

    batch: Annotated[int, Field(ge=1, le=4096)] = 8  # for each process
    patch: Annotated[int, Field(ge=32, lt=2**31)] = 96  # high-resolution pixels an axis, at most
    input_patch: Number = 0  # low-resolution pixels an axis, at most, so that small scales cost no more; 0: no bound
    patches_per_crop: Count = 16
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = grid.PAPER_SCALES  # a batch draws one
    anisotropic: Probability = 0.0  # part of the batches that draw one for each axis
    # How inputs are made, drawn for each patch; twice: twice as often. Older files call it `kernels`.
    degradations: Annotated[tuple[DegradationName, ...], Field(min_length=1)] = resample.METHODS
    augment: Augment = field(default_factory=Augment)

    updates: Count = 20_000
    loss: Literal["l1", "l2"] = "l1"  # of pixels: mean absolute, or ten times the mean squared difference
    faint: Weight = 0.0  # of what is lost of faint discs, which a quarter of a batch has once more than its twin; 0: none
    warmup: Number = 0  # updates on it alone, before the other losses set in
    adversarial: Weight = 0.0  # beside the pixels' loss, 1; 0: no discriminator
    perceptual: Weight = 0.0
    features: str = ""  # the file of VGG weights that the perceptual loss needs
    clamp: bool = False  # outputs to 0…1 before the losses
    rounding: bool = False  # as an 8-bit export rounds; losses are against what the stage's first network makes in float
    mean_with_init: Probability = 0.0  # where rounding: that network's part in the weights that are validated and kept

    optimiser: Literal["adam", "muon"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-4
    ramp: Number = 500  # first updates, over which the learning rate rises linearly
    schedule: Literal["cosine", "steps"] = "cosine"  # half a cosine down to 0, or × `step_factor` every `step_updates`
    step_updates: Count = 60_000
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.8
    # Of convolutions and products, under autocast; weights are float32. auto: bfloat16 where the device computes in it.
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    clip_norm: Weight = 1.0  # of the gradient; 0: not clipped
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999  # weights validated and kept are a moving average; 0: the last ones

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        require(self.batch > 1 or not self.faint, "batch", self.batch, "2 or more where faint is not 0")
        alone = not (self.adversarial or self.perceptual)
        require(alone or self.warmup < self.updates, "warmup", self.warmup, f"fewer than the {self.updates} updates")
        require(self.input_patch == 0 or self.input_patch >= 8, "input_patch", self.input_patch, "0, or 8 or more")
        largest = self.patch // 8  # an input of 8 pixels, below which nothing is learned
        require(max(self.scales) <= largest, "scales", float(max(self.scales)), f"1 to {largest}, an eighth of the patch")
        return self

    @property
    def twins(self) -> int:
        """How many patches, at the end of a process's batch, are those at its beginning with faint discs in them."""
        return max(1, self.batch // 4) if self.faint else 0

    def rate(self, update: int) -> float:
        """The learning rate of an update."""
        ramp = min(1.0, (update + 1) / self.ramp) if self.ramp else 1.0
        if self.schedule == "steps":
            return self.learning_rate * ramp * self.step_factor ** (update // self.step_updates)
        return self.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * update / self.updates))

    def is_adversarial(self, update: int) -> bool:
        """Whether an update is past the warm-up, with losses beside L1."""
        return update >= self.warmup and (self.adversarial > 0 or self.perceptual > 0)


def _file_name(name: str) -> str:
    """A stage's last weights become NAME.pt beside last.pt and best.pt."""
    fits = re.fullmatch(r"[A-Za-z0-9_-]+", name) and name not in ("last", "best")
    require(bool(fits), "a stage's name", name, "letters, digits, _ and -, but not last or best")
    return name


@dataclass(frozen=True)
class Config:
    """A network and its stages in order; `init` (in TOML relative to its file) is a checkpoint that the first starts from."""

    generator: networks.Config
    stage: Annotated[dict[Annotated[str, AfterValidator(_file_name)], Stage], Field(min_length=1)]
    init: str = ""

    def plain(self, places: bool = True) -> dict[str, Any]:
        """Itself in TOML's own types, for `parse`; without `places` it names no folder or file of the machine it ran on."""
        plain: dict[str, Any] = TypeAdapter(Config).dump_python(self, mode="json")
        if not places:
            plain["init"] = ""
            for stage in plain["stage"].values():
                stage |= dict.fromkeys(("data", "validation", "features"), "")
        return plain

    def differences(self, other: Config) -> list[str]:
        """`key=ours` for each key that differs in the other."""
        ours, theirs = _flat(self.plain()), _flat(other.plain())
        changed = [f"{key}={value!r}" for key, value in ours.items() if theirs.get(key) != value]
        return changed + [f"{key} unset" for key in theirs.keys() - ours.keys()]


def load(name: str, settings: Sequence[str] = (), data: Path | None = None) -> Config:
    """A configuration by its path, or by its name among those of `train/configs`, changed by `key=value` settings.

    A key is dotted (`stage.brain.updates`, `generator.blocks`); a stage's key alone means every stage. A value is TOML; what is
    no TOML is text. `data` is the folder of the last stage, and of every other that names none. Raises ConfigError.
    """
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise ConfigError(f"{path} does not exist: give a .toml file, or one of {known}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable TOML ({reason(error)}): mend it") from None
    if isinstance(table.get("init"), str) and table["init"]:
        table["init"] = str(path.parent / table["init"])
    return parse(table, settings, data, str(path))


def parse(
    table: Mapping[str, Any], settings: Sequence[str] = (), data: Path | None = None, where: str = "the configuration"
) -> Config:
    """A configuration from TOML's tables; see `load`."""
    table = {"generator": {"name": "edge"}, "stage": {}, **copy.deepcopy(table)}
    stages = [*table["stage"]] if isinstance(table["stage"], dict) else []
    for setting in settings:
        key, equals, text = setting.partition("=")
        require(bool(equals), "a setting", setting, "key=value, such as updates=1000 or stage.brain.batch=4")
        first, *rest = keys = key.split(".")
        if first == "stage" and (len(rest) < 2 or rest[0] not in stages):
            known = f"stage.{stages[-1] if stages else 'brain'}.updates=1000"
            raise ConfigError(f"setting {setting!r} is no stage's key: write it like {known}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for prefix in [[]] if first in ("generator", "stage", "init") else [["stage", name] for name in stages]:
            table = _merged(table, reduce(lambda inner, key: {key: inner}, reversed([*prefix, *keys]), value))
    for name in stages:
        stage = table["stage"][name]
        if isinstance(stage, dict):
            if "kernels" in stage:
                stage["degradations"] = stage.pop("kernels")
            if data is not None and (name == stages[-1] or not stage.get("data")):
                stage["data"] = str(data)
    config: Config = checked(Config, {**table, "generator": networks.named(table["generator"], where)}, where)
    return config


def _merged(table: Any, changes: Any) -> Any:
    """A table with changes, which reach into its tables; anything else is replaced."""
    if not (isinstance(table, dict) and isinstance(changes, dict)):
        return changes
    return table | {key: _merged(table.get(key), value) for key, value in changes.items()}


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

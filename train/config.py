"""What a run is: a network and the stages of its training, read from TOML. All that decides a result, beside the data."""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from runtime import grid
from runtime.errors import reason

from . import networks, optimisers, resample
from .augment import Augment
from .tables import ConfigError, build, require, typed

Inputs = Literal["bilinear", "bicubic", "kspace", "scanner"]  # `resample.Kernel`, or `scanner.canonical_patch`
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Stage:
    """One stage of training: its data, its inputs, its losses, its schedule. An update is one batch."""

    data: str = ""  # folder of image slices or NIfTI volumes
    validation: str = ""  # folder of other subjects; without it a tenth of the subjects of `data`
    pattern: str = "*"  # only files whose name matches
    truths: Literal["stored", "acquired"] = "stored"  # acquired: zero-filled slices are cropped to what was measured first
    subject: str = ""  # regular expression that finds the subject in a file's path; without it the folders tell
    seed: int = 0
    validate_every: int = 1_000  # updates between validations and checkpoints

    batch: int = 8  # for each process
    patch: int = 96  # high-resolution pixels an axis, at most
    input_patch: int = 0  # low-resolution pixels an axis, at most: small scales then cost no more than large ones; 0: no bound
    patches_per_crop: int = 16
    scales: tuple[Fraction, ...] = grid.PAPER_SCALES  # a batch draws one
    anisotropic: float = 0.0  # part of the batches that draw one for each axis
    kernels: tuple[Inputs, ...] = resample.KERNELS  # how inputs are made, drawn for each patch; twice: twice as often
    augment: Augment = field(default_factory=Augment)

    updates: int = 20_000
    loss: Literal["l1", "l2"] = "l1"  # of pixels: mean absolute, or ten times the mean squared difference
    faint: float = 0.0  # weight of what is lost of faint discs, which a quarter of a batch has once more than its twin; 0: none
    warmup: int = 0  # updates on it alone, before the other losses set in
    adversarial: float = 0.0  # weight beside the pixels' loss, 1; 0: no discriminator
    perceptual: float = 0.0
    features: str = ""  # the file of VGG weights that the perceptual loss needs
    clamp: bool = False  # outputs to 0…1 before the losses

    optimiser: optimisers.Name = "adam"
    learning_rate: float = 5e-4
    ramp: int = 500  # first updates, over which the learning rate rises linearly
    schedule: Literal["cosine", "steps"] = "cosine"  # half a cosine down to 0, or × `step_factor` every `step_updates`
    step_updates: int = 60_000
    step_factor: float = 0.8
    # Of convolutions and products, under autocast; weights are float32. auto: bfloat16 where the device computes in it.
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    clip_norm: float = 1.0  # of the gradient; 0: not clipped
    ema: float = 0.999  # the weights that are validated and kept are a moving average; 0: the last ones

    def __post_init__(self) -> None:
        least = dict.fromkeys(("updates", "batch", "patches_per_crop", "validate_every", "step_updates"), 1)
        for name, smallest in {**least, "patch": 32, "input_patch": 0, "seed": 0, "warmup": 0, "ramp": 0}.items():
            require(smallest <= getattr(self, name) < 2**31, name, getattr(self, name), f"{smallest} or more, below 2³¹")
        require(self.batch > 1 or not self.faint, "batch", self.batch, "2 or more where faint is not 0")
        require(self.batch <= 4096, "batch", self.batch, "4096 or less")
        for name in ("faint", "adversarial", "perceptual", "clip_norm"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or a positive number")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a positive number, such as 5e-4")
        require(0 < self.step_factor <= 1, "step_factor", self.step_factor, "a number above 0, up to 1")
        require(0 <= self.ema < 1, "ema", self.ema, "0, or a decay below 1 such as 0.999")
        require(0 <= self.anisotropic <= 1, "anisotropic", self.anisotropic, "a part from 0 to 1")
        if self.adversarial or self.perceptual:
            require(self.warmup < self.updates, "warmup", self.warmup, f"fewer than the {self.updates} updates")
        require(len(self.kernels) > 0, "kernels", self.kernels, f"some of {', '.join(get_args(Inputs))}")
        require(len(self.scales) > 0, "scales", self.scales, "one scale or more")
        require(self.input_patch == 0 or self.input_patch >= 8, "input_patch", self.input_patch, "0, or 8 or more")
        largest = self.patch // 8  # an input of 8 pixels, below which nothing is learned
        require(all(1 <= r <= largest for r in self.scales), "scales", self.scales, f"1 to {largest}, an eighth of the patch")

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


@dataclass(frozen=True)
class Config:
    """A network and its stages in order; `init` is a checkpoint that the first one starts from.

    In a TOML file `init` is relative to the file's own folder.
    """

    generator: networks.Config
    stages: dict[str, Stage]
    init: str = ""

    def plain(self, places: bool = True) -> dict[str, Any]:
        """Itself in TOML's own types, for a checkpoint: `parse` reads it again. Without `places` it names no folder or file
        of the machine that it ran on, which are nobody else's business.
        """
        stages = {name: asdict(stage) for name, stage in self.stages.items()}
        for stage in stages.values():
            stage["scales"] = [str(r) for r in stage["scales"]]
            stage |= {} if places else dict.fromkeys(("data", "validation", "features"), "")
        return {"generator": networks.plain(self.generator), "stage": stages, "init": self.init if places else ""}

    def differences(self, other: Config) -> list[str]:
        """`key=ours` for each key that differs in the other."""
        ours, theirs = _flat(self.plain()), _flat(other.plain())
        return [f"{key}={value!r}" for key, value in ours.items() if theirs.get(key) != value] + [
            f"{key} unset" for key in theirs.keys() - ours.keys()
        ]


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
    table: dict[str, Any], settings: Sequence[str] = (), data: Path | None = None, where: str = "the configuration"
) -> Config:
    """A configuration from TOML's tables; see `load`."""
    table = {"generator": {"name": "edge"}, **copy.deepcopy(table)}
    stages = table.get("stage", {})
    if not isinstance(stages, dict) or not stages or not all(isinstance(stage, dict) for stage in stages.values()):
        raise ConfigError(f"{where} has no stage: give at least one table such as [stage.brain]")
    for name in stages:  # a stage's last weights become NAME.pt beside last.pt and best.pt
        fits = re.fullmatch(r"[A-Za-z0-9_-]+", name) and name not in ("last", "best")
        require(bool(fits), f"{where}: the stage's name", name, "letters, digits, _ and -, but not last or best")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"setting {setting!r} is no key=value: write it like updates=1000 or stage.brain.batch=4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        keys = key.split(".")
        if keys[0] == "stage" and (len(keys) < 3 or keys[1] not in stages):
            raise ConfigError(f"setting {setting!r} is no stage's key: write it like stage.{list(stages)[-1]}.updates=1000")
        if keys[0] in ("generator", "stage", "init"):
            _set(table, keys, value, setting)
        else:
            for stage in stages.values():
                _set(stage, keys, value, setting)
    for stage in stages.values():
        if data is not None and (not stage.get("data") or stage is stages[list(stages)[-1]]):
            stage["data"] = str(data)
    unknown = table.keys() - {"generator", "stage", "init"}
    if unknown:
        raise ConfigError(f"{where}: {min(unknown)} is unknown: use generator, stage and init")
    generator = networks.configure(table["generator"], f"{where}: generator")
    built = {name: build(Stage, stage, f"{where}: stage.{name}") for name, stage in stages.items()}
    init = table.get("init", "")
    return Config(generator, built, typed(init, str, f"{where}: init"))


def _set(table: dict[str, Any], keys: Sequence[str], value: Any, setting: str) -> None:
    *outer, last = keys
    for key in outer:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"setting {setting!r}: {key} is no table, so it has no keys")
    table[last] = value


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: _listed(value)}
    return flat


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value

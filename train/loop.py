"""Training: a run's stages one after another, checkpoints that resume exactly, a clean stop, one process or many."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from runtime.errors import InputFileError, MetasrganError, OutputFileError

from . import checkpoint, data, degradations, losses, metrics, models, networks, processes, scores, subjects
from .config import Config, Stage, parse
from .generator import GeneratorConfig
from .learner import Learner

log = logging.getLogger(__name__)

SCANNER = degradations.scan((0.7, 1.0), "hard", 0.02)
VALIDATION_CROPS = 24
VALIDATION_SIZE = 512  # pixels an axis, of a photograph's middle: brains are smaller
_MOVABLE = ("updates", "validate_every", "data", "validation", "features")  # what a resumed run may be given anew
_SAMPLE = 32  # files of either side that a dry run reads


class TrainingError(MetasrganError, RuntimeError):
    """A run that cannot begin or go on."""


def train(config: Config, out: Path, resume: bool = False) -> Path:
    """Train every stage and return the path of the last one's best checkpoint.

    `out` receives `last.pt` (all that a resume needs) at every validation and at a stop; `best.pt`, the current stage's
    weights with the highest mean PSNR on held-out crops, or past the warm-up of a stage with a perceptual loss the lowest
    such loss; `<stage>.pt`, a stage's last weights, from which the next one starts; and `tensorboard/`. Ctrl-C or SIGTERM
    saves, then raises KeyboardInterrupt. Raises OutputFileError where `out` holds a run already and `resume` is false,
    InputFileError where there is nothing to resume, or it saw other data or another configuration; TrainingError for
    losses that are not finite. Under torchrun, processes share each update, `batch` patches each.
    """
    names, state = list(config.stage), None
    if resume:
        state = _resumable(out / "last.pt", config)
        names = names[names.index(state["stage"]) :]
    elif taken := [path for name in ("last", "best", *names) if (path := out / f"{name}.pt").exists()]:
        raise OutputFileError(f"{taken[0]} is there already: add --resume to go on with its run, or name another --out")
    splits = prepare(config, names)
    with processes.group() as device, _stop_signals() as stop:
        generator = networks.build(config.generator) if state else initial(config)
        for name in names:
            generator = _Stage(config, name, splits[name], generator, out, device, state).train(stop)
            state = None
    return out / "best.pt"


def prepare(config: Config, names: Sequence[str] | None = None) -> dict[str, subjects.Split]:
    """The files of these stages, or of all; an error now, rather than after the stages before, for what is missing.

    Raises InputFileError also where a subject would train in one stage and validate in another.
    """
    splits: dict[str, subjects.Split] = {}
    for name in config.stage if names is None else names:
        stage = config.stage[name]
        if not stage.data:
            raise InputFileError(f"stage {name} has no data: give --data, or --set stage.{name}.data=FOLDER")
        files = subjects.find_files(Path(stage.data), stage.pattern)
        if stage.validation:
            splits[name] = subjects.split_as_given(files, subjects.find_files(Path(stage.validation), stage.pattern))
        else:
            splits[name] = subjects.split_by_subject(Path(stage.data), files, stage.subject or None)
        if stage.perceptual and not stage.features:
            raise InputFileError(
                f"stage {name} has a perceptual loss but no features: give --set features=FILE, VGG-16 as .npz or "
                "torchvision's vgg19-dcbb9e9d.pth, or do without by --set perceptual=0"
            )
        if stage.perceptual:
            losses.Perceptual(Path(stage.features))
    subjects.check_apart({f"stage {name}": split for name, split in splits.items()})
    return splits


def load_stage(stage: Stage, split: subjects.Split, most: int | None = None) -> tuple[data.Batches, list[data.Crop]]:
    """A stage's batches and its held-out crops; of `most` files on either side, evenly from all, where that is given."""
    train, validation = (data.evenly([*files], most or len(files)) for files in (split.train, split.validation))
    crops = data.load_crops(train, stage.patch, stage.truths == "acquired")
    held_out = data.load_crops(validation, stage.patch)
    for side, found in (("train", crops), ("validate", held_out)):
        if not found:
            raise InputFileError(
                f"no slice to {side} on has {stage.patch}×{stage.patch} pixels or more (JPEGs are halved first): "
                "give larger images or a smaller patch"
            )
    held_out = [crop._replace(pixels=_middle(crop.pixels)) for crop in data.evenly(held_out, VALIDATION_CROPS)]
    return data.Batches(crops, stage, *processes.place()), held_out


def _middle(image: data.Image) -> data.Image:
    starts = [max(0, n - VALIDATION_SIZE) // 2 for n in image.shape]
    return image[tuple(slice(start, start + VALIDATION_SIZE) for start in starts)].copy()  # not the whole photograph


class _Stage:
    """A stage as it runs, from its beginning or from the state of `last.pt`. The first process writes and speaks."""

    def __init__(
        self,
        config: Config,
        name: str,
        split: subjects.Split,
        generator: nn.Module,
        out: Path,
        device: torch.device,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.name, self.stage, self.out = config, name, config.stage[name], out
        self.rank, self.world = processes.place()
        self.update, self.best, self.running = 0, (False, -math.inf), math.nan
        log.info("stage %s: %s", name, split.how)
        self.batches, self.held_out = load_stage(self.stage, split)
        self.digest = self._digest()
        out.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(generator, self.stage, device)
        counts = len(self.batches.crops), len(self.held_out)
        log.info("%d crops train, %d validate, on %s in %s", *counts, device, self.learner.precision)
        if state:
            if state["data"] != self.digest:
                raise InputFileError(f"stage {name} saw other images or features: give the same, or name another --out")
            if state["processes"] != self.world:
                raise InputFileError(
                    f"{out} was trained by {state['processes']} processes, this is {self.world}: resume with as many, or the "
                    "batches would be others"
                )
            self.learner.restore(state["networks"])
            self.update, self.best, self.running = state["update"], tuple(state["best"]), state["running"]
            log.info("resuming stage %s at update %d", name, self.update)

    def _digest(self) -> str:
        """SHA-256 of all that a stage reads: images on both sides, and the features of its perceptual loss."""
        content = hashlib.sha256(Path(self.stage.features).read_bytes() if self.stage.perceptual else b"")
        for crop in [*self.batches.crops, *self.held_out]:
            content.update(hashlib.sha256(np.ascontiguousarray(crop.pixels).data).digest())
        return content.hexdigest()

    def train(self, stop: list[float]) -> nn.Module:
        """Train to the end, or until there is a stop; returns the generator that is kept."""
        name, total = self.name, self.stage.updates
        # A resumed run's later steps are written anew.
        writer = partial(SummaryWriter, self.out / "tensorboard" / name, purge_step=self.update + 1 if self.update else None)
        with (
            writer() if self.rank == 0 else nullcontext() as board,
            data.bar(total=total, initial=self.update, desc=name, unit="update") as bar,
        ):
            while self.update < total:
                if processes.anywhere(bool(stop)):
                    self._save_last()
                    if self.rank == 0:
                        log.warning("stopped at update %d of %d of stage %s; go on with --resume", self.update, total, name)
                    raise KeyboardInterrupt
                parts = self._step()
                self.running = parts["l1"] if math.isnan(self.running) else 0.99 * self.running + 0.01 * parts["l1"]
                bar.update()
                bar.set_postfix(l1=f"{self.running:.4f}", refresh=False)
                if board and self.update % 50 == 0:
                    for part, value in {**parts, "learning rate": self.stage.rate(self.update)}.items():
                        board.add_scalar(part, value, self.update)
                if self.update % self.stage.validate_every == 0 or self.update == total:
                    if board:
                        self._validate(board)
                    self._save_last()
        if self.rank == 0:
            self._save(self.out / f"{name}.pt")
        return self.learner.kept

    def _step(self) -> dict[str, float]:
        try:
            parts = self.learner.step(self.batches[self.update], self.update)
        except FloatingPointError as error:
            rows, cols = self.batches.scales_of(self.update)
            raise TrainingError(
                f"stage {self.name}, update {self.update}: {error}, at ×{rows}, ×{cols} with "
                f"{', '.join(self.batches.sources_of(self.update))}: look at them, or begin anew with a lower learning_rate"
            ) from None
        self.update += 1
        return parts

    def _validate(self, board: Any) -> None:
        found, panels = validate(self.learner.kept, self.held_out, self.stage, self.learner.perceptual)
        line = "  ".join(f"{case} {score['psnr']:.2f} dB {score['ssim']:.4f}" for case, score in found.items())
        log.info("stage %s update %d  l1 %.5f  %s", self.name, self.update, self.running, line)
        adversarial = self.stage.is_adversarial(self.update - 1)
        by_features = adversarial and self.learner.perceptual is not None
        mean = float(np.mean([-score["vgg"] if by_features else score["psnr"] for score in found.values()]))
        if (adversarial, mean) > self.best:
            self.best = (adversarial, mean)
            self._save(self.out / "best.pt", validation={case: [*score.values()] for case, score in found.items()})
        for case, score in found.items():
            for name, value in score.items():
                board.add_scalar(f"{name} {case}", value, self.update)
            board.add_image(f"{case}: input, output, truth", panels[case], self.update, dataformats="HW")

    def _save(self, path: Path, **more: Any) -> None:
        """A checkpoint of the weights that are kept."""
        training = self.config.plain(places=False)
        content = {
            "generator": training["generator"],
            "weights": {name: tensor.cpu() for name, tensor in self.learner.kept.state_dict().items()},
            "training": training,
            "stage": self.name,
            "update": self.update,
        }
        checkpoint.save(path, {**content, **more})

    def _save_last(self) -> None:
        if self.rank == 0:
            more = {"networks": self.learner.state(), "best": self.best, "running": self.running, "data": self.digest}
            self._save(self.out / "last.pt", processes=self.world, **more | {"training": self.config.plain()})


def validate(
    model: nn.Module, crops: list[data.Crop], stage: Stage, perceptual: losses.Perceptual | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, data.Image]]:
    """Mean scores over held-out crops for each of the stage's inputs, at its scales among `scores.PANEL_SCALES`, in float32;
    and for each case a picture: input, output and truth side by side.
    """
    ours = models.Model("ours", "PyTorch", models.upscale_with(model.eval()), told="true")
    measures = [metrics.PSNR, metrics.SSIM]
    measures += [metrics.vgg(perceptual, next(model.parameters()).device)] if perceptual else []
    inputs = [SCANNER if name == "scanner" else degradations.resampled(name) for name in dict.fromkeys(stage.kernels)]
    scales = [pair for pair in scores.PANEL_SCALES if pair[0] in stage.scales] or [(stage.scales[0],) * 2]
    found = scores.evaluate(scores.Comparison([ours], {"": crops}, inputs, scales), measures)
    cases = [" ".join(names) for names in found.panels]
    means = [{measure.key: record[measure.key]["mean"] for measure in measures} for record in found.records]
    panels = [np.hstack([image for _, image, _ in images]) for ((_, images),) in found.panels.values()]
    return dict(zip(cases, means)), dict(zip(cases, panels))


def dry_run(config: Config, seconds: float = 5) -> Iterator[str]:
    """What a run would be, a line at a time: its data, its size, its speed on this machine, the hours it would take.

    Some of the files are read, and updates made for about so many seconds a stage.
    """
    splits = prepare(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = initial(config)
    yield f"network: {config.generator.kind}, {sum(p.numel() for p in generator.parameters()):,} parameters"
    for name, stage in config.stage.items():
        split = splits[name]
        yield f"stage {name}: {split.how}"
        batches, held_out = load_stage(stage, split, _SAMPLE)
        files = len(split.train) + len(split.validation)
        read = sum(min(_SAMPLE, len(side)) for side in (split.train, split.validation))
        yield f"  {len(batches.crops):,} crops train, {len(held_out)} validate" + f", of the {read} files read" * (read < files)
        learner = Learner(generator, stage, device)
        # Past the warm-up if there is a part past it, where an update costs most; the first ones set things up.
        start = stage.warmup if stage.is_adversarial(stage.updates - 1) else 0
        times: list[float] = []
        while len(times) < 6 or (len(times) < 13 and sum(times) < seconds):
            began, update = time.perf_counter(), start + len(times)
            try:
                learner.step(batches[update], update)
            except FloatingPointError as error:
                raise TrainingError(f"stage {name}: {error} after {len(times)} updates: lower its learning_rate") from None
            times.append(time.perf_counter() - began)
        each = float(np.mean(times[3:]))  # scales differ in cost: the mean, not the median
        speed = f"{1 / each:.2f} updates a second on {device} in {learner.precision}"
        yield f"  {speed}, {stage.updates:,} updates: {stage.updates * each / 3600:.1f} hours"


def initial(config: Config) -> nn.Module:
    """The network that the first stage starts from. Raises InputFileError where `init` holds another.

    A network that is told the noise may start from one that was not.
    """
    torch.manual_seed(next(iter(config.stage.values())).seed)
    if not config.init:
        return networks.build(config.generator)
    start, _ = checkpoint.load_network(Path(config.init))
    wanted = config.generator
    if start.config not in (wanted, replace(wanted, told=False) if isinstance(wanted, GeneratorConfig) else wanted):
        raise InputFileError(f"{config.init} holds another network, {start.config}: configure the same, or give no init")
    network = networks.build(wanted)
    network.load_state_dict(start.state_dict(), strict=start.config == wanted)
    return network


def _resumable(last: Path, config: Config) -> dict[str, Any]:
    if not last.exists():
        raise InputFileError(f"{last} does not exist, so there is no run to resume: leave --resume out to begin one")
    state = checkpoint.load(last)
    if "networks" not in state:
        raise InputFileError(f"{last} holds weights alone, no run to resume: start another from it with --set init={last}")
    changed = config.differences(parse(state["training"], where=str(last)))
    if refused := [key for key in changed if key.split("=")[0].split(".")[-1] not in _MOVABLE]:
        raise InputFileError(
            f"{last} was trained otherwise, without {', '.join(refused)}: resume without it, or name another --out"
        )
    if changed:
        log.info("resuming with %s", ", ".join(changed))
    return state


@contextmanager
def _stop_signals() -> Iterator[list[float]]:
    """A list of times that becomes non-empty at SIGINT or SIGTERM; one that comes two seconds later stops at once."""
    received: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if received[-1] > received[0] + 2:  # torchrun's own second signal comes with the first
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from runtime.errors import InputFileError, MetasrganError, OutputFileError

from . import checkpoint, data, degradations, losses, metrics, models, networks, processes, scores, subjects
from .config import Config, Stage, parse
from .generator import Generator, GeneratorConfig
from .learner import Learner
from .rounding import CALIBRATED, Rounded, calibration
from .subjects import Split

log = logging.getLogger(__name__)

SCANNER = degradations.scan((0.7, 1.0), "hard", 0.02)
VALIDATION_CROPS = 24
VALIDATION_SIZE = 512  # pixels an axis, of a photograph's middle: brains are smaller
_MOVABLE = ("updates", "validate_every", "data", "validation", "features")  # what a resumed run may be given anew
_SAMPLE = 32  # files of either side that a dry run reads


class TrainingError(MetasrganError, RuntimeError):
    """A run that cannot begin or go on."""


def train(config: Config, out: Path, resume: bool = False) -> Path:
    """Train every stage and return the path of the last one's best checkpoint; docs/training.md says what `out` receives.

    Ctrl-C or SIGTERM saves, then raises KeyboardInterrupt. Raises OutputFileError where `out` holds a run already and `resume`
    is false, InputFileError where there is nothing to resume, or it saw other data or another configuration; TrainingError for
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


def prepare(config: Config, names: Sequence[str] | None = None) -> dict[str, Split]:
    """The files of these stages, or of all. Raises InputFileError for what a later stage lacks too, and where a subject would
    train in one stage and validate in another.
    """
    splits: dict[str, Split] = {}
    for name in config.stage if names is None else names:
        stage, network = config.stage[name], config.generator
        if not stage.data:
            raise InputFileError(f"stage {name} has no data: give --data, or --set stage.{name}.data=FOLDER")
        files = subjects.find_files(Path(stage.data), stage.pattern)
        if stage.validation:
            splits[name] = subjects.split_as_given(files, subjects.find_files(Path(stage.validation), stage.pattern))
        else:
            splits[name] = subjects.split_by_subject(Path(stage.data), files, stage.subject or None)
        if stage.rounding and not (isinstance(network, GeneratorConfig) and not network.batch_norm):
            raise InputFileError(f"stage {name} has rounding, which is for a meta generator without batch norm: leave it out")
        if stage.rounding and not (config.init or name != next(iter(config.stage))):
            raise InputFileError(f"stage {name} has rounding but no network to start from: give --set init=best.pt")
        if stage.perceptual and not stage.features:
            files_known = "VGG-16 as .npz or torchvision's vgg19-dcbb9e9d.pth"
            lacks = f"stage {name} has a perceptual loss but no features"
            raise InputFileError(f"{lacks}: give --set features=FILE, {files_known}, or do without by --set perceptual=0")
        if stage.perceptual:
            losses.Perceptual(Path(stage.features))
    subjects.check_apart({f"stage {name}": split for name, split in splits.items()})
    return splits


def load_stage(stage: Stage, split: Split, most: int | None = None) -> tuple[data.Batches, list[data.Crop]]:
    """A stage's batches and its held-out crops; of `most` files on either side, evenly from all, where that is given."""
    train, validation = (data.evenly([*files], most or len(files)) for files in (split.train, split.validation))
    crops, held_out = data.load_crops(train, stage.patch, stage.truths), data.load_crops(validation, stage.patch)
    for side, found in (("train", crops), ("validate", held_out)):
        if not found:
            small = f"no slice to {side} on has {stage.patch}×{stage.patch} pixels or more (JPEGs are halved first)"
            raise InputFileError(f"{small}: give larger images or a smaller patch")
    held_out = [crop._replace(pixels=_middle(crop.pixels)) for crop in data.evenly(held_out, VALIDATION_CROPS)]
    return data.Batches(crops, stage, *processes.place()), held_out


def _middle(image: data.Image) -> data.Image:
    starts = [max(0, n - VALIDATION_SIZE) // 2 for n in image.shape]
    return image[tuple(slice(start, start + VALIDATION_SIZE) for start in starts)].copy()  # not the whole photograph


class _Stage:
    """A stage as it runs, from its beginning or from the state of `last.pt`. The first process writes and speaks."""

    def __init__(
        self, config: Config, name: str, split: Split, generator: nn.Module, out: Path, device: torch.device, state: Any = None
    ) -> None:
        self.config, self.name, self.stage, self.out = config, name, config.stage[name], out
        self.rank, self.world = processes.place()
        self.update, self.best, self.running = 0, (False, -math.inf), math.nan
        log.info("stage %s: %s", name, split.how)
        self.batches, self.held_out = load_stage(self.stage, split)
        self.digest = self._digest()
        out.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(starting(generator, self.stage, self.batches), self.stage, device)
        counts = len(self.batches.crops), len(self.held_out)
        log.info("%d crops train, %d validate, on %s in %s", *counts, device, self.learner.precision)
        if state:
            if state["data"] != self.digest:
                raise InputFileError(f"stage {name} saw other images or features: give the same, or name another --out")
            if state["processes"] != self.world:
                raise InputFileError(f"{out} was trained by {state['processes']} processes: resume with as many")
            self.learner.restore(state["networks"])
            self.update, self.best, self.running = state["update"], tuple(state["best"]), state["running"]
            log.info("resuming stage %s at update %d", name, self.update)

    def _digest(self) -> str:
        """SHA-256 of all that the stage reads: images on both sides, and the features of its perceptual loss."""
        content = hashlib.sha256(Path(self.stage.features).read_bytes() if self.stage.perceptual else b"")
        for crop in (*self.batches.crops, *self.held_out):
            content.update(hashlib.sha256(np.ascontiguousarray(crop.pixels).data).digest())
        return content.hexdigest()

    def train(self, stop: list[float]) -> nn.Module:
        """Train to the end, or until there is a stop; returns the generator that is kept."""
        name, stage, learner = self.name, self.stage, self.learner
        folder, purge = self.out / "tensorboard" / name, self.update + 1 if self.update else None  # later steps come anew
        with (
            SummaryWriter(folder, purge_step=purge) if self.rank == 0 else nullcontext() as board,
            data.bar(total=stage.updates, initial=self.update, desc=name, unit="update") as bar,
        ):
            while self.update < stage.updates:
                if processes.anywhere(bool(stop)):
                    self._save_last()
                    at = f"stopped at update {self.update} of {stage.updates} of stage {name}"
                    log.info("%s; go on with --resume", at)
                    raise KeyboardInterrupt
                try:
                    parts = learner.step(self.batches[self.update], self.update)
                except FloatingPointError as error:
                    rows, cols = self.batches.scales_of(self.update)
                    seen = f"at ×{rows}, ×{cols} with {', '.join(self.batches.sources_of(self.update))}"
                    way_out = "look at them, or begin anew with a lower learning_rate"
                    raise TrainingError(f"stage {name}, update {self.update}: {error}, {seen}: {way_out}") from None
                self.update += 1
                self.running = parts["l1"] if math.isnan(self.running) else 0.99 * self.running + 0.01 * parts["l1"]
                bar.update()
                bar.set_postfix(l1=f"{self.running:.4f}", refresh=False)
                if board and self.update % 50 == 0:
                    for part, value in {**parts, "learning rate": stage.rate(self.update)}.items():
                        board.add_scalar(part, value, self.update)
                if self.update % stage.validate_every == 0 or self.update == stage.updates:
                    if board:
                        self._validate(board)
                    self._save_last()
        self._save(self.out / f"{name}.pt")
        return _plain(learner.kept)

    def _validate(self, board: SummaryWriter) -> None:
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

    def _save_last(self) -> None:
        more = {"networks": self.learner.state(), "best": self.best, "running": self.running, "data": self.digest}
        self._save(self.out / "last.pt", processes=self.world, **more, training=self.config.plain())

    def _save(self, path: Path, **more: Any) -> None:
        """A checkpoint of the weights that are kept, by the first process."""
        if self.rank == 0:
            training = self.config.plain(places=False)
            weights = {name: tensor.cpu() for name, tensor in _plain(self.learner.kept).state_dict().items()}
            content = {"generator": training["generator"], "weights": weights, "training": training}
            checkpoint.save(path, {**content, "stage": self.name, "update": self.update, **more})


def validate(
    model: nn.Module, crops: list[data.Crop], stage: Stage, perceptual: losses.Perceptual | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, data.Image]]:
    """By degradation and scale of the stage: mean scores over held-out crops, and input, output and truth side by side."""
    ours = models.Model("ours", "PyTorch", models.upscale_with(model.eval()), told="true")
    measures = [metrics.PSNR, metrics.SSIM]
    measures += [metrics.vgg(perceptual, next(model.parameters()).device)] if perceptual else []
    stored = dict.fromkeys("kspace" if name == "canonical" else name for name in stage.degradations)
    inputs = [SCANNER if name == "scanner" else degradations.resampled(name) for name in stored]
    scales = [pair for pair in scores.PANEL_SCALES if pair[0] in stage.scales] or [(stage.scales[0],) * 2]
    records, _, shown = scores.evaluate(scores.Comparison([ours], {"": crops}, inputs, scales), measures)
    means = [{measure.key: record[measure.key]["mean"] for measure in measures} for record in records]
    panels = {" ".join(names): np.hstack([image for _, image, _ in rows[0][1]]) for names, rows in shown.items()}
    return dict(zip(panels, means)), panels


def dry_run(config: Config, seconds: float = 5) -> Iterator[str]:
    """What a run would be, a line at a time, and the hours it would take, by some of the files and so many seconds a stage."""
    splits = prepare(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = initial(config)
    yield f"network: {config.generator.kind}, {sum(p.numel() for p in generator.parameters()):,} parameters"
    for name, stage in config.stage.items():
        yield f"stage {name}: {splits[name].how}"
        batches, held_out = load_stage(stage, splits[name], _SAMPLE)
        yield f"  {len(batches.crops):,} crops train, {len(held_out)} validate, of up to {_SAMPLE} files each"
        learner = Learner(starting(generator, stage, batches), stage, device)
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
    """The network that the first stage starts from: of `init`, which may be one that is not told. Raises InputFileError for
    another one.
    """
    torch.manual_seed(next(iter(config.stage.values())).seed)
    start = checkpoint.load_network(Path(config.init))[0] if config.init else None
    network, wanted = networks.build(config.generator), config.generator
    if start is not None:
        if start.config not in (wanted, replace(wanted, told=False) if isinstance(wanted, GeneratorConfig) else wanted):
            raise InputFileError(f"{config.init} holds another network, {start.config}: configure the same, or give no init")
        network.load_state_dict(start.state_dict(), strict=start.config == wanted)
    return network


def starting(generator: nn.Module, stage: Stage, batches: data.Batches) -> nn.Module:
    """The network that a stage trains: the one that it starts from, or where it rounds, that with its ranges."""
    if not stage.rounding:
        return generator
    assert isinstance(generator, Generator)  # as `prepare` made sure
    inputs = data.Batches(batches.crops, calibration(stage))
    return Rounded(generator).watch(inputs[k] for k in range(CALIBRATED))


def _plain(network: nn.Module) -> nn.Module:
    return network.plain() if isinstance(network, Rounded) else network


def _resumable(last: Path, config: Config) -> dict[str, Any]:
    if not last.exists():
        raise InputFileError(f"{last} does not exist, so there is no run to resume: leave --resume out to begin one")
    state = checkpoint.load(last)
    if "networks" not in state:
        raise InputFileError(f"{last} holds weights alone, no run to resume: start another from it with --set init={last}")
    changed = config.differences(parse(state["training"], where=str(last)))
    if refused := ", ".join(key for key in changed if key.split("=")[0].split(".")[-1] not in _MOVABLE):
        raise InputFileError(f"{last} was trained otherwise, without {refused}: resume without it, or name another --out")
    if changed:
        log.info("resuming with %s", ", ".join(changed))
    return state


@contextmanager
def _stop_signals() -> Iterator[list[float]]:
    """A list of times that becomes non-empty at SIGINT or SIGTERM; one that comes two seconds later stops at once."""
    received: list[float] = []

    def note(*_: object) -> None:
        received.append(time.monotonic())
        if received[-1] > received[0] + 2:  # torchrun's own second signal comes with the first
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

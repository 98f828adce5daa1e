"""Training: a run's stages one after another, checkpoints that resume exactly, a clean stop, one process or many."""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from runtime.errors import InputFileError, MetasrganError, OutputFileError

from . import checkpoint, data, degradations, evaluate, losses, metrics, models, networks, processes, subjects
from .config import Config, Stage, parse
from .generator import GeneratorConfig
from .learner import Learner

log = logging.getLogger(__name__)

VALIDATION_SCALES = (Fraction(2), Fraction(5, 2), Fraction(4))
SCANNER = degradations.scan((0.7, 1.0), "hard", 0.02)
VALIDATION_CROPS = 24
VALIDATION_SIZE = 512  # pixels an axis, of a photograph's middle: brains are smaller
_MOVABLE = ("updates", "validate_every", "data", "validation", "features")  # what a resumed run may be given anew


class TrainingError(MetasrganError, RuntimeError):
    """A run that cannot begin or go on."""


class Score(NamedTuple):
    """PSNR in dB, SSIM, and the perceptual loss (NaN where a stage has none)."""

    psnr: float
    ssim: float
    distance: float


def train(config: Config, out: Path, resume: bool = False, progress: bool = True) -> Path:
    """Train every stage and return the path of the last one's best checkpoint.

    `out` receives `last.pt` (all that a resume needs) at every validation and at a stop; `best.pt`, the current stage's
    weights with the highest mean PSNR on held-out crops, or past the warm-up of a stage with a perceptual loss the lowest
    such loss; `<stage>.pt`, a stage's last weights, from which the next one starts; and `tensorboard/`. Ctrl-C or SIGTERM
    saves, then raises KeyboardInterrupt. Raises OutputFileError where `out` holds a run already and `resume` is false,
    InputFileError where there is nothing to resume, or it saw other data or another configuration; TrainingError for
    losses that are not finite. Under torchrun, processes share each update, `batch` patches each.
    """
    names = list(config.stages)
    state = None
    if resume:
        state = _resumable(out / "last.pt", config)
        names = names[names.index(state["stage"]) :]
    elif taken := [path for name in ("last", "best", *names) if (path := out / f"{name}.pt").exists()]:
        raise OutputFileError(f"{taken[0]} is there already: add --resume to go on with its run, or name another --out")
    splits = prepare(config, names)
    with processes.group() as device, _stop_signals() as stop:
        generator = networks.build(config.generator) if state else initial(config)
        for name in names:
            run = _Stage(config, name, splits[name], generator, out, device, progress)
            if state:
                run.restore(state)
            run.train(stop)
            generator, state = run.learner.kept, None
            del run  # its images, before the next stage's are read
    return out / "best.pt"


def prepare(config: Config, names: Sequence[str] | None = None) -> dict[str, subjects.Split]:
    """The files of these stages, or of all; an error now, rather than after the stages before, for what is missing.

    Raises InputFileError also where a subject would train in one stage and validate in another.
    """
    splits: dict[str, subjects.Split] = {}
    for name in config.stages if names is None else names:
        stage = config.stages[name]
        if not stage.data:
            raise InputFileError(f"stage {name} has no data: give --data, or --set stage.{name}.data=FOLDER")
        files = subjects.find_files(Path(stage.data), stage.pattern)
        if stage.validation:
            splits[name] = subjects.split_as_given(files, subjects.find_files(Path(stage.validation), stage.pattern))
        else:
            splits[name] = subjects.split_by_subject(Path(stage.data), files, stage.subject or None)
        for other, split in splits.items():
            subjects.check_apart(f"stage {other}", split, f"stage {name}", splits[name])
        if stage.perceptual:
            if not stage.features:
                raise InputFileError(
                    f"stage {name} has a perceptual loss but no features: give --set features=FILE, VGG-16 as .npz or "
                    "torchvision's vgg19-dcbb9e9d.pth, or do without by --set perceptual=0"
                )
            losses.Perceptual(Path(stage.features))
    return splits


def load_stage(stage: Stage, split: subjects.Split, progress: bool) -> tuple[data.Batches, list[data.Crop]]:
    """A stage's batches and its held-out crops."""
    crops = data.load_crops(split.train, stage.patch, progress, stage.truths == "acquired")
    held_out = data.load_crops(split.validation, stage.patch, progress)
    for side, found in (("train", crops), ("validate", held_out)):
        if not found:
            raise InputFileError(
                f"no slice to {side} on has {stage.patch}×{stage.patch} pixels or more (JPEGs are halved first): "
                "give larger images or a smaller patch"
            )
    held_out = [data.Crop(_middle(pixels), source) for pixels, source in data.evenly(held_out, VALIDATION_CROPS)]
    return data.Batches(crops, stage, *processes.place()), held_out


def _middle(image: data.Image) -> data.Image:
    starts = [max(0, n - VALIDATION_SIZE) // 2 for n in image.shape]
    return image[tuple(slice(start, start + VALIDATION_SIZE) for start in starts)].copy()  # not the whole photograph


class _Stage:
    """A stage as it runs."""

    def __init__(
        self,
        config: Config,
        name: str,
        split: subjects.Split,
        generator: nn.Module,
        out: Path,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.config, self.name, self.stage, self.out = config, name, config.stages[name], out
        self.first = processes.place()[0] == 0  # the process that writes and speaks
        self.progress = progress and self.first
        if self.first:
            log.info("stage %s: %s", name, split.how)
        self.batches, self.held_out = load_stage(self.stage, split, self.progress)
        self.digest = self._digest()
        self.out.mkdir(parents=True, exist_ok=True)
        self.learner = Learner(generator, self.stage, device)
        if self.first:
            counts = len(self.batches.crops), len(self.held_out)
            log.info("%d crops train, %d validate, on %s in %s", *counts, device, self.learner.precision)
        self.update, self.best, self.running = 0, (False, -math.inf), math.nan

    def _digest(self) -> str:
        """SHA-256 of all that a stage reads: images on both sides, and the features of its perceptual loss."""
        content = hashlib.sha256(Path(self.stage.features).read_bytes() if self.stage.perceptual else b"")
        for crop in [*self.batches.crops, *self.held_out]:
            content.update(hashlib.sha256(np.ascontiguousarray(crop.pixels).data).digest())
        return content.hexdigest()

    def restore(self, state: dict[str, Any]) -> None:
        if state["data"] != self.digest:
            raise InputFileError(f"stage {self.name} saw other images or features: give the same, or name another --out")
        world = processes.place()[1]
        if state["processes"] != world:
            raise InputFileError(
                f"{self.out} was trained by {state['processes']} processes, this is {world}: resume with as many, or the "
                "batches would be others"
            )
        self.learner.restore(state["networks"])
        self.update, self.best, self.running = state["update"], tuple(state["best"]), state["running"]
        log.info("resuming stage %s at update %d", self.name, self.update)

    def train(self, stop: list[int]) -> None:
        total = self.stage.updates
        with (
            self._writer() as board,
            tqdm(total=total, initial=self.update, desc=self.name, unit="update", disable=not self.progress) as bar,
        ):
            while self.update < total:
                if processes.anywhere(bool(stop)):
                    self._save_last()
                    if self.first:
                        log.warning(
                            "stopped at update %d of %d of stage %s; go on with --resume", self.update, total, self.name
                        )
                    raise KeyboardInterrupt
                parts = self._step()
                self.running = parts["l1"] if math.isnan(self.running) else 0.99 * self.running + 0.01 * parts["l1"]
                bar.update()
                bar.set_postfix(l1=f"{self.running:.4f}", refresh=False)
                if board and self.update % 50 == 0:
                    for name, value in {**parts, "learning rate": self.stage.rate(self.update)}.items():
                        board.add_scalar(name, value, self.update)
                if self.update % self.stage.validate_every == 0 or self.update == total:
                    if self.first:
                        self._validate(board)
                    self._save_last()
        if self.first:
            self._save(self.out / f"{self.name}.pt")

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
        scores, panels = validate(self.learner.kept, self.held_out, self.stage, self.learner.perceptual)
        line = "  ".join(f"{case} {score.psnr:.2f} dB {score.ssim:.4f}" for case, score in scores.items())
        log.info("stage %s update %d  l1 %.5f  %s", self.name, self.update, self.running, line)
        adversarial = self.stage.is_adversarial(self.update - 1)
        by_features = adversarial and self.learner.perceptual is not None
        mean = float(np.mean([-s.distance if by_features else s.psnr for s in scores.values()]))
        if (adversarial, mean) > self.best:
            self.best = (adversarial, mean)
            self._save(self.out / "best.pt", validation={case: list(score) for case, score in scores.items()})
        if board:
            for case, score in scores.items():
                for name, value in score._asdict().items():
                    if not math.isnan(value):
                        board.add_scalar(f"{name} {case}", value, self.update)
            for case, panel in panels.items():
                board.add_image(f"{case}: input, output, truth", panel, self.update, dataformats="HW")

    def _save(self, path: Path, **more: Any) -> None:
        """A checkpoint of the weights that are kept."""
        content = {
            "generator": networks.plain(self.config.generator),
            "weights": {name: tensor.cpu() for name, tensor in self.learner.kept.state_dict().items()},
            "training": self.config.plain(places=False),
            "stage": self.name,
            "update": self.update,
        }
        checkpoint.save(path, {**content, **more})

    def _save_last(self) -> None:
        if self.first:
            more = {"networks": self.learner.state(), "best": self.best, "running": self.running, "data": self.digest}
            more |= {"processes": processes.place()[1], "training": self.config.plain()}
            self._save(self.out / "last.pt", **more)

    @contextmanager
    def _writer(self) -> Iterator[Any]:
        """TensorBoard's writer in the first process, None in others; a resumed run's later steps are written anew."""
        if not self.first:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = self.out / "tensorboard" / self.name
        with SummaryWriter(str(folder), purge_step=self.update + 1 if self.update else None) as board:
            yield board


def validate(
    model: nn.Module, crops: Sequence[data.Crop], stage: Stage, perceptual: losses.Perceptual | None = None
) -> tuple[dict[str, Score], dict[str, data.Image]]:
    """Mean scores over held-out crops for each of the stage's inputs, at its scales among `VALIDATION_SCALES`, in float32;
    and for each case a picture of the middle crop: input, output and truth side by side.
    """
    upscale = models.upscale_with(model.eval())
    device = next(model.parameters()).device
    distance = metrics.perceptual_with(perceptual, device) if perceptual else lambda truth, image: math.nan
    measures = [metrics.psnr, metrics.ssim, distance]
    scores, panels = {}, {}
    for name in dict.fromkeys(stage.kernels):
        degradation = SCANNER if name == "scanner" else degradations.resampled(name)
        for scale in [r for r in VALIDATION_SCALES if r in stage.scales] or stage.scales[:1]:
            case, both = f"{degradation.name} ×{float(scale):g}", (scale, scale)
            each = [evaluate.score_crop([upscale], crop.pixels, both, degradation, measures)[0] for crop in crops]
            scores[case] = Score(*np.mean(each, axis=0).tolist())
            truth = crops[len(crops) // 2].pixels
            lr = degradation.of(truth, both)
            sr = upscale(lr, both, degradation.acquired)
            panels[case] = np.hstack([evaluate.nearest(lr, both), sr, truth[: sr.shape[0], : sr.shape[1]]]).clip(0, 1)
    return scores, panels


def dry_run(config: Config, progress: bool = True, updates: int = 10) -> Iterator[str]:
    """What a run would be, a line at a time: its data, its size, its speed on this machine, the hours it would take."""
    splits = prepare(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = initial(config)
    yield f"network: {networks.plain(config.generator)['kind']}, {sum(p.numel() for p in generator.parameters()):,} parameters"
    for name, stage in config.stages.items():
        yield f"stage {name}: {splits[name].how}"
        batches, held_out = load_stage(stage, splits[name], progress)
        yield f"  {len(batches.crops):,} crops train, {len(held_out)} validate"
        learner = Learner(generator, stage, device)
        # Past the warm-up if there is a part past it, where an update costs most; the first ones set things up.
        start = stage.warmup if stage.is_adversarial(stage.updates - 1) else 0
        times = []
        for update in range(start, start + 3 + updates):
            began = time.perf_counter()
            try:
                learner.step(batches[update], update)
            except FloatingPointError as error:
                raise TrainingError(f"stage {name}: {error} after {update - start} updates: lower its learning_rate") from None
            times.append(time.perf_counter() - began)
        seconds = float(np.mean(times[3:]))  # scales differ in cost: the mean, not the median
        speed = f"{1 / seconds:.2f} updates a second on {device} in {learner.precision}"
        yield f"  {speed}, {stage.updates:,} updates: {stage.updates * seconds / 3600:.1f} hours"


def initial(config: Config) -> nn.Module:
    """The network that the first stage starts from. Raises InputFileError where `init` holds another.

    A network that is told the noise may start from one that was not.
    """
    torch.manual_seed(next(iter(config.stages.values())).seed)
    if not config.init:
        return networks.build(config.generator)
    start, _ = checkpoint.load_network(Path(config.init))
    if start.config == config.generator:
        return start
    wanted = config.generator
    if not isinstance(wanted, GeneratorConfig) or replace(wanted, told=False) != start.config:
        raise InputFileError(f"{config.init} holds another network, {start.config}: configure the same, or give no init")
    network = networks.build(wanted)
    network.load_state_dict(start.state_dict(), strict=False)
    return network


def _resumable(last: Path, config: Config) -> dict[str, Any]:
    if not last.exists():
        raise InputFileError(f"{last} does not exist, so there is no run to resume: leave --resume out to begin one")
    state = checkpoint.load(last)
    if "networks" not in state:
        raise InputFileError(f"{last} holds weights alone, no run to resume: start another from it with --set init={last}")
    changed = config.differences(parse(state["training"], where=str(last)))
    refused = [key for key in changed if key.split("=")[0].split(".")[-1] not in _MOVABLE]
    if refused:
        raise InputFileError(
            f"{last} was trained otherwise, without {', '.join(refused)}: resume without it, or name another --out"
        )
    if changed:
        log.info("resuming with %s", ", ".join(changed))
    return state


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that becomes non-empty at SIGINT or SIGTERM; a second one stops at once, as usual."""
    received: list[int] = []
    first = math.inf
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        received.append(number)
        first = min(first, time.monotonic())
        if time.monotonic() > first + 2:  # torchrun's own second signal comes with the first
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()

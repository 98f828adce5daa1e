"""L1 training of a generator: one scale a batch, checkpoints that resume to the same loss, a clean stop at Ctrl-C."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from runtime.errors import InputFileError, MetasrganError, OutputFileError

from . import checkpoint, data, metrics, resample
from .generator import CONFIGS, Generator

log = logging.getLogger(__name__)

VALIDATION_SCALES = (Fraction(2), Fraction(5, 2), Fraction(4))
VALIDATION_CROPS = 24


class TrainingError(MetasrganError, RuntimeError):
    """A run that cannot begin or go on."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's result, beside the data itself. A checkpoint carries it.

    Raises TrainingError for a number that no run can have.
    """

    generator: str = "edge"
    updates: int = 20_000
    batch: int = 8
    patch: int = 96
    patches_per_crop: int = 16
    learning_rate: float = 5e-4
    kernels: tuple[resample.Kernel, ...] = ("bilinear", "bicubic")
    seed: int = 0
    validate_every: int = 1_000

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch": 1, "patch": 32, "patches_per_crop": 1, "validate_every": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise TrainingError(f"{name} is {getattr(self, name)}: give {smallest} or more")
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate is {self.learning_rate}: give a positive number, such as 5e-4")


def train(config: TrainConfig, split: data.Split, out: Path, resume: bool, progress: bool = True) -> Path:
    """Train until `config.updates`, or until Ctrl-C, and return the best checkpoint's path (the last's before there is one).

    `out` receives `last.pt` (all that a resume needs) at every validation and at a stop, and `best.pt`, the weights with
    the highest validation PSNR. Raises OutputFileError where `out` holds a run already and `resume` is false,
    InputFileError where there is nothing to resume or it was made with another configuration.
    """
    last, best = out / "last.pt", out / "best.pt"
    if last.exists() and not resume:
        raise OutputFileError(f"{out} holds a run already: add --resume to go on with it, or name another --out")
    state = _resumable(last, config) if resume else None
    out.mkdir(parents=True, exist_ok=True)

    log.info("%s", split.how)
    batches = data.Batches(
        data.load_crops(split.train, config.patch, progress),
        config.batch,
        config.patch,
        config.patches_per_crop,
        config.kernels,
        config.seed,
    )
    held_out = data.load_crops(split.validation, config.patch, progress)
    if not batches.crops or not held_out:
        raise InputFileError(
            f"no slice has {config.patch}×{config.patch} pixels or more: give larger images or a smaller --patch"
        )
    held_out = [held_out[k] for k in np.unique(np.linspace(0, len(held_out) - 1, VALIDATION_CROPS).astype(int))]
    log.info("%d crops train, %d validate", len(batches.crops), len(held_out))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    generator = Generator(CONFIGS[config.generator]).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(generator.parameters(), lr=config.learning_rate)
    update, best_psnr = 0, -math.inf
    if state:
        generator.load_state_dict(state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        update, best_psnr = state["update"], state["best_psnr"]
        log.info("resuming at update %d", update)

    def content(**more: Any) -> dict[str, Any]:
        return {
            "generator": asdict(generator.config),
            "weights": generator.state_dict(),
            "training": asdict(config),
            "update": update,
            **more,
        }

    def save_last() -> None:
        checkpoint.save(last, content(optimiser=optimiser.state_dict(), best_psnr=best_psnr))

    with _stop_signals() as stopped, tqdm(total=config.updates, initial=update, unit="update", disable=not progress) as bar:
        running = None
        while update < config.updates and not stopped:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, update)
            loss = _step(generator, optimiser, batches[update], device)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss of update {update} is {loss}: begin anew with a lower --learning-rate")
            update += 1
            running = loss if running is None else 0.99 * running + 0.01 * loss
            bar.update()
            bar.set_postfix(l1=f"{running:.4f}", refresh=False)
            if update % config.validate_every == 0 or update == config.updates:
                scores = validate(generator, held_out, device)
                line = "  ".join(f"×{float(r):g} {p:.2f} dB {s:.4f}" for r, (p, s) in scores.items())
                log.info("update %d  l1 %.5f  %s", update, running, line)
                mean = float(np.mean([p for p, _ in scores.values()]))
                if mean > best_psnr:
                    best_psnr = mean
                    checkpoint.save(best, content(validation={str(r): list(v) for r, v in scores.items()}))
                save_last()
        if stopped:
            save_last()
            log.warning("stopped at update %d of %d; go on with --resume", update, config.updates)
    return best if best.exists() else last


def learning_rate(config: TrainConfig, update: int) -> float:
    """A linear warm-up over 500 updates, then a half cosine down to zero."""
    warm = min(1.0, (update + 1) / 500)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * update / config.updates))


def _step(
    generator: Generator,
    optimiser: torch.optim.Optimizer,
    batch: tuple[data.Image, data.Image, Fraction],
    device: torch.device,
) -> float:
    lr, hr, scale = batch
    image = torch.from_numpy(lr).to(device, memory_format=torch.channels_last)
    generator.train()
    with torch.autocast(device.type, torch.bfloat16):
        sr = generator(image, (scale, scale))
    loss = torch.nn.functional.l1_loss(sr, torch.from_numpy(hr).to(device))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
    optimiser.step()
    return loss.item()


@torch.no_grad()
def validate(generator: Generator, crops: list[data.Image], device: torch.device) -> dict[Fraction, tuple[float, float]]:
    """Mean (PSNR, SSIM) over held-out crops at each of `VALIDATION_SCALES`, from antialiased bilinear inputs, in float32."""
    generator.eval()
    scores = {}
    for scale in VALIDATION_SCALES:
        pairs = []
        for hr in crops:
            lr = resample.downsample(hr, (scale, scale), "bilinear")
            image = torch.tensor(lr)[None, None].to(device, memory_format=torch.channels_last)
            sr = generator(image, (scale, scale))[0, 0].cpu().numpy()
            truth = hr[: sr.shape[0], : sr.shape[1]]
            pairs.append((metrics.psnr(truth, sr), metrics.ssim(truth, sr)))
        psnr, ssim = np.mean(pairs, axis=0)
        scores[scale] = (float(psnr), float(ssim))
    return scores


def _resumable(last: Path, config: TrainConfig) -> dict[str, Any]:
    if not last.exists():
        raise InputFileError(f"{last} does not exist, so there is no run to resume: leave --resume out to begin one")
    state = checkpoint.load(last)
    before = TrainConfig(**{**state["training"], "kernels": tuple(state["training"]["kernels"])})
    if replace(before, updates=config.updates) != config:
        changed = [k for k, v in asdict(config).items() if k != "updates" and asdict(before)[k] != v]
        was = ", ".join(f"{k}={asdict(before)[k]!r}" for k in changed)
        raise InputFileError(f"{last} was trained with {was}: resume with the same, or begin anew in another --out")
    return state


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that becomes non-empty at SIGINT or SIGTERM; a second one stops at once, as usual."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for s, handler in before.items():
            signal.signal(s, handler)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)

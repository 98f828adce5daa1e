"""What one stage trains, and an update of it: losses, optimisers, the moving average."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runtime.errors import InputFileError

from . import data, losses, processes
from .config import Stage
from .rounding import Rounded

_DECAY = 0.3  # Muon moves also what the images hardly excite: without decay, weights of no use grow until a bright dot shatters
_LEAST = 16  # channels on either side of a weight that Muon takes: fewer say nothing about directions


def optimisers(network: nn.Module, muon: bool, rate: float) -> list[torch.optim.Optimizer]:
    """Adam, as the paper has it; or Muon (Jordan et al. 2024) for the weights between hidden channels, and Adam for all others.

    Muon makes all singular values of the gradient's momentum equal: it learns directions that the images hardly excite as fast
    as the rest. A convolution's weight is a matrix (out, taps · in) in its own memory, channels last; updates have the size of
    Adam's (Liu et al. 2025, *Muon is scalable for LLM training*).
    """
    learned = [p for p in network.parameters() if p.requires_grad]
    hidden = [p for p in learned if p.ndim > 1 and min(p.shape[:2]) >= _LEAST]
    if not muon or not hidden:
        return [torch.optim.Adam(learned, rate)]
    weights = {p: p.detach().movedim(1, -1).view(len(p), -1) for p in hidden}
    of_matrices = torch.optim.Muon(weights.values(), rate, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw")

    def take_gradients(*_: Any) -> None:
        for weight, matrix in weights.items():
            assert weight.grad is not None
            matrix.grad = weight.grad.movedim(1, -1).flatten(1)

    of_matrices.register_step_pre_hook(take_gradients)
    return [torch.optim.Adam([p for p in learned if p not in weights], rate), of_matrices]


class Learner:
    """What a stage trains, on one device: the generator, its moving average, a discriminator where one plays, optimisers."""

    def __init__(self, generator: nn.Module, stage: Stage, device: torch.device) -> None:
        torch.manual_seed(stage.seed)
        self.stage, self.device = stage, device
        fastest = "bfloat16" if computes_in_bfloat16(device) else "float32"
        self.precision = fastest if stage.precision == "auto" else stage.precision
        self.generator = self._on_device(generator)
        self.optimisers = optimisers(self.generator, stage.optimiser == "muon", stage.learning_rate)
        averaged = get_ema_multi_avg_fn(stage.ema)
        self.average = AveragedModel(self.generator, multi_avg_fn=averaged, use_buffers=True) if stage.ema else None
        self.discriminator = self._on_device(losses.Discriminator()) if stage.adversarial else None
        self.judge = torch.optim.Adam(self.discriminator.parameters(), stage.learning_rate) if self.discriminator else None
        self.perceptual = losses.Perceptual(Path(stage.features)).to(device) if stage.perceptual else None
        self._generator = processes.shared(self.generator)
        self._discriminator = processes.shared(self.discriminator) if self.discriminator else None
        parts: dict[str, Any] = {type(optimiser).__name__: optimiser for optimiser in self.optimisers}
        parts |= {name: getattr(self, name) for name in ("generator", "average", "discriminator", "judge")}
        self._parts = {name: part for name, part in parts.items() if part is not None}

    def _on_device(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def kept(self) -> nn.Module:
        """The generator that is validated and kept: the moving average, or where there is none, the last weights."""
        network: nn.Module = self.generator if self.average is None else self.average.module
        return network.mean_with_teacher(self.stage.mean_with_init) if isinstance(network, Rounded) else network

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had happened."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def restore(self, state: dict[str, Any]) -> None:
        if state.keys() != self._parts.keys():
            raise InputFileError("last.pt is of another release: finish its run there, or start another with --set init")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])

    def step(self, batch: data.Batch, update: int) -> dict[str, float]:
        """One update of each network; its losses by name. The generator's is that of pixels and faint discs, and past the
        warm-up the adversarial and perceptual ones too, each with the stage's weight.

        A loss or gradient that is not finite changes no weights of its network: FloatingPointError.
        """
        stage = self.stage
        lr, hr = (torch.from_numpy(side).to(self.device, memory_format=torch.channels_last) for side in batch[:2])
        for optimiser in (*self.optimisers, *([self.judge] if self.judge else [])):
            for group in optimiser.param_groups:
                group["lr"] = stage.rate(update)
        self.generator.train()
        with self._autocast():
            told = torch.from_numpy(batch[2]).to(self.device)
            sr = self._generator(lr, batch[3], told)
            if isinstance(self.generator, Rounded):
                with torch.no_grad():
                    hr = self.generator.teacher(lr, batch[3], told)
        sr = sr.clamp(0, 1) if stage.clamp else sr
        parts = {"l1": nn.functional.l1_loss(sr, hr)}
        loss = parts["l1"] if stage.loss == "l1" else 10 * nn.functional.mse_loss(sr, hr)  # as large as L1 of 0.02, or near it
        if stage.faint:
            parts["faint"] = losses.faint(sr.float(), hr, stage.twins, (lr.shape[-2], lr.shape[-1]))
        if stage.is_adversarial(update) and self.discriminator:
            parts["discriminator"] = self._train_discriminator(self.discriminator, sr.detach(), hr)
            with self._autocast():
                parts["adversarial"] = losses.adversarial_generator(self.discriminator(sr).float())
        if stage.is_adversarial(update) and self.perceptual:
            with self._autocast():
                parts["perceptual"] = self.perceptual(sr, hr).float()
        for name in ("faint", "adversarial", "perceptual"):
            loss = loss + getattr(stage, name) * parts[name] if name in parts else loss
        self._descend(loss, self.generator, *self.optimisers)
        if self.average:
            self.average.update_parameters(self.generator)
        return {name: part.item() for name, part in parts.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _train_discriminator(self, network: nn.Module, sr: Tensor, hr: Tensor) -> Tensor:
        assert self._discriminator
        assert self.judge
        network.train().requires_grad_(True)
        with self._autocast():
            real, fake = self._discriminator(hr), self._discriminator(sr)
        loss = losses.adversarial_discriminator(real.float(), fake.float())
        self._descend(loss, network, self.judge)
        network.requires_grad_(False)  # the generator's step goes through it, not to it
        return loss.detach()

    def _descend(self, loss: Tensor, network: nn.Module, *optimisers: torch.optim.Optimizer) -> None:
        finite = math.isfinite(loss.item())
        if processes.anywhere(not finite):
            raise FloatingPointError("another process's loss is not finite" if finite else f"the loss is {loss.item()}")
        network.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.stage.clip_norm or math.inf).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        for optimiser in optimisers:
            optimiser.step()


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it; a CPU without them emulates it, ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)  # x86's and Arm's names

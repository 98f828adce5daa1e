"""What one stage trains, and an update of it: losses, optimisers, the moving average."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import data, losses, optimisers, processes
from .config import Stage
from .discriminator import Discriminator


class Learner:
    """What a stage trains, on one device: the generator, its moving average, a discriminator where one plays, optimisers."""

    def __init__(self, generator: nn.Module, stage: Stage, device: torch.device) -> None:
        torch.manual_seed(stage.seed)
        self.stage, self.device = stage, device
        fastest = "bfloat16" if computes_in_bfloat16(device) else "float32"
        self.precision = fastest if stage.precision == "auto" else stage.precision
        self.generator = generator.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = optimisers.build(stage.optimiser, self.generator, stage.learning_rate)
        self.average: AveragedModel | None = None
        if stage.ema:
            self.average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(stage.ema), use_buffers=True)
        self.discriminator: nn.Module | None = None
        if stage.adversarial:
            self.discriminator = Discriminator().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.judge = torch.optim.Adam(self.discriminator.parameters(), lr=stage.learning_rate)
        self.perceptual = losses.Perceptual(Path(stage.features)).to(device) if stage.perceptual else None
        self._generator = processes.shared(self.generator)
        self._discriminator = processes.shared(self.discriminator) if self.discriminator else None

    @property
    def kept(self) -> nn.Module:
        """The generator that is validated and kept: the moving average, or where there is none, the last weights."""
        return self.generator if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had happened."""
        state = {"generator": self.generator.state_dict(), "optimiser": self.optimiser.state_dict()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.discriminator is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "judge": self.judge.state_dict()}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        for name, content in state.items():
            getattr(self, name).load_state_dict(content)

    def step(self, batch: data.Batch, update: int) -> dict[str, float]:
        """One update of each network; its losses by name. A loss or gradient that is not finite changes no weights of its
        network: FloatingPointError.

        The generator's loss is that of pixels and of faint discs with the stage's weight, and past the warm-up pixels +
        adversarial + perceptual too (Tan, Zhu, Liò 2020: L1, and 1, 0.001, 0.006).
        """
        stage = self.stage
        lr, hr = (torch.from_numpy(side).to(self.device, memory_format=torch.channels_last) for side in batch[:2])
        told, scales = torch.from_numpy(batch[2]).to(self.device), batch[3]
        for optimiser in (self.optimiser, *([self.judge] if self.discriminator else [])):
            for group in optimiser.param_groups:
                group["lr"] = stage.rate(update)
        self.generator.train()
        with self._autocast():
            sr = self._generator(lr, scales, told)
        sr = sr.clamp(0, 1) if stage.clamp else sr
        parts = {"l1": nn.functional.l1_loss(sr, hr)}
        loss = parts["l1"] if stage.loss == "l1" else 10 * nn.functional.mse_loss(sr, hr)  # as large as L1 of 0.02, or near it
        if stage.faint:
            parts["faint"] = losses.faint(sr.float(), hr, stage.twins, (lr.shape[-2], lr.shape[-1]))
            loss = loss + stage.faint * parts["faint"]
        if stage.is_adversarial(update):
            if self.discriminator is not None:
                parts["discriminator"] = self._train_discriminator(sr.detach(), hr)
                with self._autocast():
                    parts["adversarial"] = losses.adversarial_generator(self.discriminator(sr).float())
                loss = loss + stage.adversarial * parts["adversarial"]
            if self.perceptual is not None:
                with self._autocast():
                    parts["perceptual"] = self.perceptual(sr, hr).float()
                loss = loss + stage.perceptual * parts["perceptual"]
        self._descend(loss, self.generator, self.optimiser)
        if self.average is not None:
            self.average.update_parameters(self.generator)
        return {name: part.item() for name, part in parts.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _train_discriminator(self, sr: Tensor, hr: Tensor) -> Tensor:
        assert self._discriminator is not None
        assert self.discriminator is not None
        self.discriminator.train().requires_grad_(True)
        with self._autocast():
            real, fake = self._discriminator(hr), self._discriminator(sr)
        loss = losses.adversarial_discriminator(real.float(), fake.float())
        self._descend(loss, self.discriminator, self.judge)
        self.discriminator.requires_grad_(False)  # the generator's step goes through it, not to it
        return loss.detach()

    def _descend(self, loss: Tensor, network: nn.Module, optimiser: torch.optim.Optimizer | optimisers.Muon) -> None:
        finite = math.isfinite(loss.item())
        if processes.anywhere(not finite):
            raise FloatingPointError("another process's loss is not finite" if finite else f"the loss is {loss.item()}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.stage.clip_norm or math.inf).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        optimiser.step()


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it; a CPU without them emulates it, ten times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)  # x86's and Arm's names

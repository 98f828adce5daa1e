"""How a generator's weights descend: Adam, as the paper has it, or Muon, which needs a fraction of its updates."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Name = Literal["adam", "muon"]
_DECAY = 0.3  # Muon moves also what the images hardly excite: without decay, weights of no use grow until a bright dot shatters
_LEAST = 16  # channels on either side of a weight that Muon takes: fewer say nothing about directions


class Muon:
    """Muon (Jordan et al. 2024, *Muon: An optimizer for hidden layers in neural networks*) for the weights between hidden
    channels, Adam for all others.

    Muon's update is the gradient's momentum with all its singular values made equal, so that directions that the images hardly
    excite are learned as fast as the rest. A convolution's weight is the matrix (out, taps · in) that it is. Updates are scaled
    to the size of Adam's (Liu et al. 2025, *Muon is scalable for LLM training*), so that one learning rate fits both.
    """

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        self._network = network
        self._weights = [p for p in network.parameters() if p.ndim >= 2 and min(p.shape[:2]) >= _LEAST]
        taken = set(map(id, self._weights))
        self._matrices = [_matrix(p.detach()) for p in self._weights]
        rest = [p for p in network.parameters() if id(p) not in taken]
        self._parts: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, learning_rate)]
        if self._matrices:
            muon = torch.optim.Muon(self._matrices, learning_rate, weight_decay=_DECAY, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._network.zero_grad(set_to_none)

    def step(self) -> None:
        for weight, matrix in zip(self._weights, self._matrices):
            assert weight.grad is not None
            matrix.grad = weight.grad.movedim(1, -1).flatten(1)
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {type(part).__name__: part.state_dict() for part in self._parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in self._parts:
            part.load_state_dict(state[type(part).__name__])


def build(name: Name, network: nn.Module, learning_rate: float) -> torch.optim.Optimizer | Muon:
    return Muon(network, learning_rate) if name == "muon" else torch.optim.Adam(network.parameters(), learning_rate)


def _matrix(weight: Tensor) -> Tensor:
    """A weight (out, in, …) as the matrix (out, … · in) in its own memory: channels last, as training keeps convolutions."""
    return weight.movedim(1, -1).view(len(weight), -1)

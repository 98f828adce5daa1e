from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from train import networks
from train.generator import GeneratorConfig
from train.learner import optimisers


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    config = GeneratorConfig(channels=16, blocks=1, head_kernel=3, batch_norm=True, predictor_hidden=16)
    return networks.build(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def with_gradients(network: nn.Module, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    return network


def test_muon_moves_hidden_weights_along_the_nearest_orthogonal_matrix(network: nn.Module) -> None:
    """Against the singular value decomposition, in the weight's own order of axes: U Vᵀ of the gradient as a matrix."""
    weight = network.get_parameter("blocks.0.conv1.weight")
    before = weight.detach().clone()
    for part in optimisers(with_gradients(network), muon=True, rate=1e-3):
        part.step()
    step = (weight.detach() - before).permute(0, 2, 3, 1).flatten(1)
    assert weight.grad is not None
    u, _, vt = torch.linalg.svd(weight.grad.permute(0, 2, 3, 1).flatten(1), full_matrices=False)
    # A matrix of 16 equal singular values, of Adam's size: 0.2·√144·rate each. The iteration leaves them at 0.7 to 1.2 of it.
    singular = torch.linalg.svdvals(step) / (0.2 * 144**0.5 * 1e-3)
    assert 0.6 < singular.min() <= singular.max() < 1.3
    assert nn.functional.cosine_similarity(step.flatten(), -(u @ vt).flatten(), dim=0) > 0.97


def test_all_other_weights_move_as_adam_moves_them(network: nn.Module) -> None:
    twin = copy.deepcopy(network)
    ours, adam = optimisers(network, muon=True, rate=1e-3), torch.optim.Adam(twin.parameters(), 1e-3)
    for seed in (1, 2):
        with_gradients(network, seed), with_gradients(twin, seed)
        for part in (*ours, adam):
            part.step()
    same = {n for n, p in network.named_parameters() if torch.equal(p, twin.get_parameter(n))}
    hidden = {"blocks.0.conv1.weight", "blocks.0.conv2.weight", "tail.weight", "upscale.predictor.2.weight"}
    assert same == {n for n, _ in network.named_parameters()} - hidden


def test_without_muon_adam_moves_all(network: nn.Module) -> None:
    (adam,) = optimisers(network, muon=False, rate=1e-3)
    assert isinstance(adam, torch.optim.Adam)
    assert len(adam.param_groups[0]["params"]) == len(list(network.parameters()))

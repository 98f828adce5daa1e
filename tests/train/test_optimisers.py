from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from train import networks, optimisers
from train.generator import GeneratorConfig


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
    optimisers.Muon(with_gradients(network), 1e-3).step()
    step = (weight.detach() - before).permute(0, 2, 3, 1).flatten(1)
    assert weight.grad is not None
    u, _, vt = torch.linalg.svd(weight.grad.permute(0, 2, 3, 1).flatten(1), full_matrices=False)
    # A matrix of 16 equal singular values, of Adam's size: 0.2·√144·rate each. The iteration leaves them at 0.7 to 1.2 of it.
    singular = torch.linalg.svdvals(step) / (0.2 * 144**0.5 * 1e-3)
    assert 0.6 < singular.min() <= singular.max() < 1.3
    assert nn.functional.cosine_similarity(step.flatten(), -(u @ vt).flatten(), dim=0) > 0.97


def test_all_other_weights_move_as_adam_moves_them(network: nn.Module) -> None:
    twin = copy.deepcopy(network)
    ours, adam = optimisers.Muon(network, 1e-3), torch.optim.Adam(twin.parameters(), 1e-3)
    for seed in (1, 2):
        with_gradients(network, seed), with_gradients(twin, seed)
        ours.step(), adam.step()
    same = {n for n, p in network.named_parameters() if torch.equal(p, twin.get_parameter(n))}
    hidden = {"blocks.0.conv1.weight", "blocks.0.conv2.weight", "tail.weight", "upscale.predictor.2.weight"}
    assert same == {n for n, _ in network.named_parameters()} - hidden
    ours.zero_grad()
    assert all(p.grad is None for p in network.parameters())


def test_the_learning_rate_of_all_groups_can_be_set_also_after_a_resume(network: nn.Module) -> None:
    ours = optimisers.Muon(network, 1e-3)
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    for group in ours.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in network.parameters()]
    with_gradients(network)
    ours.step()
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before))


def test_build_makes_what_is_named(network: nn.Module) -> None:
    assert isinstance(optimisers.build("adam", network, 1e-3), torch.optim.Adam)
    assert isinstance(optimisers.build("muon", network, 1e-3), optimisers.Muon)

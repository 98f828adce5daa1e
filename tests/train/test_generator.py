from __future__ import annotations

from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from export.build import predictor
from runtime import grid
from runtime.phases import WeightPredictor
from tests import reference
from tests.conftest import random_generator
from train import networks
from train.generator import CONFIGS, Generator, GeneratorConfig, interpolate
from train.tables import ConfigError


def parameters(generator: Generator) -> int:
    return sum(p.numel() for p in generator.parameters())


def test_the_authors_generator_has_561926_parameters() -> None:
    assert parameters(Generator(CONFIGS["paper"])) == 561_926  # Tan, Zhu, Liò, as counted in their code


def test_the_shipped_one_is_deeper_and_narrower() -> None:
    head, conv, predictor = 9 * 9 * 32 + 32, 9 * 32 * 32 + 32, 4 * 256 + 256 + 256 * 32 + 32 + 32 * 9 * 32
    # Twenty blocks of two convolutions and an activation of one slope, the tail, and the head's slope.
    told = 4 * 16 + 16 * 32 + 32
    assert parameters(Generator(CONFIGS["edge"])) == head + 20 * (2 * conv + 1) + conv + 1 + predictor + told == 401_141


def test_network_that_was_not_told_goes_on_as_it_was() -> None:
    """Until it has learned what σ means, every σ is the same to it; then it is not."""
    generator = Generator(CONFIGS["edge"]).eval()
    image = torch.rand(2, 1, 9, 7)
    with torch.no_grad():
        none, much = (generator.encode(image, told) for told in (None, torch.tensor([[0.0, 0, 0], [0.05, 0, 0.1]])))
        assert torch.equal(none, much)
        generator.condition[2].weight.normal_()
        none, much = (generator.encode(image, told) for told in (None, torch.tensor([[0.0, 0, 0], [0.05, 0, 0.1]])))
    assert torch.equal(none[0], much[0])
    assert not torch.allclose(none[1], much[1])


def test_variants_by_configuration() -> None:
    base = GeneratorConfig(channels=8, blocks=1, predictor_hidden=16)
    for changes in ({"batch_norm": False}, {"projection": "centred"}, {"skip": True}, {"head_kernel": 5}, {"per_axis": True}):
        generator = Generator(replace(base, **changes)).eval()
        with torch.no_grad():
            sr = generator(torch.rand(2, 1, 9, 7), grid.parse_scales("2.5"))
        assert sr.shape == (2, 1, 22, 17)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"colour": 3}, "meta.colour is unknown"),
        ({"kind": "unet"}, "unet"),
        ({"name": "best"}, "generator.name is 'best': give one of paper, edge"),
        ({"channels": "64"}, "meta.channels is '64': it should be a valid integer"),
        ({"channels": True}, "meta.channels is True"),
        ({"blocks": 0}, "meta.blocks is 0: it should be greater"),
        ({"name": ["edge"]}, "generator.name is"),
        ({"name": "edge", "kind": "meta"}, "both a kind and a name"),
        ({"name": "edsr", "channels": -1}, "edsr.channels is -1"),
        ({"name": "edsr", "scale": 5}, "edsr.scale is 5: it should be 2, 3 or 4"),
        ({"name": "srgan", "std": 0}, "srgan.std is 0"),
        ({"head_kernel": 4}, "meta.head_kernel is 4: it should be 1, 3, 5, 7, 9 or 11"),
        ({"projection": "middle"}, "meta.projection is 'middle': it should be 'corner' or 'centred'"),
        ({"std": 0.0}, "meta.std is 0.0: it should be greater than 0"),
    ],
)
def test_a_network_that_cannot_be_is_refused(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        networks.configure(table)


def test_a_configuration_is_a_name_and_what_differs() -> None:
    assert networks.configure({"name": "edge", "blocks": 3}) == replace(CONFIGS["edge"], blocks=3)
    assert networks.configure({}) == CONFIGS["paper"]  # what a checkpoint without a kind holds
    for config in networks.NAMED.values():
        assert networks.configure(asdict(config)) == config


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scales", [("2", "2"), ("2.1", "2.1"), ("3.9", "1.1"), ("1.7320508075688772", "2")], ids=str)
def test_forward_equals_per_pixel_loop(name: str, scales: tuple[str, str]) -> None:
    generator = random_generator(name)
    config = generator.config
    both = (Fraction(scales[0]), Fraction(scales[1]))
    image = torch.rand(1, 1, 7, 10, generator=torch.Generator().manual_seed(0))
    standard = (image - config.mean) / config.std
    with torch.no_grad():
        actual = generator(image, both)[0, 0].numpy()
        features = generator.encode(standard)[0].permute(1, 2, 0).numpy()
    arrays, basis = predictor(generator)
    weights = WeightPredictor(**arrays, projection=config.projection)
    skip = standard[0, 0].numpy() if config.skip else None
    expected = reference.meta_upscale(features, basis, weights, both, skip) * config.std + config.mean
    # Sums of 576 products in float32.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_batch_is_upscaled_image_by_image() -> None:
    generator = random_generator("shallow")
    images = torch.rand(3, 1, 8, 11)
    with torch.no_grad():
        together = generator(images, grid.parse_scales("1.5"))
        alone = torch.cat([generator(images[k : k + 1], grid.parse_scales("1.5")) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_with_a_skip_the_untrained_network_is_nearly_linear_interpolation() -> None:
    torch.manual_seed(0)
    generator = Generator(CONFIGS["edge"])
    image = torch.rand(1, 1, 12, 12)
    scales = grid.parse_scales("2.5")
    with torch.no_grad():
        difference = generator(image, scales) - interpolate(image, scales, "centred")
    assert difference.abs().max() < 0.02  # of a range of 1: where learning begins


@pytest.mark.parametrize("projection", ["corner", "centred"])
@pytest.mark.parametrize("scale", ["2", "2.5", "3.9", "1.1"])
def test_interpolation_is_half_pixel_centred(projection: grid.Projection, scale: str) -> None:
    image = np.random.default_rng(0).random((9, 6), np.float32)
    both = grid.parse_scales(scale)
    actual = interpolate(torch.from_numpy(image)[None, None], both, projection)[0, 0].numpy()
    np.testing.assert_allclose(actual, reference.linear(image, both), rtol=0, atol=1e-6)


def test_every_weight_learns_at_every_kind_of_scale() -> None:
    for scale in ("2", "2.1", "1.7320508075688772"):
        generator = random_generator("paper").train()
        generator(torch.rand(2, 1, 12, 12), grid.parse_scales(scale)).square().mean().backward()
        for name, parameter in generator.named_parameters():
            assert parameter.grad is not None, name
            # A bias before a batch norm is cancelled by it.
            if not name.endswith((".conv1.bias", ".conv2.bias", "tail.bias")):
                assert parameter.grad.abs().max() > 0, name

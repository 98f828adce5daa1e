from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from runtime import grid
from train.discriminator import Discriminator


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator()


def test_the_papers_discriminator_has_5214273_parameters(discriminator: Discriminator) -> None:
    widths = [1, 64, 64, 128, 128, 256, 256, 512, 512]
    convs = sum(9 * a * b + b for a, b in pairwise(widths))
    norms = sum(2 * c for c in widths[2:])  # a gain and a bias; none after the first convolution
    dense = 512 * 1024 + 1024 + 1024 + 1
    assert convs + norms + dense == 5_214_273  # the authors' count
    assert sum(p.numel() for p in discriminator.parameters()) == 5_214_273


# The hr patches that lr patches of 96/r pixels make, from 87 × 1.1 up; then small, odd, and not square.
PATCHES = sorted({grid.output_size(int(96 / r), r) for r in grid.PAPER_SCALES})


@pytest.mark.parametrize("shape", [*((n, n) for n in PATCHES), (16, 16), (1, 1), (17, 45), (128, 31)], ids=str)
def test_every_patch_size_gives_one_logit_an_image(discriminator: Discriminator, shape: tuple[int, int]) -> None:
    logits = discriminator.train()(torch.rand(2, 1, *shape))
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()


def test_four_strides_of_two(discriminator: Discriminator) -> None:
    assert discriminator.features(torch.rand(2, 1, 96, 40)).shape == (2, 512, 6, 3)  # 96/16 and ⌈40/16⌉


def test_features_are_averaged_over_the_image(discriminator: Discriminator) -> None:
    features = torch.rand(2, 512, 6, 3)
    mean = features.mean((2, 3), keepdim=True)
    torch.testing.assert_close(discriminator.classifier(features), discriminator.classifier(mean))


def test_activations_leak_a_fifth(discriminator: Discriminator) -> None:
    leaks = [m.negative_slope for m in discriminator.modules() if isinstance(m, torch.nn.LeakyReLU)]
    assert leaks == [0.2] * 9  # after each of 8 convolutions, and between the two 1×1


def test_logits_are_not_squashed() -> None:
    discriminator = Discriminator().eval()
    *_, last = (m for m in discriminator.modules() if isinstance(m, torch.nn.Conv2d))
    assert last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 3.0)
    torch.testing.assert_close(discriminator(torch.rand(2, 1, 16, 16)), torch.tensor([3.0, 3.0]))  # a sigmoid makes it 0.95


def test_images_of_a_batch_are_judged_apart(discriminator: Discriminator) -> None:
    discriminator.eval()
    images = torch.rand(3, 1, 40, 24)
    with torch.no_grad():
        together, alone = discriminator(images), torch.cat([discriminator(image[None]) for image in images])
    assert together.unique().numel() == 3
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_every_weight_and_the_image_learn() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator().train()
    image = torch.rand(2, 1, 32, 32, requires_grad=True)
    discriminator(image)[0].backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    before_norm = {f"features.{k}.bias" for k in range(2, 23, 3)}  # a batch norm cancels the bias before it
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name
        if name not in before_norm:
            assert parameter.grad.abs().max() > 0, name


def test_bfloat16_autocast_gives_float32_logits(discriminator: Discriminator) -> None:
    discriminator.eval()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        exact = discriminator(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = discriminator(image)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.02)  # 10 layers, each rounded to 2^-9 of values up to about 1


def test_a_single_tiny_image_cannot_be_normalised_by_its_batch(discriminator: Discriminator) -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        discriminator.train()(torch.rand(1, 1, 16, 16))
    assert discriminator.train()(torch.rand(1, 1, 17, 16)).shape == (1,)  # two feature pixels suffice

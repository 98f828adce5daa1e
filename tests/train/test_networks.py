from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime import ScaleError, grid
from train.models import multiply_adds
from train.networks import NAMED, OneScale, OneScaleConfig, build

EDSR, SRGAN = (OneScaleConfig(kind, channels=6, blocks=2, residual_scale=0.1) for kind in ("edsr", "srgan"))


def both(scale: int) -> grid.Scales:
    return Fraction(scale), Fraction(scale)


def conv(c_in: int, c_out: int, kernel: int = 3) -> int:
    return kernel * kernel * c_in * c_out  # multiply-adds a pixel, and weights


# name, blocks, channels
@pytest.mark.parametrize(("name", "B", "C", "parameters"), [("edsr", 32, 256, 40_720_385), ("edsr-small", 16, 64, 1_367_553)])
def test_size_of_edsr(name: str, B: int, C: int, parameters: int) -> None:
    model = build(NAMED[name])
    # Head; two convolutions a block and one after; the upsampler's, which makes 2×2 times the channels; the last.
    biases = C + (2 * B + 1) * C + 4 * C + 1
    assert conv(1, C) + (2 * B + 1) * conv(C, C) + conv(C, 4 * C) + conv(C, 1) + biases == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters
    # The last convolution works at four times the pixels.
    assert multiply_adds(model) == conv(1, C) + (2 * B + 1) * conv(C, C) + conv(C, 4 * C) + 4 * conv(C, 1)


@pytest.mark.parametrize(("name", "B", "parameters"), [("srgan", 16, 1_381_011), ("srgan-small", 5, 565_768)])
def test_size_of_srgan(name: str, B: int, parameters: int) -> None:
    model, C = build(NAMED[name]), 64
    convs = conv(1, C, 9) + (2 * B + 1) * conv(C, C) + conv(C, 4 * C) + conv(C, 1, 9)
    biases = C + (2 * B + 1) * C + 4 * C + 1
    norms, slopes = (2 * B + 1) * 2 * C, 1 + B + 1  # a gain and a bias a channel; one slope a PReLU
    assert convs + biases + norms + slopes == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert multiply_adds(model) == convs + 3 * conv(C, 1, 9)  # the last convolution at four times the pixels


def test_edsr_costs_99_times_the_authors_trunk() -> None:
    assert multiply_adds(build(NAMED["edsr"])) == 40_709_376  # 2,304 + 65 · 589,824 + 2,359,296 + 4 · 2,304
    assert 40_709_376 / 410_688 == pytest.approx(99, abs=0.5)


def test_multiply_adds_of_the_authors_generator() -> None:
    assert multiply_adds(build(NAMED["paper"])) == 81 * 64 + 11 * 9 * 64 * 64 == 410_688


@pytest.mark.parametrize("config", [EDSR, SRGAN], ids=["edsr", "srgan"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shapes(config: OneScaleConfig, scale: int) -> None:
    model = build(replace(config, scale=scale)).eval()
    assert model.config == replace(config, scale=scale)
    for height, width in ((96 // scale, 96 // scale), (7, 12), (1, 5)):
        with torch.no_grad():
            sr = model(torch.rand(2, 1, height, width), both(scale))
        assert sr.shape == (2, 1, height * scale, width * scale)
        assert sr.dtype == torch.float32


def random_model(config: OneScaleConfig) -> OneScale:
    """A network whose batch statistics and normalisation matter too."""
    torch.manual_seed(3)
    model = build(config).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for parameter in (module.weight, module.bias, module.running_mean, module.running_var):
                assert parameter is not None
                nn.init.uniform_(parameter, 0.5, 1.5)
    assert isinstance(model, OneScale)
    return model.eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_is_its_formula(scale: int) -> None:
    model = random_model(replace(EDSR, scale=scale, residual_scale=0.3, mean=0.2, std=0.5))
    w = model.state_dict()

    def apply(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    image = torch.rand(2, 1, 9, 6)
    first = x = apply("head", (image - 0.2) / 0.5)
    for k in range(2):
        x = x + 0.3 * apply(f"blocks.{k}.conv2", apply(f"blocks.{k}.conv1", x).clamp(min=0))
    x = first + apply("tail", x)
    for step, s in enumerate({2: (2,), 3: (3,), 4: (2, 2)}[scale]):
        x = F.pixel_shuffle(apply(f"upscale.{step}.0", x), s)
    torch.testing.assert_close(model(image, both(scale)), apply("last", x) * 0.5 + 0.2, rtol=0, atol=1e-5)


def test_srgan_is_its_formula() -> None:
    model = random_model(replace(SRGAN, scale=4, mean=0.2, std=0.5))
    w = model.state_dict()

    def apply(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding="same")

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance, gain, bias = (
            w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    def prelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.25 * x)  # 0.25 is where every slope starts

    image = torch.rand(2, 1, 9, 6)
    first = x = prelu(apply("head.0", (image - 0.2) / 0.5))
    for k in range(2):
        y = prelu(norm(f"blocks.{k}.norm1", apply(f"blocks.{k}.conv1", x)))
        x = x + norm(f"blocks.{k}.norm2", apply(f"blocks.{k}.conv2", y))
    x = first + norm("tail.1", apply("tail.0", x))
    for step in range(2):
        x = prelu(F.pixel_shuffle(apply(f"upscale.{step}.0", x), 2))
    torch.testing.assert_close(model(image, both(4)), apply("last", x) * 0.5 + 0.2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [EDSR, SRGAN], ids=["edsr", "srgan"])
def test_any_other_scale_is_refused(config: OneScaleConfig) -> None:
    model, image = build(replace(config, scale=3)), torch.rand(1, 1, 8, 8)
    for scales in (both(2), (Fraction(3), Fraction(2)), (Fraction(5, 2), Fraction(3))):
        with pytest.raises(ScaleError, match=f"{scales[0]} by {scales[1]} .*give 3"):
            model(image, scales)


@pytest.mark.parametrize("config", [EDSR, SRGAN], ids=["edsr", "srgan"])
def test_every_weight_learns(config: OneScaleConfig) -> None:
    model = random_model(config).train()
    model(torch.rand(2, 1, 12, 12), both(2)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias before a batch norm is cancelled by it.
        if config.kind == "edsr" or not name.endswith((".conv1.bias", ".conv2.bias", "tail.0.bias")):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", [EDSR, SRGAN], ids=["edsr", "srgan"])
def test_bfloat16_autocast_gives_float32_images(config: OneScaleConfig) -> None:
    model, image = random_model(config), torch.rand(2, 1, 12, 12)
    with torch.no_grad():
        exact = model(image, both(2))
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(image, both(2))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.02)  # grey levels of 0…1, each layer rounded to 2^-9

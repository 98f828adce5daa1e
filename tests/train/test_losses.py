from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime import ImageError, InputFileError, grid
from train import metrics
from train.losses import Discriminator, Perceptual, adversarial_discriminator, adversarial_generator, faint

VGG16 = {f"block{b}_conv{c}": b for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)}  # name → block
VGG19 = dict(zip((0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34), (1, 1, 2, 2, *[3] * 4, *[4] * 4, *[5] * 4)))
LAYERS = {"vgg16": VGG16, "vgg19": {f"features.{n}": b for n, b in VGG19.items()}}
WIDTHS = (3, 4, 5, 6, 7, 8)  # of the image and the five blocks; the real ones are 3, 64, 128, 256, 512, 512

Weights = dict[str, np.ndarray]


def random_weights(kind: str) -> Weights:
    """A VGG in all but width, its features as large as its input."""
    rng = np.random.default_rng(5)
    weights: Weights = {}
    c_in = WIDTHS[0]
    for name, block in LAYERS[kind].items():
        c_out = WIDTHS[block]
        weights[f"{name}.weight"] = rng.normal(0, math.sqrt(2 / (9 * c_in)), (c_out, c_in, 3, 3)).astype(np.float16)
        weights[f"{name}.bias"] = rng.normal(0, 0.1, c_out).astype(np.float16)
        c_in = c_out
    return weights


def identity_weights(kind: str) -> Weights:
    """Every convolution passes its three channels on, so that features are the maxima of 16×16 pixels."""
    weights: Weights = {}
    for name in LAYERS[kind]:
        weights[f"{name}.weight"] = np.zeros((3, 3, 3, 3), np.float16)
        weights[f"{name}.weight"][range(3), range(3), 1, 1] = 1
        weights[f"{name}.bias"] = np.zeros(3, np.float16)
    return weights


def write(path: Path, weights: Weights, kind: str) -> Path:
    """As each is published: NumPy's archive, and PyTorch's format of before 2020."""
    with open(path, "wb") as file:
        if kind == "vgg16":
            np.savez(file, **weights)  # type: ignore[arg-type]
        else:
            tensors = {name: torch.from_numpy(array).float() for name, array in weights.items()}
            torch.save({**tensors, "classifier.6.bias": torch.zeros(1000)}, file, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(params=LAYERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def perceptual(kind: str, tmp_path: Path) -> Perceptual:
    return Perceptual(write(tmp_path / "weights", random_weights(kind), kind))


def identity(kind: str, tmp_path: Path) -> Perceptual:
    return Perceptual(write(tmp_path / "identity", identity_weights(kind), kind))


def random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0, 1.3])
def test_faint_is_the_square_of_the_part_of_a_disc_that_is_lost(kept: float) -> None:
    rng = np.random.default_rng(0)
    hr, disc = torch.from_numpy(rng.random((6, 1, 24, 20), np.float32)), torch.zeros(1, 1, 24, 20)
    disc[..., 8:12, 6:10] = 0.03
    hr[-2:] = hr[:2] + disc
    sr = torch.from_numpy(rng.random((6, 1, 24, 20), np.float32))
    sr[-2:] = sr[:2] + kept * disc
    assert faint(sr, hr, 2, (12, 10)).item() == pytest.approx((1 - kept) ** 2, abs=1e-4)
    assert faint(sr, hr[[0, 1, 2, 3, 0, 1]], 2, (12, 10)).item() == 1  # without discs nothing is kept, and nothing fails


def test_a_guess_costs_ln_2_an_answer() -> None:
    guess = torch.zeros(4)
    assert adversarial_generator(guess).item() == pytest.approx(math.log(2))
    assert adversarial_discriminator(guess, guess).item() == pytest.approx(2 * math.log(2))


def test_adversarial_losses_are_their_definition() -> None:
    real, fake = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([-3.0, 1.5, 0.1, 4.0])
    p_real, p_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(adversarial_generator(fake), -p_fake.log().mean())
    torch.testing.assert_close(adversarial_discriminator(real, fake), -p_real.log().mean() - (1 - p_fake).log().mean())


def test_a_sure_discriminator_still_teaches() -> None:
    fake = torch.tensor([-200.0], requires_grad=True)  # its sigmoid is 0 in float32, the logarithm of that infinite
    loss = adversarial_generator(fake)
    loss.backward()
    assert loss.item() == 200  # log(1 + e^200)
    assert fake.grad is not None
    assert fake.grad.item() == -1  # sigmoid(-200) - 1: upwards, towards real


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


def slow_features(weights: Weights, kind: str, image: np.ndarray) -> np.ndarray:
    """VGG by its definition, in float64: (H, W) → (C, H // 16, W // 16)."""
    grey = image.astype(np.float64)
    if kind == "vgg16":  # BGR, 0…255
        x = np.stack([255 * grey - mean for mean in (103.939, 116.779, 123.68)])
    else:  # RGB, standardised
        x = np.stack([(grey - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    layers = LAYERS[kind]
    last = 1
    for n, (name, block) in enumerate(layers.items()):
        if n:
            x = np.maximum(x, 0)
        if block > last:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2).max((2, 4))
            last = block
        weight, bias = weights[f"{name}.weight"].astype(np.float64), weights[f"{name}.bias"].astype(np.float64)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        y = np.empty((len(bias), *x.shape[1:]))
        for o, i, j in np.ndindex(y.shape):
            y[o, i, j] = np.sum(weight[o] * padded[:, i : i + 3, j : j + 3]) + bias[o]
        x = y
    return x / (12.75 if kind == "vgg16" else 1)


def test_features_equal_a_loop_over_pixels(perceptual: Perceptual, kind: str) -> None:
    image = random_image(35, 18)  # neither square nor whole poolings
    expected = slow_features(random_weights(kind), kind, image.numpy())
    actual = perceptual.features(image[None, None])[0].numpy()
    assert actual.shape == expected.shape == (8, 2, 1)
    assert (expected < 0).any()  # before the activation
    # Sums of at most 72 products in float32, 16 layers deep.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_distance_is_the_mean_squared_difference_of_features(perceptual: Perceptual) -> None:
    sr, hr = random_image(2, 1, 33, 50), random_image(2, 1, 33, 50, seed=1)
    difference = perceptual.features(sr) - perceptual.features(hr)
    assert difference.shape == (2, 8, 2, 3)
    torch.testing.assert_close(perceptual(sr, hr), difference.square().mean())
    assert perceptual(sr, hr) > 0
    assert perceptual(hr, hr) == 0


def test_distance_of_images_is_the_losss_whatever_came_before(perceptual: Perceptual) -> None:
    """The evaluation keeps a truth's features; another truth, of the same shape, must not meet them."""
    truths = torch.rand(2, 24, 20).numpy()
    images = torch.rand(3, 24, 20).numpy()
    distance = metrics.vgg(perceptual).of
    for truth in (*truths, truths[0]):
        for image in images:
            sr, hr = (torch.from_numpy(side)[None, None] for side in (image, truth))
            assert distance(truth, image) == pytest.approx(float(perceptual(sr, hr)), rel=1e-6)
        truth += 0.01  # in place: what was kept is a copy


def test_scale_of_the_distance(kind: str, tmp_path: Path) -> None:
    # Features of a constant grey are that grey, in the network's units; 0.6 and 0.9 are above every channel's mean.
    sr, hr = torch.full((1, 1, 16, 16), 0.6), torch.full((1, 1, 16, 16), 0.9)
    variances = (0.229**2, 0.224**2, 0.225**2)
    unit = (255 / 12.75) ** 2 if kind == "vgg16" else sum(1 / v for v in variances) / 3
    assert identity(kind, tmp_path)(sr, hr).item() == pytest.approx(0.3**2 * unit, rel=1e-4)


def test_distance_grows_with_blur(kind: str, tmp_path: Path) -> None:
    perceptual = identity(kind, tmp_path)
    sharp = torch.full((1, 1, 32, 32), 0.5)
    sharp[..., 5::16, 9::16] = 1.0
    images = [sharp]
    binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
    for _ in range(4):
        images.append(F.conv2d(F.pad(images[-1], (1, 1, 1, 1), "replicate"), torch.outer(binomial, binomial)[None, None]))
    # The features are maxima of 16×16 pixels, and a mean over neighbours that are darker lowers a maximum.
    distances = [perceptual(image, sharp).item() for image in images]
    assert distances[0] == 0
    assert all(a < b for a, b in pairwise(distances))


def test_values_beyond_black_and_white_are_clamped(perceptual: Perceptual) -> None:
    image = random_image(1, 1, 16, 16) * 2 - 0.5
    torch.testing.assert_close(perceptual.features(image), perceptual.features(image.clamp(0, 1)), rtol=0, atol=0)


def test_only_the_super_resolved_image_learns(perceptual: Perceptual) -> None:
    sr, hr = random_image(1, 1, 32, 32).requires_grad_(), random_image(1, 1, 32, 32, seed=1).requires_grad_()
    perceptual(sr, hr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().max() > 0
    assert hr.grad is None
    assert not any(p.requires_grad for p in perceptual.parameters())


def test_channels_last_and_bfloat16_autocast(perceptual: Perceptual) -> None:
    sr, hr = random_image(2, 1, 48, 48), random_image(2, 1, 48, 48, seed=1)
    exact = perceptual(sr, hr)
    last: Perceptual = perceptual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sr, hr = (image.contiguous(memory_format=torch.channels_last) for image in (sr, hr))
    torch.testing.assert_close(last(sr, hr), exact, rtol=1e-4, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = last(sr.requires_grad_(), hr)
    rough.backward()
    assert rough.dtype == torch.float32
    assert sr.grad is not None
    assert torch.isfinite(sr.grad).all()
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0)  # up to 16 layers, each rounded to 2^-9


def test_sixteen_pixels_are_the_least(perceptual: Perceptual) -> None:
    assert perceptual.features(torch.rand(1, 1, 16, 31)).shape == (1, 8, 1, 1)
    with pytest.raises(ImageError, match=r"15×40 .* 16×16"):
        perceptual.features(torch.rand(1, 1, 15, 40))


def test_a_file_is_known_by_its_content(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / ("weights.pth" if kind == "vgg16" else "weights.npz"), random_weights(kind), kind)
    assert Perceptual(path).features(torch.rand(1, 1, 16, 16)).shape == (1, 8, 1, 1)


def test_torchs_newer_format_is_read_too(tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in random_weights("vgg19").items()}
    torch.save(tensors, tmp_path / "weights")
    assert Perceptual(tmp_path / "weights").features(torch.rand(1, 1, 16, 16)).shape == (1, 8, 1, 1)


def refusal(path: Path) -> str:
    with pytest.raises(InputFileError) as caught:
        Perceptual(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert all(way in text for way in ("VGG-19", "vgg16_conv_fp16.npz", "perceptual = 0"))
    return text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pth")
    assert "directory" in refusal(tmp_path)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"<html>404</html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file(kind: str, damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "weights", random_weights(kind), kind)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert "damaged" in refusal(path)


def test_a_flipped_bit_in_an_archive(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    if kind == "vgg16":
        write(path, random_weights(kind), kind)
    else:  # torch's newer format, the one with checksums
        torch.save({name: torch.from_numpy(array) for name, array in random_weights(kind).items()}, path)
    path.write_bytes(flipped(path.read_bytes()))
    assert "damaged" in refusal(path)


class Touch:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))])
def test_code_in_a_file_is_not_run(save: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    save({"features.0.weight": Touch(tmp_path / "touched")}, tmp_path / "weights")
    assert "damaged" in refusal(tmp_path / "weights")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("lost", ["block5_conv3.weight", "block1_conv1.bias"])
def test_npz_without_a_layer(lost: str, tmp_path: Path) -> None:
    weights = random_weights("vgg16")
    del weights[lost]
    assert "neither" in refusal(write(tmp_path / "weights", weights, "vgg16"))


def test_another_networks_weights(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "epoch": 3}, tmp_path / "weights")
    assert "neither" in refusal(tmp_path / "weights")
    torch.save(torch.zeros(3), tmp_path / "weights")
    assert "neither" in refusal(tmp_path / "weights")


@pytest.mark.parametrize(
    ("part", "shape"), [("weight", (4, 4, 5, 5)), ("weight", (4, 5, 3, 3)), ("bias", (3,)), ("bias", (4, 1)), ("weight", ())]
)
def test_layers_that_do_not_fit_each_other(kind: str, part: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    second = list(LAYERS[kind])[1]  # (4, 4, 3, 3) and (4,) are right
    weights = {**random_weights(kind), f"{second}.{part}": np.zeros(shape, np.float16)}
    assert f"{second} has shapes" in refusal(write(tmp_path / "weights", weights, kind))

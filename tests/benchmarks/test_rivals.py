from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import public, rivals
from export import build
from tests.conftest import random_generator
from train.generator import Generator, GeneratorConfig
from train.networks import OneScale, OneScaleConfig


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_is_the_network_that_train_has(scale: int) -> None:
    """With the same weights, the same pixels: so the architecture that is timed is the real one."""
    torch.manual_seed(0)
    model = OneScale(OneScaleConfig("edsr", channels=8, blocks=3, residual_scale=0.1, scale=scale, mean=0.0, std=1.0)).eval()
    state = model.state_dict()
    taken = set()

    def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        taken.add(name)
        array: NDArray[np.float32] = state[name].numpy()
        assert array.shape == shape
        return array

    session = ort.InferenceSession(rivals.edsr(scale, 8, 3, weight=weight), providers=["CPUExecutionProvider"])
    image = torch.rand(1, 1, 9, 12)
    with torch.no_grad():
        expected = model(image, (scale, scale)).numpy()
    np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, rtol=0, atol=1e-6)
    assert taken == state.keys()


def test_edsr_has_its_full_size() -> None:
    count = 0

    def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        nonlocal count
        count += int(np.prod(shape))
        return np.zeros(shape, np.float32)

    rivals.edsr(2, weight=weight)
    assert count == 40_720_385  # as train.networks.NAMED["edsr"] has


def test_random_weights_keep_what_passes_in_bounds() -> None:
    """Neither denormal, which would be slow, nor infinite."""
    for content in (rivals.edsr(2, 64, 8), rivals.convolutions(8)):
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        image = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
        assert 1e-3 < np.std(session.run(None, {"image": image})[0]) < 1e3


def test_srgan_is_the_network_that_train_has() -> None:
    torch.manual_seed(0)
    model = OneScale(OneScaleConfig("srgan", channels=8, blocks=2, mean=0.0, std=1.0))
    with torch.no_grad():  # statistics that are not those of a new batch norm
        for _ in range(2):
            model(torch.rand(2, 1, 9, 12), (2, 2))  # type: ignore[arg-type]
    state = {name: array.numpy() for name, array in model.eval().state_dict().items() if "num_batches" not in name}
    taken = set()

    def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        taken.add(name)
        assert state[name].shape == shape
        return state[name]

    session = ort.InferenceSession(rivals.srgan(2, 8, 2, weight=weight), providers=["CPUExecutionProvider"])
    image = torch.rand(1, 1, 9, 12)
    with torch.no_grad():
        expected = model(image, (2, 2)).numpy()  # type: ignore[arg-type]
    np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, rtol=0, atol=1e-6)
    assert taken == state.keys()


@pytest.mark.parametrize("name", ["paper", "edge"])
@pytest.mark.parametrize("scales", [("2", "2"), ("2.1", "3.9"), ("1", "1.7320508075688772")], ids=str)
def test_the_public_formulation_is_the_same_function(name: str, scales: tuple[str, str]) -> None:
    generator = random_generator(name)
    both = (Fraction(scales[0]), Fraction(scales[1]))
    image = torch.rand(11, 14)
    with torch.no_grad():
        expected = generator(image[None, None], both)[0, 0].numpy()
    actual = public.formulation(generator)(image.numpy(), both)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_multiply_adds_of_a_stack_and_of_a_trunk() -> None:
    assert rivals.multiply_adds(rivals.convolutions(11)) == 9 * 64 + 10 * 9 * 64**2
    trunk = build.trunk(Generator(GeneratorConfig(channels=8, blocks=2, head_kernel=5, skip=True, basis=4)), half=False)
    # The head, two convolutions a block and the tail, the basis, and nine that copy a pixel's neighbours.
    assert rivals.multiply_adds(trunk) == 25 * 8 + 5 * 9 * 8**2 + 9 * 8 * 4 + 81

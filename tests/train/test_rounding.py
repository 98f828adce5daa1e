from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export import build, int8
from tests.conftest import random_generator
from train.generator import Generator
from train.rounding import Rounded

SCALES = int8.SCALES[2:3] * 2


@pytest.fixture(scope="module")
def lr() -> NDArray[np.float32]:
    """Six images (6, 1, 20, 24), black 0 and white 1."""
    return np.random.default_rng(0).random((6, 1, 20, 24), np.float32)


@pytest.fixture(scope="module")
def told() -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 0.1, (6, 3)).astype(np.float32)


def rounded(generator: Generator, lr: NDArray[np.float32], told: NDArray[np.float32]) -> Rounded:
    return Rounded(generator).watch([(lr, lr, told, SCALES)])


@pytest.mark.parametrize("name", ["shallow", "told"])
def test_rounding_is_the_exported_graphs(name: str, lr: NDArray[np.float32], told: NDArray[np.float32]) -> None:
    generator = random_generator(name)
    generator.config = config = replace(generator.config, blocks=1)  # of more, differing ties add up
    generator.blocks = generator.blocks[:1]
    network = rounded(generator, lr, told)
    images = ((lr - config.mean) / config.std).astype(np.float32)

    def inputs() -> Iterator[dict[str, NDArray[np.float32]]]:
        for image, its in zip(images, told):
            yield {"image": image[None], "told": its} if config.told else {"image": image[None]}

    graph = onnx.load_from_string(int8.quantise(build.trunk(generator, half=False), inputs()))
    quantisers = {node.output[0]: node for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    # The basis, in float, is convolved with what the last quantiser gives.
    convolved = [node.input for node in graph.graph.node if node.op_type == "Conv"]
    features = next(x for x, weight, *_ in convolved if x in quantisers and weight not in quantisers)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None))
    run = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"]).run
    expected = np.concatenate([run([features], its)[0] for its in inputs()])
    with torch.no_grad():
        actual = network.encode(torch.from_numpy(images), torch.from_numpy(told)).numpy()
        exact = generator.encode(torch.from_numpy(images), torch.from_numpy(told)).numpy()
    low, high = network.get_buffer("ranges")[-1].tolist()
    steps = np.abs(actual - expected) / ((high - low) / 255)
    # Sums in another order, and biases in integers, fall on the other side of a tie now and then.
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < 0.02
    assert np.abs(exact - actual).max() > (high - low) / 255  # rounding does something


def test_gradients_pass_and_the_teacher_stays(lr: NDArray[np.float32], told: NDArray[np.float32]) -> None:
    """Rounding moves an output by little, so its gradients are near those in float."""
    generator = random_generator("told")
    network = rounded(copy.deepcopy(generator), lr, told)
    for each in (generator, network):
        each(torch.from_numpy(lr), SCALES, torch.from_numpy(told)).square().mean().backward()
    for name, parameter in generator.named_parameters():
        gradient = network.get_parameter(name).grad
        if name.startswith(("upscale.predictor.0", "upscale.predictor.2")):
            assert gradient is None, name
            continue
        assert gradient is not None, name
        assert parameter.grad is not None
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), parameter.grad.flatten(), dim=0) > 0.8, name
    assert all(parameter.grad is None for parameter in network.teacher.parameters())


def test_mean_is_half_way_to_the_teacher(lr: NDArray[np.float32], told: NDArray[np.float32]) -> None:
    generator = random_generator("told")
    network = rounded(copy.deepcopy(generator), lr, told)
    with torch.no_grad():
        network.tail.weight.add_(1)
    mean = network.mean_with_teacher(0.5).plain()
    torch.testing.assert_close(mean.tail.weight, generator.tail.weight + 0.5)
    assert torch.equal(mean.head.weight, generator.head.weight)
    assert mean.state_dict().keys() == generator.state_dict().keys()

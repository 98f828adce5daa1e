from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from runtime import Upscaler, bundle
from runtime.bundle import HEAD, Bundle
from runtime.uncertainty import INPUTS, OUTPUTS

if TYPE_CHECKING:  # torch is not there where only the runtime is tested, on a GPU's machine
    from train.generator import Generator

ROOT = Path(__file__).parent.parent
SCAN = ROOT / "examples" / "t1ce_thick.nii.gz"
DATA = ROOT.parent / "shared" / "data"  # more scans, where this machine has them


def run_python(
    code: str, *args: object, status: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in the project's root; it must end with this exit status."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done


def random_generator(name: str) -> Generator:
    """A generator whose every part matters: moved batch statistics, filters and biases that do not start near zero.

    "shallow" is "edge" with few blocks, not told the noise; "told" is told.
    """
    import torch

    from train.generator import CONFIGS, Generator

    torch.manual_seed(7)
    shallow = replace(CONFIGS["edge"], blocks=5, told=name == "told")
    config = CONFIGS.get(name, shallow)
    generator = Generator(config)
    generator.train()
    with torch.no_grad():
        for _ in range(3):
            generator.encode(torch.randn(2, 1, 24, 24))
        if config.skip:
            for parameter in generator.upscale.predictor[2].parameters():
                parameter.mul_(50)
        if config.told:
            for parameter in generator.condition[2].parameters():
                parameter.normal_(std=0.3)
    return generator.eval()


def bundle_of(generator: Generator, half: bool = False) -> Bundle:
    from export.build import build

    model, files = build(generator, half)
    return Bundle.parse(bundle.serialise(model, files, {}), "test bundle")


def with_head(of: Bundle) -> Bundle:
    """The bundle with a random head, whose half widths are some hundredths of white and differ from pixel to pixel."""
    rng = np.random.default_rng(4)
    sizes = of.model.basis + 9 * of.model.skip + INPUTS, 8, 8, OUTPUTS
    layers = [(rng.normal(0, 0.8 / n**0.5, (m, n)), rng.normal(0, 0.3, m)) for n, m in pairwise(sizes)]
    layers[-1][1][0] -= 3
    parts = [bundle.array_bytes(part.astype(np.float32)) for layer in layers for part in layer]
    return Bundle.parse(bundle.serialise(of.model, {**of.files, **dict(zip(HEAD, parts))}, {}), "test bundle")


def without_head(of: Bundle) -> Bundle:
    """The bundle without what tells the uncertainty."""
    files = {name: content for name, content in of.files.items() if name not in HEAD}
    return Bundle.parse(bundle.serialise(of.model, files, {}), "test bundle")


@pytest.fixture(scope="session", params=["paper", "shallow"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return random_generator(request.param)


@pytest.fixture(scope="session")
def random_upscaler(generator: Generator) -> Iterator[Upscaler]:
    """An `Upscaler` of the random generator, in float32."""
    with Upscaler.load(bundle_of(generator)) as up:
        yield up


@pytest.fixture(scope="session")
def linear() -> Iterator[Upscaler]:
    """A model that adds nothing to linear interpolation: what is left is geometry."""
    import torch

    generator = random_generator("shallow")
    with torch.no_grad():
        for parameter in generator.upscale.predictor[2].parameters():
            parameter.zero_()
    with Upscaler.load(bundle_of(generator)) as up:
        yield up


@pytest.fixture(scope="session")
def told() -> Bundle:
    """A bundle that is told the noise, with a trunk in half precision too."""
    return bundle_of(random_generator("told"), half=True)


@pytest.fixture(scope="session")
def shipped() -> Iterator[Upscaler]:
    with Upscaler.load(device="cpu") as up:
        yield up


@pytest.fixture
def head() -> np.ndarray:
    """A slice of 40×53 pixels with structure at every frequency, float32, 0 to 1000."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1:1:40j, -1:1:53j]
    inside = np.hypot(y, x) < 0.9
    return (inside * (500 + 300 * np.sin(12 * x + 5 * y) + 100 * rng.random(y.shape))).astype(np.float32).clip(0, 1000)

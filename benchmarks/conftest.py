from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import measure, report, rows
from runtime import Upscaler, grid
from runtime.intensity import Intensity


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gate", action="store_true", help="time, too, and hold it to its bounds: three to five minutes")
    parser.addoption("--full", action="store_true", help="--gate at all scales, shapes and rivals: some fifteen minutes")
    parser.addoption("--report", type=Path, metavar="FOLDER", help="write what was measured: JSON, a page and a plot")


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    option.gate |= option.full
    unasked = [f"not {name}" for name in ("gate", "full") if not getattr(option, name)]
    option.markexpr = " and ".join([*([f"({option.markexpr})"] if option.markexpr else []), *unasked])


def scales(*short: str) -> list[Any]:
    """All of the paper's scales as parameters; with --full alone those that are not among the `short`."""
    few = set(map(Fraction, short))
    return [pytest.param(r, id=str(r), marks=() if r in few else pytest.mark.full) for r in grid.PAPER_SCALES]


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Iterator[measure.Record]:
    record = measure.Record(full=request.config.getoption("--full"))
    yield record
    folder = request.config.getoption("--report")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", f"{measure.processor()} {measure.machine()['processors']} cores".lower()).strip("-")
        path = folder / f"{name}.json"
        record.write(
            path, "make bench" if record.full else f"python -m pytest benchmarks{' --gate' * request.config.option.gate}"
        )
        report.write(path)


@pytest.fixture(scope="session")
def full(record: measure.Record) -> bool:
    return record.full


@pytest.fixture(scope="session")
def upscaler() -> Iterator[Upscaler]:
    """The shipped bundle on two threads."""
    with Upscaler.load(threads=2) as up:
        yield up


@pytest.fixture(scope="session")
def fast() -> Iterator[Upscaler]:
    with Upscaler.load(rows.BUNDLES["fast, int8"], threads=2) as up:
        yield up


def slice_of(size: int) -> NDArray[np.float32]:
    """A real slice, black 0 and white 1, mirrored at its borders where more is asked for than it has."""
    scan = np.asanyarray(nib.load(rows.ROOT / "examples" / "t1ce_thick.nii.gz").dataobj)
    image = scan[..., 3].astype(np.float32)
    spare = [max(0, size - n) for n in image.shape]
    wide = np.pad(image, [(s // 2, s - s // 2) for s in spare], mode="symmetric")
    top, left = ((n - size) // 2 for n in wide.shape)
    part = np.ascontiguousarray(wide[top : top + size, left : left + size])
    return Intensity.of(part).normalise(part)

"""What headers say of the acquired matrix: DICOM's attributes, and the fields of a BIDS sidecar as dcm2niix writes it.

A header may be missing, or wrong after further resampling, so `runtime.measure` believes a clear spectrum first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .measure import UNKNOWN, Fractions
from .sidecar import read_json

Numbers = Callable[[str, int], Sequence[float] | None]  # so many finite numbers of an attribute, or None


def of_dicom(numbers: Numbers, direction: str, shape: tuple[int, int]) -> Fractions:
    """The acquired parts of a volume's (columns, rows, slices) by a frame's attributes; `shape` is (rows, columns).

    `direction` is InPlanePhaseEncodingDirection. AcquisitionMatrix holds (frequency rows, frequency columns, phase rows, phase
    columns), of which one of each pair is 0. Where the field of view is smaller along the phase and the picture is filled up
    to a square, only that part of it was measured.
    """
    phase_axis = 0 if direction.upper().startswith("COL") else 1  # among (rows, columns)
    matrix = numbers("AcquisitionMatrix", 4)
    if matrix is not None:
        samples = [matrix[0] or matrix[2], matrix[1] or matrix[3]]
        phase_axis = 0 if matrix[2] else 1
    else:
        pair = [numbers(name, 1) for name in ("MRAcquisitionPhaseEncodingStepsInPlane", "MRAcquisitionFrequencyEncodingSteps")]
        found = [value[0] if value else 0.0 for value in pair]
        samples = found if phase_axis == 0 else found[::-1]
    view = list(map(float, shape))
    part = numbers("PercentPhaseFieldOfView", 1)
    if part is not None and 0 < part[0] < 100:
        view[phase_axis] = min(view[phase_axis], shape[1 - phase_axis] * part[0] / 100)
    fractions = [_fraction(n, of) for n, of in zip(samples, view)]
    sampling = numbers("PercentSampling", 1)
    if fractions[phase_axis] is None and direction and sampling is not None:
        fractions[phase_axis] = _fraction(sampling[0], 100)
    slices = numbers("MRAcquisitionPhaseEncodingStepsOutOfPlane", 1)
    partitions = numbers("NumberOfFrames", 1)
    return fractions[1], fractions[0], _fraction(slices[0], partitions[0]) if slices and partitions else None


def beside(path: Path, shape: Sequence[int]) -> Fractions:
    """The acquired parts of a NIfTI volume's array axes by the BIDS sidecar beside it, NAME.json; all None without one."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".nii")
    return of_bids(read_json(path.with_name(f"{path.name[: len(name)]}.json")), shape)


def of_bids(content: Mapping[str, Any], shape: Sequence[int]) -> Fractions:
    """The acquired parts of a volume's array axes by a sidecar's fields."""
    encoded, axis, named = (
        value if isinstance(value := content.get(key), str) else ""
        for key in ("PhaseEncodingDirection", "PhaseEncodingAxis", "InPlanePhaseEncodingDirectionDICOM")
    )
    phase = {"i": 0, "j": 1}.get((encoded or axis)[:1], {"ROW": 0, "COL": 1}.get(named[:3].upper()))
    fractions: list[float | None] = [None, None, None]
    if phase is None or len(shape) < 2:
        return UNKNOWN
    lines, base = _number(content.get("AcquisitionMatrixPE")), _number(content.get("BaseResolution"))
    fractions[phase] = _fraction(lines, _number(content.get("ReconMatrixPE")) or shape[phase])
    if fractions[phase] is None:
        fractions[phase] = _fraction(_number(content.get("PercentSampling")), 100)
    fractions[1 - phase] = _fraction(base, shape[1 - phase])
    return tuple(fractions)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e9 else 0.0


def _fraction(samples: float, of: float) -> float | None:
    """None where a header does not tell, or tells what cannot be used; oversampled axes were measured whole."""
    return min(1.0, samples / of) if samples > 0 and of > 0 and samples / of >= 1 / 8 else None

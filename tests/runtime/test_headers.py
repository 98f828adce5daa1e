from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runtime import headers, measure


def of_dicom(shape: tuple[int, int], direction: str = "", **attributes: Sequence[float]) -> headers.Fractions:
    return headers.of_dicom(lambda name, count: np.array(attributes.get(name, [np.nan] * count), float), direction, shape)


def test_acquisition_matrix_is_read_whichever_axis_is_the_phase() -> None:
    assert of_dicom((512, 512), AcquisitionMatrix=(0, 256, 384, 0)) == (0.5, 0.75, None)  # columns, rows, slices
    assert of_dicom((512, 512), AcquisitionMatrix=(256, 0, 0, 384)) == (0.75, 0.5, None)


def test_smaller_phase_field_of_view_counts_only_where_the_picture_is_filled_up() -> None:
    matrix = (0, 256, 144, 0)
    assert of_dicom((256, 256), AcquisitionMatrix=matrix, PercentPhaseFieldOfView=(75,)) == (1.0, 0.75, None)
    assert of_dicom((192, 256), AcquisitionMatrix=matrix, PercentPhaseFieldOfView=(75,)) == (1.0, 0.75, None)


def test_enhanced_steps_follow_the_phase_direction() -> None:
    steps = {"MRAcquisitionPhaseEncodingStepsInPlane": (192,), "MRAcquisitionFrequencyEncodingSteps": (256,)}
    assert of_dicom((256, 256), "COLUMN", **steps) == (1.0, 0.75, None)
    assert of_dicom((256, 256), "ROW", **steps) == (0.75, 1.0, None)


def test_percent_sampling_serves_without_a_matrix() -> None:
    assert of_dicom((256, 256), "COL", PercentSampling=(80,)) == (None, 0.8, None)


@pytest.mark.parametrize("attributes", [{}, {"AcquisitionMatrix": (0, 0, 0, 0)}, {"AcquisitionMatrix": (0, 4, 4, 0)}])
def test_header_that_tells_nothing_usable_is_unknown(attributes: dict[str, Sequence[float]]) -> None:
    assert of_dicom((256, 256), **attributes) == measure.UNKNOWN


def test_oversampling_is_the_whole_matrix() -> None:
    assert of_dicom((256, 256), AcquisitionMatrix=(0, 512, 256, 0)) == (1.0, 1.0, None)


def test_bids_sidecar_beside_a_volume_is_read(tmp_path: Path) -> None:
    fields = {"PhaseEncodingDirection": "j-", "AcquisitionMatrixPE": 192, "ReconMatrixPE": 256, "BaseResolution": 128}
    (tmp_path / "scan.json").write_text(json.dumps(fields))
    assert headers.beside(tmp_path / "scan.nii.gz", (256, 256, 20)) == (0.5, 0.75, None)
    assert headers.beside(tmp_path / "scan.NII", (256, 256, 20)) == (0.5, 0.75, None)
    assert headers.beside(tmp_path / "other.nii", (256, 256, 20)) == measure.UNKNOWN


@pytest.mark.parametrize(
    "content",
    [
        *("[1]", "{", "[" * 100_000, '{"PhaseEncodingDirection": 3}', '{"AcquisitionMatrixPE": "many"}'),
        '{"PhaseEncodingDirection": "j", "AcquisitionMatrixPE": 1%s}' % ("0" * 400),
    ],
)
def test_sidecar_that_makes_no_sense_is_unknown(tmp_path: Path, content: str) -> None:
    (tmp_path / "scan.json").write_text(content)
    assert headers.beside(tmp_path / "scan.nii", (256, 256, 20)) == measure.UNKNOWN

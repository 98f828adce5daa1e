"""A series from a real Orthanc to `examples/receive.py` and back, over the loopback network."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pip install pydicom")
pytest.importorskip("pynetdicom", reason="pip install pynetdicom")
ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
pytestmark = pytest.mark.skipif(not ORTHANC, reason="Orthanc is not installed: apt-get install orthanc")

ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def eventually(answer: Callable[[], Any], seconds: float = 60) -> Any:
    """What `answer` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := answer():
                return found
        except OSError:
            pass  # nobody listens yet
        time.sleep(0.1)
    raise TimeoutError(f"nothing came within {seconds} s")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Orthanc and the program, each knowing the other; a function that asks Orthanc's REST interface."""
    http, dicom, own = free_ports(3)
    config = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": http,
        "DicomPort": dicom,
        "AuthenticationEnabled": False,
        "DicomModalities": {"upscaler": ["METASRGAN", "127.0.0.1", own]},
        "Plugins": [],
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config))

    def ask(path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", body, timeout=60) as answer:
            content = answer.read()
        return content if path.endswith("/file") else json.loads(content)

    commands = (
        [ORTHANC, str(tmp_path / "orthanc.json")],
        [sys.executable, "examples/receive.py", "2.5", str(own), "127.0.0.1", str(dicom)],
    )
    with open(tmp_path / "log", "wb") as log:
        running = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={"PYTHONPATH": "."}) for command in commands]
        try:
            eventually(lambda: ask("/system"))
            eventually(lambda: socket.create_connection(("127.0.0.1", own)).close() or True)
            yield ask
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def make_slice(k: int) -> bytes:
    slice_ = pydicom.Dataset()
    slice_.file_meta = pydicom.dataset.FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    slice_.SOPClassUID, slice_.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.3.{k + 1}"
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = "1.2.3.91", "1.2.3.92", "1.2.3.93"
    slice_.PatientID, slice_.Modality, slice_.SeriesDescription = "P1", "MR", "T1"
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5 * k]
    slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 5
    slice_.Rows, slice_.Columns, slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 20, 24, 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
    slice_.PixelData = np.random.default_rng(k).integers(0, 4096, (20, 24), np.uint16).tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, slice_, enforce_file_format=True)
    return stream.getvalue()


def test_series_goes_out_and_comes_back_larger(network: Callable[..., Any]) -> None:
    for k in range(3):
        stored = network("/instances", make_slice(k))
    network("/modalities/upscaler/store", stored["ParentSeries"].encode())

    def came_back() -> Any:
        instances = network("/instances?expand")
        derived = [one["ID"] for one in instances if one["ParentSeries"] != stored["ParentSeries"]]
        return derived if len(derived) == 3 else None

    slices = [pydicom.dcmread(io.BytesIO(network(f"/instances/{one}/file"))) for one in eventually(came_back)]
    assert {slice_.pixel_array.shape for slice_ in slices} == {(50, 60)}  # ×2.5
    assert {slice_.StudyInstanceUID for slice_ in slices} == {"1.2.3.91"}
    assert {slice_.SeriesDescription for slice_ in slices} == {"T1 metasrgan-edge x2.5"}
    assert {float(slice_.ImagePositionPatient[2]) for slice_ in slices} == {0, 5, 10}

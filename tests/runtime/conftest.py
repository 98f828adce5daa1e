from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import cohort
from runtime.dicom import read, usable
from runtime.dicom import series as series_module
from runtime.job import Request
from runtime.scan import Scan
from runtime.viewer.opened import Opened
from runtime.viewer.server import Server


@dataclass
class FakeSeries:
    shape: tuple[int, int, int]
    problem: str = ""
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ("a note",)
    doubt: str = ""

    def volume(self) -> Scan:
        columns, rows, slices = self.shape[1], self.shape[0], self.shape[2]
        data = np.arange(columns * rows * slices).reshape(columns, rows, slices).astype(np.int16)
        notes = (f"it {self.doubt}", *self.notes) if self.doubt else self.notes
        return Scan(data, (0.8, 0.8, 3), np.diag([0.8, 0.8, 3.0, 1.0]), header=self, notes=notes)


@pytest.fixture
def dicom(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """What stands in for `runtime.dicom`: two series and a localizer, and a `save` that keeps what it is told."""
    found = [FakeSeries((8, 9, 3)), FakeSeries((6, 6, 1), "is a localizer"), FakeSeries((10, 9, 4))]
    saved: list[dict[str, Any]] = []

    def save(folder: Path, series: FakeSeries, image: Any, **options: Any) -> None:
        saved.append({"series": series, "image": image, **options})
        folder.mkdir(exist_ok=options["overwrite"])
        (folder / "0001.dcm").write_bytes(image.pixels.tobytes())
        options["first"](folder)

    monkeypatch.setattr(series_module, "find_series", lambda path: found)
    some: dict[str, Any] = {"find_series": lambda path: found, "read": read, "usable": usable, "save": save}
    module = types.SimpleNamespace(**some, found=found, saved=saved)
    monkeypatch.setitem(sys.modules, "runtime.dicom", module)
    monkeypatch.setattr(cohort, "in_processes", here)  # another process would see the true module
    return module


def here(computer: cohort.Computer, request: Request, workers: int) -> cohort.Work:
    """`cohort.in_processes` in this process."""
    return lambda tasks: (cohort.attempt(computer, task, request) for task in tasks)


@contextmanager
def serving(opened: Opened) -> Iterator[Server]:
    """A viewer's server that answers in a thread of its own."""
    with Server(opened) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

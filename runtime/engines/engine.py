"""What an engine is, and what those of one device do alike: turns of threads, half precision that overflows, being closed."""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import grid
from ..acquired import NOTHING, Float, Told
from ..bundle import Bundle
from ..errors import ClosedError, DeviceError, ImageError
from ..grid import Span
from ..intensity import Intensity

log = logging.getLogger(__name__)

CLOSED = "this Upscaler is closed: load it again"


@dataclass
class Features:
    """An image's features, wherever the engine keeps them, and what they were made of."""

    value: Any
    image: Any  # standardised; kept with features in half precision alone
    told: Told
    half: bool


class Engine(ABC):
    """A loaded bundle. Threads may share it."""

    device: str  # of DEVICES, but not auto
    runs_on: str  # for a person: library, version, precision, processor
    in_flight = 2  # slices of a volume at once: one is prepared while the device computes the other

    @abstractmethod
    def encode(self, image: Any, levels: Intensity, told: Told = NOTHING) -> Any:
        """An image (H, W) in grey values → its features.

        `told` is what `acquired.Acquired.told` says of it; a model that is not told ignores it.
        """

    @abstractmethod
    def render(self, features: Any, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Any) -> None:
        """Write the pixels rows × cols, in grey values within the range of `levels`, to `out`, float32.

        Raises DeviceError where they are not finite.
        """

    @abstractmethod
    def responses(self, features: Any) -> Float:
        """Features as (H·W, B') on the host."""

    def on_arrays(self) -> Any:
        """The `NativeEngine` for arrays in a GPU's memory. Raises ImageError where this engine takes none."""
        computes = f"{self.device} ({self.runs_on}) computes"  # which may be an ensemble
        raise ImageError(f"the image is in a GPU's memory, and {computes}: copy it to the host, or load cuda or tensorrt alone")

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds. Harmless when repeated."""


class DeviceEngine(Engine):
    """An engine of one device, on which threads take turns.

    Where half precision overflows, the image is computed once more in float32, and a warning says so.
    """

    def __init__(self, bundle: Bundle, half: bool) -> None:
        """With `half`, the trunk computes in half precision."""
        self._bundle, self._model, self._predictor, self._half = bundle, bundle.model, bundle.predictor(), half
        self._turn: contextlib.AbstractContextManager[Any] = threading.RLock()
        self._closed = False

    def encode(self, image: Any, levels: Intensity, told: Told = NOTHING) -> Any:
        """As any engine does."""
        told, standard = told if self._model.told else NOTHING, self._standardise(image, levels)
        with self.working():
            value = self._features(standard, told, self._half)
            return Features(value, standard if self._half else None, told, self._half)

    def render(self, features: Any, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Any) -> None:
        """As any engine does."""
        with self.working():
            while not self._render(features.value, rows, cols, scales, levels, out):
                if not features.half:
                    repair = "use device 'cpu', or export the bundle again"
                    raise DeviceError(f"{self.runs_on}: the result is not finite", repair)
                log.warning("half precision overflowed: this image is computed again in float32")
                features.value, features.half = self._features(features.image, features.told, half=False), False

    def close(self) -> None:
        """Give back what the engine holds. Harmless when repeated."""
        with self._turn:
            if not self._closed:
                self._release()
            self._closed = True

    @contextlib.contextmanager
    def working(self) -> Iterator[Any]:
        """This thread's turn. Raises ClosedError."""
        with self._turn:
            if self._closed:
                raise ClosedError(CLOSED)
            yield

    @abstractmethod
    def _standardise(self, image: Any, levels: Intensity) -> Any:
        """Grey values (H, W) → what the trunk is fed."""

    @abstractmethod
    def _features(self, standard: Any, told: Told, half: bool) -> Any:
        """The features of a standardised image."""

    @abstractmethod
    def _render(self, value: Any, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: Any) -> bool:
        """Write the pixels; whether all of them are finite."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the device."""

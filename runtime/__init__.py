"""Upscale brain-MR slices and volumes to any size on a clinic's own machine.

    from runtime import Upscaler
    with Upscaler.load() as up:
        sr = up(slice_, scale=2.5)

Importing this package changes nothing process-wide and brings neither torch nor onnx.
"""

from .errors import (
    BundleError,
    ClosedError,
    DeviceError,
    DeviceMemoryError,
    ImageError,
    InputFileError,
    MetasrganError,
    OutputFileError,
    ScaleError,
)
from .upscaler import Upscaler, View

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "ClosedError",
    "DeviceError",
    "DeviceMemoryError",
    "ImageError",
    "InputFileError",
    "MetasrganError",
    "OutputFileError",
    "ScaleError",
    "Upscaler",
    "View",
]

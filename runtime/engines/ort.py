"""ONNX Runtime: which of its packages is here, and its CUDA and TensorRT providers as a trunk on the GPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, DeviceMemoryError, reason

if TYPE_CHECKING:
    from .cuda import Array, Device

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # with one import name: the last one installed wins, to remove one breaks both
INSTALL = "pip install onnxruntime, or onnxruntime-gpu for an NVIDIA GPU"
REPAIRS = {
    "cuda": "pip install 'onnxruntime-gpu[cuda,cudnn]'",  # CUDA's and cuDNN's libraries, where the system has none that fit
    "tensorrt": "pip install tensorrt-rtx",
}
REINSTALL = f"pip uninstall onnxruntime onnxruntime-gpu, then {INSTALL}"


def load_onnxruntime() -> Any:
    """The module. Raises DeviceError where there is none, and where two packages have damaged each other."""
    try:
        import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018  a broken mix leaves an empty module
        return onnxruntime
    except (ImportError, AttributeError) as error:
        here = installed()
        damaged = isinstance(error, AttributeError) or here
    if not damaged:
        raise DeviceError("onnxruntime is not installed", INSTALL)
    raise DeviceError(f"onnxruntime is damaged: {_mix(here)}", REINSTALL)


def _mix(here: list[str]) -> str:
    if len(here) > 1:
        return f"{' and '.join(here)} share its files"
    return "onnxruntime and onnxruntime-gpu share its files, and one of them was removed"


def installed() -> list[str]:
    """Those of ONNX Runtime's packages that pip knows of."""
    return [name for name in PACKAGES if version_of(name)]


def version_of(package: str) -> str:
    """The version that pip knows of a package, or nothing."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def check_provider(name: str) -> str:
    """ONNX Runtime's version and the provider for cuda or tensorrt. Raises DeviceError where that cannot be loaded."""
    ort, provider = load_onnxruntime(), PROVIDERS[name]
    what = f"onnxruntime {ort.__version__}"
    if provider not in ort.get_available_providers():
        here = " and ".join(installed()) or "a package that pip does not know"
        raise DeviceError(f"{what}, by {here}, has no {provider}", REINSTALL)
    if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN may have come by pip
        ort.preload_dlls()
    if missing := _missing_library(Path(ort.__file__).parent / "capi", name):
        raise DeviceError(f"{what} cannot load its {provider}: {missing}", REPAIRS[name])
    return f"{what} {provider}"


def _missing_library(folder: Path, name: str) -> str:
    """What the system's loader says is missing for a provider, such as libcudnn.so.9; nothing where nothing is."""
    if sys.platform != "linux":
        return ""
    import ctypes

    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return reason(error)
    return ""


class OnnxTrunk:
    """A trunk's session whose inputs and output stay in device memory. Parts in the constructor, `load` builds them."""

    def __init__(self, device: Device, session: Any, half: bool, runs_on: str) -> None:
        self.half, self.runs_on = half, runs_on
        self._device, self._session = device, session
        self._run_options = load_onnxruntime().RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # all is on one stream

    @classmethod
    def load(cls, device: Device, graph: bytes, half: bool, name: str, settings: Mapping[str, str]) -> OnnxTrunk:
        """A graph on the provider for cuda or tensorrt, with its settings. Raises DeviceError unless all of it runs there."""
        what, provider = check_provider(name), PROVIDERS[name]
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        stream = {"user_compute_stream": str(device.stream)}
        try:
            with device.borrowed():
                session = ort.InferenceSession(graph, options, providers=[(provider, stream | dict(settings))])
        except Exception as error:  # ONNX Runtime has no base class for its own
            raise _failure(f"{what} does not work here", error) from error
        if session.get_providers()[0] != provider:  # it falls back with a line in its log only
            raise DeviceError(f"{what} is there, but was not used", "metasrgan doctor")
        return cls(device, session, half, f"{what}, {'float16' if half else 'float32'}")

    def run(self, image: Array, told: Array | None, responses: Array) -> None:
        binding = self._session.io_binding()
        where = self._device.kind, 0
        binding.bind_input("image", *where, image.dtype.type, [1, 1, *image.shape], image.pointer)
        if told is not None:
            binding.bind_input("told", *where, told.dtype.type, [*told.shape], told.pointer)
        binding.bind_output("responses", *where, responses.dtype.type, [1, *responses.shape], responses.pointer)
        with self._device.borrowed():
            try:
                self._session.run_with_iobinding(binding, self._run_options)
            except Exception as error:
                raise _failure(self.runs_on, error) from error

    def close(self) -> None:
        self._session = None


def cuda_settings() -> dict[str, str]:
    # TF32 would keep ten bits of a product; a search for the fastest convolution would be repeated for each new shape.
    return {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}


def tensorrt_settings(half: bool, largest: int, cache: Path) -> dict[str, str]:
    """One engine for all shapes up to `largest`, kept in the folder `cache`, which must be this graph's alone: the provider
    names its files by a graph's structure, not by its weights."""
    usual = min(256, largest)
    shapes = {"min": 1, "opt": usual, "max": largest}
    return {
        "trt_fp16_enable": str(int(half)),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        **{f"trt_profile_{which}_shapes": f"image:1x1x{size}x{size}" for which, size in shapes.items()},
    }


def _failure(what: str, error: Exception) -> DeviceError:
    return (DeviceMemoryError if out_of_memory(error) else DeviceError)(f"{what}: {reason(error)}")


def out_of_memory(error: Exception) -> bool:
    """Whether memory is what ONNX Runtime, which has no type for it, could not get."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in ("memory", "bad_alloc"))

"""ONNX Runtime: its package, its devices, which are rows of the table `DEVICES`, and graphs that run on them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module, metadata
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from ..bundle import GRAPHS
from ..errors import BundleError, DeviceError, DeviceMemoryError, reason
from . import graphs
from .cuda import Array

log = logging.getLogger(__name__)

Run = Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]]

PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # with one import name: the last one installed wins, to remove one breaks both
INSTALL = "pip install onnxruntime, or onnxruntime-gpu for an NVIDIA GPU"
REINSTALL = f"pip uninstall onnxruntime onnxruntime-gpu, then {INSTALL}"
_OUT_OF_MEMORY = ("failed to allocate", "out of memory", "out of device memory", "bad_alloc", "alloc_failed")
_SILENT = "ORT_DISABLE_TELEMETRY"
_registering, _importing = threading.Lock(), threading.Lock()


@dataclass(frozen=True)
class Device:
    """What ONNX Runtime must know of a device."""

    provider: str
    memory: str  # what it calls the device's memory
    repair: str = ""
    half: bool = False  # whether half precision is exact enough, and faster
    options: Mapping[str, str] = field(default_factory=dict)


DEVICES = {
    "cpu": Device("CPUExecutionProvider", "cpu"),
    "openvino": Device("CPUExecutionProvider", "cpu"),  # but for the trunk
    "gpu": Device("WebGpuExecutionProvider", "webgpu", "pip install onnxruntime-ep-webgpu, or use device 'cpu'"),
    "cuda": Device(
        "CUDAExecutionProvider",
        "cuda",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",  # CUDA's and cuDNN's libraries, where the system has none that fit
        half=True,
        # TF32 would keep ten bits of a product; a search for the fastest convolution would be repeated for each new shape.
        options={"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1"}
        | {"arena_extend_strategy": "kSameAsRequested"},
    ),
}


class Opener:
    """Opens graphs on a device. Raises DeviceError where the device is not there, with what is missing."""

    def __init__(self, name: str, threads: int | None) -> None:
        self._ort, self._device = load_onnxruntime(), DEVICES[name]
        self._name, self.memory = name, self._device.memory
        self.library, self.processor, self.threads = f"onnxruntime {self._ort.__version__}", "", 1
        self._adapter: Any = None
        if self.memory == "cpu":
            self.threads = threads or available_processors()
            _check_threads(self.threads * len(GRAPHS) if self.threads > 1 else 0)
            np.linalg.inv(np.eye(2))  # OpenBLAS takes its memory now: where it gets none later, it ends the process
        if name == "gpu":
            self._adapter = adapter()
            self.library += f" WebGPU {version_of('onnxruntime-ep-webgpu')}"
            self.processor = processor(self._adapter)
        if name == "cuda":
            if self._device.provider not in self._ort.get_available_providers():
                here = " and ".join(installed()) or "a package that pip does not know"
                raise Absent(f"{self.library}, by {here}, has no {self._device.provider}", REINSTALL)
            self.library += " CUDA"
            _preload(self._ort)

    def open(self, graph: bytes, wholly: bool = True, threads: int | None = None) -> Run:
        """A graph to `_run`, `wholly` on the device."""
        options, provider = self._ort.SessionOptions(), self._device.provider
        options.intra_op_num_threads, options.inter_op_num_threads = threads or self.threads, 1
        # A plan for the memory of each shape would be kept for ever, and takes half as much again: 62 MB of 180 at 240×240.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong is raised
        # The sessions take turns: threads of one that spin after their work would slow the next one down twofold.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if wholly and self.memory != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        chosen: dict[str, Any] = {"providers": [(provider, dict(self._device.options))]}
        if self._adapter is not None:
            options.add_provider_for_devices([self._adapter], dict(self._device.options))
            chosen = {}
        try:  # without its own second try on the CPU, of which it would say so on stdout alone
            session = self._ort.InferenceSession(graph, options, **chosen, enable_fallback=0)
            if session.get_providers()[0] != provider:
                raise RuntimeError(f"{provider} was not used")
            return partial(self._run, session)
        except Exception as error:
            failure = self.failure(error)
            if isinstance(failure, DeviceMemoryError):
                raise failure from error
            if self._name == "cpu":
                raise BundleError(f"{self.library} cannot run this bundle ({reason(error)}): update it") from error
            raise DeviceError(f"{self.library} does not work here: {self._cause(error)}", self._device.repair) from error

    def _run(self, session: Any, feeds: Mapping[str, Any], outputs: Mapping[str, Any]) -> list[Any]:
        """Inputs are arrays of the host or the GPU, or values; outputs go into arrays, or to a memory by its name.

        Returns the outputs as values, finished. Raises DeviceError.
        """
        try:
            binding = session.io_binding()
            inputs = feeds, binding.bind_input, binding.bind_ortvalue_input
            for side, bind_pointer, bind_value in (inputs, (outputs, binding.bind_output, binding.bind_ortvalue_output)):
                for name, value in side.items():
                    if isinstance(value, str):
                        binding.bind_output(name, value, 0)
                    elif isinstance(value, Array):
                        bind_pointer(name, self.memory, 0, value.dtype, value.shape, value.pointer)
                    else:
                        bind_value(name, self.value(value) if isinstance(value, np.ndarray) else value)
            session.run_with_iobinding(binding)
            values: list[Any] = binding.get_outputs()
            return values
        except Exception as error:  # ONNX Runtime has no base class for its own
            raise self.failure(error) from error

    def value(self, array: Any, memory: str = "cpu") -> Any:
        """An array of the host as ONNX Runtime has it: the same memory there, a copy elsewhere."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), memory, 0)

    def failure(self, error: Exception) -> DeviceError:
        """What ONNX Runtime raised as one of our own. It has no type for memory that it could not get, but words."""
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return DeviceError(f"{self.library}: {reason(error)}")
        if self.memory == "cpu":
            repair = "free some, or give fewer threads or workers"
            return DeviceMemoryError("there is too little memory for the network", repair)
        return DeviceMemoryError("the GPU has too little memory for the network", "free some, or give smaller tiles")

    def _cause(self, error: Exception) -> str:
        """Why a provider did not load: ONNX Runtime says so in its log alone, so that another process is asked for it."""
        code = "import sys, onnxruntime as o; o.InferenceSession(bytes.fromhex(sys.argv[1]), providers=[sys.argv[2]])"
        command = [sys.executable, "-c", code, graphs.PROBE.hex(), self._device.provider]
        options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "timeout": 60}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(command, env=os.environ | {_SILENT: "1"}, **options).stderr
            if found := re.search(r"with error: ([^\n\x1b]+)", said):
                return found[1]
        return reason(error)


class Absent(DeviceError):
    """A device that this machine has not, or whose package is not installed: no fault, unless it was asked for by name."""


def adapter() -> Any:
    """The adapter that WebGPU would compute on: hardware before software. Raises DeviceError where there is none."""
    ort = load_onnxruntime()
    try:
        plugin = import_module("onnxruntime_ep_webgpu")
    except ImportError:
        raise Absent("onnxruntime-ep-webgpu is not installed", DEVICES["gpu"].repair) from None
    if not hasattr(ort, "register_execution_provider_library"):
        raise DeviceError(f"onnxruntime {ort.__version__} takes no plug-ins", "pip install 'onnxruntime>=1.31'")

    def adapters() -> list[Any]:
        return [one for one in ort.get_ep_devices() if one.ep_name == plugin.get_ep_name()]

    try:
        with _registering:
            if not adapters():
                _register(plugin.get_ep_name(), plugin.get_library_path())
        found = adapters()
    except Exception as error:
        what = f"onnxruntime-ep-webgpu {version_of('onnxruntime-ep-webgpu')} does not load"
        raise DeviceError(f"{what} into onnxruntime {ort.__version__}: {reason(error)}", "update both") from error
    if not found:
        repair = "install its driver, or use device 'cpu'"
        raise Absent("there is no GPU with a driver for Vulkan, Direct3D 12 or Metal", repair)
    return min(found, key=lambda one: not is_hardware(one))


@lru_cache
def _register(name: str, library: str) -> None:
    """Load a plug-in, once: to load it twice crashes the process."""
    load_onnxruntime().register_execution_provider_library(name, library)


def is_hardware(adapter: Any) -> bool:
    """Whether an adapter is a GPU, and no program that does as if."""
    return str(adapter.device.type).endswith("GPU")


def processor(adapter: Any) -> str:
    """An adapter's name, for a person."""
    device = adapter.device
    name = dict(device.metadata).get("Description") or f"GPU {device.device_id:#06x} of {device.vendor or 'an unknown vendor'}"
    return name if is_hardware(adapter) else "a software adapter"


def load_onnxruntime() -> Any:
    """The module, which from 1.29 on reports its use over the network, unless a variable is set when it is imported first.

    Raises DeviceError where there is none, and where two packages have damaged each other.
    """
    with _importing:
        before = os.environ.get(_SILENT)
        os.environ[_SILENT] = "1"
        try:
            import onnxruntime

            onnxruntime.InferenceSession  # noqa: B018  a broken mix leaves an empty module
            return onnxruntime
        except (ImportError, AttributeError) as error:
            here = installed()
            if isinstance(error, ImportError) and not here:
                raise DeviceError("onnxruntime is not installed", INSTALL) from None
        finally:
            del os.environ[_SILENT]
            os.environ.update({_SILENT: before} if before is not None else {})
    removed = "" if len(here) > 1 else ", and one of them was removed"
    raise DeviceError(f"onnxruntime is damaged: {' and '.join(PACKAGES)} share its files{removed}", REINSTALL)


def installed() -> list[str]:
    """Those of ONNX Runtime's packages that pip knows of."""
    return [name for name in PACKAGES if version_of(name)]


def version_of(package: str) -> str:
    """The version that pip knows of a package, or nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _preload(ort: Any) -> None:
    """Load CUDA and cuDNN where they came by pip. What ONNX Runtime prints of it goes to the log."""
    if load := getattr(ort, "preload_dlls", None):
        quiet = vars(ort) | {"print": lambda *said: log.debug("onnxruntime: %s", " ".join(map(str, said)))}
        FunctionType(load.__code__, quiet, argdefs=load.__defaults__)()


def _check_threads(count: int) -> None:
    """Raise DeviceMemoryError where so many threads cannot be started: ONNX Runtime would wait for ever for those it has."""
    ready = threading.Event()
    with ThreadPoolExecutor(count or 1) as pool:
        try:
            for _ in range(count):
                pool.submit(ready.wait)
        except (RuntimeError, MemoryError):
            raise DeviceMemoryError(f"this process may not start {count} threads", "give fewer, or raise its limits") from None
        finally:
            ready.set()


def available_processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may use: those of its affinity mask, and no more than a container's share of time allows."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or one without a limit: "max 100000"
        return count

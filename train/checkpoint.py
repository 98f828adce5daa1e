"""Checkpoints: plain tensors, numbers and text in one file, which load without running code and rebuild their model."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from runtime.errors import InputFileError, reason
from runtime.files import write_atomically

from . import networks
from .generator import Generator

FORMAT = "metasrgan-edge checkpoint 1"
# What reading a file that is damaged, or something else, may raise.
_DAMAGE = (RuntimeError, ValueError, TypeError, LookupError, EOFError, zlib.error, pickle.UnpicklingError, zipfile.BadZipFile)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    buffer = io.BytesIO()  # torch's own writer answers a full disk with an internal error
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getvalue(), overwrite=True)


def read(path: Path, advice: str) -> Any:
    """The content of a PyTorch file, or the arrays of a .npz as tensors; neither runs code from it. Raises InputFileError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch itself does not look at the checksums
                    raise ValueError("a checksum differs")
                is_npz = all(name.endswith(".npy") for name in archive.namelist())
            if is_npz:
                with np.load(path) as arrays:
                    return {name: torch.from_numpy(array) for name, array in arrays.items()}
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputFileError(f"{path} does not exist: {advice}") from None
    except OSError as error:
        raise InputFileError(f"{path} cannot be read ({error.strerror or reason(error)}): {advice}") from None
    except _DAMAGE:  # whose own words advise to trust the file
        raise InputFileError(f"{path} is damaged, or no file of weights: {advice}") from None


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU. Raises InputFileError for what is missing, damaged or of another kind."""
    content = read(path, "copy it again, or give a checkpoint such as runs/first/best.pt")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputFileError(f"{path} is no checkpoint of this project: make one with `metasrgan train`")
    return content


def load_network(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint, in evaluation mode, and the checkpoint's content. Raises InputFileError as `load` does,
    and where the weights do not fit the configuration that lies beside them.
    """
    content = load(path)
    try:
        network = networks.build(networks.configure(content["generator"]))
        network.load_state_dict(content["weights"])
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise InputFileError(
            f"{path}: its weights and its configuration do not fit this release ({reason(error)}): train it again"
        ) from None
    return network.eval(), content


def load_generator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """The same for a generator with a Meta-Upscale stage: InputFileError for any other network."""
    network, content = load_network(path)
    if not isinstance(network, Generator):
        raise InputFileError(f"{path} holds a network for one scale only: give a checkpoint of a meta generator")
    return network, content

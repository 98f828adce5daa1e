from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from runtime import InputFileError, MetasrganError
from train import checkpoint
from train.generator import CONFIGS, Generator


def test_checkpoint_that_is_none_is_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    checkpoint.save(bad, {"weights": Generator(CONFIGS["edge"]).state_dict()})
    flipped = bytearray(bad.read_bytes())
    flipped[len(flipped) // 2] ^= 0x10  # torch loads a damaged weight without a word; its container's checksum knows
    for content in (b"", b"nonsense", b"PK\x03\x04 half a zip", bytes(flipped)):
        bad.write_bytes(content)
        with pytest.raises(InputFileError, match="is damaged, or no file of weights"):
            checkpoint.load(bad)
    torch.save({"weights": {}}, bad)
    with pytest.raises(InputFileError, match="no checkpoint of this project"):
        checkpoint.load(bad)
    with pytest.raises(InputFileError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pt")


def test_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"format": checkpoint.FORMAT, "weights": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputFileError):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    small = Generator(replace(CONFIGS["edge"], channels=8))
    path = tmp_path / "mixed.pt"
    checkpoint.save(path, {"generator": asdict(CONFIGS["edge"]), "weights": small.state_dict()})
    with pytest.raises(MetasrganError, match="do not fit"):
        checkpoint.load_generator(path)
    checkpoint.save(path, {"generator": {"colour": 1}, "weights": {}})
    with pytest.raises(MetasrganError, match="colour"):
        checkpoint.load_generator(path)

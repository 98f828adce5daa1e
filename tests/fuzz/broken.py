"""A product that breaks every rule, each at an input that has the rule's name."""

from __future__ import annotations

import os
import pickle
import time

import numpy as np

from runtime import InputFileError, Upscaler, job

from .seeds import Case

FAULTS = {
    "raises": "raised",
    "prints": "printed",
    "hangs": "hung",
    "aborts": "died (-6)",
    "hoards": "memory",
    "starves": "memory",
    "chatters": "line",
    "leaves": "files",
    "replaces": "files",
    "forgets": "sidecar",
    "unpickles": "side effect",
    "writes elsewhere": "side effect",
    "refuses": "refused",
}
CASES = [Case(name, {f"in/{name}.npy": b""}, f"in/{name}.npy", "out/a.npy") for name in FAULTS]


class _Chatter(InputFileError):
    def __str__(self) -> str:
        return "two\nlines"


def run(upscaler: Upscaler, task: job.Task, request: job.Request) -> job.Result:
    match task.source.stem:
        case "raises":
            raise ValueError("not of ours")
        case "prints":
            os.write(2, b"libtiff: a warning\n")
        case "hangs":
            time.sleep(60)
        case "aborts":
            os.abort()
        case "hoards":
            np.empty(3 << 29, np.uint8)
        case "starves":
            try:
                np.empty(1 << 40, np.uint8)
            except MemoryError:
                raise InputFileError("the file is damaged") from None
        case "chatters":
            raise _Chatter()
        case "leaves":
            task.output.with_name(".half.part").touch()
        case "replaces":
            task.source.write_bytes(b"other")
        case "forgets":
            task.output.touch()
            task.output.with_name(f"{task.output.name}.json").write_text('{"output": {"sha256": null}}')
            return job.Result(task, "done")
        case "unpickles":
            pickle.loads(pickle.dumps(InputFileError))
        case "writes elsewhere":
            open(os.devnull, "w").close()
    raise InputFileError("the file is damaged")

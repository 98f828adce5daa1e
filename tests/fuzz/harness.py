"""Runs inputs in processes of their own, and says of each whether the product kept the rules of SECURITY.md.

A process that crashes or hangs is replaced, and the input that it had at that time is the one that did it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import math
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from runtime import MetasrganError, Upscaler, job
from runtime.bundle import Bundle
from runtime.errors import DeviceMemoryError

from . import mutate
from .seeds import Case

Run = Callable[[Upscaler, job.Task, job.Request], job.Result]

SECONDS = 10.0  # that an input may take
PEAK = 1 << 30  # bytes of memory that it may ask for, beyond its output
LONGEST = 400  # characters of an error's line
_ROOM = 4 << 30  # bytes, beyond which the system refuses
_WORN = 3  # exit status of a worker whose peak of memory no longer tells anything
_SCRATCH = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect", "pickle.find_class"}


@dataclass(frozen=True)
class Outcome:
    """What became of an input: finished, refused, or the rule that was broken, with where and what was said."""

    number: int
    format: str
    verdict: str
    where: str = ""
    said: str = ""

    @property
    def is_fault(self) -> bool:
        return self.verdict not in ("finished", "refused")


class _Fault(Exception):
    def __init__(self, verdict: str, said: str, where: str = "") -> None:
        super().__init__(verdict, where, said)


def outcomes(
    numbers: range,
    seeds: Sequence[Case],
    seed: int,
    network: bytes,
    jobs: int = 1,
    run: Run = job.run,
    seconds: float = SECONDS,
) -> Iterator[Outcome]:
    """Try these inputs of the run `seed`, in any order."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Any, tuple[Any, range, Path]] = {}
    with tempfile.TemporaryDirectory(dir=_SCRATCH, prefix="fuzz") as scratch:

        def start(share: range, folder: Path) -> None:
            here, there = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(there, share, seeds, seed, network, folder, run, seconds), daemon=True
            )
            process.start()
            there.close()
            if here.recv() != "ready":
                raise RuntimeError("a worker could not start")
            workers[here] = process, share, folder

        for k in range(jobs):
            start(numbers[k::jobs], Path(scratch, str(k)))
        while workers:
            for connection in wait(list(workers)):
                process, share, folder = workers[connection]  # type: ignore[index]
                try:
                    outcome = connection.recv()  # type: ignore[union-attr]
                    workers[connection] = process, share[1:], folder  # type: ignore[index]
                    yield outcome
                except EOFError:
                    process.join()
                    del workers[connection]  # type: ignore[arg-type]
                    if share and process.exitcode != _WORN:
                        log = folder.with_suffix(".log").read_text(errors="replace")
                        verdict = "hung" if log.startswith("Timeout") else f"died ({process.exitcode})"
                        frames = re.findall(r'File ".*?([^/"]+/[^/"]+)", line (\d+) in (\S+)', log)
                        where = " < ".join(f"{file}:{line} {name}" for file, line, name in frames[:4])
                        said = folder.with_suffix(".said").read_text(errors="replace")[-LONGEST:]
                        yield Outcome(share[0], mutate.case(seeds, seed, share[0]).format, verdict, where, said)
                        share = share[1:]
                    if share:
                        start(share, folder)


def _work(
    connection: Connection,
    share: range,
    seeds: Sequence[Case],
    seed: int,
    network: bytes,
    folder: Path,
    run: Run,
    seconds: float,
) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # as the command does
    warnings.simplefilter("always")  # or only the first of a kind would be seen
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    with open(folder.with_suffix(".log"), "w+") as log:
        room = _Room(folder, network, run)
        faulthandler.enable(log)
        connection.send("ready")
        for number in share:
            case = mutate.case(seeds, seed, number)
            faulthandler.dump_traceback_later(seconds, exit=True, file=log)
            verdict = room.verdict(case)
            faulthandler.cancel_dump_traceback_later()
            connection.send(Outcome(number, case.format, *verdict))
            if verdict[0] == "memory":
                os._exit(_WORN)


class _Room:
    """A folder in which one input after another is tried, and this process, whose standard output and error go to a file."""

    def __init__(self, folder: Path, network: bytes, run: Run) -> None:
        self._folder, self._run = folder, run
        self._upscaler = Upscaler.load(Bundle.parse(network, "tiny"), device="cpu", threads=1)
        tempfile.tempdir = str(folder / "tmp")
        self._said = os.open(folder.with_suffix(".said"), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(self._said, 1)
        os.dup2(self._said, 2)
        self._events: list[str] = []
        sys.addaudithook(self._audit)
        base = _peak()
        resource.setrlimit(resource.RLIMIT_AS, (base + _ROOM, base + _ROOM))
        self._allowed = base + PEAK

    def verdict(self, case: Case) -> tuple[str, str, str]:
        """(verdict, where, what was said)."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("tmp", "out", "home"):
            (self._folder / name).mkdir(parents=True)
        case.write(self._folder)
        os.chdir(self._folder / "home")
        self._events.clear()
        try:
            return self._tried(case), "", ""
        except _Fault as fault:
            verdict, where, said = fault.args
            return verdict, where, said
        finally:
            os.ftruncate(self._said, 0)

    def _tried(self, case: Case) -> str:
        task = job.Task(self._folder / case.source, self._folder / case.output)
        before, peak = _listing(self._folder), max(self._allowed, _peak())  # an input before may have had a large output
        verdict, problem, result = "finished", None, None
        try:
            if case.model:
                with Upscaler.load(Bundle.read(self._folder / case.model), device="cpu", threads=1) as upscaler:
                    result = self._run(upscaler, task, job.Request(**case.request))
            else:
                result = self._run(self._upscaler, task, job.Request(**case.request))
            lines = [line for line in (*result.notes, result.problem) if line]
        except MetasrganError as error:
            verdict, problem, lines = "refused", error, [str(error)]
        except BaseException as error:
            raise _Fault("raised", f"{type(error).__name__}: {error}"[:LONGEST], _place(error)) from None
        sys.stdout.flush()
        if said := os.pread(self._said, LONGEST, 0):
            raise _Fault("printed", said.decode(errors="replace"), _place(problem))
        if self._events:
            raise _Fault("side effect", self._events[0], _place(problem))
        asked = _peak() - peak - (8 * math.prod(result.shape_out) if result else 0)
        starved = problem and (_is_of_memory(problem) or re.search(r"allocat|alloc\b|'s memory", str(problem)))
        if isinstance(problem, DeviceMemoryError) and case.model:  # a strange network, which may want more than there is
            starved = False
        if asked > 0 or starved:
            raise _Fault("memory", f"{asked:,} bytes too many; {lines}"[:LONGEST], _place(problem))
        for line in lines:
            if len(line) > LONGEST or not line.isprintable():
                raise _Fault("line", f"{len(line)} characters: {line[:200]!r}", _place(problem))
        after = _listing(self._folder)
        own = {case.output, f"{case.output}.json"} if result else set()
        own |= {name for name in after if result and name.startswith(f"{case.output}/")}
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        if changed - own:
            raise _Fault("files", ", ".join(sorted(changed - own))[:LONGEST], _place(problem))
        if result and not _has_sidecar(task.output):
            raise _Fault("sidecar", f"{result.status}, without a sidecar that holds", "")
        return verdict

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Keep what a reader of files has no business with: programs, networks, objects of pickles, files elsewhere."""
        if event in _NEVER:
            self._events.append(f"{event} {args}"[:LONGEST])
        elif event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            inside = os.path.abspath(args[0]).startswith(str(self._folder))
            self._events += [] if inside else [f"open {args[0]!r}"[:LONGEST]]


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below a folder; of folders, that they are there."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in files:
            stat = os.lstat(os.path.join(root, name))
            found[os.path.relpath(os.path.join(root, name), folder)] = stat.st_size, stat.st_mtime_ns
        found |= {os.path.relpath(os.path.join(root, name), folder) + "/": (0, 0) for name in folders}
    return found


def _has_sidecar(output: Path) -> bool:
    """Whether the sidecar of an output has its hash."""
    path = output.with_name(f"{output.name}.json")
    content = json.loads(path.read_bytes()) if path.exists() else {"output": {}}
    files = sorted(output.rglob("*")) if output.is_dir() else [output] * output.exists()
    hashes = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return bool(content["output"].get("sha256") == whole)


def _is_of_memory(error: BaseException | None) -> bool:
    """Whether an error stands for one of memory."""
    while error and not isinstance(error, MemoryError):
        error = error.__context__
    return error is not None


def _place(error: BaseException | None) -> str:
    """The last frames of an error, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[:-5:-1] if error else []
    return " < ".join(f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in frames)


def _peak() -> int:
    """Bytes of memory that this process has ever asked for."""
    with open("/proc/self/status", "rb") as file:
        found = re.search(rb"VmPeak:\s+(\d+) kB", file.read())
    assert found
    return int(found[1]) << 10

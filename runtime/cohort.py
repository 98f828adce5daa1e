"""Many inputs into one folder: in one process or several, or as the tasks of a Dask cluster.

What is done is known by its sidecar, so a run that was stopped, or a task that was lost with its worker, goes on where it was.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import io, job, sidecar
from .engines.ort import available_processors
from .errors import DeviceError, InputFileError, MetasrganError, OutputFileError
from .files import check_output, sole_writer
from .inputs import library
from .job import Request, Result, Task
from .upscaler import MODELS, Upscaler

SUMMARY = "cohort.json"
FORMAT = "metasrgan-edge cohort"

_PATIENCE = 30  # seconds, for a scheduler to answer
_DEATH = "its worker process died, twice: there may be too little memory for it, give fewer --workers or a smaller scale"


@dataclass(frozen=True)
class Computer:
    """What every process that takes part loads."""

    bundle: str | Path | None = None
    device: str = "auto"
    threads: int | None = None
    cache_dir: Path | None = None

    def load(self) -> Upscaler:
        return Upscaler.load(self.bundle, device=self.device, threads=self.threads, cache_dir=self.cache_dir)


Plan = dict[Task, Result | None]  # what is known already to fail or to be skipped has its result
Work = Callable[[Sequence[Task]], Iterator[Result]]


def plan(
    sources: Sequence[Path], folder: Path, suffix: str | None = None, series: int | None = None, preview: bool = False
) -> Plan:
    """A task for each input, and for each series of a DICOM one, or that which is asked for.

    `suffix` is the format of all outputs (default: the input's). Raises OutputFileError where two outputs, or with `preview`
    their previews, would have one name, and MetasrganError where the library that writes the format is missing.
    """
    if suffix is not None:
        io.check_writable(Path(f"*{suffix}"))
    planned: Plan = {}
    for source in sources:
        try:
            for number, problem in _series_of(source, series):
                task = Task(source, folder / output_name(source, suffix, number), number)
                planned[task] = Result(task, "skipped", problem=problem) if problem else None
        except InputFileError as error:
            task = Task(source, folder / output_name(source, suffix))
            planned[task] = job.failed(task, error)
    taken: dict[Path, Path] = {}
    for task in (task for task, known in planned.items() if not known):
        for path in (task.output, task.preview) if preview else (task.output,):
            if path in taken:
                raise OutputFileError(f"{taken[path]} and {task.source} would both become {path}: give them two folders")
            taken[path] = task.source
    return planned


def output_name(source: Path, suffix: str | None = None, series: int | None = None) -> str:
    """An input's output: a detached header becomes one file, DICOM a folder, unless a `suffix` is asked for."""
    own = io.suffix(source)
    name = source.name if source.name not in ("", "..") else source.resolve().name
    written = {".nhdr": ".nrrd", ".mhd": ".mha", ".dcm": "", ".ima": "", ".zip": ""}.get(own.lower(), own)
    number = "" if series is None else f"_{series + 1}"
    return f"{name.removesuffix(own)}{number}_sr{written if suffix is None else suffix}"


def run(planned: Plan, request: Request, folder: Path, work: Work, quiet: bool = False) -> list[Result]:
    """Do all tasks, whatever becomes of each, say so line by line, and write `cohort.json`; the results in the tasks' order.

    The folder is made where there is none. Raises OutputFileError where another run writes into it.
    """
    summary = folder / SUMMARY
    tasks: list[Task] = []
    results: dict[Task, Result] = {}

    def note(result: Result) -> None:
        results[result.task] = result
        failed = result.status == "failed"
        if failed or not quiet:
            line = f"[{len(results)}/{len(planned)}] {'failed: ' if failed else ''}{result}"
            print(line, file=sys.stderr if failed else sys.stdout, flush=True)

    with sole_writer(folder):
        check_output(summary, overwrite=sidecar.read_json(summary).get("format") == FORMAT)
        for task, result in planned.items():
            try:
                if not (result or request.resume):
                    job.check(task, request)  # before any work, and before a lost worker's output is there
            except MetasrganError as error:
                result = job.failed(task, error)
            if result:
                note(result)
            else:
                tasks.append(task)
        try:
            for result in work(tasks):
                note(result)
        finally:
            ordered = [results[task] for task in planned if task in results]
            sidecar.write_json(summary, _summary(ordered, len(planned), request), overwrite=True)
    return ordered


def table(results: Sequence[Result]) -> str:
    """The results as a table for a person, a line each, and a line of totals."""
    rows: list[tuple[str, ...]] = [("", "input", "scale", "from", "to", "seconds")]
    for result in results:
        shapes = ("×".join(map(str, shape)) for shape in (result.shape_in, result.shape_out))
        scale = " ".join(f"×{r}" for r in result.scales)
        seconds = f"{result.seconds:.1f}" if result.status == "done" else ""
        rows.append((result.status, result.task.name, scale, *shapes, seconds))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts(results).items())])


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many are done, skipped and failed."""
    return {status: sum(result.status == status for result in results) for status in ("done", "skipped", "failed")}


def in_processes(computer: Computer, request: Request, workers: int) -> Work:
    """In worker processes that share the machine's threads. One that dies, as of a library's fault in a damaged file, costs
    nobody but the task that it dies of twice.
    """
    if workers < 1:
        raise DeviceError(f"workers is {workers}: give 1 or more")
    threads = max(1, (computer.threads or available_processors()) // workers)
    computer = replace(computer, threads=threads)

    def work(tasks: Sequence[Task]) -> Iterator[Result]:
        computer.load().close()  # what cannot be loaded is one error, not one for each input
        waiting = deque(tasks)
        while waiting:
            with _processes(workers) as pool:
                lost = yield from _through(pool, workers, computer, request, waiting)
            for task in lost:  # each by itself, to tell which it was
                with _processes(1) as pool:
                    killer = yield from _through(pool, 1, computer, request, deque([task]), again=True)
                yield from (Result(task, "failed", problem=_DEATH) for task in killer)

    return work


def on_dask(computer: Computer, request: Request, address: str) -> Work:
    """As tasks of a Dask cluster whose workers see the same files under the same names. It does lost ones again."""
    distributed = library("distributed", "--dask")

    def work(tasks: Sequence[Task]) -> Iterator[Result]:
        bundle = computer.bundle
        there = replace(computer, bundle=bundle if bundle in (None, *MODELS) else Path(bundle).absolute())
        names = {replace(task, source=task.source.absolute(), output=task.output.absolute()): task for task in tasks}
        try:
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise DeviceError(f"no Dask scheduler answers at {address} ({error}): start one, or correct the address") from None
        with client:
            pool = client.get_executor(pure=False)
            for result in _through(pool, len(names), there, request, deque(names), again=True):
                yield replace(result, task=names[result.task])

    return work


def _through(
    pool: futures.Executor, width: int, computer: Computer, request: Request, waiting: deque[Task], again: bool = False
) -> Generator[Result, None, list[Task]]:
    """Results of the tasks of a queue, `width` at a time, until it is empty or a process dies. Returns those it was at then.

    With `again`, a worker that was lost may have done a task: what is there, whole, is left alone, and counts as done now.
    """
    asked = replace(request, resume=True) if again and not request.overwrite else request
    running: dict[futures.Future[Result], Task] = {}
    lost: list[Task] = []
    while running or (waiting and not lost):
        while waiting and len(running) < width and not lost:
            task = waiting.popleft()
            try:
                running[pool.submit(attempt, computer, task, asked)] = task
            except BrokenProcessPool:
                lost.append(task)
        for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
            task = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                lost.append(task)
            except Exception as error:  # of Dask, whose workers may die of it too
                yield job.failed(task, error)
            else:
                yield result if request.resume or result.status != "skipped" else replace(result, status="done")
    return lost


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[futures.Executor]:
    """Worker processes that end with the block, at once if it is stopped: what they are writing has no name yet."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks and threads in whatever state they are
    pool = futures.ProcessPoolExecutor(workers, spawn, _end_with_parent)
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when the process that it works for does, killed or not, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _loaded(computer: Computer) -> Upscaler:
    return computer.load()


def attempt(computer: Computer, task: Task, request: Request) -> Result:
    """A task in a worker process, which loads the network once and keeps it."""
    try:
        with _loading:
            upscaler = _loaded(computer)
        return job.run(upscaler, task, request)
    except Exception as error:  # one input must not stop the rest, whatever it does
        return job.failed(task, error)


def _series_of(source: Path, series: int | None) -> list[tuple[int | None, str]]:
    """The series that an input stands for, None for the only one; each with the reason if it cannot be upscaled."""
    if io.kind(source) != "dicom":
        return [(None, "")]
    if series is not None:
        return [(series, "")]
    found = io.dicom().find_series(source)
    usable = io.dicom().usable(found)
    if not usable:
        return [(None, "")]
    refused = [(k, f"it {each.problem or each.doubt}") for k, each in enumerate(found) if k not in usable]
    return [*refused, *((None if len(usable) == 1 else k, "") for k in usable)]


def _summary(results: Sequence[Result], total: int, request: Request) -> dict[str, Any]:
    entries = []
    for result in results:
        entry = {
            "input": None if request.anonymous else result.task.source.name,
            "output": result.task.output.name,
            "status": result.status,
            "series": result.task.number,
            "scale": [str(r) for r in result.scales],
            "from": result.shape_in,
            "to": result.shape_out,
            "seconds": None if request.deterministic else round(result.seconds, 3),
            "problem": result.problem,
            "notes": None if request.anonymous else result.notes,  # they name files
        }
        entries.append({name: value for name, value in entry.items() if value})
    moment = sidecar.time_stamp(request.deterministic)
    return {
        "format": FORMAT,
        **counts(results),
        "unfinished": total - len(results),
        **({"time": moment} if moment else {}),
        "inputs": entries,
    }

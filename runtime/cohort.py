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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import io, job, sidecar
from .engines.ort import available_processors
from .errors import DeviceError, InputFileError, MetasrganError, OutputFileError, told
from .files import check_output, sole_writer
from .inputs import library
from .job import Computer, Request, Result, Status, Task
from .upscaler import MODELS

SUMMARY = "cohort.json"
FORMAT = "metasrgan-edge cohort"

_PATIENCE = 30  # seconds, for a scheduler to answer
_DEATH = "its worker process died, twice: there may be too little memory for it, give fewer --workers or a smaller scale"

Plan = dict[Task, Result | None]  # what is known already to fail or to be skipped has its result
Work = Callable[[Sequence[Task]], Iterator[Result]]


def plan(sources: Sequence[Path], folder: Path, request: Request, suffix: str | None = None, series: int | None = None) -> Plan:
    """A task for each input, and for each series of a DICOM one, or for the `series` asked for.

    `suffix` is the format of all outputs (default: the input's). Raises OutputFileError if two outputs, or what lies beside
    them, would have one name, and MetasrganError if the library that writes the format is missing.
    """
    if suffix is not None:
        io.check_suffix(Path(f"*{suffix}"), problem=f"{suffix!r} is no format")
    planned: Plan = {}
    for source in sources:
        status: Status = "skipped"
        try:
            found = series_of(source, series)
        except InputFileError as error:
            status, found = "failed", [(None, told(error))]
        for number, problem in found:
            task = Task(source, folder / output_name(source, suffix, number), number)
            planned[task] = Result(task, status, problem) if problem else None
    taken: dict[Path, Path] = {}
    for task in (task for task, known in planned.items() if not known):
        for path in (task.output, *request.beside(task.output).values()):
            if path in taken:
                raise OutputFileError(f"{taken[path]} and {task.source} would both become {path}: give them two folders")
            taken[path] = task.source
    return planned


def series_of(source: Path, series: int | None = None) -> list[tuple[int | None, str]]:
    """The series that an input stands for, None for the only one; each with the reason if it cannot be upscaled.

    Raises MetasrganError for what cannot be read.
    """
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


def output_name(source: Path, suffix: str | None = None, series: int | None = None) -> str:
    """An input's output: a detached header becomes one file, DICOM a folder, unless a `suffix` is asked for."""
    own = "" if os.path.isdir(source) else io.suffix(source)
    written = {".nhdr": ".nrrd", ".mhd": ".mha", ".dcm": "", ".ima": "", ".zip": ""}.get(own.lower(), own)
    number = "" if series is None else f"_{series + 1}"
    return f"{source.name.removesuffix(own)}{number}_sr{written if suffix is None else suffix}"


def run(planned: Plan, request: Request, folder: Path, work: Work, quiet: bool = False) -> list[Result]:
    """Do all tasks, print a line for each, and write `cohort.json`. Returns the results in the tasks' order.

    Makes the folder if need be. Raises OutputFileError if another run writes into it.
    """
    summary, results = folder / SUMMARY, dict[Task, Result]()

    def each() -> Iterator[Result]:
        left = []
        for task, known in planned.items():
            try:
                if not (known or request.resume):
                    job.check(task, request)  # before any work, and before a lost worker's output is there
            except MetasrganError as error:
                known = Result(task, "failed", told(error))
            if known:
                yield known
            else:
                left.append(task)
        yield from work(left)

    with sole_writer(folder):
        check_output(summary, overwrite=sidecar.read_json(summary).get("format") == FORMAT)
        try:
            for result in each():
                results[result.task] = result
                failed = result.status == "failed"
                if failed or not quiet:
                    line = f"[{len(results)}/{len(planned)}] {'failed: ' if failed else ''}{result}"
                    print(line, file=sys.stderr if failed else sys.stdout, flush=True)
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
    return {"done": 0, "skipped": 0, "failed": 0} | Counter(result.status for result in results)


def _summary(results: Sequence[Result], total: int, request: Request) -> dict[str, Any]:
    entries = [
        {
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
        for result in results
    ]
    return {
        "format": FORMAT,
        **counts(results),
        "unfinished": total - len(results),
        **sidecar.time_stamp(request.deterministic),
        "inputs": [{name: value for name, value in entry.items() if value} for entry in entries],
    }


def in_processes(computer: Computer, request: Request, workers: int) -> Work:
    """In worker processes that share the machine's threads. A task whose process dies is tried once more in a new one."""
    if workers < 1:
        raise DeviceError(f"workers is {workers}: give 1 or more")
    share = replace(computer, threads=max(1, (computer.threads or available_processors()) // workers))
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks and threads in whatever state they are

    def work(tasks: Sequence[Task]) -> Iterator[Result]:
        computer.load().close()  # what cannot be loaded is one error, not one for each input
        left, processes = [(task, False) for task in reversed(tasks)], list[Any]()
        busy: dict[Any, tuple[Task, bool]] = {}  # by the pipe that leads to a process

        def give_task(pipe: Any = None) -> None:
            """The next one to the process behind a pipe, or to a new one."""
            if left:
                if pipe is None:
                    pipe, there = spawn.Pipe()
                    process = spawn.Process(target=_serve, args=(there, share, request), daemon=True)
                    process.start()
                    processes.append(process)
                    there.close()
                busy[pipe] = left.pop()
                with contextlib.suppress(BrokenPipeError):  # it has died meanwhile, which `wait` tells
                    pipe.send(busy[pipe])

        try:
            for _ in range(workers):
                give_task()
            pipe: Any
            while busy:
                for pipe in wait([*busy]):
                    task, again = busy.pop(pipe)
                    try:
                        result = pipe.recv()
                    except (EOFError, ConnectionResetError):  # its process has died
                        pipe, result = None, Result(task, "failed", _DEATH) if again else None
                        left += [] if again else [(task, True)]
                    give_task(pipe)
                    if result:
                        yield result
        finally:
            for process in processes:  # what they are writing has no name yet
                process.terminate()
                process.join()

    return work


def _serve(pipe: Connection, computer: Computer, request: Request) -> None:
    """Do the tasks that come through a pipe, and end with the process at its other end, killed or not; Ctrl-C is for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # of the pipe
        while True:
            task, again = pipe.recv()
            pipe.send(attempt(computer, task, request, again))


def on_dask(computer: Computer, request: Request, address: str) -> Work:
    """As tasks of a Dask cluster, which repeats lost ones. Its workers must see the same files under the same names."""
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
            running = {pool.submit(attempt, there, task, request, again=True): task for task in names}
            for future in futures.as_completed(running):
                task, death = names[running[future]], future.exception()  # workers may die of a task
                yield Result(task, "failed", told(death)) if death else replace(future.result(), task=task)

    return work


_loading = threading.Lock()
_loaded = functools.lru_cache(maxsize=1)(Computer.load)


def attempt(computer: Computer, task: Task, request: Request, again: bool = False) -> Result:
    """A task in a worker process, which loads the network once and keeps it.

    With `again`, a lost worker may have finished it: a whole output that is there already counts as done.
    """
    try:
        with _loading:
            upscaler = _loaded(computer)
        result = job.run(upscaler, task, replace(request, resume=True) if again and not request.overwrite else request)
    except Exception as error:  # one input must not stop the rest, whatever it does
        return Result(task, "failed", told(error))
    return result if request.resume or result.status != "skipped" else replace(result, status="done")

"""Many inputs into one folder: in one process or several, or as the tasks of a Dask cluster.

What is done is known by its sidecar, so a run that was stopped, or a task that was lost with its worker, goes on where it was.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import io, job, sidecar
from .engines.ort import available_processors
from .errors import DeviceError, InputFileError, MetasrganError, OutputFileError, told
from .files import check_output, sole_writer
from .inputs import library
from .job import Computer, Request, Result, Task
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
        try:
            found = series_of(source, series)
        except InputFileError as error:
            task = Task(source, folder / output_name(source, suffix))
            planned[task] = Result(task, "failed", told(error))
            continue
        for number, problem in found:
            task = Task(source, folder / output_name(source, suffix, number), number)
            planned[task] = Result(task, "skipped", problem) if problem else None
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
    computer = replace(computer, threads=max(1, (computer.threads or available_processors()) // workers))
    idle = [_process() for _ in range(workers)]
    stopped = threading.Event()

    def do(task: Task) -> Result:
        result, process = Result(task, "failed", _DEATH), idle.pop()
        for again in (False, True):
            try:
                result = process.submit(attempt, computer, task, request, again).result()
                break
            except BrokenProcessPool:
                process = _process()
                if stopped.is_set():
                    break
        idle.append(process)
        return result

    def work(tasks: Sequence[Task]) -> Iterator[Result]:
        computer.load().close()  # what cannot be loaded is one error, not one for each input
        threads = futures.ThreadPoolExecutor(workers)
        try:
            yield from _results(threads, do, tasks)
        except BaseException:
            stopped.set()
            threads.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():  # what they are writing has no name yet
                child.terminate()
            raise
        finally:
            threads.shutdown()
            for process in idle:
                process.shutdown()

    return work


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
            do = functools.partial(attempt, there, request=request, again=True)
            for result in _results(client.get_executor(pure=False), do, list(names)):
                yield replace(result, task=names[result.task])

    return work


def _results(pool: futures.Executor, do: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    running = {pool.submit(do, task): task for task in tasks}
    for future in futures.as_completed(running):
        try:
            result = future.result()
        except Exception as error:  # of Dask, whose workers may die of it too
            result = Result(running[future], "failed", told(error))
        yield result


def _process() -> futures.ProcessPoolExecutor:
    """One process, which starts with its first task; a fork would copy locks and threads in whatever state they are."""
    return futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """Let a worker end when the process that it works for does, killed or not, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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

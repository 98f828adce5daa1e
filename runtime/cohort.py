"""Many inputs into one folder: in one process or several, or as the tasks of a Dask cluster.

What is done is known by its record, so a run that was stopped, or a task that was lost with its worker, goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import io, job, record
from .engines.cpu import available_processors
from .errors import DeviceError, InputFileError, MetasrganError, OutputFileError
from .files import check_output, sole_writer, write_atomically
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


Work = Callable[[Sequence[Task]], Iterator[Result]]


def plan(
    sources: Sequence[Path], folder: Path, suffix: str | None = None, series: int | None = None, preview: bool = False
) -> list[Task | Result]:
    """A task for each input, and for each series of a DICOM one, or that which is asked for; a failed result for no input.

    `suffix` is the format of all outputs (default: the input's). Raises OutputFileError where two outputs, or with `preview`
    their previews, would have one name, and MetasrganError where the library that writes the format is missing.
    """
    if suffix is not None:
        io.check_writable(Path(f"*{suffix}"))
    planned: list[Task | Result] = []
    outputs: dict[Path, Path] = {}
    for source in sources:
        own = io.suffix(source)
        stem = source.resolve().name.removesuffix(own)
        ending = written_as(own) if suffix is None else suffix
        try:
            numbers, unusable = _series_of(source, series)
            planned += [Result(Task(source, folder / stem, k), "skipped", problem=why) for k, why in unusable]
            for number in numbers:
                name = f"{stem}_sr" if number is None else f"{stem}_{number + 1}_sr"
                task = Task(source, folder / f"{name}{ending}", number)
                for path in (task.output, task.preview) if preview else (task.output,):
                    if path in outputs:
                        raise OutputFileError(f"{outputs[path]} and {source} would both become {path}: give them two folders")
                    outputs[path] = source
                planned.append(task)
        except InputFileError as error:
            planned.append(job.failed(Task(source, folder / f"{stem}_sr{ending}"), error))
    return planned


def run(planned: Sequence[Task | Result], request: Request, folder: Path, work: Work, quiet: bool = False) -> list[Result]:
    """Do all tasks, whatever becomes of each, say so line by line, and write `cohort.json`; the results in the tasks' order.

    Raises OutputFileError where another run writes into the folder.
    """
    summary = folder / SUMMARY
    with sole_writer(folder):
        check_output(summary, overwrite=not summary.exists() or record.read_json(summary, FORMAT) is not None)
        results: dict[Task, Result] = {}
        total = len(planned)

        def note(result: Result) -> None:
            results[result.task] = result
            failed = result.status == "failed"
            if failed or not quiet:
                line = f"[{len(results)}/{total}] {'failed: ' if failed else ''}{result}"
                print(line, file=sys.stderr if failed else sys.stdout, flush=True)

        tasks = []
        for entry in planned:
            if isinstance(entry, Result):
                note(entry)
            elif problem := _taken(entry, request):
                note(job.failed(entry, problem))
            else:
                tasks.append(entry)
        try:
            for result in work(tasks):
                note(result)
        finally:
            ordered = [results[task] for task in map(_task, planned) if task in results]
            content = json.dumps(_summary(ordered, total, request), indent=1, ensure_ascii=False).encode(
                "utf-8", "backslashreplace"
            )
            write_atomically(summary, lambda file: file.write(content + b"\n"), overwrite=True)
    return ordered


def written_as(own: str) -> str:
    """The ending of an output's name for an input's: a detached header becomes one file, DICOM a folder."""
    return {".nhdr": ".nrrd", ".mhd": ".mha", ".dcm": "", ".ima": "", ".zip": ""}.get(own.lower(), own)


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
    return "\n".join([*lines, counted(results)])


def counted(results: Sequence[Result]) -> str:
    """How many are done, skipped and failed."""
    return ", ".join(f"{count} {status}" for status, count in _counts(results).items())


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
                lost = yield from _through(pool, workers, computer, request, waiting, request.resume)
            for task in lost:  # each by itself, to tell which it was
                with _processes(1) as pool:
                    killer = yield from _through(pool, 1, computer, _again(request), deque([task]), request.resume)
                yield from (Result(task, "failed", problem=_DEATH) for task in killer)

    return work


def on_dask(computer: Computer, request: Request, address: str) -> Work:
    """As tasks of a Dask cluster whose workers see the same files under the same names. It does lost ones again."""
    distributed = library("distributed", "--dask")

    def work(tasks: Sequence[Task]) -> Iterator[Result]:
        bundle = computer.bundle
        there = replace(computer, bundle=bundle if bundle in (None, *MODELS) else Path(bundle).absolute())
        names = {Task(task.source.absolute(), task.output.absolute(), task.series): task for task in tasks}
        try:
            client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise DeviceError(f"no Dask scheduler answers at {address} ({error}): start one, or correct the address") from None
        with client:
            pool = client.get_executor(pure=False)
            for result in _through(pool, len(names), there, _again(request), deque(names), request.resume):
                yield replace(result, task=names[result.task])

    return work


def _through(
    pool: futures.Executor, width: int, computer: Computer, request: Request, waiting: deque[Task], resuming: bool
) -> Generator[Result, None, list[Task]]:
    """Results of the tasks of a queue, `width` at a time, until it is empty or a process dies. Returns those it was at then."""
    running: dict[futures.Future[Result], Task] = {}
    lost: list[Task] = []
    try:
        while running or (waiting and not lost):
            while waiting and len(running) < width and not lost:
                task = waiting.popleft()
                try:
                    running[pool.submit(attempt, computer, task, request)] = task
                except BrokenProcessPool:
                    lost.append(task)
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    yield _first_time(future.result(), resuming)
                except BrokenProcessPool:
                    lost.append(task)
                except Exception as error:  # of Dask, whose workers may die of it too
                    yield job.failed(task, error)
    finally:
        for future in running:
            future.cancel()
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


def attempt(computer: Computer, task: Task, request: Request) -> Result:
    """A task in a worker process, which loads the network once and keeps it."""
    return _attempted(lambda: job.run(_loaded(computer), task, request), task)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[job.Progress]:
    """A bar for the slices of one input, on a terminal."""
    with tqdm(unit="slice", disable=quiet or not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _end_with_parent() -> None:
    """Let a worker end when the process that it works for does, killed or not, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_upscalers: dict[Computer, Upscaler] = {}
_loading = threading.Lock()


def _loaded(computer: Computer) -> Upscaler:
    with _loading:
        if computer not in _upscalers:
            _upscalers.clear()
            _upscalers[computer] = computer.load()
        return _upscalers[computer]


def _attempted(work: Callable[[], Result], task: Task) -> Result:
    try:
        return work()
    except Exception as error:  # one input must not stop the rest, whatever it does
        return job.failed(task, error)


def _again(request: Request) -> Request:
    """The request for a task that may have been done by a worker that is lost: what is there, whole, is left alone."""
    return request if request.overwrite else replace(request, resume=True)


def _first_time(result: Result, resuming: bool) -> Result:
    """What a lost worker did is done by this run, not skipped."""
    return result if resuming or result.status != "skipped" else replace(result, status="done")


def _taken(task: Task, request: Request) -> MetasrganError | None:
    """Why there can be no output, where that is known before any work, and before a lost worker's output is there."""
    try:
        if not request.resume:
            job.check(task, request)
    except MetasrganError as error:
        return error
    return None


def _series_of(source: Path, series: int | None) -> tuple[list[int | None], list[tuple[int, str]]]:
    """The series that an input stands for, None for what has but one; and those of it that cannot be upscaled, and why."""
    if io.kind(source) != "dicom":
        return [None], []
    if series is not None:
        return [series], []
    found = io.dicom().find_series(source)
    usable = io.dicom().usable(found)
    refused = [(k, f"it {found[k].problem or found[k].doubt}") for k in range(len(found)) if k not in usable]
    if len(usable) < 2:
        return [None], refused if usable else []
    return list(usable), refused


def _task(entry: Task | Result) -> Task:
    return entry.task if isinstance(entry, Result) else entry


def _counts(results: Sequence[Result]) -> dict[str, int]:
    return {status: sum(result.status == status for result in results) for status in ("done", "skipped", "failed")}


def _summary(results: Iterable[Result], total: int, request: Request) -> dict[str, Any]:
    listed = list(results)
    entries = []
    for result in listed:
        entry: dict[str, Any] = {"input": result.task.source.name, "output": result.task.output.name, "status": result.status}
        if request.anonymous:
            del entry["input"]
        if result.task.series is not None:
            entry["series"] = result.task.series + 1
        if result.status == "done":
            entry |= {"scale": [str(r) for r in result.scales], "from": list(result.shape_in), "to": list(result.shape_out)}
            if not request.deterministic:
                entry["seconds"] = round(result.seconds, 3)
        if result.problem:
            entry["problem"] = result.problem
        entries.append(entry)
    moment = record.time_stamp(request.deterministic)
    return {
        "format": FORMAT,
        **_counts(listed),
        "unfinished": total - len(listed),
        **({"time": moment} if moment else {}),
        "inputs": entries,
    }

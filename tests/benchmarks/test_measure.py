from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import measure, report, rows
from benchmarks.baseline import baseline

HELD = {
    measure.processor(): {"EDSR / ours": {"median": 80.0, "margin": 0.25}, "less: bytes": {"median": 1000.0, "margin": 0.02}},
    "fast": {
        "EDSR / ours": {"median": 9.0, "margin": 0.1},
        "memory": {"median": 9.0, "margin": 0.1},
        "less: stage": {"median": 2.0, "margin": 0.1},
    },
    "slow": {"memory": {"median": 10.0, "margin": 0.5}, "less: stage": {"median": 1.0, "margin": 0.5}},
}


@pytest.fixture
def record() -> measure.Record:
    return measure.Record(full=False, baseline=HELD)


@pytest.mark.parametrize(
    ("name", "value"), [("EDSR / ours", 64.0), ("EDSR / ours", 200.0), ("less: bytes", 1020), ("less: bytes", 1)]
)
def test_as_good_as_the_margin_allows_is_held(record: measure.Record, name: str, value: float) -> None:
    record.hold(name, value)
    assert record.ratios == {name: value}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("EDSR / ours", 63.9, "worse by 25%"), ("less: bytes", 1021, "worse by 2%"), ("new", 1.0, "'new' has no baseline")],
)
def test_worse_than_the_margin_is_an_error(record: measure.Record, name: str, value: float, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        record.hold(name, value)


def test_a_processor_without_a_baseline_is_held_to_the_most_lenient(record: measure.Record) -> None:
    assert record.usual("EDSR / ours") == (80, 0.25)  # its own, though another's is lower
    assert record.usual("memory") == (10, 0.5)  # down to 6.7, where 9 less a tenth is 8.2
    assert record.usual("less: stage") == (2, 0.1)  # up to 2.2, where 1 and a half is 1.5


def test_a_baselines_margin_is_three_times_what_its_worst_run_lies_off() -> None:
    held = baseline(
        [{"a": 12, "b": 1.0, "less: c": 10, "less: bytes of x": 7}, {"a": 10, "less: c": 12}, {"a": 16, "less: c": 6}]
    )
    assert held["a"] == {"median": 12, "margin": 0.6, "runs": 3}  # a fifth more than the worst; the best does not count
    assert held["less: c"] == {"median": 10, "margin": 0.6, "runs": 3}
    assert held["b"] == {"median": 1.0, "margin": 0.3, "runs": 1}  # one run says nothing of what they differ
    assert held["less: bytes of x"]["margin"] == 0.02
    assert baseline([{"a": 100}, {"a": 100}, {"a": 50}])["a"]["margin"] == 1.0


def test_the_committed_baseline_holds_what_the_benchmarks_measure() -> None:
    for ratios in json.loads(measure.BASELINE.read_text()).values():
        for row in rows.BUNDLES:
            assert f"less: bytes of {row}" in ratios
        assert all(0 < held["margin"] <= 1 for held in ratios.values())


def test_a_processor_is_known_by_its_vectors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(flags: str) -> str:
        text = f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu {flags}\n\n"
        monkeypatch.setattr(Path, "read_text", lambda self: text)
        return measure.processor()

    assert named("avx avx2 avx512f avx512_vnni") == "AMD EPYC, AVX-512"
    assert named("avx avx2") == "AMD EPYC, AVX2"
    assert named("sse2") == "AMD EPYC"


def test_side_by_side_takes_turns_and_repeats_what_is_short() -> None:
    calls: list[str] = []
    ways = {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.02))}
    taken = measure.side_by_side(ways, rounds=3, least_s=0.02)
    assert list(taken) == ["a", "b"]
    assert taken["a"] < 0.02 <= taken["b"]
    turns = "".join(name for name, _ in itertools.groupby(calls))
    assert turns == "ab" * 4
    assert calls.count("b") == 4
    assert calls.count("a") > 100  # some 0.1 µs each


def test_a_run_becomes_a_page_and_a_plot(tmp_path: Path) -> None:
    record = measure.Record(full=True, baseline={})
    for row, seconds in (("bicubic", 1e-4), ("ours, fp16", 0.1), ("EDSR ×2", 8.0)):
        record.add("×2 end to end", row=row, size=240, seconds=seconds, rounds=5)
    for tenths in range(11, 41):
        scale = f"{tenths / 10:g}"
        record.add("stage", scale=scale, seconds=0.002, trunk_seconds=0.1, of_trunk=0.02)
        record.add("end to end", row="ours, fp16", scale=scale, size=240, seconds=0.1, rounds=2)
    record.write(tmp_path / "box.json", "make bench")
    report.write(tmp_path / "box.json")
    page = (tmp_path / "box.md").read_text()
    assert "| ×2 | 240×240 | EDSR ×2 | 8.00 s | 80 |" in page
    assert "| ×2.1 | 100 ms | 2 ms | 2.0 % | – | 100 ms |" in page
    assert measure.processor() in page
    assert (tmp_path / "box.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_a_gate_fails_where_all_three_tries_do(record: measure.Record, failures: int) -> None:
    tries: list[str] = []

    @measure.gate
    def measures(record: measure.Record, way: str) -> None:
        tries.append(way)
        record.add("time", attempt=len(tries))
        assert len(tries) > failures

    outcome = pytest.raises(AssertionError) if failures == 3 else contextlib.nullcontext()
    with outcome:
        measures(record=record, way="stage")
    assert len(tries) == min(failures + 1, 3)
    assert [fact["attempt"] for fact in record.facts] == [len(tries)]


@pytest.mark.parametrize(
    ("options", "timed", "slow"), [((), False, False), (("--gate",), True, False), (("--full",), True, True)], ids=str
)
def test_time_is_measured_only_where_it_is_asked_for(options: tuple[str, ...], timed: bool, slow: bool) -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", *options]
    names = subprocess.run(command, cwd=rows.ROOT, capture_output=True, text=True, check=True).stdout
    assert "test_bytes" in names
    assert ("test_gates.py::test_a_slow_down_is_noticed" in names) == ("test_gates.py" in names) == timed
    assert ("test_volume" in names) == ("test_memory[512]" in names) == slow

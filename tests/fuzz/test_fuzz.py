"""Damaged files of every format keep the rules of SECURITY.md; `make fuzz` is the long form."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("SimpleITK")
pytest.importorskip("pydicom")

from tests.fuzz import broken, harness, mutate, seeds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory and its limit are Linux's")
INPUTS = 10_000  # three quarters of a minute on one core


@pytest.fixture(scope="module")
def network() -> bytes:
    return seeds.tiny_bundle()


def test_damaged_files_keep_the_rules(network: bytes) -> None:
    starts = seeds.seeds(network)
    found = list(harness.outcomes(range(INPUTS), starts, 1, network))
    assert [outcome for outcome in found if outcome.is_fault] == []
    assert sorted(outcome.number for outcome in found) == list(range(INPUTS))
    for format in {start.format for start in starts}:  # or mutations would reach nothing
        assert {outcome.verdict for outcome in found if outcome.format == format} == {"finished", "refused"}


def test_broken_rules_are_reported(network: bytes) -> None:
    found = harness.outcomes(range(len(broken.CASES)), broken.CASES, 0, network, run=broken.run, seconds=3)
    assert {outcome.format: outcome.verdict for outcome in found} == broken.FAULTS


def test_a_number_names_the_same_input_for_ever(network: bytes) -> None:
    one, other = (seeds.seeds(network) for _ in range(2))
    assert [mutate.case(one, 3, k).files for k in range(200)] == [mutate.case(other, 3, k).files for k in range(200)]

"""What the host does around an engine: on a GPU, it would soon take longer than the GPU."""

from __future__ import annotations

from benchmarks.gpu import SLICES, host_ms
from benchmarks.measure import Record, gate

BOUNDS_MS = {"240² ×2": 0.5, "512² ×4": 8.0}  # a T4 needs 1.2 and 5.6 ms for the trunk


@gate
def test_the_hosts_part_of_a_slice_is_small(record: Record) -> None:
    found = host_ms(SLICES)
    record.add("host around an engine that does nothing, ms", **found)
    for slice_, bound in BOUNDS_MS.items():
        assert found[slice_] <= bound

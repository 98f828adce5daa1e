"""The criteria: what was found, the limit and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from .criteria import signed
from .phantom import NOTHING, TOLERANCE, Kept, Outcome
from .scans import Figures

SNR, SERIES = 0.05, 0.90  # published: on average at least; in so many of the series at least
BETTER, RIPPLE, CHANGE = 0.01, 1.4, 0.01  # own: what counts as sharper; times bicubic's at most; of white, beside the noise
BOTH, LATER, OWN = "FDA K191688, K203182", "FDA K203182", "own"  # where a criterion comes from


@dataclass(frozen=True)
class Criterion:
    """`passed` is None where there was nothing to judge."""

    name: str
    found: str
    limit: str
    passed: bool | None
    source: str = OWN

    @property
    def verdict(self) -> str:
        return "not applicable" if self.passed is None else "passed" if self.passed else "not passed"


def overall(criteria: Sequence[Criterion]) -> str:
    """The verdict of the whole, in a line."""
    judged = [each.passed for each in criteria if each.passed is not None]
    failed = judged.count(False)
    return f"{failed} of {len(judged)} criteria not passed" if failed else f"all {len(judged)} criteria passed"


def of_scans(scans: Sequence[Figures]) -> list[Criterion]:
    """The criteria of a site's series, of which there is at least one."""

    def all_of(name: str) -> list[float]:
        return [getattr(scan, name) for scan in scans]

    def counted(name: str, passed: list[bool], least: float, found: str, limit: str, source: str = OWN) -> Criterion:
        said = f"{sum(passed)} of {len(passed)} series, {found}"
        return Criterion(name, said, limit, sum(passed) >= least * len(passed), source)

    gain, other = (fmean(all_of(name)) - 1 for name in ("snr", "over_bicubic"))
    edges, width, bicubic_width = (f"{median(all_of(name)):.2f}" for name in ("edges", "width", "bicubic_width"))
    ripple, rmse, most = max(all_of("ripple")), max(all_of("rmse")), f"in at least {100 * SERIES:.0f} % of the series"
    sharper = [its.edges >= 1 + BETTER for its in scans]
    thinner = [its.width <= (1 - BETTER) * its.bicubic_width for its in scans]
    smooth = [its.ripple <= RIPPLE for its in scans]
    consistent = [its.rmse <= math.hypot(its.noise, CHANGE) for its in scans]
    inside = [not its.outside for its in scans if its.outside is not None]
    snr, snr_limit = f"{signed(gain)} (over bicubic {signed(other)})", f"at least {signed(SNR)} on average"
    rmse_found, rmse_limit = (
        f"RMSE up to {100 * rmse:.1f} % of white",
        f"at most the noise and {100 * CHANGE:.0f} % of white in each",
    )
    known = f"{sum(inside)} of {len(inside)} series" if inside else "the bundle does not record it"
    return [
        Criterion("SNR of tissue", snr, snr_limit, gain >= SNR, BOTH),
        counted("Sharpness of boundaries", sharper, SERIES, f"×{edges}", f"sharper {most}", LATER),
        counted("Thickness of boundaries", thinner, SERIES, f"{bicubic_width} → {width}", f"thinner {most}", LATER),
        counted("Ripple in flat tissue", smooth, 1, f"up to ×{ripple:.2f}", f"at most ×{RIPPLE} in each"),
        counted("Consistency with k-space", consistent, 1, rmse_found, rmse_limit),
        Criterion("Envelope of the training", known, "inside in each", all(inside) if inside else None),
    ]


def of_phantom(outcomes: Sequence[Outcome]) -> list[Criterion]:
    """The criteria of the digital phantom."""
    found = []
    for outcome in outcomes:
        name = f"Phantom, {outcome.title}"
        for kind in dict.fromkeys(kept.insert.kind for kept in outcome.kept):
            rows = [kept for kept in outcome.kept if kept.insert.kind == kind]
            count = sum(kept.passed for kept in rows)
            spans = ", ".join(f"{what} {_span(rows, k)}" for k, what in enumerate(("contrast", "size")[: len(rows[0].ours)]))
            said = f"{count} of {len(rows)}, {spans}"
            found.append(Criterion(f"{name}: {kind}", said, f"within ±{100 * TOLERANCE:.0f} % in each", count == len(rows)))
        for what, (ours, other) in (("lesions removed", outcome.removed), ("nothing invented", outcome.invented)):
            said, limit = (f"{100 * value:.1f} % of white" for value in (ours, other + NOTHING))
            found.append(Criterion(f"{name}: {what}", said, f"at most {limit}", ours <= other + NOTHING))
    return found


def _span(rows: Sequence[Kept], which: int) -> str:
    changes = [kept.ours[which] - 1 for kept in rows]
    return f"{signed(min(changes))} to {signed(max(changes))}"

"""The criteria: what was found, the limit, the verdict, where a criterion comes from, and how it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from .criteria import signed
from .phantom import NOTHING, TOLERANCE, Kept, Outcome
from .scans import Figures

SNR, SERIES = 0.05, 0.90  # published: on average at least; in so many of the series at least
BETTER, RIPPLE, CHANGE = 0.01, 1.4, 0.01  # own: what counts as sharper; times bicubic's at most; of white, beside the noise
OWN = "own"
PUBLISHED = {  # where
    "SNR of tissue": "FDA K191688, K203182",
    "Sharpness of boundaries": "FDA K203182",
    "Thickness of boundaries": "FDA K203182",
}
_HOW = {  # and why an own limit is what it is
    "SNR of tissue": "Mean over standard deviation in up to four squares of 7×7 input pixels in the flattest tissue of a "
    "slice, over that of the original there. A scan with little noise has little to gain.",
    "Sharpness of boundaries": "Mean gradient at the steepest 5 % of the tissue, over that of bicubic interpolation there. "
    "A change of 1 % or more counts.",
    "Thickness of boundaries": "Distance from 10 to 90 % of the rise along the gradient at the steepest edges, of bicubic → of "
    "ours, in input pixels. A change of 1 % or more counts.",
    "Ripple in flat tissue": "Standard deviation of what is finer than a Gaussian of σ = 0.75 input pixels in the flattest "
    "30 % of the tissue, over bicubic's. A former network had ×1.6, and its ripple was seen.",
    "Consistency with k-space": "RMSE of the output, brought back to the acquired k-space, against the input. Noise is taken "
    "away on purpose, so it may be missing. Beyond that, 1 % of white is about the least that is seen on a display.",
    "Envelope of the training": "Pixel size, acquired part, contrast, noise and plane. Outside, nothing is known.",
}


@dataclass(frozen=True)
class Criterion:
    """`passed` is None where the criterion is not applicable: there was nothing to judge."""

    name: str
    found: str
    limit: str
    passed: bool | None

    @property
    def verdict(self) -> str:
        return "not applicable" if self.passed is None else "passed" if self.passed else "not passed"

    @property
    def source(self) -> str:
        return PUBLISHED.get(self.name, OWN)

    @property
    def how(self) -> str:
        return _HOW.get(self.name, "")


def overall(criteria: Sequence[Criterion]) -> str:
    """The verdict of the whole, in a line."""
    judged = [each.passed for each in criteria if each.passed is not None]
    failed = judged.count(False)
    return f"{failed} of {len(judged)} criteria not passed" if failed else f"all {len(judged)} criteria passed"


def of_scans(scans: Sequence[Figures]) -> list[Criterion]:
    """The criteria of a site's series, of which there is at least one."""

    def all_of(name: str) -> list[float]:
        return [getattr(scan, name) for scan in scans]

    def row(name: str, good: Callable[[Figures], bool], least: float, limit: str, found: str) -> Criterion:
        count = sum(map(good, scans))
        return Criterion(name, f"{count} of {len(scans)} series, {found}", limit, count >= least * len(scans))

    gain, other = (fmean(all_of(name)) - 1 for name in ("snr", "over_bicubic"))
    edges, width, bicubic_width = (f"{median(all_of(name)):.2f}" for name in ("edges", "width", "bicubic_width"))
    ripple, rmse, most = max(all_of("ripple")), 100 * max(all_of("rmse")), f"in at least {100 * SERIES:.0f} % of the series"
    known = [not scan.outside for scan in scans if scan.outside is not None]
    found = f"{sum(known)} of {len(known)} series" if known else "the bundle does not record it"
    snr, sharpness, thickness = PUBLISHED
    return [
        Criterion(snr, f"{signed(gain)} (over bicubic {signed(other)})", f"at least {signed(SNR)} on average", gain >= SNR),
        row(sharpness, lambda its: its.edges >= 1 + BETTER, SERIES, f"sharper {most}", f"×{edges}"),
        row(
            thickness,
            lambda its: its.width <= (1 - BETTER) * its.bicubic_width,
            SERIES,
            f"thinner {most}",
            f"{bicubic_width} → {width}",
        ),
        row("Ripple in flat tissue", lambda its: its.ripple <= RIPPLE, 1, f"at most ×{RIPPLE} in each", f"up to ×{ripple:.2f}"),
        row(
            "Consistency with k-space",
            lambda its: its.rmse <= math.hypot(its.noise, CHANGE),
            1,
            f"at most the noise and {100 * CHANGE:.0f} % of white in each",
            f"RMSE up to {rmse:.1f} % of white",
        ),
        Criterion("Envelope of the training", found, "inside in each", all(known) if known else None),
    ]


def of_phantom(outcome: Outcome) -> list[Criterion]:
    """The criteria of the digital phantom."""
    found = []
    for noise in outcome.removed:
        name = f"Phantom, {100 * noise:.0f} % noise" if noise else "Phantom, no noise"
        for kind in dict.fromkeys(kept.insert.kind for kept in outcome.kept):
            rows = [kept for kept in outcome.kept if (kept.insert.kind, kept.noise) == (kind, noise)]
            count = sum(kept.passed for kept in rows)
            spans = ", ".join(f"{what} {_span(rows, k)}" for k, what in enumerate(("contrast", "size")[: len(rows[0].ours)]))
            said = f"{count} of {len(rows)}, {spans}"
            found.append(Criterion(f"{name}: {kind}", said, f"within ±{100 * TOLERANCE:.0f} % in each", count == len(rows)))
        for what, by_noise in (("lesions removed", outcome.removed), ("nothing invented", outcome.invented)):
            ours, other = by_noise[noise]
            said, limit = (f"{100 * value:.1f} % of white" for value in (ours, other + NOTHING))
            found.append(Criterion(f"{name}: {what}", said, f"at most {limit}", ours <= other + NOTHING))
    return found


def _span(rows: Sequence[Kept], which: int) -> str:
    changes = [kept.ours[which] - 1 for kept in rows]
    return f"{signed(min(changes))} to {signed(max(changes))}"

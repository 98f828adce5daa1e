"""The page: one file, without scripts, that loads nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape

from PIL import Image

from .. import preview
from .criteria import signed
from .judge import Criterion
from .phantom import NOISES, NOTHING, SIZE, TOLERANCE, Outcome
from .scans import Figures

_CROPS = {
    "Bright lesions, discs and line pairs": (90, 46),
    "Dark lesions, discs and line pairs": (90, 114),
}  # row and column of the phantom where a crop begins
_CROP = 96
_NOTES = (
    "K191688 and K203182 are the FDA's 510(k) summaries of SubtleMR. Their criteria: the SNR of a region in each test series "
    "improves by at least 5 % on average against the original images; the thickness of anatomic structures and the sharpness "
    "of their boundaries improve in at least 90 % of the series. There, persons chose regions and structures; here, a program "
    "does. This page is no clearance, and nothing of it was submitted to an authority. Own criteria are this project's.",
    "White is the 99.9th percentile of a series, lengths are in input pixels. Figures of a series are medians over its slices.",
    "The page holds pictures of the series and the names of their files. It holds no patient fields, but a name may be one. "
    "Not for diagnosis.",
)
_PHANTOM = (
    f"A T1-weighted head of {SIZE}×{SIZE} pixels, computed, always the same, scanned with inserts and without. The truth is "
    f"its scan with the finer matrix and no noise. Edges are one pixel wide. The pictures have {100 * NOISES[-1]:.0f} % noise.",
    "Contrast and size are those of the output with an insert less the output without, against the truth's; bicubic's in "
    "brackets. Contrast is the mean of a disc's inner half less that of a ring 2 to 4 pixels outside, or the amplitude of line "
    f"pairs. Size is the area above half of it. The limit of {100 * TOLERANCE:.0f} % is what a reader hardly measures.",
    "Removed: the largest contrast at the lesions' places in the output without them. Invented: the largest deviation of that "
    "output from the truth in flat tissue, after a Gaussian of one pixel. What noise leaves in bicubic interpolation counts "
    f"for neither; {100 * NOTHING:.0f} % of white is 5 % of the fainter lesions' contrast.",
)
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2126; --quiet: #626b74; --line: #d9dee3;
  --good: #1a6b3c; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181b; --text: #d5dade; --quiet: #919aa3; --line: #30373e; --good: #6fcf97; --bad: #ff8a80 }
}
body { max-width: 1180px; margin: 32px auto; padding: 0 24px; background: var(--back); color: var(--text);
  font: 14px/1.45 system-ui, sans-serif }
h1 { font-size: 22px; margin: 0 } h2 { font-size: 17px; margin: 36px 0 8px }
p { max-width: 110ch } h3 { font-size: 14px; margin: 24px 0 6px }
table { border-collapse: collapse; width: 100% }
table { margin-top: 10px } th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 600; color: var(--quiet) } tr { break-inside: avoid }
.numbers td + td, .numbers th + th { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.quiet, small { color: var(--quiet); font-size: 12px } small { display: block; max-width: 72ch }
.verdict { white-space: nowrap; font-weight: 600 } .passed { color: var(--good) } .not-passed { color: var(--bad) }
.not-applicable { color: var(--quiet) } .overall { font-size: 17px; margin: 10px 0 20px }
figure { margin: 0; break-inside: avoid } img { max-width: 100%; display: block; border-radius: 3px }
@media print { body { margin: 0; max-width: none; font-size: 11px } }
"""


@dataclass(frozen=True)
class Tested:
    """A series by its name: its figures and its picture, or the `problem` why it has none."""

    name: str
    figures: Figures | None = None
    picture: Image.Image | None = None
    problem: str = ""


def page(
    facts: Iterable[str],
    verdict: str,
    criteria: Sequence[Criterion],
    series: Sequence[Tested],
    outcome: Outcome,
    scale: Fraction,
) -> str:
    """The whole page. `facts` are a line of what was run, on what, with what; `verdict` is that of all `criteria`."""
    passed = "not passed" if "not" in verdict else "passed"
    return "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width"><title>metasrgan site test</title>',
            f"<style>{_STYLE}</style></head><body><h1>Site test</h1>",
            f'<div class="quiet">{escape(" · ".join(facts))}</div>',
            f'<p class="overall">{_verdict(verdict.capitalize(), passed)}</p>',
            _table(("Criterion", "Found", "Limit", "Verdict", "Source"), map(_criterion, criteria)),
            "<h2>Series</h2>",
            _series(series),
            *(f"<h3>{escape(each.name)}</h3>{_figure(each.picture, each.name)}" for each in series if each.picture),
            "<h2>Digital phantom</h2>",
            *(f"<p>{escape(text)}</p>" for text in _PHANTOM),
            *(_phantom_figure(outcome, scale, name, *place) for name, place in _CROPS.items()),
            _phantom(outcome),
            "<h2>Notes</h2>",
            *(f"<p class=quiet>{escape(note)}</p>" for note in _NOTES),
            "</body></html>\n",
        )
    )


def _criterion(each: Criterion) -> list[str]:
    name = escape(each.name) + (f"<small>{escape(each.how)}</small>" if each.how else "")
    return [
        name,
        escape(each.found),
        escape(each.limit),
        _verdict(each.verdict),
        f'<span class="quiet">{escape(each.source)}</span>',
    ]


def _series(series: Sequence[Tested]) -> str:
    rows = []
    for each in series:
        if not each.figures:
            rows.append(
                [f'{escape(each.name)}<small class="not-applicable">not tested: {escape(each.problem)}</small>', *[""] * 6]
            )
            continue
        its = each.figures
        size = f", {' × '.join(f'{mm:.2f}' for mm in its.spacing)} mm" if its.spacing else ""
        lines = (f"{its.slices} slices{size}; {its.acquired}", *(its.outside or ()))
        rows.append(
            [
                escape(each.name) + "".join(f"<small>{escape(line)}</small>" for line in lines),
                f"{signed(its.snr - 1)} ({signed(its.over_bicubic - 1)})",
                f"×{its.edges:.2f}",
                f"{its.bicubic_width:.2f} → {its.width:.2f}",
                f"×{its.ripple:.2f}",
                f"{100 * its.rmse:.1f} %",
                f"{100 * its.worst:.0f} %",
            ]
        )
    titles = "Series", "SNR (over bicubic)", "Sharpness", "Thickness", "Ripple", "RMSE", "Worst pixel"
    return _table(titles, rows, "numbers")


def _phantom(outcome: Outcome) -> str:
    rows: dict[str, list[str]] = {}
    for kept in outcome.kept:
        cells = [f"{signed(ours - 1, 1)} ({signed(other - 1, 1)})" for ours, other in zip(kept.ours, kept.bicubic)]
        row = rows.setdefault(kept.insert.name, [escape(kept.insert.name)])
        row += [*cells, *[""] * (2 - len(cells)), _verdict("passed" if kept.passed else "not passed")]
    said = [f"{100 * noise:.0f} % noise" if noise else "no noise" for noise in NOISES]
    return _table(
        ("Insert", *(f"{what}, {of}" for of in said for what in ("Contrast", "Size", "Verdict"))), rows.values(), "numbers"
    )


def _phantom_figure(outcome: Outcome, scale: Fraction, name: str, top: int, left: int) -> str:
    before, ours, truth = outcome.scans
    y, x = (math.ceil(at / scale.denominator) * scale.denominator for at in (top, left))  # where pixels of both begin
    crop = slice(int(y * scale), int((y + _CROP) * scale)), slice(int(x * scale), int((x + _CROP) * scale))
    picture = preview.side_by_side(before[y : y + _CROP, x : x + _CROP], ours[crop], (scale, scale), truth=truth[crop])
    return f"<h3>{name}</h3>{_figure(picture, name)}"


def _figure(picture: Image.Image, name: str) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    content = base64.b64encode(held.getvalue()).decode()
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{content}"></figure>'


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _verdict(text: str, kind: str = "") -> str:
    return f'<span class="verdict {(kind or text).replace(" ", "-")}">{text}</span>'

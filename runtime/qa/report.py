"""The page: one file, without scripts, that loads nothing. `page.html` is its frame."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from importlib import resources
from string import Template

from PIL import Image

from .. import preview
from .criteria import signed
from .judge import Criterion
from .phantom import NOISES, Outcome
from .scans import Figures

_CROP, _CROPS = 96, {"Bright": (90, 46), "Dark": (90, 114)}  # pixels of the phantom; row and column where one begins
_SERIES = "Series", "SNR (over bicubic)", "Sharpness", "Thickness", "Ripple", "RMSE", "Worst pixel"


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
    pictures = (_picture(each.name, each.picture) for each in series if each.picture)
    inserts = (_picture(f"{name} lesions, discs and line pairs", _crop(outcome, scale, *at)) for name, at in _CROPS.items())
    return Template(resources.files(__package__).joinpath("page.html").read_text("utf-8")).substitute(
        facts=escape(" · ".join(facts)),
        verdict=_verdict(verdict.capitalize(), "not-passed" if "not" in verdict else "passed"),
        criteria=_table(("Criterion", "Found", "Limit", "Verdict", "Source"), map(_criterion, criteria)),
        series="\n".join((_table(_SERIES, map(_series, series), "numbers"), *pictures)),
        phantom="\n".join((*inserts, _phantom(outcome))),
    )


def _criterion(each: Criterion) -> list[str]:
    name = escape(each.name) + (f"<small>{escape(each.how)}</small>" if each.how else "")
    return [name, escape(each.found), escape(each.limit), _verdict(each.verdict), f'<span class="quiet">{each.source}</span>']


def _series(each: Tested) -> list[str]:
    its = each.figures
    if not its:
        return [f"{escape(each.name)}<small>not tested: {escape(each.problem)}</small>", *[""] * (len(_SERIES) - 1)]
    size = f", {' × '.join(f'{mm:.2f}' for mm in its.spacing)} mm" if its.spacing else ""
    lines = f"{its.slices} slices{size}; {its.acquired}", *(its.outside or ())
    return [
        escape(each.name) + "".join(f"<small>{escape(line)}</small>" for line in lines),
        f"{signed(its.snr - 1)} ({signed(its.over_bicubic - 1)})",
        f"×{its.edges:.2f}",
        f"{its.bicubic_width:.2f} → {its.width:.2f}",
        f"×{its.ripple:.2f}",
        f"{100 * its.rmse:.1f} %",
        f"{100 * its.worst:.0f} %",
    ]


def _phantom(outcome: Outcome) -> str:
    rows: dict[str, list[str]] = {}
    for kept in outcome.kept:
        cells = [f"{signed(ours - 1, 1)} ({signed(other - 1, 1)})" for ours, other in zip(kept.ours, kept.bicubic)]
        row = rows.setdefault(kept.insert.name, [escape(kept.insert.name)])
        row += [*cells, *[""] * (2 - len(cells)), _verdict("passed" if kept.passed else "not passed")]
    said = [f"{100 * noise:.0f} % noise" if noise else "no noise" for noise in NOISES]
    titles = "Insert", *(f"{what}, {of}" for of in said for what in ("Contrast", "Size", "Verdict"))
    return _table(titles, rows.values(), "numbers")


def _crop(outcome: Outcome, scale: Fraction, top: int, left: int) -> Image.Image:
    """A part of the phantom; it begins near this pixel, where pixels of the input and of the output do."""
    y, x = (math.ceil(at / scale.denominator) * scale.denominator for at in (top, left))
    fine = slice(int(y * scale), int((y + _CROP) * scale)), slice(int(x * scale), int((x + _CROP) * scale))
    before, ours, truth = outcome.scans
    return preview.side_by_side(before[y : y + _CROP, x : x + _CROP], ours[fine], (scale, scale), truth=truth[fine])


def _picture(name: str, picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    content = base64.b64encode(held.getvalue()).decode()
    return f'<h3>{escape(name)}</h3><img alt="{escape(name)}" src="data:image/png;base64,{content}">'


def _table(titles: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _verdict(text: str, kind: str = "") -> str:
    return f'<b class="{kind or text.replace(" ", "-")}">{text}</b>'

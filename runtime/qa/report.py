"""The page: one file, without scripts, that loads nothing. `page.html` is its frame."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from html import escape
from importlib import resources
from string import Template

from PIL import Image

from .. import preview
from .criteria import signed
from .judge import Criterion, overall
from .phantom import Outcome
from .scans import Tested

_SHOWN = {"Bright": (90, 46), "Dark": (90, 114)}  # row and column of the phantom where a picture begins
_VERDICTS = "passed", "not passed", "not applicable"
_SERIES = "Series", "SNR (over bicubic)", "Sharpness", "Thickness", "Ripple", "RMSE", "Worst pixel"


def page(
    facts: Iterable[str],
    criteria: Sequence[Criterion],
    series: Mapping[str, Tested],
    outcomes: Sequence[Outcome],
    scale: Fraction,
) -> str:
    """The whole page. `facts` are a line of what was run, on what, with what."""
    verdict = overall(criteria)
    rows = ((c.name, c.found, c.limit, c.verdict, c.source) for c in criteria)
    pictures = {name: its[1] for name, its in series.items() if not isinstance(its, str)}
    before, ours, truth = outcomes[-1].scans
    inserts = {
        f"{name} lesions, discs and line pairs": preview.side_by_side(before, ours, (scale, scale), truth=truth, place=at)
        for name, at in _SHOWN.items()
    }
    return Template(resources.files(__package__).joinpath("page.html").read_text("utf-8")).substitute(
        facts=escape(" · ".join(facts)),
        kind="not-passed" if "not" in verdict else "passed",
        verdict=verdict.capitalize(),
        criteria=_table(("Criterion", "Found", "Limit", "Verdict", "Source"), rows),
        series=_table(_SERIES, (_series(*each) for each in series.items()), "numbers") + _pictures(pictures),
        phantom=_pictures(inserts) + _phantom(outcomes),
    )


def _series(name: str, its: Tested) -> list[str]:
    if isinstance(its, str):
        return [f"{name}\nnot tested: {its}", *[""] * (len(_SERIES) - 1)]
    found, _ = its
    size = f", {' × '.join(f'{mm:.2f}' for mm in found.spacing)} mm" if found.spacing else ""
    return [
        "\n".join((name, f"{found.slices} slices{size}; {found.acquired}", *(found.outside or ()))),
        f"{signed(found.snr - 1)} ({signed(found.over_bicubic - 1)})",
        f"×{found.edges:.2f}",
        f"{found.bicubic_width:.2f} → {found.width:.2f}",
        f"×{found.ripple:.2f}",
        f"{100 * found.rmse:.1f} %",
        f"{100 * found.worst:.0f} %",
    ]


def _phantom(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for by_noise in zip(*(outcome.kept for outcome in outcomes)):
        row = [by_noise[0].insert.name]
        for kept in by_noise:
            cells = [f"{signed(ours - 1, 1)} ({signed(other - 1, 1)})" for ours, other in zip(kept.ours, kept.bicubic)]
            row += [*cells, *[""] * (2 - len(cells)), "passed" if kept.passed else "not passed"]
        rows.append(row)
    titles = "Insert", *(f"{what}, {each.title}" for each in outcomes for what in ("Contrast", "Size", "Verdict"))
    return _table(titles, rows, "numbers")


def _pictures(pictures: Mapping[str, Image.Image]) -> str:
    html = ""
    for name, picture in pictures.items():
        held = io.BytesIO()
        picture.save(held, "PNG", optimize=True)
        content = base64.b64encode(held.getvalue()).decode()
        html += f'<h3>{escape(name)}</h3><img alt="{escape(name)}" src="data:image/png;base64,{content}">\n'
    return html


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of plain text; lines after a cell's first are small, and a verdict has its colour."""
    html = f'<table class="{kind}"><thead><tr>{"".join(f"<th>{title}</th>" for title in titles)}</tr></thead><tbody>\n'
    for row in rows:
        html += f"<tr>{''.join(map(_cell, row))}</tr>\n"
    return html + "</tbody></table>\n"


def _cell(text: str) -> str:
    first, *more = map(escape, text.split("\n"))
    kind = first.replace(" ", "-") if first in _VERDICTS else "text"
    small = "".join(f"<small>{line}</small>" for line in more)
    return f'<td class="{kind}">{first}{small}</td>'

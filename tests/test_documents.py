"""What documents say of the project is what the project's files say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [page for page in ROOT.rglob("*.md") if not {".venv", "out", "node_modules"} & {*page.relative_to(ROOT).parts}]


def test_every_dependency_is_listed_with_its_range_and_version() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    wanted = [*project["dependencies"], *settings["build-system"]["requires"]]
    wanted += [each for extra in project["optional-dependencies"].values() for each in extra]
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in _lines(ROOT / "docs/soup.md") if line[:1] == "|"]
    listed = {name: (ranges, version) for name, ranges, version, *_ in rows}
    for requirement in wanted:
        name, at_least = re.fullmatch(r"([\w-]+)(?:\[.*\])?(>=[\d.]+)?(?:;.*)?", requirement).groups()  # type: ignore[union-attr]
        if name == project["name"]:
            continue
        assert name in listed, f"docs/soup.md lacks {name}"
        ranges, version = listed[name]
        assert at_least in re.findall(r">=[\d.]+", ranges), f"docs/soup.md gives {ranges} for {requirement}"
        if name.lower() in tested:
            assert tested[name.lower()] in version, f"docs/soup.md says {version} of {name}"


def test_pages_name_files_that_exist() -> None:
    """A page names another by its path from the root, links and pictures by their path from the page."""
    for page in PAGES:
        text = page.read_text()
        named = {ROOT / path for path in re.findall(r"(?<![\w/.-])(?:docs|models|tests)/[\w/.-]+\.(?:md|py)\b", text)}
        linked = {page.parent / path for path in re.findall(r"\]\((?!http|#)([^)]+)\)", text)}
        missing = [str(path) for path in named | linked if not path.exists()]
        assert not missing, f"{page.name} names {', '.join(missing)}"


def test_hazards_name_tests_that_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/hazards.md").read_text()))
    assert named
    assert named <= set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))


def test_readme_is_read_in_a_minute() -> None:
    assert len(_lines(ROOT / "README.md")) <= 90


def _lines(page: Path) -> list[str]:
    return page.read_text().splitlines()

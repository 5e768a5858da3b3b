"""Files that must agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def version() -> str:
    match = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert match
    return match[1]


def test_citation_has_the_version() -> None:
    assert f"\nversion: {version()}\n" in (ROOT / "CITATION.cff").read_text()


def test_changelog_has_unreleased_first() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"


@pytest.mark.parametrize("form", ["bug", "numerics", "performance", "installation"])
def test_issue_form_asks_for_the_environment(form: str) -> None:
    assert "python -m graphattn.env" in (ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text()


def test_constraints_fit_the_requirements() -> None:
    """Each direct requirement is pinned, to a version that its lower bound admits."""
    requirements = pytest.importorskip("packaging.requirements")
    utils = pytest.importorskip("packaging.utils")
    pins = {}
    for text in (ROOT / "constraints.txt").read_text().splitlines():
        if text and not text.startswith("#"):
            pin = requirements.Requirement(text)
            pins[utils.canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    text = (ROOT / "pyproject.toml").read_text()
    table = text.partition("dependencies = [")[2].partition("[project.scripts]")[0]
    table = re.sub(r"#.*", "", table)
    found = [requirements.Requirement(need) for need in re.findall(r'"([^"]+)"', table)]
    names = {utils.canonicalize_name(need.name) for need in found}
    assert {"torch", "torch-geometric", "lightning", "pytest"} <= names
    for need in found:
        name = utils.canonicalize_name(need.name)
        if name not in ("graphattn", "torch-scatter"):
            assert need.specifier.contains(pins[name]), f"{need} against {name}=={pins.get(name)}"

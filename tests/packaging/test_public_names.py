"""The public names of the package: a snapshot, so that adding or removing one is a decision."""

from __future__ import annotations

from pathlib import Path

import graphattn

SNAPSHOT = Path(__file__).with_name("public_names.txt")


def snapshot() -> list[str]:
    return SNAPSHOT.read_text().split()


def test_all_is_the_snapshot() -> None:
    assert sorted(graphattn.__all__) == snapshot(), (
        f"the public names changed: bring {SNAPSHOT.name} up to date and add a line to CHANGELOG.md"
    )


def test_every_public_name_can_be_had() -> None:
    assert snapshot()
    for name in snapshot():
        assert getattr(graphattn, name) is not None, name


def test_dir_lists_the_public_names() -> None:
    assert set(snapshot()) <= set(dir(graphattn))


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(graphattn, "no_such_name")

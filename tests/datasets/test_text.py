"""Texts: windows, splits, and what is read from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets import load_dataset
from graphattn_datasets.text import TextSet, files


def windows(length: int, context: int, stride: int | None = None) -> TextSet:
    return TextSet(torch.arange(length, dtype=torch.uint8), [chr(65 + n) for n in range(length)], context, stride)


@pytest.mark.parametrize("length", range(6, 24))
def test_every_character_is_predicted_once(length: int) -> None:
    found = windows(length, 5)
    batch = found.__getitems__(list(range(len(found))))
    there = batch["y"] >= 0
    assert sorted(batch["y"][there].tolist()) == list(range(1, length))
    assert torch.equal(batch["y"][there], batch["x"][there] + 1)
    assert torch.equal(found[len(found) - 1]["x"], batch["x"][-1])


def test_strides_text_and_errors() -> None:
    found = windows(21, 8, 4)
    assert [int(found[n]["x"][0]) for n in range(len(found))] == [0, 4, 8, 12]
    assert found.text(found[1]["x"]) == "EFGHIJKL" and "4 windows of 8 characters" in repr(found)
    with pytest.raises(ArgumentError, match=r"tokens must be \[L\] with L > context = 8"):
        windows(8, 8)
    with pytest.raises(ArgumentError, match="stride 1 to context, got 8 and 9"):
        windows(20, 8, 9)


def test_python_docs_from_a_small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    (library / "json" / "tests").mkdir(parents=True)
    code = '"""First."""\n\ndef f():\n    """Second \u00e9.\n\n    More."""\nclass A:\n    x = 1\n'
    (library / "ast.py").write_text(code, encoding="utf-8")
    (library / "json" / "__init__.py").write_text('"""Third."""')
    (library / "json" / "tests" / "__init__.py").write_text('"""Not this."""')
    (library / "abc.py").write_text("def broken(:")
    (library / "mine.py").write_text('"""Not of the standard library."""')
    monkeypatch.setattr(files.sysconfig, "get_path", lambda name: str(library))
    assert files.read_python_docs(tmp_path / "cache") == "First.\n\nSecond ?.\n\nMore.\n\nThird.\n"
    (library / "ast.py").unlink()
    assert files.read_python_docs(tmp_path / "cache").startswith("First.")  # kept
    empty = tmp_path / "none"
    empty.mkdir()
    monkeypatch.setattr(files.sysconfig, "get_path", lambda name: str(empty))
    with pytest.raises(DataError, match="needs the source files of the standard library"):
        files.read_python_docs(tmp_path / "other")


def test_tinyshakespeare_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tinyshakespeare"
    folder.mkdir()
    (folder / "input.txt").write_text("To be\n" * 200)
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path))
    with pytest.raises(DataError, match="is another text or truncated"):
        load_dataset("tinyshakespeare")
    import hashlib

    digest = hashlib.md5((folder / "input.txt").read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(files, "_MD5", digest)
    splits = load_dataset("tinyshakespeare", context=16)
    assert splits.train.characters == ("\n", " ", "T", "b", "e", "o")
    assert [len(part.tokens) for part in splits] == [1080, 60, 60]
    whole = "".join(part.text(part.tokens) for part in splits)
    assert whole == "To be\n" * 200
    assert load_dataset("tinyshakespeare", split="train", context=16, stride=4).stride == 4
    with pytest.raises(ArgumentError, match="pre_transform must be None"):
        load_dataset("tinyshakespeare", pre_transform=lambda data: data)

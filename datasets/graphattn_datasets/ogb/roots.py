"""Where an OGB data set lies, and getting it where it lies nowhere."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from graphattn.errors import DataError
from graphattn_datasets.ogb.meta import OgbMeta
from graphattn_datasets.paths import cache_root, data_folder, data_setting, make_folder, say

__all__ = ["find_folder", "missing_files", "raw_file", "split_folder"]

_CONNECT_SECONDS = 20.0
_BLOCK = 1 << 20
_SAY_FROM = 1 << 30  # bytes; ogb asks a question here
# The archive of ogbn-proteins holds the file under its old name; ogb renames it in place.
_OLD_NAMES = {"node_species.csv.gz": "species.csv.gz"}


def find_folder(meta: OgbMeta, root: str | None = None) -> Path:
    """The folder of one data set, downloaded if it is nowhere.

    Looked for in ``root`` if that is given (an OGB root, or the data set's own folder), else in
    ``$GRAPHATTN_DATA/ogb``, in ``$GRAPHATTN_DATA`` and in the cache; ``<name>_pyg`` before ``<name>``, as ogb does.

    Raises:
        DataError: If the folder lacks files, or there is none and the download fails.
    """
    places = _places(root)
    for place in places:
        for folder in (place / f"{meta.folder}_pyg", place / meta.folder):
            if folder.is_dir() and not _is_a_cache(folder):
                return _complete(folder, meta)
    if root is not None and (places[0] / "raw").is_dir():
        return _complete(places[0], meta)
    return _download(meta, places)


def raw_file(folder: Path, name: str) -> Path:
    """The path of a file in ``raw/``, under an older name where it has that."""
    path = folder / "raw" / name
    old = path.with_name(_OLD_NAMES.get(name, name))
    return path if path.exists() or not old.exists() else old


def missing_files(folder: Path, meta: OgbMeta) -> list[str]:
    """Names of the files in ``raw/`` that are not there."""
    return [name for name in meta.raw_files if not raw_file(folder, name).is_file()]


def split_folder(folder: Path, meta: OgbMeta, split_type: str | None = None) -> Path:
    """The folder of a split.

    Raises:
        DataError: If there is none of that name; the text lists those that there are.
    """
    path = folder / "split" / (split_type or meta.split)
    if not path.is_dir():
        known = sorted(item.name for item in path.parent.iterdir() if item.is_dir()) if path.parent.is_dir() else []
        raise DataError(
            f"{meta.name} has no split {path.name!r} in {path.parent}; "
            + (f"it has {', '.join(map(repr, known))}" if known else "get the data set again")
        )
    return path


def _places(root: str | None) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    base = data_folder()
    return [*([base / "ogb", base] if base is not None else []), Path(cache_root(None, "ogb"))]


def _complete(folder: Path, meta: OgbMeta) -> Path:
    absent = missing_files(folder, meta)
    if absent and not (folder / "processed" / "geometric_data_processed.pt").is_file():
        raise DataError(
            f"{meta.name}: {folder} lacks {', '.join(f'raw/{name}' for name in absent)}. Its download or extraction "
            f"was not completed: delete the folder and load again, or extract {meta.url} there."
        )
    if not (folder / f"RELEASE_v{meta.version}.txt").is_file():
        other = ", ".join(path.name for path in sorted(folder.glob("RELEASE_*"))) or "no RELEASE file"
        say(f"{meta.name}: {folder} has {other} instead of RELEASE_v{meta.version}.txt; is it an older release?")
    return folder


def _is_a_cache(folder: Path) -> bool:
    """Whether there are only our copies of a set that was read elsewhere."""
    theirs = folder / "processed" / "geometric_data_processed.pt"
    return [path.name for path in folder.iterdir()] == ["processed"] and not theirs.is_file()


def _keep_cache(folder: Path, arrived: Path) -> None:
    """Move our copies to where the whole set is, which is to take the folder's place."""
    (arrived / "processed").mkdir(exist_ok=True)
    for path in (folder / "processed").iterdir():
        os.replace(path, arrived / "processed" / path.name)
    (folder / "processed").rmdir()
    folder.rmdir()


def _download(meta: OgbMeta, places: list[Path]) -> Path:
    target = places[-1] / meta.folder
    make_folder(places[-1])
    try:
        # Beside the target, so that the last step is a rename: a folder that is there is whole.
        with tempfile.TemporaryDirectory(dir=places[-1]) as staging:
            archive = Path(staging) / "archive.zip"
            _fetch(meta, archive)
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(staging)
            archive.unlink()
            arrived = Path(staging) / meta.archive
            absent = missing_files(arrived, meta)
            if absent:
                raise DataError(f"the archive lacks {', '.join(absent)}")
            if target.is_dir():
                _keep_cache(target, arrived)
            os.replace(arrived, target)
    except (OSError, DataError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{meta.name}: there is no folder {meta.folder} in {' or '.join(map(str, places))}, and the download "
            f"failed ({type(error).__name__}: {error})\n  from: {meta.url}\n  extract it to: {target} "
            f"({data_setting()})"
        ) from None
    return target


def _fetch(meta: OgbMeta, path: Path) -> None:
    with urllib.request.urlopen(meta.url, timeout=_CONNECT_SECONDS) as answer, open(path, "wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(path.parent).free
        if 3 * size > free:  # the archive, its contents, the processed copy
            raise DataError(f"it needs about {3 * size / 1e9:.1f} GB, {path.parent} has {free / 1e9:.1f} GB")
        if size > _SAY_FROM:
            say(f"downloading {meta.name}, {size / 1e9:.1f} GB, from {meta.url}")
        shutil.copyfileobj(answer, file, _BLOCK)
        if size and file.tell() != size:
            raise DataError(f"it ended after {file.tell()} of {size} bytes")

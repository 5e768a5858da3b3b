"""The base of all data sets here: PyG's in-memory data set with a cache that can be trusted."""

from __future__ import annotations

import os
import os.path as osp
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch_geometric
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data.separate import separate

from graphattn.encoding.fingerprints import describe, fingerprint, package_version
from graphattn.errors import ArgumentError, DataError, GraphattnError
from graphattn_datasets.paths import DATA_VARIABLE, data_folder, data_setting, make_folder, say
from graphattn_datasets.pre_transform import apply_pre_transform
from graphattn_datasets.storage import FORMAT, Collated, read_graphs, write_graphs

__all__ = ["CachedDataset", "NamedFolders"]

_CONNECT_SECONDS = 20.0


class CachedDataset(InMemoryDataset):
    """An in-memory data set whose processed copies are fingerprinted, compact, atomic and safe to read.

    Put it in front of one of PyG's classes to keep that class's reading and downloading
    (``class Planetoid(CachedDataset, pyg.Planetoid)``), or subclass it alone and define ``process``, which
    calls ``self.save(graphs, path)`` with a list of ``Data`` or a :class:`Collated`.

    What differs from PyG:

    - Raw files are read where they are if ``$GRAPHATTN_DATA`` holds them; nothing is written there.
    - A processed copy lies in ``processed/<pre_transform>-<fingerprint>/``. The fingerprint covers the class,
      its options, ``pre_transform`` and ``pre_filter`` with their arguments, and the versions of the
      libraries (``transform`` acts on every access and is never stored), so no stale copy is ever read.
    - Nothing is unpickled from the cache; a damaged copy is made again.
    - A download that fails, is interrupted or hangs leaves no half file and raises one :class:`DataError`.
    """

    exactness = "as published"
    root: str
    pre_transform: Callable[[Any], Any] | None
    pre_filter: Callable[[Any], bool] | None

    # What a subclass may say.

    def shared_folders(self) -> Sequence[str]:
        """Folders under ``$GRAPHATTN_DATA`` that may hold all raw files."""
        return ()

    def addresses(self) -> Sequence[str]:
        """Where ``download`` gets the raw files; empty if they cannot be downloaded."""
        return ()

    def cache_options(self) -> dict[str, Any]:
        """Arguments of the constructor that change what is processed."""
        return {}

    def convert(self, data: Data) -> Data:
        """Bring a graph as PyG's class makes it to the fields that this library uses."""
        return data

    def expected_graphs(self) -> int | None:
        """How many graphs ``process`` will make; None if that is known only afterwards."""
        return None

    def suspects(self) -> Sequence[str]:
        """The raw files that may be to blame when ``process`` fails."""
        return self.raw_paths

    # Where things are.

    @property
    def raw_dir(self) -> str:
        return self._shared_dir() or str(super().raw_dir)

    @property
    def processed_dir(self) -> str:
        return osp.join(super().processed_dir, self._cache_name())

    @property
    def has_download(self) -> bool:
        return True

    @property
    def has_process(self) -> bool:
        return True

    def _shared_dir(self) -> str | None:
        base = data_folder()
        names = self._raw_names()
        if base is None or not names:
            return None
        for folder in self.shared_folders():
            if all((base / folder / name).is_file() for name in names):
                return str(base / folder)
        return None

    def _raw_names(self) -> list[str]:
        names = self.raw_file_names
        return [names] if isinstance(names, str) else list(names)

    def _made_by(self) -> dict[str, Any]:
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "options": describe(self.cache_options()),
            "pre_transform": describe(self.pre_transform),
            "pre_filter": describe(self.pre_filter),
            "format": FORMAT,
            "graphattn": package_version("graphattn"),
            "torch_geometric": torch_geometric.__version__,
        }

    def _cache_name(self) -> str:
        # Computed once: a transform may change while it works (a lazily filled table, say).
        name: str | None = self.__dict__.get("_cache_name_")
        if name is None:
            label = "plain" if self.pre_transform is None else type(self.pre_transform).__name__
            name = f"{label}-{fingerprint(self._made_by())}"
            self.__dict__["_cache_name_"] = name
        return name

    # Raw files.

    def _download(self) -> None:
        processed = all(osp.exists(path) for path in self.processed_paths)
        if (processed and not self.force_reload) or all(osp.exists(path) for path in self.raw_paths):
            return
        if not self.addresses():
            raise self._missing("it cannot be downloaded")
        make_folder(self.root)
        try:
            with tempfile.TemporaryDirectory(dir=self.root) as staging, _no_endless_wait():
                self._download_to(staging)
        except Exception as error:
            raise self._missing(f"the download failed ({type(error).__name__}: {error})") from None

    def _download_to(self, staging: str) -> None:
        # Ask first, because some of PyG's downloaders wait for minutes when nothing answers.
        urllib.request.urlopen(self.addresses()[0], timeout=_CONNECT_SECONDS).close()
        target, root = Path(self.raw_dir), self.root
        self.root = staging
        try:
            os.makedirs(self.raw_dir, exist_ok=True)
            self.download()
            arrived = Path(self.raw_dir)
        finally:
            self.root = root
        target.mkdir(parents=True, exist_ok=True)
        for item in arrived.iterdir():
            if not (target / item.name).exists():
                shutil.move(str(item), str(target / item.name))

    def _missing(self, reason: str) -> DataError:
        absent = [osp.basename(path) for path in self.raw_paths if not osp.exists(path)]
        places = [str(self.raw_dir), *(f"${DATA_VARIABLE}/{folder}" for folder in self.shared_folders())]
        lines = [f"{self!r}: raw files are missing: {', '.join(absent)}; {reason}"]
        if self.addresses():
            lines.append(f"from: {' '.join(self.addresses()[:4])}{' ...' if len(self.addresses()) > 4 else ''}")
        lines.append(f"put them into: {' or '.join(places)} ({data_setting()})")
        return DataError("\n  ".join(lines))

    # Processed files.

    def _process(self) -> None:
        if self.force_reload or not all(osp.exists(path) for path in self.processed_paths):
            self._build()

    def _build(self) -> None:
        self._announce()
        make_folder(self.root)
        made_by = self._made_by()
        pre_transform, pre_filter = self.pre_transform, self.pre_filter
        built: dict[str, Collated] = {}
        self.__dict__["_built"] = built
        # Set aside, so that an error in them is not reported as an error of the raw files.
        self.pre_transform = self.pre_filter = None
        try:
            self.process()
        except GraphattnError:
            raise
        except Exception as error:
            raise DataError(
                f"{self!r}: {' or '.join(self.suspects())} is truncated or corrupt "
                f"({type(error).__name__}: {error}). Delete it and get it again"
                + (f" from {self.addresses()[0]}." if self.addresses() else ".")
            ) from error
        finally:
            self.pre_transform, self.pre_filter = pre_transform, pre_filter
            del self.__dict__["_built"]
        for path, graphs in built.items():
            write_graphs(path, self._transformed(graphs, self._title([path])), made_by)

    def _announce(self) -> None:
        if not self.log:
            return
        folder = Path(self.processed_dir)
        names = {osp.basename(path) for path in self.processed_paths}
        others = [
            other.name
            for other in (folder.parent.iterdir() if folder.parent.is_dir() else ())
            if other != folder and any((other / name).is_file() for name in names)
        ]
        why = f"; copies made with other arguments or versions stay there: {', '.join(sorted(others))}"
        count = self.expected_graphs()
        what = self._title(self.processed_paths) + ("" if count is None else f" ({count} graphs)")
        say(f"making {what} in {folder}{why if others else ''}")

    def _transformed(self, graphs: Collated, title: str) -> Collated:
        if self.pre_transform is None and self.pre_filter is None:
            return graphs
        kept = [data for data in _members(graphs) if self.pre_filter is None or self.pre_filter(data)]
        if not kept:
            raise ArgumentError(f"{self!r}: pre_filter leaves no graph")
        if self.pre_transform is not None:
            kept = apply_pre_transform(self.pre_transform, kept, title)
        data, slices = self.collate(kept)
        return Collated(data, slices, graphs.extra)

    def save(self, graphs: Sequence[Data] | Collated, path: str) -> None:  # type: ignore[override]
        """Hand over what ``process`` read; it is transformed and written once ``process`` has ended."""
        if not isinstance(graphs, Collated):
            graphs = Collated(*self.collate([self.convert(data) for data in graphs]))
        self.__dict__["_built"][path] = graphs

    def load(self, path: str, data_cls: type[Data] = Data) -> None:  # type: ignore[override]
        """Read a processed file; if it is damaged, make it again."""
        try:
            graphs = read_graphs(path)
        except DataError as error:
            say(f"{error}; it is made again")
            self.__dict__["_data_list"] = None
            self._build()
            graphs = read_graphs(path)
        self.data, self.slices = graphs.data, graphs.slices
        self.extra = graphs.extra or {}

    def __repr__(self) -> str:
        return f"{self._label()}({len(self) if getattr(self, 'slices', None) is not None else ''})"

    def _label(self) -> str:
        return str(getattr(self, "name", type(self).__name__))

    def _title(self, paths: Sequence[str]) -> str:
        # The files of a set with splits are called by them, "train.pt".
        return " ".join([self._label(), *(Path(path).stem for path in paths if Path(path).stem != "data")])


class NamedFolders(InMemoryDataset):
    """Raw and processed files in folders of the data set's name, as most of PyG's data sets have them."""

    name: str

    @property
    def raw_dir(self) -> str:
        return osp.join(self.root, self.name, "raw")

    @property
    def processed_dir(self) -> str:
        return osp.join(self.root, self.name, "processed")


def _count(graphs: Collated) -> int:
    return 1 if graphs.slices is None else len(next(iter(graphs.slices.values()))) - 1


def _members(graphs: Collated) -> Iterator[Data]:
    if graphs.slices is None:
        yield graphs.data
        return
    for index in range(_count(graphs)):
        yield separate(Data, graphs.data, index, graphs.slices, decrement=False)


@contextmanager
def _no_endless_wait() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

"""Reading images from the files in which they are published, and getting these."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from graphattn.errors import DataError
from graphattn.optional import require
from graphattn_datasets.arrays import read_npz
from graphattn_datasets.paths import DATA_VARIABLE, atomic_path, data_folder, data_setting, say

__all__ = ["Arrays", "read_cifar10", "read_digits", "read_mnist"]

_SECONDS = 20.0  # to wait for an answer
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}  # of the .gz files; https://github.com/pytorch/vision has the same
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # not the "python version", which is pickles
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
_JPEG = "cifar10_jpeg"


class Arrays(NamedTuple):
    """Images as they are stored.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        exactness: What is exact about them, where that depends on the copy.
    """

    images: np.ndarray
    labels: np.ndarray
    exactness: str = ""


def read_digits() -> Arrays:
    """All 1,797 images of scikit-learn's digits, 0 to 16."""
    sklearn = require("sklearn.datasets", extra="images", purpose="the data set 'digits'")
    found = sklearn.load_digits()
    return Arrays(found.images.astype(np.uint8)[:, None], found.target.astype(np.int64))


def read_mnist(part: str, root: Path) -> Arrays:
    """The official ``"train"`` or ``"test"`` part of MNIST, 0 to 255.

    Args:
        part: ``"train"`` or ``"test"``.
        root: Where downloads go.

    Raises:
        DataError: If a file is missing and cannot be downloaded, or is corrupt.
    """
    prefix = "train" if part == "train" else "t10k"
    images, labels = (
        _read_idx(_mnist_file(f"{prefix}-{kind}-ubyte", root), axes)
        for kind, axes in (("images-idx3", 3), ("labels-idx1", 1))
    )
    if len(images) != len(labels):
        raise DataError(f"MNIST {part}: {len(images)} images, but {len(labels)} labels. Get the files again.")
    return Arrays(images[:, None], labels.astype(np.int64))


def read_cifar10(part: str, root: Path) -> Arrays:
    """The official ``"train"`` or ``"test"`` part of CIFAR-10, 0 to 255, from ``$GRAPHATTN_DATA/cifar10_jpeg`` if it is
    there, else from the original archive.

    Args:
        part: ``"train"`` or ``"test"``.
        root: Where downloads and decoded images go.

    Raises:
        DataError: If files are missing and cannot be downloaded, or are corrupt.
    """
    shared = data_folder()
    packed = None if shared is None else shared / _JPEG / f"{part}.npz"
    if packed is not None and packed.is_file():
        return _decoded(packed, root / _JPEG / f"{part}.npz")
    path = root / "cifar-10-binary.tar.gz"
    if not path.is_file():
        _download(_CIFAR, path, _CIFAR_MD5, [f"${DATA_VARIABLE}/{_JPEG}/{part}.npz"])
    records = []
    try:
        with tarfile.open(path) as archive:
            for name in _CIFAR_FILES[part]:
                member = archive.extractfile(f"cifar-10-batches-bin/{name}")
                assert member is not None
                records.append(np.frombuffer(member.read(), np.uint8).reshape(-1, 3073))
    except (OSError, EOFError, KeyError, ValueError, AssertionError, tarfile.TarError, zlib.error) as error:
        raise _corrupt(path, error) from error
    rows = np.concatenate(records)
    return Arrays(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64), "original pixels")


def _mnist_file(name: str, root: Path) -> Path:
    shared = data_folder()
    folders = [root] if shared is None else [shared / "mnist" / "MNIST" / "raw", shared / "MNIST" / "raw", root]
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    path = root / f"{name}.gz"
    _download(f"{_MNIST}{name}.gz", path, _MNIST_MD5[name], [f"${DATA_VARIABLE}/mnist/MNIST/raw/{name}.gz"])
    return path


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes: magic number 0, 0, 8, axes; sizes as big-endian int32; the numbers."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if content[:4] != bytes([0, 0, 8, axes]):
            raise ValueError(f"starts with {list(content[:4])}, not with {[0, 0, 8, axes]}")
        shape = np.frombuffer(content, ">i4", axes, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _corrupt(path, error) from error


def _decoded(packed: Path, copy: Path) -> Arrays:
    """Images of a file of JPEGs; decoded once, because that takes longer than an epoch of a small network."""
    exactness = "JPEG at quality 75"
    if copy.is_file() and copy.stat().st_mtime_ns >= packed.stat().st_mtime_ns:  # of this file, not of one before it
        found = read_npz(str(copy), ("images", "labels"))
        return Arrays(found["images"], found["labels"], exactness)
    image = require("PIL.Image", extra="images", purpose="the data set 'cifar10' from JPEGs")
    found = read_npz(str(packed), ("jpeg_bytes", "offsets", "labels"))
    stream, ends = found["jpeg_bytes"], found["offsets"]
    say(f"decoding {len(ends) - 1} images of {packed} to {copy}")
    images = np.empty((len(ends) - 1, 3, 32, 32), np.uint8)
    try:
        for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            picture = image.open(io.BytesIO(stream[start:end].tobytes()))
            images[number] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError) as error:
        raise _corrupt(packed, error) from error
    labels = found["labels"].astype(np.int64)
    with atomic_path(copy) as temporary, open(temporary, "wb") as file:
        np.savez(file, images=images, labels=labels)
    return Arrays(images, labels, exactness)


def _download(address: str, path: Path, md5: str, places: list[str]) -> None:
    say(f"downloading {address} to {path}")
    try:
        with atomic_path(path) as temporary:
            digest = hashlib.md5(usedforsecurity=False)
            with urllib.request.urlopen(address, timeout=_SECONDS) as answer, open(temporary, "wb") as file:
                while block := answer.read(1 << 20):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != md5:
                raise OSError(f"its MD5 is {digest.hexdigest()}, expected {md5}")
    except OSError as error:
        where = " or ".join([str(path), *places])
        raise DataError(
            f"cannot get {address} ({type(error).__name__}: {error})\n  put it into: {where} ({data_setting()})"
        ) from None


def _corrupt(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is truncated or corrupt ({type(error).__name__}: {error}). Delete it and get it again.")

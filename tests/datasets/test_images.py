"""Sets of images: their files, splits and downloads."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graphattn.errors import ArgumentError, ArgumentTypeError, DataError, MissingPackageError
from graphattn_datasets import load_dataset
from graphattn_datasets.images import ImageSet, files


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty data and cache folders; nothing can be downloaded."""
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GRAPHATTN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()

    def no_network(address: str, **options: Any) -> Any:
        raise OSError(f"no network for {address}")

    monkeypatch.setattr(files.urllib.request, "urlopen", no_network)
    return tmp_path


def write_idx(path: Path, array: np.ndarray, zipped: bool = True) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


def write_mnist(folder: Path, train: int = 30, test: int = 6, zipped: bool = True) -> dict[str, np.ndarray]:
    rng, written = np.random.RandomState(0), {}
    end = ".gz" if zipped else ""
    for prefix, count in (("train", train), ("t10k", test)):
        written[prefix] = rng.randint(0, 256, (count, 28, 28))
        write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", written[prefix], zipped)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", np.arange(count) % 10, zipped)
    return written


def test_digits() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    parts = load_dataset("digits")
    assert [len(part) for part in parts] == [1077, 360, 360]
    images = torch.cat([part[slice(None)]["x"] for part in parts])
    labels = torch.cat([part.labels for part in parts])
    assert images.mean().item() == pytest.approx(0, abs=1e-3) and images.std().item() == pytest.approx(1, abs=1e-3)
    pixels = parts.train.pixels(images)[:, 0]
    known = {(image.tobytes(), int(label)) for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    found = [
        (np.round(image.numpy() * 16).astype(float).tobytes(), int(y)) for image, y in zip(pixels, labels, strict=True)
    ]
    assert set(found) == known and len(found) == 1797  # each once
    assert torch.equal(load_dataset("digits", split="val").images, parts.val.images)
    other = load_dataset("digits", split="test", split_seed=1)
    assert not torch.equal(other.images, parts.test.images)
    assert parts.train.info.num_classes == 10 and "no official split" in parts.train.exactness


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r'the data set .digits. needs .*pip install "graphattn\[images\]"'):
        load_dataset("digits")


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_from_the_data_folder(place: Path, zipped: bool) -> None:
    written = write_mnist(place / "data" / "mnist" / "MNIST" / "raw", zipped=zipped)
    train, val, test = load_dataset("mnist", num_val=8)
    assert (len(train), len(val), len(test)) == (22, 8, 6)
    assert torch.equal(test.images[:, 0], torch.from_numpy(written["t10k"]).byte())
    assert torch.equal(test.labels, torch.arange(6))
    whole = torch.from_numpy(written["train"]).byte()
    order = torch.from_numpy(np.random.RandomState(0).permutation(30))
    assert torch.equal(val.images[:, 0], whole[order[:8].sort().values])
    assert torch.equal(train.images[:, 0], whole[order[8:].sort().values])
    x = test[2]["x"]
    torch.testing.assert_close(x, (test.images[2].float() / 255 - 0.1307) / 0.3081)
    torch.testing.assert_close(test.pixels(x), test.images[2] / 255)
    batch = test.__getitems__([4, 1])
    assert torch.equal(batch["y"], torch.tensor([4, 1])) and torch.equal(batch["x"][1], test[1]["x"])
    for wrong in (0, 30):
        with pytest.raises(ArgumentError, match=f"num_val must be 1 to 29, got {wrong}"):
            load_dataset("mnist", split="train", num_val=wrong)


def test_broken_and_missing_mnist(place: Path) -> None:
    folder = place / "data" / "mnist" / "MNIST" / "raw"
    write_mnist(folder)
    images = folder / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-30])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz is truncated or corrupt"):
        load_dataset("mnist", split="test")
    write_idx(images, np.zeros((5, 28, 28)))
    with pytest.raises(DataError, match="MNIST test: 5 images, but 6 labels"):
        load_dataset("mnist", split="test")
    write_idx(images, np.zeros((5, 28)))
    with pytest.raises(DataError, match="starts with"):
        load_dataset("mnist", split="test")
    images.unlink()
    with pytest.raises(DataError, match="cannot get https://ossci.*no network.*\n  put it into: .*images/mnist.* or "):
        load_dataset("mnist", split="test")
    assert not list((place / "cache").rglob("*.tmp"))


def test_a_download_is_checked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place / "elsewhere"
    write_mnist(source)

    def answer(address: str, **options: Any) -> io.BytesIO:
        return io.BytesIO((source / address.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(files.urllib.request, "urlopen", answer)
    with pytest.raises(DataError, match="its MD5 is .*, expected 9fb629c4189551a2d022fa330f9573f3"):
        load_dataset("mnist", split="test")
    sums = {path.name.removesuffix(".gz"): hashlib.md5(path.read_bytes()).hexdigest() for path in source.iterdir()}
    monkeypatch.setattr(files, "_MNIST_MD5", sums)
    assert len(load_dataset("mnist", split="test")) == 6
    monkeypatch.setattr(files.urllib.request, "urlopen", None)
    assert len(load_dataset("mnist", split="test")) == 6  # from the cache


def test_cifar_from_the_original_archive(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, packed = np.random.RandomState(0), io.BytesIO()
    records = rng.randint(0, 256, (6, 4, 3073), dtype=np.uint8)
    records[..., 0] %= 10
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, rows in zip([f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"], records, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.nbytes
            archive.addfile(member, io.BytesIO(rows.tobytes()))
    monkeypatch.setattr(files.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(packed.getvalue()))
    monkeypatch.setattr(files, "_CIFAR_MD5", hashlib.md5(packed.getvalue()).hexdigest())
    train, val, test = load_dataset("cifar10", num_val=5)
    assert (len(train), len(val), len(test)) == (15, 5, 4) and test.exactness == "original pixels"
    assert test.images[1, 2, 3, 4] == records[5, 1, 1 + 2 * 1024 + 3 * 32 + 4]
    assert torch.equal(test.labels, torch.from_numpy(records[5, :, 0]).long())
    (path,) = (place / "cache").rglob("*.tar.gz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz is truncated or corrupt"):
        load_dataset("cifar10", split="test")


def test_cifar_from_jpegs_is_decoded_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [np.full((32, 32, 3), (40 * n, 100, 255 - 40 * n), np.uint8) for n in range(5)]
    streams = []
    for picture in pictures:
        stream = io.BytesIO()
        image.fromarray(picture).save(stream, "JPEG", quality=95)
        streams.append(np.frombuffer(stream.getvalue(), np.uint8))
    folder = place / "data" / "cifar10_jpeg"
    folder.mkdir()
    ends = np.concatenate(([0], np.cumsum([len(stream) for stream in streams])))
    np.savez(folder / "test.npz", jpeg_bytes=np.concatenate(streams), offsets=ends, labels=np.arange(5, dtype=np.uint8))
    test = load_dataset("cifar10", split="test")
    assert test.exactness == "JPEG at quality 75" and torch.equal(test.labels, torch.arange(5))
    expected = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    assert int((test.images.int() - expected.int()).abs().max()) <= 3
    with monkeypatch.context() as patch:
        patch.setattr(image, "open", None)
        assert torch.equal(load_dataset("cifar10", split="test").images, test.images)
    labels = np.arange(5, 10, dtype=np.uint8)
    np.savez(folder / "test.npz", jpeg_bytes=np.concatenate(streams), offsets=ends, labels=labels)
    later = time.time_ns() + 10**9
    os.utime(folder / "test.npz", ns=(later, later))
    assert load_dataset("cifar10", split="test").labels.tolist() == labels.tolist()  # another file came
    os.utime(folder / "test.npz", ns=(0, 0))
    (copy,) = (place / "cache").rglob("test.npz")
    copy.write_bytes(b"PK")
    with pytest.raises(DataError, match="truncated or corrupt"):
        load_dataset("cifar10", split="test")


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"images must be uint8 \[N, C, H, W\]"):
        ImageSet(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises(ArgumentError, match="pre_transform must be None for the images of 'digits'"):
        load_dataset("digits", pre_transform=abs)
    with pytest.raises(ArgumentTypeError, match="no option 'fold'; it has num_val, split_seed"):
        load_dataset("digits", fold=1)
    calls = []
    pixels = ImageSet(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long(), transform=calls.append)
    _ = pixels[0]
    assert calls[0]["x"].shape == (1, 2, 2) and repr(pixels) == "ImageSet(2 images of 1 x 2 x 2)"

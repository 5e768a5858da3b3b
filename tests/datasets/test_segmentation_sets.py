"""Photographs with masks: pairing, reading, what can be wrong with a file, the published sets, generated scenes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from graphattn.errors import ArgumentError, DataError
from graphattn_datasets import list_datasets, load_dataset
from graphattn_datasets.images.segmentation import SegmentationSet, find_pairs, generate_scenes, read_folder
from graphattn_datasets.images.segmentation.dataset import MEAN, STD, resize_pair
from graphattn_datasets.images.segmentation.read import read_image, read_mask

Image = pytest.importorskip("PIL.Image")
REAL = os.environ.get("GRAPHATTN_DATA", "")


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def photo(path: Path, height: int = 6, width: int = 8, value: int = 90) -> Path:
    return save(path, np.full((height, width, 3), value, np.uint8))


def mask(path: Path, height: int = 6, width: int = 8, top: int = 255) -> Path:
    pixels = np.zeros((height, width), np.uint8)
    pixels[1:4, 2:5] = top
    return save(path, pixels)


LAYOUTS = [  # folder and ending of photographs, of masks
    ("images/{}.jpg", "masks/{}.png"),
    ("image/{}.png", "label/{}.png"),
    ("images/{}.jpg", "ground_truth_mask/{}.png"),  # ECSSD
    ("DUTS-TR-Image/{}.jpg", "DUTS-TR-Mask/{}.png"),  # DUTS
    ("imgs/{}.jpg", "gt/{}.png"),  # HKU-IS, PASCAL-S
    ("DUT-OMRON-image/{}.jpg", "pixelwiseGT-new-PNG/{}.png"),  # DUT-OMRON
    ("Imgs/{}.jpg", "Imgs/{}.png"),  # MSRA-B, SOD: both in one folder
    ("{}.jpg", "{}.png"),
    ("images/{}.jpeg", "masks/{}_mask.png"),
]


@pytest.mark.parametrize(("photos", "masks"), LAYOUTS)
def test_layouts(photos: str, masks: str, tmp_path: Path) -> None:
    for name in ("b", "a"):
        photo(tmp_path / photos.format(name), value=ord(name))
        mask(tmp_path / masks.format(name))
    (tmp_path / "Thumbs.db").write_text("not an image")
    (tmp_path / photos.format("x")).with_name(".hidden.png").write_text("nor this")
    scenes = read_folder(tmp_path)
    assert scenes.names == ["a", "b"] and not scenes.skipped
    assert [int(image.mean().round()) for image in scenes.images] == [97, 98]
    assert all(set(np.unique(m)) == {0, 1} and m.sum() == 9 for m in scenes.masks)


def test_folders_by_other_names(tmp_path: Path) -> None:
    photo(tmp_path / "left" / "a.jpg")
    mask(tmp_path / "right" / "a.png")
    assert find_pairs(tmp_path, "left", "right")[0][0].mask == tmp_path / "right" / "a.png"
    with pytest.raises(DataError, match=r"holds no images. Expected .*/images and .*/masks.* holds left, right"):
        find_pairs(tmp_path)
    mask(tmp_path / "gt" / "a.png")
    photo(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="several folders that may hold masks: gt, masks. Name one by masks="):
        find_pairs(tmp_path)
    assert len(find_pairs(tmp_path, masks="gt")[0]) == 1


def test_each_error_is_one_clear_text(tmp_path: Path) -> None:
    """A mask of another size, labels that are not 0 and 1, an unreadable image, an empty folder, a missing one."""
    folder = tmp_path / "set"
    photo(folder / "images" / "a.jpg")
    wrong = mask(folder / "masks" / "a.png", 6, 9)
    with pytest.raises(DataError, match=r"masks/a.png is of 9 x 6 pixels, but its photograph .*a.jpg of 8 x 6"):
        read_folder(folder)
    mask(wrong, top=7)
    with pytest.raises(DataError, match=r"a.png must hold the labels 0 and 1 \(or 0 and 255\), got 2 values: 0, 7"):
        read_folder(folder)
    save(wrong, np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="a.png must hold one number a pixel, got colours"):
        read_folder(folder)
    mask(wrong)
    whole = (folder / "images" / "a.jpg").read_bytes()
    for broken in (whole[: len(whole) // 2], b"not a picture", b""):
        (folder / "images" / "a.jpg").write_bytes(broken)
        with pytest.raises(DataError, match=r"images/a.jpg cannot be read as an image \("):
            read_folder(folder)
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"masks/a.png: is a mask without a photograph"):
        read_folder(folder)
    (folder / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match="images holds no images"):
        read_folder(folder)
    with pytest.raises(DataError, match="there is no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="on_error must be 'stop' or 'skip', got 'ignore'"):
        photo(folder / "images" / "a.jpg"), mask(folder / "masks" / "a.png")
        read_folder(folder, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"labels must be one of \('binary', 'instances', 'classes'\), got 'x'"):
        read_folder(folder, "x")  # type: ignore[arg-type]


def test_skipping_lists_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcde":
        photo(tmp_path / "images" / f"{name}.jpg")
        mask(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "images" / "a.jpg").write_bytes(b"broken")
    mask(tmp_path / "masks" / "b.png", 7, 7)
    mask(tmp_path / "masks" / "c.png", top=9)
    (tmp_path / "masks" / "d.png").unlink()
    with pytest.raises(DataError, match="d.jpg: has no mask of its name"):
        read_folder(tmp_path)
    scenes = read_folder(tmp_path, on_error="skip")
    assert scenes.names == ["e"]
    assert {entry.path.name for entry in scenes.skipped} == {"a.jpg", "b.png", "c.png", "d.jpg"}
    told = capsys.readouterr().err
    assert "skipped 4 of 5" in told and all(f"{name}: " in told for name in ("a.jpg", "b.png", "c.png", "d.jpg"))
    (tmp_path / "images" / "e.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match="nothing is left of .*: 5 files are wrong; the first: "):
        read_folder(tmp_path, on_error="skip")


def test_kinds_of_pixels(tmp_path: Path) -> None:
    grey = (np.arange(48) * 5).reshape(6, 8).astype(np.uint8)
    for name, pixels, expected in (
        ("grey", grey, grey),
        ("deep", grey.astype(np.uint16) * 257, grey),
        ("one", grey > 100, (grey > 100) * 255),
        ("clear", np.dstack([grey, grey, grey, grey // 2]), grey),
        ("faint", np.dstack([grey, grey // 2]), grey),
    ):
        found = read_image(save(tmp_path / f"{name}.png", pixels))
        assert found.dtype == np.uint8 and found.shape == (3, 6, 8)
        assert (found == expected).all(), name
    deep = (grey.astype(np.uint16) * 257).astype(">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 6 65535\n" + deep.tobytes())
    Image.frombytes("I;16B", (8, 6), deep.tobytes()).save(tmp_path / "deep.tif")
    for name in ("deep.pgm", "deep.tif"):
        assert (read_image(tmp_path / name) == grey).all(), name
    turned = Image.fromarray(np.dstack([grey] * 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: to be turned clockwise
    turned.save(tmp_path / "held.jpg", exif=exif, quality=100)
    assert read_image(tmp_path / "held.jpg").shape == (3, 8, 6)
    palette = Image.fromarray(grey // 100).convert("P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "voc.png")
    assert (read_mask(tmp_path / "voc.png", "classes", num_classes=3) == grey // 100).all()


def test_kinds_of_masks(tmp_path: Path) -> None:
    ids = np.arange(48).reshape(6, 8).astype(np.uint16) * 100
    assert (read_mask(save(tmp_path / "ids.png", ids), "instances") == ids).all()
    classes = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)
    classes[0, 0] = 255
    path = save(tmp_path / "classes.png", classes)
    assert read_mask(path, "classes", num_classes=3)[0, 0] == -1
    with pytest.raises(DataError, match=r"must hold classes 0 to 1 \(255: none\), got 2"):
        read_mask(path, "classes", num_classes=2)
    shares = save(tmp_path / "shares.tif", np.full((6, 8), 0.5, np.float32))
    with pytest.raises(DataError, match="must hold whole numbers, got 0.5"):
        read_mask(shares)
    assert read_mask(shares, threshold=0).all()
    drawn = Image.fromarray(classes)  # as in VOC's SegmentationObject
    drawn.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9, 9, 9] * 253)
    drawn.save(tmp_path / "objects.png")
    assert (read_mask(tmp_path / "objects.png", "instances") == np.where(classes == 255, -1, classes.astype(int))).all()
    drawn.putpalette([0, 0, 0, 9, 9, 9, 7, 7, 7] + [0, 0, 0] * 253)  # greys that happen to have a palette
    drawn.save(tmp_path / "greys.png")
    assert (read_mask(tmp_path / "greys.png", "instances") == np.array([0, 9, 7])[classes % 255]).all()
    soft = save(tmp_path / "soft.png", np.linspace(0, 255, 48).reshape(6, 8).astype(np.uint8))
    assert read_mask(soft, threshold=127).sum() == 24
    with pytest.raises(DataError, match="got 48 values: 0, 5, 10, 16, 21, .... If greys are meant, give a threshold"):
        read_mask(soft)


def test_the_set_and_its_sizes(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png", 12, 16, 200)
    mask(tmp_path / "masks" / "a.png", 12, 16)
    photo(tmp_path / "images" / "b.png", 6, 8, 50)
    mask(tmp_path / "masks" / "b.png", 6, 8)
    whole = SegmentationSet.from_folder(str(tmp_path))
    assert [m.shape for m in whole.masks] == [(12, 16), (6, 8)] and repr(whole).startswith("SegmentationSet(2 ")
    item = whole[0]
    expected = (torch.full((3,), 200 / 255) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(item["x"][:, 3, 3], expected)
    assert item["y"].dtype == torch.int64 and item["y"].sum() == 9
    small = SegmentationSet.from_folder(str(tmp_path), size=[6, 8])
    assert all(m.shape == (6, 8) for m in small.masks) and torch.equal(small.masks[1], whole.masks[1])
    assert small.part([1]).names == ["b"]
    with pytest.raises(ArgumentError, match="size must be height and width in pixels, got"):
        SegmentationSet.from_folder(str(tmp_path), size=[6])
    with pytest.raises(ArgumentError, match=r"images must be uint8 \[3, H, W\] and masks \[H, W\], got .* at 0"):
        SegmentationSet([torch.zeros(3, 4, 4, dtype=torch.uint8)], [torch.zeros(4, 5)])
    with pytest.raises(ArgumentError, match="images and masks must be as many, got 1 and 0"):
        SegmentationSet([torch.zeros(3, 4, 4, dtype=torch.uint8)], [])


def test_resizing_keeps_labels_and_the_middle_of_binary_masks() -> None:
    ids = torch.tensor([[0, 70000], [3, 3]], dtype=torch.int32).repeat_interleave(4, 0).repeat_interleave(4, 1)
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    _, resized = resize_pair(image, ids, (4, 4), "instances")
    assert torch.equal(resized, ids[::2, ::2])
    _, half = resize_pair(image, (ids > 0).int(), (4, 4), "binary")
    assert torch.equal(half, (ids[::2, ::2] > 0).int())
    larger, _ = resize_pair(image + 7, ids, (16, 12), "instances")
    assert larger.shape == (3, 16, 12) and (larger == 7).all()


def test_generated_scenes() -> None:
    images, masks = generate_scenes(12, 48, seed=3)
    again, _ = generate_scenes(12, 48, seed=3)
    other, _ = generate_scenes(12, 48, seed=4)
    assert (images == again).all() and not (images == other).all()
    assert images.shape == (12, 3, 48, 48) and images.dtype == np.uint8 and masks.dtype == np.int32
    assert all(1 <= m.max() for m in masks)
    for m in masks:
        for number in range(1, m.max() + 1):  # each number is one piece, of two pixels or more
            assert ndimage.label(m == number, np.ones((3, 3)))[1] == 1 and (m == number).sum() > 1
    # Objects stand out from what surrounds them more than clutter does.
    gaps = []
    for image, m in zip(images.astype(float), masks, strict=True):
        for number in range(1, m.max() + 1):
            near = ndimage.binary_dilation(m == number, iterations=2) & (m == 0)
            if near.any():
                gaps.append(np.abs(image[:, m == number].mean(1) - image[:, near].mean(1)).mean())
    assert np.median(gaps) > 30
    _, curves = generate_scenes(6, 48, kinds=["curve"])
    _, blobs = generate_scenes(6, 48, kinds=["blob"])

    def depth(masks: np.ndarray) -> float:
        return max(ndimage.distance_transform_edt(m > 0).max() for m in masks)

    assert depth(curves) <= 4 < depth(blobs)
    with pytest.raises(ArgumentError, match="kinds must be among"):
        generate_scenes(1, kinds=["star"])
    with pytest.raises(ArgumentError, match="count must be at least 1 and size at least 16, got 1 and 8"):
        generate_scenes(1, 8)


def test_loading_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["dsb2018_nuclei", "generated_scenes", "isbi2012_membrane", "weizmann_horses"]
    assert list_datasets("segmentation") == names
    splits = load_dataset("generated_scenes", size=32, num_images=[5, 3, 2])
    assert [len(part) for part in splits] == [5, 3, 2]
    assert not torch.equal(splits.train.images[0], splits.test.images[0])
    assert splits.train.info.name == "generated_scenes" and splits.train.labels == "instances"
    with pytest.raises(ArgumentError, match="num_images must be three numbers"):
        load_dataset("generated_scenes", num_images=[5])

    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path))
    for name in names[:1] + names[2:]:
        with pytest.raises(DataError, match=f"{name} is not here, and nothing is downloaded. Get it .*/{name}"):
            load_dataset(name, split="train")
    folder = tmp_path / "weizmann_horses"
    for number in range(20):
        photo(folder / "image" / f"horse{number:03d}.jpg")
        mask(folder / "mask" / f"horse{number:03d}.png")
    horses = load_dataset("weizmann_horses", num_val=3)
    parts = [part.names for part in horses]
    assert [len(part) for part in parts] == [9, 3, 8]
    assert parts[2] == [f"horse{n:03d}" for n in range(12, 20)]  # by name, the last ones
    assert sorted(parts[0] + parts[1] + parts[2]) == [f"horse{n:03d}" for n in range(20)]
    with pytest.raises(ArgumentError, match="a part must have 1 to 11 photographs, got 12"):
        load_dataset("weizmann_horses", split="train", num_val=12)

    for number in range(12):
        photo(tmp_path / "isbi2012_membrane" / "image" / f"{number:02d}.png")
        mask(tmp_path / "isbi2012_membrane" / "label" / f"{number:02d}.png")
        photo(tmp_path / "dsb2018_nuclei" / "image" / f"{number:02d}.png")
        save(tmp_path / "dsb2018_nuclei" / "label" / f"{number:02d}.png", np.full((6, 8), number * 300, np.uint16))
    membranes = load_dataset("isbi2012_membrane")
    assert [part.names[0] for part in membranes] == ["00", "02", "06"]  # runs of slices
    assert int(membranes.test.masks[0].sum()) == 48 - 9  # stored: 255 is the inside of a cell
    cells = load_dataset("isbi2012_membrane", split="test", foreground="cells")
    assert cells.labels == "instances" and int(cells.masks[0].max()) == 1
    with pytest.raises(ArgumentError, match="must leave slices for training, got 6 and 6"):
        load_dataset("isbi2012_membrane", split="test", num_val=6)
    nuclei = load_dataset("dsb2018_nuclei", num_val=2, num_test=4)
    assert [len(part) for part in nuclei] == [6, 2, 4]
    seen = {int(m.max()): name for part in nuclei for m, name in zip(part.masks, part.names, strict=True)}
    assert seen == {number * 300: f"{number:02d}" for number in range(12)}


@pytest.mark.skipif(not (REAL and Path(REAL, "isbi2012_membrane").is_dir()), reason="needs the files of GRAPHATTN_DATA")
def test_the_real_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHATTN_DATA", REAL)
    shared = Path(REAL)
    membranes = load_dataset("isbi2012_membrane")
    assert [len(part) for part in membranes] == [20, 4, 6]
    share = float(torch.stack(membranes.train.masks).float().mean())
    assert 0.15 < share < 0.3  # thin
    pairs, alone = find_pairs(shared / "dsb2018_nuclei")
    assert len(pairs) == 538 and not alone
    assert len(find_pairs(shared / "weizmann_horses")[0]) == 328

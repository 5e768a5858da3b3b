"""Photographs with masks from the data module to figures: batches, augmentation, losses, the command, a trend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn

from graphattn.cli import main
from graphattn.errors import ArgumentError, CheckpointError, ConfigError, DataError
from graphattn.mechanisms.connectivity import ConnectivityLoss, instance_labels
from graphattn.models.image import ConnNet, read_logits
from graphattn.training import AugmentSegmentation, Segmentation, SegmentationDataModule, run
from graphattn.training.predict_images import find, predict_folder
from graphattn.training.scene_metrics import names_for, scene_metrics, update_metric
from graphattn.training.segmentation_pictures import colours, connectivity_picture, instance_picture
from graphattn_datasets.images.segmentation import generate_scenes

Image = pytest.importorskip("PIL.Image")
SMALL: dict[str, Any] = {"backbone_options": {"widths": [8, 12, 16], "depth": 1}, "width": 8}
Parts = Callable[..., Path]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """Folders of photographs: the mask is where the photograph is bright."""

    def write(count: int = 6, sizes: tuple[tuple[int, int], ...] = ((20, 24),), name: str = "photos") -> Path:
        folder = tmp_path / name
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        images, masks = generate_scenes(count, 32)
        for n, (image, mask) in enumerate(zip(images, masks, strict=True)):
            height, width = sizes[n % len(sizes)]
            inside = mask[:height, :width] > 0
            pixels = image.transpose(1, 2, 0)[:height, :width] // 3 + 150 * inside[..., None].astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{n:02d}.png")
            Image.fromarray(inside.astype(np.uint8) * 255).save(folder / "masks" / f"{n:02d}.png")
        return folder

    return write


def module(folder: Path, **options: Any) -> SegmentationDataModule:
    data = SegmentationDataModule(folders={"train": str(folder)}, **{"batch_size": 2, **options})
    data.setup()
    return data


def test_batches_are_padded_and_parts_are_apart(parts: Parts) -> None:
    data = module(parts(6, sizes=((20, 24), (16, 30))), val_share=0.34)
    assert len(data.splits.train) == 4 and len(data.splits.val) == 2 and data.splits.test is data.splits.val
    assert not set(data.splits.train.names) & set(data.splits.val.names)
    seen = []
    for batch in data.train_dataloader():
        assert batch["x"].shape == (2, 3, *batch["y"].shape[1:]) and batch["y"].dtype == torch.int64
        for x, y, (height, width) in zip(batch["x"], batch["y"], batch["size"], strict=True):
            inside = torch.zeros_like(y, dtype=torch.bool)
            inside[:height, :width] = True
            assert (y[inside] >= 0).all() and (y[~inside] == -1).all() and (x[:, ~inside] == 0).all()
            seen.append((height, width))
    assert sorted(seen) == sorted(tuple(m.shape) for m in data.splits.train.masks)
    (batch,) = data.val_dataloader()
    for place in range(2):
        item, (height, width) = data.splits.val[place], batch["size"][place]
        assert torch.equal(batch["x"][place, :, :height, :width], item["x"])
        assert torch.equal(batch["y"][place, :height, :width], item["y"])


def test_the_order_is_of_seed_and_epoch_and_repeats(parts: Parts) -> None:
    def order(epoch: int, **options: Any) -> list[float]:
        loader = module(parts(), val_share=0.2, **options).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch["x"].mean((1, 2, 3)) for batch in loader]).tolist()

    first = order(0)
    assert first == order(0) and first != order(1) and sorted(first) == sorted(order(1))
    thrice = order(0, repeats=3)
    assert len(thrice) == 15 and sorted(thrice) == sorted(first * 3)
    assert sorted(order(0, on_device=True)) == sorted(first)


def test_bad_data(parts: Parts, tmp_path: Path) -> None:
    folder = parts()
    for options, message in (
        ({}, "needs a name or folders, and not both"),
        ({"name": "digits", "folders": {"train": "x"}}, "needs a name or folders, and not both"),
        ({"folders": {"test": "x"}}, r"folders must have train, and may have val and test, got \['test'\]"),
        ({"name": "x", "repeats": 0}, "repeats must be at least 1, got 0"),
        ({"name": "x", "val_share": 1.0}, r"val_share must lie in \(0, 1\), got 1.0"),
        ({"name": "x", "on_device": True, "num_workers": 1}, "num_workers must be 0, got 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            SegmentationDataModule(**options)
    with pytest.raises(ConfigError, match="needs photographs with masks, and 'digits' has none"):
        SegmentationDataModule(name="digits").setup()
    with pytest.raises(ConfigError, match="has 1 photographs, too few"):
        module(parts(1, name="one"))
    with pytest.raises(ConfigError, match="drop_last leaves no training batch"):
        module(folder, batch_size=50, drop_last=True).train_dataloader()
    (folder / "images" / "00.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="00.png cannot be read"):
        module(folder)
    data = module(folder, on_error="skip")
    assert len(data.splits.train) + len(data.splits.val) == 5 and data.splits.train.skipped[0].path.name == "00.png"
    with pytest.raises(DataError, match="there is no folder"):
        module(tmp_path / "nothing")


def marked(count: int, height: int, width: int) -> dict[str, Any]:
    """Labels that number the pixels, and photographs that hold the same numbers."""
    y = torch.arange(1, height * width + 1).view(height, width).expand(count, -1, -1)
    return {"x": y[:, None].float().expand(-1, 3, -1, -1), "y": y, "size": [(height, width)] * count}


def test_augmentation_moves_photograph_and_mask_together() -> None:
    change = AugmentSegmentation(crop=[6, 6], flip=True, vertical_flip=True, turn=True)
    batch = change(marked(200, 10, 14))
    assert batch["x"].shape == (200, 3, 6, 6) and batch["size"] == [(6, 6)] * 200
    torch.testing.assert_close(batch["x"][:, 0], batch["y"].float(), atol=0.05, rtol=0)  # pixels are moved, not mixed
    y = batch["y"]
    assert (y >= 1).all()  # nothing from beyond
    steps = {(int(a), int(b)) for a, b in zip(y[:, 1, 0] - y[:, 0, 0], y[:, 0, 1] - y[:, 0, 0], strict=True)}
    assert steps == {(s * a, t * b) for a, b in ((14, 1), (1, 14)) for s in (1, -1) for t in (1, -1)}  # all eight
    corners = y.flatten(1).amin(1) - 1
    assert int(corners.min()) == 0 and int(corners.max()) == 4 * 14 + 8  # every place can be cut out


def test_augmentation_keeps_to_each_photograph_of_a_padded_batch() -> None:
    batch = marked(40, 12, 12)
    batch["y"] = batch["y"].clone()
    batch["y"][:, 8:], batch["y"][:, :, 9:] = -1, -1
    batch["size"] = [(8, 9)] * 40
    out = AugmentSegmentation(crop=[5, 5], turn=True)(batch)
    assert (out["y"] > 0).all()
    beyond = AugmentSegmentation(crop=[10, 10])(batch)["y"]
    assert ((beyond > 0).flatten(1).sum(1) == 72).all()  # all of it, and -1 around
    large = AugmentSegmentation(crop=[5, 5], scale=(2.0, 2.0))(batch)["y"]
    assert (large > 0).all() and all(len(y.unique()) <= 16 for y in large)


def test_augmentation_of_colours_leaves_masks_alone() -> None:
    batch = {"x": torch.randn(4, 3, 8, 8), "y": torch.randint(0, 2, (4, 8, 8))}
    out = AugmentSegmentation(flip=False, brightness=0.5, contrast=0.5, colour=0.3)(batch)
    assert torch.equal(out["y"], batch["y"])
    for x, changed in zip(batch["x"], out["x"], strict=True):
        for before, after in zip(x, changed, strict=True):  # each channel: a factor and a shift
            pair = torch.stack([before.flatten(), after.flatten()])
            assert torch.corrcoef(pair)[0, 1] > 0.9999
    larger = AugmentSegmentation(crop=[12, 12], brightness=0.5, contrast=0.5, colour=0.3)(
        {**batch, "x": batch["x"] + 2}
    )
    beyond = (larger["y"] < 0).unsqueeze(1).expand_as(larger["x"])
    assert beyond.any() and not larger["x"][beyond].any()  # still the mean, as padding has it
    about_its_mean = AugmentSegmentation(crop=[12, 12], contrast=0.5)(
        {"x": torch.ones_like(batch["x"]), "y": batch["y"]}
    )
    torch.testing.assert_close(about_its_mean["x"][~beyond], torch.ones(4 * 3 * 64))  # no contrast, nothing to change
    for options in ({"crop": [4]}, {"scale": (0.0, 1.0)}, {"contrast": 1.0}):
        with pytest.raises(ArgumentError):
            AugmentSegmentation(**options)


class Fixed(nn.Module):
    """A network that always says the same."""

    def __init__(self, logits: Tensor, head: str, num_classes: int = 1) -> None:
        super().__init__()
        self.logits, self.head, self.num_classes = nn.Parameter(logits), head, num_classes

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: x.shape[0]]


def test_losses_leave_out_what_has_no_label() -> None:
    y = torch.randint(0, 3, (2, 6, 7))
    y[1, 4:], y[1, :, 5:] = -1, -1
    cube = torch.randn(2, 8, 6, 7)
    known = y.clamp(min=0)

    instances = Segmentation(Fixed(cube, "instances"))
    loss = instances.loss(cube, y)
    entropy = F.binary_cross_entropy_with_logits(cube, instance_labels(known).float(), reduction="none")
    torch.testing.assert_close(loss, entropy[(y >= 0)[:, None].expand_as(entropy)].mean())

    binary = Segmentation(Fixed(cube[:, :1], "binary"))
    entropy = F.binary_cross_entropy_with_logits(cube[:, 0], (known > 0).float(), reduction="none")
    torch.testing.assert_close(binary.loss(cube[:, :1], y), entropy[y >= 0].mean())

    classes = Segmentation(Fixed(cube[:, :3], "binary", 3))
    expected = F.cross_entropy(cube[:, :3], y, ignore_index=-1)
    torch.testing.assert_close(classes.loss(cube[:, :3], y), expected)
    assert classes.loss(cube[:, :3], torch.full_like(y, -1)) == 0  # a crop without a label: no NaN
    for task in (instances, binary, classes):
        assert task.terms(y) == (y >= 0).sum()

    whole = y.clamp(min=0)
    for name in ("biconnet", "dconnnet"):
        task = Segmentation(Fixed(cube, "connectivity"), loss=name)  # type: ignore[arg-type]
        torch.testing.assert_close(task.loss(cube, whole), ConnectivityLoss(name)(cube, (whole > 0).float()))
        padded = task.loss(F.pad(cube, (0, 3, 0, 2)), F.pad(whole, (0, 3, 0, 2), value=-1))
        torch.testing.assert_close(padded, task.loss(cube, whole))


def test_several_classes_are_the_mean_of_each() -> None:
    y, cube = torch.randint(0, 3, (2, 5, 5)), torch.randn(2, 24, 5, 5)
    loss = Segmentation(Fixed(cube, "connectivity", 3)).loss(cube, y)
    each = [
        ConnectivityLoss()(cube[:, 8 * c : 8 * c + 8], (y == c).float()) for c in range(3)
    ]  # class by class, as a binary problem
    torch.testing.assert_close(loss, torch.stack(each).mean())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (ConnNet(head="binary", **SMALL), {"loss": "biconnet"}, r"loss must be one of \('bce', 'bce_dice'\) for head"),
        (ConnNet(**SMALL), {"loss": "bce_dice"}, r"loss must be one of \('bce', 'biconnet', 'dconnnet'\)"),
        (ConnNet(**SMALL), {"metric": "s_measure"}, r"metric of Segmentation must be one of \('max_f', 'mae'\)"),
        (ConnNet(**SMALL), {"labels": "classes"}, "labels 'classes' do not fit head 'connectivity'"),
        (ConnNet(head="instances", **SMALL), {"labels": "binary"}, "labels 'binary' do not fit head 'instances'"),
    ],
)
def test_what_does_not_fit(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Segmentation(model, **options)


def test_wrong_batches_and_outputs() -> None:
    task = Segmentation(Fixed(torch.zeros(2, 1, 4, 4), "connectivity"))
    with pytest.raises(ConfigError, match=r"needs batches with x and y \[B, H, W\] .*, got \['x'\]"):
        task({"x": torch.zeros(2, 3, 4, 4)})
    batch = {"x": torch.zeros(2, 3, 4, 4), "y": torch.zeros(2, 4, 4).long()}
    with pytest.raises(ConfigError, match=r"must return logits \(2, 8, 4, 4\), got \(2, 1, 4, 4\)"):
        task.rows(task(batch), batch, "train")


def test_metrics_do_not_see_the_padding() -> None:
    ids = torch.from_numpy(generate_scenes(3, 32)[1]).long()
    sizes = [(32, 32), (20, 26), (30, 17)]
    logits = torch.randn(3, 8, 32, 32) + 6 * instance_labels(ids) - 3
    padded = ids.clone()
    for n, (height, width) in enumerate(sizes):
        padded[n, height:], padded[n, :, width:] = -1, -1
    for name in names_for("test", "instances"):
        together, alone = scene_metrics("test", "instances")[name], scene_metrics("test", "instances")[name]
        reading = read_logits(logits.masked_fill((padded < 0)[:, None], -30.0), "instances")
        update_metric(name, together, reading, padded, sizes)
        for n, (height, width) in enumerate(sizes):
            one = read_logits(logits[n : n + 1, :, :height, :width], "instances")
            update_metric(name, alone, one, ids[n : n + 1, :height, :width], None)
        torch.testing.assert_close(together.compute(), alone.compute(), msg=name)
        assert 0 < float(together.compute()), name


def config(folder: Path, head: str = "connectivity") -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "run": {"name": "photos"},
        "model": {
            "class_path": "graphattn.training.Segmentation",
            "init_args": {
                "model": {
                    "class_path": "graphattn.models.image.ConnNet",
                    "init_args": {"head": head, **SMALL},
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "train_transform": {"class_path": "graphattn.training.AugmentSegmentation"},
            },
        },
        "data": {
            "class_path": "graphattn.training.SegmentationDataModule",
            "init_args": {"folders": {"train": str(folder)}, "batch_size": 4, "repeats": 8},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }


def test_fit_then_pictures_beside_photographs(parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "photos.yaml"
    path.write_text(yaml.safe_dump(config(parts(8))))
    results = run("fit", ["--config", str(path)])
    assert results.metric == "max_f"  # type: ignore[union-attr]
    assert set(results.last.test) == {*names_for("test", "binary"), "loss"}  # type: ignore[union-attr]
    assert results.last.test["max_f"] > 0.7  # type: ignore[union-attr]

    album = tmp_path / "album"
    album.mkdir()
    sizes = {"a.png": (33, 20), "b.jpg": (17, 41), "b.png": (9, 9)}
    for name, size in sizes.items():
        Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(album / name)
    (album / "broken.jpg").write_bytes(b"not a picture")
    there = str(tmp_path / "runs" / "photos" / "seed_0" / "config.yaml")
    call = ["predict", "--config", there, "--ckpt_path", "last", "--images", str(album)]
    assert main(call) == 0
    told = capsys.readouterr().out
    assert "4 photographs" in told and "skipped 1 of 4:" in told and "broken.jpg cannot be read as an image" in told
    for stem, name in (("a", "a.png"), ("b_jpg", "b.jpg"), ("b_png", "b.png")):
        for kind in ("mask", "connectivity", "instances"):
            with Image.open(album / f"{stem}_{kind}.png") as picture:
                assert picture.size == sizes[name][::-1]
        assert set(np.unique(np.asarray(Image.open(album / f"{stem}_mask.png")))) <= {0, 255}
    assert [path.name for path in find(album)] == ["a.png", "b.jpg", "b.png", "broken.jpg"]  # not our own pictures
    before = sorted(path.name for path in album.iterdir())
    out = tmp_path / "out"
    assert main([*call, "--out", str(out), "--max_side", "16"]) == 0
    assert len(list(out.iterdir())) == 9 and sorted(path.name for path in album.iterdir()) == before
    with Image.open(out / "a_mask.png") as picture:
        assert picture.size == (20, 33)
    assert main([*call, "--on_error", "stop"]) == 1
    assert "broken.jpg cannot be read" in capsys.readouterr().err
    assert main([*call[:-1], str(album / "broken.jpg")]) == 1
    assert "none of 1 photographs could be read; the first: " in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([*call[:-1], str(empty)]) == 1
    assert "holds no images" in capsys.readouterr().err
    assert main(["predict", "--config", there, "--images", str(album), "--max_side", "0"]) == 2
    with pytest.raises(CheckpointError):
        run_predict = __import__("graphattn.training.predict_images", fromlist=["run"]).run
        run_predict(["--config", str(path), "--ckpt_path", "nothing.ckpt", "--images", str(album)])


def test_pictures_in_the_size_that_the_network_knows(tmp_path: Path) -> None:
    """A network that sees photographs in one size: what it says is blown up to the photograph's."""

    class Left(nn.Module):
        head, num_classes, neighbours = "binary", 1, 8

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-2:] == (8, 12)
            logits = torch.full((1, 1, 8, 12), -9.0)
            logits[..., :6] = 9.0
            return logits

    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
    outcome = predict_folder(Segmentation(Left()), [path], tmp_path / "out", size=[8, 12])
    assert [p.name for p in outcome.written] == [f"wide_{kind}.png" for kind in ("mask", "connectivity", "instances")]
    mask = np.asarray(Image.open(outcome.written[0]))
    assert (mask[:, :30] == 255).all() and (mask[:, 30:] == 0).all()
    label = path.with_name("wide_mask.png")  # somebody's own, in the layout of photographs and masks in one folder
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(label)
    before = label.read_bytes()
    with pytest.raises(DataError, match=r"wide_mask.png is there, and graphattn predict did not .* give --out"):
        predict_folder(Segmentation(Left()), [path], size=[8, 12])
    assert label.read_bytes() == before
    label.unlink()
    for _ in range(2):  # its own pictures it replaces
        assert len(predict_folder(Segmentation(Left()), [path], size=[8, 12]).written) == 3


def test_pictures() -> None:
    edges = torch.tensor([[0, 255, 0b11110000]], dtype=torch.uint8)
    none, every, half = connectivity_picture(edges)[0].astype(int).sum(-1)
    assert none < half < every
    ids = torch.tensor([[0, 1, 2]])
    photograph = torch.full((3, 1, 3), 100, dtype=torch.uint8)
    over = instance_picture(ids, photograph, strength=0.5)
    assert (over[0, 0] == 100).all() and (over[0, 1] != over[0, 2]).any()
    assert len({tuple(c) for c in colours(60).tolist()}) == 61


def test_trend() -> None:
    """A small network learns generated scenes in seconds: far better than saying "background" or "foreground"."""
    torch.manual_seed(0)
    data = SegmentationDataModule(
        name="generated_scenes", batch_size=16, options={"size": 32, "num_images": [160, 16, 48]}, repeats=2
    )
    task = Segmentation(
        ConnNet(head="instances", **SMALL),
        loss="biconnet",
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        train_transform=AugmentSegmentation(vertical_flip=True, turn=True),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=4, accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **quiet)
    trainer.fit(task, datamodule=data)
    figures = trainer.test(task, datamodule=data, verbose=False)[0]
    truth = torch.stack(data.splits.test.masks) > 0
    share = truth.float().mean((1, 2))
    everything = float((1.3 * share / (0.3 * share + 1)).mean())  # max-F of a white picture
    assert figures["test/max_f"] > everything + 0.25
    assert figures["test/mae"] < 0.8 * float(share.mean())  # that of a black one
    assert figures["test/ap50"] > 0.1, figures


@pytest.mark.gpu
@pytest.mark.parametrize(("head", "loss"), [("binary", "bce"), ("connectivity", "bce"), ("instances", "biconnet")])
def test_on_a_gpu(head: str, loss: str) -> None:
    """bfloat16 on photographs that stay on the device; what is read there equals what is read on the host."""
    torch.manual_seed(0)
    data = SegmentationDataModule(
        name="generated_scenes", batch_size=32, on_device=True, options={"size": 64, "num_images": [256, 16, 32]}
    )
    task = Segmentation(
        ConnNet(head=head, long_range="non_local"),
        loss=loss,  # type: ignore[arg-type]
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.001),
        train_transform=AugmentSegmentation(crop=[48, 48], scale=(0.8, 1.25), turn=True, contrast=0.2),
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=10, accelerator="gpu", devices=1, precision="bf16-mixed", **quiet)
    trainer.fit(task, datamodule=data)
    assert data._batches[id(data.splits.train)].images[0].is_cuda
    figures = trainer.test(task, datamodule=data, verbose=False)[0]
    assert figures["test/max_f"] > 0.55, figures  # a white picture has 0.3
    logits = 4 * torch.randn(4, 1 if head == "binary" else 8, 61, 83)
    for here, there in zip(task.read(logits), task.read(logits.cuda()), strict=True):
        torch.testing.assert_close(there.cpu(), here)

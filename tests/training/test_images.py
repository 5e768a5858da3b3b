"""Images from the data module through a vision transformer to figures, and their augmentation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import graphattn_datasets
from graphattn.errors import ArgumentError, ConfigError
from graphattn.training import ImageClassification, ImageDataModule, RandomCrop, RandomFlip, run
from graphattn_datasets.images import ImageSet


def numbered(count: int, seed: int = 0) -> ImageSet:
    """Images of 1 x 4 x 4 whose first pixel is their number."""
    pixels = torch.randint(0, 255, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(count)
    return ImageSet(pixels, torch.arange(count) % 3)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand-in for load_dataset."""
    box = SimpleNamespace(
        found=SimpleNamespace(train=numbered(20), val=numbered(5, 1), test=numbered(7, 2)), given=None
    )

    def load_dataset(name: str, **arguments: Any) -> Any:
        box.given = {"name": name, **arguments}
        return box.found

    monkeypatch.setattr(graphattn_datasets, "load_dataset", load_dataset, raising=False)
    return box


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.linear(pictures.flatten(1))


def order(data: ImageDataModule, epoch: int) -> list[int]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch["x"][:, 0, 0, 0] * 255 for batch in loader]).round().int().tolist()


def test_batches_and_their_order(fake: Any) -> None:
    data = ImageDataModule("numbers", batch_size=8, eval_batch_size=3, seed=1, options={"num_val": 4})
    data.setup()
    assert fake.given == {"name": "numbers", "root": None, "transform": None, "pre_transform": None, "num_val": 4}
    first = order(data, 0)
    assert sorted(first) == list(range(20)) and order(data, 1) != first == order(data, 0)
    assert [len(batch["y"]) for batch in data.train_dataloader()] == [8, 8, 4]
    val = list(data.val_dataloader())
    assert [batch["x"].shape for batch in val] == [(3, 1, 4, 4), (2, 1, 4, 4)]
    assert torch.equal(torch.cat([batch["y"] for batch in val]), torch.arange(5) % 3)
    again = ImageDataModule("numbers", batch_size=8, seed=1, num_workers=1)
    again.setup()
    assert order(again, 0) == first
    resident = ImageDataModule("numbers", batch_size=8, seed=1, on_device=True)
    resident.setup()
    assert order(resident, 0) == first
    for mine, theirs in zip(resident.val_dataloader(), again.val_dataloader(), strict=True):
        assert torch.equal(mine["x"], theirs["x"]) and torch.equal(mine["y"], theirs["y"])


def test_graphs_are_refused(fake: Any) -> None:
    fake.found = SimpleNamespace(train=[1], val=[1], test=[1])
    with pytest.raises(ConfigError, match="ImageDataModule needs a set of images, and 'cora' is none"):
        ImageDataModule("cora").setup()


def test_figures_are_those_of_the_whole_split() -> None:
    task, data = ImageClassification(Flat(), label_smoothing=0.2), numbered(7)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, **quiet)
    loader = DataLoader(data, batch_size=4, collate_fn=lambda batch: batch)
    figures = trainer.test(task, loader, verbose=False)[0]
    whole = data[slice(None)]
    scores = task.model(whole["x"])
    assert figures["test/accuracy"] == pytest.approx(100 * (scores.argmax(1) == whole["y"]).float().mean().item())
    assert figures["test/loss"] == pytest.approx(F.cross_entropy(scores, whole["y"]).item(), rel=1e-5)
    predictions = torch.cat(trainer.predict(task, loader))
    torch.testing.assert_close(predictions, scores.detach())
    smoothed = F.cross_entropy(scores, whole["y"], label_smoothing=0.2)
    assert torch.equal(task.train().loss(scores, whole["y"]), smoothed)
    with pytest.raises(ConfigError, match="needs batches with x and y"):
        task([1, 2])
    with pytest.raises(ArgumentError, match=r"label_smoothing must be in 0..1, got 2"):
        ImageClassification(Flat(), label_smoothing=2)


def test_crops_are_shifts_of_the_padded_image() -> None:
    x = torch.rand(200, 2, 3, 4) + 1
    batch = {"x": x, "y": torch.arange(200)}
    got = RandomCrop(1, fill=-5.0)(batch)
    assert got["y"] is batch["y"] and torch.equal(batch["x"], x)
    padded = F.pad(x, [1] * 4, value=-5.0)
    shifts = torch.stack([padded[:, :, r : r + 3, c : c + 4] for r in range(3) for c in range(3)])
    same = (shifts == got["x"]).flatten(2).all(2)  # [shift, image]
    assert torch.equal(same.sum(0), torch.ones(200).long())
    counts = same.sum(1)
    assert int(counts.min()) > 5 and int(counts.max()) < 45  # 22 expected
    assert torch.equal(RandomCrop(0)(batch)["x"], x)
    torch.manual_seed(4)
    one = RandomCrop(2)(batch)["x"]
    torch.manual_seed(4)
    assert torch.equal(RandomCrop(2)(batch)["x"], one)
    with pytest.raises(ArgumentError, match="padding must be 0 or more"):
        RandomCrop(-1)


def test_flips() -> None:
    batch = {"x": torch.rand(300, 1, 2, 5)}
    got = RandomFlip(0.3)(batch)["x"]
    kept, flipped = ((got == x).flatten(1).all(1) for x in (batch["x"], batch["x"].flip(-1)))
    assert bool((kept ^ flipped).all()) and 60 < int(flipped.sum()) < 120
    assert torch.equal(RandomFlip(1.0)(batch)["x"], batch["x"].flip(-1))
    with pytest.raises(ArgumentError, match="p must be a probability"):
        RandomFlip(1.5)


def test_a_run_learns_digits(tmp_path: Path) -> None:
    """The command, on real images: after a few epochs far better than chance; a resumed run ends with the same."""
    pytest.importorskip("sklearn")
    config = yaml.safe_load((Path(__file__).parents[2] / "experiments" / "infsa" / "digits.yaml").read_text())
    network = config["model"]["init_args"]["model"]["init_args"]
    network |= {"attention": "linear_infsa", "depth": 1, "embed_dim": 32, "attn_drop_rate": 0.1}
    crop = {"class_path": "graphattn.training.RandomCrop", "init_args": {"padding": 1}}
    config["model"]["init_args"] |= {"train_transform": crop}
    config["trainer"] |= {"enable_progress_bar": False}
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(config))
    shared = ["--config", str(tmp_path / "digits.yaml"), "--model.train_transform=null", "--trainer.max_epochs=5"]
    results = run("fit", [*shared, f"--run.root={tmp_path}"])
    assert results.last.test["accuracy"] > 40 and results.metric == "accuracy"
    whole = run(
        "fit", ["--config", str(tmp_path / "digits.yaml"), "--trainer.max_epochs=2", f"--run.root={tmp_path}/a"]
    )
    half = ["--config", str(tmp_path / "digits.yaml"), f"--run.root={tmp_path}/b"]
    run("fit", [*half, "--trainer.max_epochs=1", "--model.lr_scheduler.max_epochs=2"])
    resumed = run("fit", [*half, "--trainer.max_epochs=2", "--model.lr_scheduler.max_epochs=2", "--ckpt_path=last"])
    assert resumed.last.test == whole.last.test

from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from graphattn._files import write_atomically
from graphattn.errors import CheckpointError
from graphattn.training.checkpoint import AtomicCheckpointIO, load_checkpoint


def save(path: Path, value: float) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.tensor(value)}, "epoch": 3}, path)


def weight(path: Path) -> float:
    return load_checkpoint(path)["state_dict"]["w"].item()


def test_round_trip_overwrites_and_leaves_one_file(tmp_path: Path):
    path = tmp_path / "deep" / "last.ckpt"
    save(path, 1.0)
    save(path, 2.0)
    assert weight(path) == 2.0 and load_checkpoint(path)["epoch"] == 3
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    path = tmp_path / "last.ckpt"
    save(path, 1.0)

    def half(checkpoint: object, file) -> None:
        file.write(b"half of a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError) as caught:
        save(path, 2.0)
    if isinstance(caught.value, CheckpointError):
        assert "No space left" in str(caught.value) and "untouched" in str(caught.value)
    assert weight(path) == 1.0
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_disk_that_is_really_full(tmp_path: Path):
    """torch.save itself meets the limit here, in whatever way it reports it."""
    resource = pytest.importorskip("resource", reason="file size limits are a Unix thing")
    import signal

    path = tmp_path / "last.ckpt"
    save(path, 1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not write"):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert weight(path) == 1.0
    assert os.listdir(tmp_path) == ["last.ckpt"]


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, form: str):
    path, target = tmp_path / "evil.ckpt", tmp_path / "was_here"
    content = {"state_dict": {}, "hyper_parameters": Malicious(target)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="evil.ckpt"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)  # asking for it does not help
    assert not target.exists()


@pytest.mark.parametrize("keep", [0, 10, 500, -20])
def test_truncated_file(tmp_path: Path, keep: int):
    path = tmp_path / "last.ckpt"
    save(path, 1.0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        load_checkpoint(path)


def test_other_wrong_files(tmp_path: Path):
    save(tmp_path / "last.ckpt", 1.0)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*best.ckpt; that folder holds last.ckpt"):
        load_checkpoint(tmp_path / "best.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="no state_dict"):
        load_checkpoint(tmp_path / "list.ckpt")


@pytest.mark.filterwarnings("ignore:hyperparameters that are objects")
def test_hyperparameters_that_are_objects_do_not_become_pickles(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    values = {"width": 8, "shape": (1, [2, {"a": None}]), "model": torch.nn.Linear(1, 1), "make": print}
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "hyper_parameters": values}, path)
    assert load_checkpoint(path)["hyper_parameters"] == {"width": 8, "shape": (1, [2, {"a": None}])}


def test_usual_permissions(tmp_path: Path):
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.write_text("x")
    write_atomically(ours, lambda file: file.write(b"x"))
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

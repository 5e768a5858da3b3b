"""``graphattn predict --images``: masks, connectivity and instances of anybody's photographs, as pictures."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphattn._files import write_atomically
from graphattn.errors import ArgumentError, DataError
from graphattn.models.image import Reading
from graphattn.optional import require
from graphattn.training.checkpoint import load_checkpoint
from graphattn.training.segmentation_pictures import connectivity_picture, instance_picture

__all__ = ["Outcome", "predict_folder", "run"]

KINDS = ("mask", "connectivity", "instances")
_SIGNATURE = "Software", "graphattn predict"  # a text in each picture, so that no other is written over
_OURS = re.compile(rf"_({'|'.join(KINDS)})$")


class Outcome(NamedTuple):
    """What became of a folder.

    Args:
        written: The files that were written.
        skipped: Photographs that were left out, each with the reason.
    """

    written: list[Path]
    skipped: list[tuple[Path, str]]


def run(argv: Sequence[str]) -> Outcome:
    """Run ``graphattn predict --config x.yaml --ckpt_path best --images FOLDER``.

    Args:
        argv: Its arguments; those that are not listed by ``--help`` below are the configuration's.

    Raises:
        ConfigError: If the configuration is not of a segmentation.
        DataError: If there are no photographs, none of them can be read, or one cannot and ``--on_error`` is ``stop``.
    """
    parser = argparse.ArgumentParser("graphattn predict --images", allow_abbrev=False)
    parser.add_argument("--images", required=True, type=Path, help="a folder of photographs, or one")
    parser.add_argument("--out", type=Path, help="where pictures go (default: beside the photographs)")
    parser.add_argument("--on_error", choices=("stop", "skip"), default="skip", help="at a file that cannot be read")
    parser.add_argument("--max_side", type=int, help="larger photographs are made this large for the network")
    options, rest = parser.parse_known_args(list(argv))
    if options.max_side is not None and options.max_side < 1:
        parser.error(f"--max_side must be at least 1, got {options.max_side}")
    files = find(options.images)

    from graphattn.training.lightning_cli import TrainingCLI
    from graphattn.training.tasks.segmentation import Segmentation, not_a_segmentation

    cli = TrainingCLI("predict", rest)
    task: Any = cli.model
    if not isinstance(task, Segmentation):
        raise not_a_segmentation(task)
    assert cli.checkpoint is not None  # the best one where none is named
    task.load_state_dict(load_checkpoint(cli.checkpoint)["state_dict"])
    task.to(cli.trainer.strategy.root_device)
    size = getattr(cli.datamodule, "size", None)
    print(f"{len(files)} photographs, {cli.checkpoint}, on {task.device}", flush=True)
    outcome = predict_folder(
        task, files, options.out, size=size, max_side=options.max_side, on_error=options.on_error, progress=True
    )
    if not outcome.written:
        raise DataError(f"none of {len(files)} photographs could be read; the first: {outcome.skipped[0][1]}")
    print(f"{len(outcome.written)} pictures written to {options.out or 'the folder of the photographs'}")
    if outcome.skipped:
        print(f"skipped {len(outcome.skipped)} of {len(files)}:")
        print("\n".join(f"  {reason}" for _, reason in outcome.skipped))
    return outcome


def find(place: Path) -> list[Path]:
    """The photographs of a folder, without pictures that an earlier call wrote there; or the one file.

    Raises:
        DataError: If there is none.
    """
    from graphattn_datasets.images.segmentation import find_images

    if place.is_file():
        return [place]
    found = find_images(place)
    names = {name for path in found for name in (path.stem, _whole_name(path))}
    photos = [path for path in found if not (_OURS.search(path.stem) and _OURS.sub("", path.stem) in names)]
    if not photos:
        raise DataError(f"{place} holds no images")
    return photos


def _whole_name(path: Path) -> str:
    return path.name.replace(".", "_")


def predict_folder(
    task: Any,
    files: Sequence[Path],
    out: Path | None = None,
    *,
    size: Sequence[int] | None = None,
    max_side: int | None = None,
    on_error: str = "skip",
    progress: bool = False,
) -> Outcome:
    """Write ``<name>_mask.png`` (0 and 255, or class numbers), ``<name>_connectivity.png`` (how many neighbours a pixel
    is connected to) and ``<name>_instances.png`` (components in colours over the photograph), in the photograph's size.

    Args:
        task: A :class:`~graphattn.training.Segmentation`; its network is put into evaluation mode.
        files: Photographs, of any size.
        out: Where pictures go; ``None``: beside the photographs.
        size: Height and width that the network was trained with; ``None``: photographs are taken as they are.
        max_side: Larger photographs are made this large for the network; ``None``: none are.
        on_error: ``"skip"`` photographs that cannot be read or do not fit into memory, or ``"stop"``.
        progress: Print a line for each.

    Raises:
        DataError: If a photograph cannot be read and ``on_error`` is ``"stop"``, or a picture would replace a file that
            is not an earlier one's.
    """
    from graphattn_datasets.images.segmentation.read import read_image

    if on_error not in ("stop", "skip"):
        raise ArgumentError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
    outcome = Outcome([], [])
    stems = Counter(path.stem for path in files)
    task.eval()
    for number, path in enumerate(files, start=1):
        try:
            pixels = torch.from_numpy(read_image(path))
            reading = _reading(task, pixels, path, size, max_side)
        except DataError as error:
            if on_error == "stop":
                raise
            outcome.skipped.append((path, str(error)))
            _tell(progress, number, len(files), f"skipped: {error}")
            continue
        name = _whole_name(path) if stems[path.stem] > 1 else path.stem  # a.png beside a.jpg
        pictures = _pictures(pixels, reading, task.num_classes, task.neighbours)
        for kind, picture in pictures.items():
            target = (out or path.parent) / f"{name}_{kind}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, picture)
            outcome.written.append(target)
        count = int(reading.instances.max())
        _tell(
            progress, number, len(files), f"{path.name}: {float((reading.mask > 0).float().mean()):.1%}, {count} pieces"
        )
    return outcome


def _reading(task: Any, pixels: Tensor, path: Path, size: Sequence[int] | None, max_side: int | None) -> Reading:
    """What the network says, in the size of the photograph."""
    from graphattn_datasets.images.segmentation.dataset import normalize

    whole = pixels.shape[-2:]
    target = list(size) if size is not None else list(whole)
    longest = max(target)
    if max_side is not None and longest > max_side:
        target = [max(1, round(side * max_side / longest)) for side in target]
    try:
        x = pixels.to(task.device)[None].float()
        if target != list(whole):
            x = F.interpolate(x, target, mode="bilinear", antialias=True)
        with torch.no_grad():
            reading = task.read(_forward(task, normalize(x)))
    except torch.OutOfMemoryError as error:
        raise DataError(f"{path} of {whole[1]} x {whole[0]} pixels does not fit the device; use --max_side") from error
    if target == list(whole):
        return Reading(*(field[0].cpu() for field in reading))
    return Reading(*(_enlarged(field, whole) for field in reading))


def _forward(task: Any, x: Tensor) -> Tensor:
    model: nn.Module = task.model
    return model(x).float()


def _enlarged(field: Tensor, size: torch.Size) -> Tensor:
    """``[1, ..., h, w]`` in another size: smoothly for numbers, the nearest for labels."""
    found = field if field.dim() == 4 else field.unsqueeze(1)
    if field.is_floating_point():
        found = F.interpolate(found, list(size), mode="bilinear", align_corners=False)
    else:
        found = F.interpolate(found.double(), list(size), mode="nearest-exact").to(field.dtype)
    return (found if field.dim() == 4 else found.squeeze(1))[0].cpu()


def _pictures(pixels: Tensor, reading: Reading, num_classes: int, neighbours: int) -> dict[str, np.ndarray]:
    mask = reading.mask.numpy().astype(np.uint8)
    return {
        "mask": mask * 255 if num_classes == 1 else mask,
        "connectivity": connectivity_picture(reading.edges, neighbours),
        "instances": instance_picture(reading.instances, pixels),
    }


def _write(path: Path, picture: np.ndarray) -> None:
    images = require("PIL.Image", extra="images", purpose="writing pictures")
    signed = require("PIL.PngImagePlugin", extra="images", purpose="writing pictures").PngInfo()
    signed.add_text(*_SIGNATURE)
    if path.exists() and not _is_ours(path, images):
        raise DataError(f"{path} is there, and graphattn predict did not write it (a mask, perhaps); give --out")
    image = images.fromarray(picture)
    write_atomically(path, lambda file: image.save(file, format="PNG", pnginfo=signed))


def _is_ours(path: Path, images: Any) -> bool:
    name, value = _SIGNATURE
    try:
        with images.open(path) as picture:
            return picture.info.get(name) == value
    except OSError:
        return False


def _tell(progress: bool, number: int, total: int, text: str) -> None:
    if progress:
        print(f"[{number}/{total}] {text}", flush=True)

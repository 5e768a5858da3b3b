"""ConnNet: its shapes, heads and backbones, and how masks and instances are read from logits."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.mechanisms.connectivity import class_labels, connectivity_labels, instance_labels
from graphattn.models.image import ConnNet, ConvBackbone, read_logits
from graphattn.models.image.backbone import Level, feature_levels

SMALL: dict[str, Any] = {"backbone_options": {"widths": (8, 12, 16), "depth": 1}, "width": 8}
SURE = 20.0  # a logit


def logits_of(cube: Tensor) -> Tensor:
    """A cube that is sure of its labels."""
    return (cube.float() * 2 - 1) * SURE


def blobs(*size: int, share: float = 0.5) -> Tensor:
    """Random masks with some structure."""
    noise = torch.rand(*size)
    smooth = torch.nn.functional.avg_pool2d(noise[:, None], 3, 1, 1)[:, 0]
    return (smooth > smooth.flatten(1).quantile(1 - share, dim=1)[:, None, None]).long()


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"head": "binary"}, 1),
        ({"head": "connectivity"}, 8),
        ({"head": "connectivity", "neighbours": 4}, 4),
        ({"head": "instances"}, 8),
        ({"head": "binary", "num_classes": 3}, 3),
        ({"head": "connectivity", "num_classes": 3}, 24),
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (13, 22), (5, 1)])
def test_any_size(options: dict[str, Any], channels: int, size: tuple[int, int]) -> None:
    model = ConnNet(**options, **SMALL)
    out = model(torch.randn(2, 3, *size))
    assert out.shape == (2, channels, *size) and out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    reading = model.read(out.detach())
    classes = options.get("num_classes", 1)
    assert reading.saliency.shape == ((2, *size) if classes == 1 else (2, classes, *size))
    assert reading.mask.shape == reading.edges.shape == reading.instances.shape == (2, *size)
    assert 0 <= float(reading.saliency.min()) and float(reading.saliency.max()) <= 1


def test_the_size_of_the_default() -> None:
    count = sum(p.numel() for p in ConnNet().parameters())
    assert 0.5e6 < count < 2e6


def test_long_range_begins_as_the_identity_and_then_reaches_everywhere() -> None:
    torch.manual_seed(0)
    plain = ConnNet(**SMALL).eval()
    for name in ("non_local", "infsa"):
        options = {"heads": 2} if name == "infsa" else None
        far = ConnNet(**SMALL, long_range=name, long_range_options=options).eval()
        missing = far.load_state_dict(plain.state_dict(), strict=False)
        assert not missing.unexpected_keys and all(key.startswith("long_range.") for key in missing.missing_keys)
        x = torch.randn(1, 3, 96, 96)
        torch.testing.assert_close(far(x), plain(x))
        nn.init.ones_(far.long_range.norm.weight)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(far(x)[0, :, 0, 0].sum(), x)
        assert float(gradient[..., 80:, 80:].abs().max()) > 0
        (gradient,) = torch.autograd.grad(plain(x)[0, :, 0, 0].sum(), x)
        assert float(gradient[..., 80:, 80:].abs().max()) == 0


class Pooled(nn.Module):
    """An encoder of somebody else, from stride 2, that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 7, 2, 2)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.norm(self.first(x))
        return OrderedDict(fine=fine, coarse=self.second(fine))


@pytest.mark.parametrize("head", ["binary", "connectivity", "instances"])
def test_few_logits_say_yes_before_training(head: str) -> None:
    torch.manual_seed(0)
    found = ConnNet(head=head)(torch.randn(2, 3, 64, 64)).sigmoid()
    assert float((found - 0.2).abs().max()) < 0.1 and abs(float(found.mean()) - 0.2) < 0.02


def test_any_backbone() -> None:
    backbone = Pooled()
    assert feature_levels(backbone, 3) == [Level(5, 2), Level(7, 4)]
    assert backbone.norm.num_batches_tracked == 0 and backbone.training  # looked at, not changed
    assert ConnNet(backbone=backbone, width=8)(torch.randn(1, 3, 10, 14)).shape == (1, 8, 10, 14)
    # timm's way to say it
    backbone.feature_info = SimpleNamespace(channels=lambda: [5, 7], reduction=lambda: [2, 4])  # type: ignore[assignment]
    assert feature_levels(backbone, 3) == [Level(5, 2), Level(7, 4)]
    assert feature_levels(ConvBackbone(), 3) == [Level(c, 2**n) for n, c in enumerate((16, 32, 64, 96, 128))]
    with pytest.raises(ArgumentError, match="backbone must return a list of feature maps .* got Tensor from Conv2d"):
        ConnNet(backbone=nn.Conv2d(3, 4, 1))
    backbone.feature_info = [{"num_chs": 5, "reduction": 4}, {"num_chs": 7, "reduction": 2}]  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"from fine to coarse, got strides \[4, 2\]"):
        ConnNet(backbone=backbone)


class ChannelsLast(Pooled):
    """As timm's Swin has it."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [m.permute(0, 2, 3, 1) for m in super().forward(x).values()]


def test_channels_where_they_do_not_belong() -> None:
    with pytest.raises(ArgumentError, match=r"square maps .*\[1, 32, 32, 5\].* permute maps whose channels stand last"):
        ConnNet(backbone=ChannelsLast())
    backbone = ChannelsLast()
    backbone.feature_info = [{"num_chs": 5, "reduction": 2}, {"num_chs": 7, "reduction": 4}]  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"maps of \[5, 7\] channels, which stand first"):
        ConnNet(backbone=backbone)(torch.randn(1, 3, 16, 16))
    for shape in ((3, 16, 16), (1, 4, 16, 16)):
        with pytest.raises(ArgumentError, match=r"x must be photographs \[B, 3, H, W\], got shape"):
            ConnNet()(torch.randn(*shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "cube"}, r"head must be one of \('binary', 'connectivity', 'instances'\), got 'cube'"),
        ({"neighbours": 6}, "neighbours must be 4 or 8, got 6"),
        ({"head": "instances", "num_classes": 2}, "and 1 with head 'instances', got 2 with 'instances'"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"backbone": Pooled(), "backbone_options": {"depth": 1}}, "backbone_options go with our own backbone only"),
        ({"long_range_options": {"heads": 2}}, "long_range_options go with long_range only"),
        ({"long_range": "nothing"}, "unknown mechanism 'nothing'"),
        ({"backbone_options": {"widths": ()}}, "widths and depth must be 1 or more"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ConnNet(**options)


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("head", ["binary", "connectivity"])
def test_masks_are_read_back(head: str, neighbours: int) -> None:
    mask = blobs(3, 17, 23)
    cube = connectivity_labels(mask, neighbours)
    logits = logits_of(mask[:, None] if head == "binary" else cube)
    reading = read_logits(logits, head, neighbours=neighbours)
    alone = (mask > 0) & ~cube.any(1)
    expected = mask if head == "binary" else mask.masked_fill(alone, 0)  # a cube cannot hold a lone pixel
    assert torch.equal(reading.mask, expected)
    torch.testing.assert_close(reading.saliency, expected.float(), atol=1e-6, rtol=0)
    bits = torch.stack([(reading.edges >> n) & 1 for n in range(neighbours)], 1)
    assert torch.equal(bits.bool(), cube)
    structure = np.ones((3, 3)) if neighbours == 8 else None
    for labels, one in zip(reading.instances, mask.masked_fill(alone, 0), strict=True):
        np.testing.assert_array_equal(labels.numpy(), ndimage.label(one.numpy(), structure)[0])


def test_touching_instances_come_apart_and_small_ones_go() -> None:
    ids = torch.zeros(1, 8, 12, dtype=torch.long)
    ids[0, 1:6, 1:5], ids[0, 1:6, 5:9], ids[0, 7, 10:12] = 1, 2, 3
    apart = read_logits(logits_of(instance_labels(ids)), "instances")
    assert torch.equal(apart.instances, ids.int())
    together = read_logits(logits_of((ids > 0)[:, None]), "binary")
    assert together.instances.max() == 2
    assert torch.equal(apart.mask, together.mask)
    large = read_logits(logits_of(instance_labels(ids)), "instances", min_pixels=3)
    assert torch.equal(large.instances, ids.int().masked_fill(ids == 3, 0)) and torch.equal(large.mask, apart.mask)


def test_the_threshold_needs_both_ends() -> None:
    logits = torch.full((1, 8, 1, 2), -SURE)
    logits[0, 4, 0, 0] = SURE  # the left pixel wants its right neighbour
    assert not read_logits(logits, "connectivity").mask.any()
    logits[0, 3, 0, 1] = torch.tensor(0.7).logit()  # and the right one, less so, its left one
    reading = read_logits(logits, "connectivity")
    assert reading.mask.tolist() == [[[1, 1]]] and reading.instances.tolist() == [[[1, 1]]]
    torch.testing.assert_close(reading.saliency, torch.full((1, 1, 2), 0.7))
    assert not read_logits(logits, "connectivity", at=0.8).mask.any()


@pytest.mark.parametrize("head", ["binary", "connectivity"])
def test_several_classes(head: str) -> None:
    classes = torch.zeros(1, 9, 9, dtype=torch.long)
    classes[0, 1:5, 1:5], classes[0, 1:5, 5:8], classes[0, 6:9, 2:8] = 1, 2, 1
    if head == "binary":
        logits = logits_of(nn.functional.one_hot(classes, 3).movedim(-1, 1))
    else:
        logits = logits_of(class_labels(classes, 3).flatten(1, 2))
    reading = read_logits(logits, head, 3)
    assert torch.equal(reading.mask, classes)
    expected = classes.clone()
    expected[0, 6:9, 2:8] = 3  # the second piece of class 1, the third by its first pixel
    assert torch.equal(reading.instances, expected.int())


def test_reading_turns_with_the_picture() -> None:
    """A flipped cube, its channels permuted, gives the flipped reading."""
    cube = torch.randn(2, 8, 7, 9) * 3
    mirrored = [2, 1, 0, 4, 3, 7, 6, 5]
    first = read_logits(cube, "connectivity")
    second = read_logits(cube[:, mirrored].flip(-1), "connectivity")
    torch.testing.assert_close(second.saliency, first.saliency.flip(-1))
    assert torch.equal(second.mask, first.mask.flip(-1))
    assert torch.equal(second.instances.amax((1, 2)), first.instances.amax((1, 2)))


def test_logits_of_another_head() -> None:
    with pytest.raises(ArgumentError, match=r"\[B, 8, H, W\] with head .connectivity., got \[2, 1, 4, 4\]"):
        read_logits(torch.zeros(2, 1, 4, 4), "connectivity")


def test_state_dict_and_evaluation() -> None:
    first, second = ConnNet(**SMALL, long_range="non_local").eval(), ConnNet(**SMALL, long_range="non_local").eval()
    x = torch.randn(2, 3, 16, 16)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x)) and torch.equal(first(x), first(x))
    # Photographs do not see each other in evaluation.
    torch.testing.assert_close(first(x)[:1], first(x[:1]))
    assert torch.equal(first.segment(x).mask, first.read(first(x)).mask)

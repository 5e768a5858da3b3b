"""What is known about the texts."""

from __future__ import annotations

from graphattn_datasets.info import Anchor, DatasetInfo

__all__ = ["TEXT_CATALOG"]

_NANO = "README of github karpathy/nanoGPT, quoted from memory (loss in nats there: 1.4697 and 1.88)"

TEXT_CATALOG: tuple[DatasetInfo, ...] = (
    DatasetInfo(
        name="tinyshakespeare",
        loader="graphattn_datasets.text.dataset:make",
        task="language_modelling",
        metric="bits_per_character",
        splits="files",
        size="1,115,394 characters, 65 different ones",
        source="github karpathy/char-rnn, data/tinyshakespeare/input.txt",
        licence="public domain text",
        exactness="original text; 90 % training, then 5 % validation and 5 % test (usual: 90 % and 10 %)",
        data_path="tinyshakespeare",
        num_classes=65,
        anchors=(
            Anchor("6-layer 384-channel GPT, last 10 %", 2.120, None, _NANO, False),
            Anchor("4-layer 128-channel GPT, last 10 %", 2.71, None, _NANO, False),
        ),
    ),
    DatasetInfo(
        name="python_docs",
        loader="graphattn_datasets.text.dataset:make",
        task="language_modelling",
        metric="bits_per_character",
        splits="files",
        size="some 1.6 million characters (Python 3.11), 96 different ones",
        source="documentation strings of the running Python's standard library (read from its source files)",
        licence="PSF",
        exactness="differs between versions of Python; 90 % training, 5 % validation, 5 % test",
        num_classes=96,
    ),
)

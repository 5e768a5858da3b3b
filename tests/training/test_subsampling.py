"""Phases and self-ensembles in Lightning, and language modelling from end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F

from graphattn.errors import ConfigError
from graphattn.mechanisms import SSA
from graphattn.models.sequence import CausalTransformer
from graphattn.training import LanguageModelling, SelfEnsembling, SSAPhases, TextDataModule
from graphattn_datasets.text import files

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextDataModule:
    words = torch.randint(3, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    text = "".join(("abcd", "bcda ", "cab ")[n] for n in words)
    monkeypatch.setattr(files, "read_tinyshakespeare", lambda root: text)
    monkeypatch.setattr("graphattn_datasets.text.dataset.read_tinyshakespeare", lambda root: text)
    return TextDataModule("tinyshakespeare", context=32, batch_size=16, eval_batch_size=3, seed=0)


def task(**options: Any) -> LanguageModelling:
    torch.manual_seed(0)
    model = CausalTransformer(5, 16, 2, 2, attention="ssa", attention_options={"minimum": 2, **options})
    return LanguageModelling(model, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2))


def test_phases_by_progress() -> None:
    phases = SSAPhases()
    assert phases.at(0.0) == {"keep": 0.25} == phases.at(0.899) and phases.at(0.9) == {"keep": 1.0} == phases.at(1.0)
    given = [
        {"fraction": 0.5, "keep": [0.25, 0.75], "scheme": "local", "sigma": 4.0},
        {"fraction": 0.25, "scheme": "uniform"},
        {"fraction": 0.25, "keep": 1.0},
    ]
    phases = SSAPhases(given)
    assert phases.at(0.25) == {"keep": 0.5, "scheme": "local", "sigma": 4.0}
    assert phases.at(0.5) == {"scheme": "uniform"} and phases.at(0.99) == {"keep": 1.0}
    for bad, text in (
        ([{"keep": 0.5}], "a phase must have a fraction"),
        ([{"fraction": 1.0, "r": 0.5}], "may have keep, scheme and sigma"),
        ([{"fraction": 0.5}], "must sum to 1, got 0.5"),
    ):
        with pytest.raises(ConfigError, match=text):
            SSAPhases(bad)


class Watch(SSAPhases):
    """Notes what holds in each step."""

    def __init__(self, phases: Any = None) -> None:
        super().__init__(phases)
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.seen += [module.keep for module in pl_module.modules() if isinstance(module, SSA)][:1]


def test_a_model_learns_by_phases(data: TextDataModule) -> None:
    watch, module = Watch([{"fraction": 0.75, "keep": 0.5}, {"fraction": 0.25, "keep": 1.0}]), task()
    trainer = Trainer(max_epochs=4, callbacks=[watch], **QUIET)
    trainer.fit(module, datamodule=data)
    steps = len(watch.seen)
    assert watch.seen == [0.5] * (steps * 3 // 4) + [1.0] * (steps - steps * 3 // 4) and steps == trainer.global_step
    found = trainer.test(module, datamodule=data, verbose=False)[0]
    assert 0.5 < found["test/bits_per_character"] < 1.6 < math.log2(5)
    # The figure is the mean over every character of the split, whatever the batches.
    module.eval()
    with torch.no_grad():
        pairs = [(module(batch), batch["y"]) for batch in data.test_dataloader()]
    scores = torch.cat([rows.flatten(0, 1) for rows, _ in pairs])
    targets = torch.cat([y.flatten() for _, y in pairs])
    bits = float(F.cross_entropy(scores, targets)) / math.log(2)
    assert found["test/bits_per_character"] == pytest.approx(bits, rel=1e-4)
    assert (targets >= 0).sum() == len(data.splits.test.tokens) - 1


def test_ensembles_in_test(data: TextDataModule) -> None:
    module = task(keep=0.25)
    losses = []
    for passes in (1, 8, 8):
        trainer = Trainer(callbacks=[SelfEnsembling(passes, seed=3)], **QUIET)
        losses.append(trainer.test(module, datamodule=data, verbose=False)[0]["test/loss"])
    plain = Trainer(**QUIET).test(module, datamodule=data, verbose=False)[0]["test/loss"]
    assert losses[1] == losses[2] and losses[0] != losses[1] != plain
    other = Trainer(callbacks=[SelfEnsembling(8, keep=1.0)], **QUIET)
    assert other.test(module, datamodule=data, verbose=False)[0]["test/loss"] == pytest.approx(plain, rel=1e-5)
    assert all(part.keep == 0.25 and part.sampling is None for part in module.modules() if isinstance(part, SSA))
    assert not module.model._forward_hooks


def test_errors(data: TextDataModule) -> None:
    class Plain(LanguageModelling):
        pass

    plain = Plain(CausalTransformer(5, 16, 2, 1))
    with pytest.raises(ConfigError, match="SSAPhases needs a model with an SSA mechanism, Plain has none"):
        Trainer(max_epochs=1, callbacks=[SSAPhases()], **QUIET).fit(plain, datamodule=data)
    phases = [SSAPhases(), SelfEnsembling()]
    with pytest.raises(ConfigError, match=r"SSAPhases end with keep=1.0, where all passes are the same"):
        Trainer(max_epochs=1, callbacks=phases, **QUIET).fit(task(), datamodule=data)
    with pytest.raises(ConfigError, match="set max_epochs or max_steps"):
        Trainer(max_epochs=-1, callbacks=[SSAPhases()], **QUIET).fit(task(), datamodule=data)
    with pytest.raises(ConfigError, match="needs batches with x and y"):
        plain({"x": torch.zeros(1, 2)})
    wrong = LanguageModelling(nn.Embedding(5, 5))
    with pytest.raises(ConfigError, match=r"the model must return scores \[2, 3, vocab\]"):
        wrong.rows(torch.zeros(2, 5), {"y": torch.zeros(2, 3)}, "test")
    pictures = TextDataModule("digits")
    pictures.options = {}
    with pytest.raises(ConfigError, match="TextDataModule needs a text"):
        pictures.setup()

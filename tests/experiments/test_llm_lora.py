"""The LoRA experiment on a tiny model with random weights: it trains, goes on, generates and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.llm_windows import lora
from graphattn.errors import ArgumentError, MissingPackageError

CONFIG = Path(lora.__file__).with_name("lora.yaml")


def test_the_published_hyperparameters() -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert config["lora"] == {
        "r": 64,
        "alpha": 128,
        "dropout": 0.05,
        "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    known = {"lr": 1e-4, "eps": 1e-8, "weight_decay": 0.005, "warmup": 0.05, "clip": 1.0, "batch_size": 4}
    known |= {"accumulate": 8, "epochs": 1, "max_length": 4096, "seed": 42}
    assert known.items() <= config["training"].items()
    assert config["evaluation"]["beams"] == 2 and config["evaluation"]["max_new_tokens"] == 20
    assert config["data"]["fan_out"] == [8, 8] and config["window"] == {"train": "uni-2", "evaluate": "uni-all"}


def test_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert lora._configuration(CONFIG, ["training.lr=0.5", "lora.targets=[a, b]"])["lora"]["targets"] == ["a", "b"]
    for change in ("training.speed=1", "lr=1", "training.lr"):
        with pytest.raises(ArgumentError, match="--set takes part.name=value"):
            lora._configuration(CONFIG, [change])

    def missing(name: str, **_: Any) -> Any:
        raise MissingPackageError('this needs the package "peft": pip install "graphattn[lora]"')

    monkeypatch.setattr(lora, "require", missing)
    assert lora.main(["--model", "none", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert 'pip install "graphattn[lora]"' in capsys.readouterr().err


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as from the hub: a tokenizer of bytes and pieces, a Llama of two layers; and eight papers."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    core.train_from_iterator(
        ["Genetic Algorithms", "Neural Networks"] * 3,
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    folder = tmp_path / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    papers = tmp_path / "data" / "cane_tag" / "cora"
    papers.mkdir(parents=True)
    (papers / "data.txt").write_text("".join(f"paper w{node % 2} v{node}\n" for node in range(28)), encoding="utf-8")
    (papers / "graph.txt").write_text("".join(f"{n}\t{(n + 7) % 28}\n" for n in range(28)), encoding="utf-8")
    (papers / "group.txt").write_text("\n".join(str(n % 7) for n in range(28)), encoding="utf-8")
    monkeypatch.setenv("GRAPHATTN_DATA", str(tmp_path / "data"))
    return folder


@pytest.mark.requires("hf", "peft")
def test_a_tiny_model_from_end_to_end(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    changes = [
        *("data.fan_out=[2, 2]", "model.dtype=float32", "model.gradient_checkpointing=false", "training.epochs=2"),
        *("training.accumulate=2", "evaluation.max_new_tokens=3", "evaluation.limit=3", "training.lr=0.01", "lora.r=4"),
        "training.save_every=1",
    ]

    def run(out: Path, *more: str) -> dict[str, Any]:
        return lora.run(lora._configuration(CONFIG, [*changes, *more]), str(tiny), out, "cpu")

    whole = run(tmp_path / "whole")
    assert whole["prompts"] == 3 and 0 <= whole["accuracy"] <= 1 and whole["loss"] == pytest.approx(whole["loss"])
    assert json.loads((tmp_path / "whole" / "result.json").read_text()) == whole
    losses = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["losses"]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert (tmp_path / "whole" / "adapter" / "adapter_config.json").is_file()
    assert len((tmp_path / "whole" / "answers.csv").read_text().splitlines()) == 4

    # The adapter's folder is all that is needed: projection, tokenizer and adapters.
    adapter = tmp_path / "whole" / "adapter"
    again = lora.run(lora._configuration(CONFIG, changes), str(tiny), tmp_path / "again", "cpu", adapter)
    assert f"adapter: {adapter}" in (tmp_path / "again" / "resolved.yaml").read_text()
    assert again == {**whole, "loss": None} and not (tmp_path / "again" / "checkpoint.pt").exists()
    written = [(tmp_path / name / "answers.csv").read_text() for name in ("whole", "again")]
    assert written[0] == written[1]
    kept = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["trained"]
    graph = lora.load_text_graph("cane_cora", seed=0)
    size = len(transformers.AutoTokenizer.from_pretrained(adapter))
    loaded = lora.WindowedModel(str(tiny), graph, size, lora._configuration(CONFIG, changes), "cpu", adapter)
    parameters = dict(loaded.named_parameters())
    assert {"nodes.projection.weight", "nodes.projection.bias"} < set(kept)
    assert all(torch.equal(parameters[name], x) and parameters[name].requires_grad for name, x in kept.items())
    with pytest.raises(ArgumentError, match="must fit the features of the graph and the model"):
        narrow = lora.load_text_graph("cane_cora", words=5)
        lora.WindowedModel(str(tiny), narrow, size, lora._configuration(CONFIG, changes), "cpu", adapter)
    (adapter / "node_projection.safetensors").unlink()
    with pytest.raises(ArgumentError, match="a folder that WindowedModel.save wrote, there is no"):
        lora.WindowedModel(str(tiny), graph, size, lora._configuration(CONFIG, changes), "cpu", adapter)

    # A run that was stopped after an epoch's two steps goes on as if it had not been.
    calls = {"count": 0}
    step = torch.optim.AdamW.step

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["count"] += 1
        if calls["count"] == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts")
    run(tmp_path / "parts")
    again = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["losses"]
    assert again == pytest.approx(losses, rel=1e-4)

    with pytest.raises(ArgumentError, match="training.max_length must hold a prompt, got 20"):
        run(tmp_path / "short", "training.max_length=20")

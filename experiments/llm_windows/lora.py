"""A language model of Hugging Face, fine-tuned by LoRA on graph windows with the published hyperparameters.

    python -m experiments.llm_windows.lora --config experiments/llm_windows/lora.yaml --model meta-llama/Llama-2-7b-hf \
        --out runs/lora --set window.train=uni-3 training.epochs=2

The model is read from the hub or a folder and never changed: what is trained (adapters, the projection of node
features) lies in --out. A run that was stopped goes on at its last checkpoint. Node tokens are the nodes' feature rows,
projected. Written: resolved.yaml, checkpoint.pt, adapter/ (adapters, projection and tokenizer), result.json and, for
every test prompt, answers.csv. With --adapter <folder>/adapter nothing is trained: that adapter answers.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from experiments.llm_windows.windowed import WindowedModel, replacing
from graphattn.errors import ArgumentError, GraphattnError
from graphattn.optional import require
from graphattn_datasets.text_graphs import (
    PromptSet,
    PromptWriter,
    TextGraph,
    Tokens,
    hugging_face_tokens,
    load_text_graph,
)

__all__ = ["WindowedModel", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune and evaluate; 0 on success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("lora.yaml"))
    parser.add_argument("--model", required=True, help="name on the hub, or a folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="of an earlier run: evaluate it, train nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="part.name=value", help="instead of the configuration's"
    )
    options = parser.parse_args(argv)
    try:
        config = _configuration(options.config, options.set)
        result = run(config, options.model, options.out, options.device, options.adapter)
    except GraphattnError as error:
        print(f"lora: error: {error}", file=sys.stderr)
        return 2
    print(f"exact matches: {100 * result['accuracy']:.2f} % of {result['prompts']} test prompts")
    return 0


def run(config: dict[str, Any], name: str, out: Path, device: str, adapter: Path | None = None) -> dict[str, Any]:
    """Fine-tune where that is not done and no adapter is given, then evaluate; what ``result.json`` holds."""
    out.mkdir(parents=True, exist_ok=True)
    named = {"name": name, **({} if adapter is None else {"adapter": str(adapter)}), **config}
    (out / "resolved.yaml").write_text(yaml.safe_dump(named, sort_keys=False), encoding="utf-8")
    training, data = config["training"], config["data"]
    torch.manual_seed(training["seed"])
    transformers = require("transformers", extra="lora", purpose="experiments.llm_windows.lora")
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    tokens = hugging_face_tokens(tokenizer)
    graph = _graph(data).to(device)
    texts = graph.texts if any(data["text_tokens"]) else []
    writer = PromptWriter(data["template"], graph.classes, tokens, texts, data["text_tokens"])
    network = WindowedModel(name, graph, len(tokenizer), config, device, adapter)
    prompts = {key: _prompts(graph, writer, number, config) for number, key in ((0, "train"), (2, "test"))}
    losses: list[float] = []
    if adapter is None:
        losses = _train(network, prompts["train"], training, config["window"]["train"], out)
        network.save(out / "adapter")
        tokenizer.save_pretrained(out / "adapter")
    answers = _answer(network, prompts["test"], tokens, graph, config)
    with (out / "answers.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("node", "answer", "generated"), *answers])
    hits = sum(answer == generated for _, answer, generated in answers)
    result = {
        "model": name,
        "window": config["window"],
        "accuracy": hits / max(len(answers), 1),
        "prompts": len(answers),
        "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "loss": losses[-1] if losses else None,
    }
    _write(out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def _train(network: WindowedModel, prompts: PromptSet, options: dict[str, Any], window: str, out: Path) -> list[float]:
    """The mean loss of each optimizer step; goes on where a checkpoint is."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=options["lr"], eps=options["eps"], weight_decay=options["weight_decay"]
    )
    each = -(-len(prompts) // (options["batch_size"] * options["accumulate"]))
    total = each * options["epochs"]
    warm = max(round(options["warmup"] * total), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(total - step, 0) / max(total - warm, 1))
    )
    losses: list[float] = []
    file = out / "checkpoint.pt"
    if file.exists():
        kept = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(kept["trained"], strict=False)
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        losses = kept["losses"]
    network.train()
    for epoch in range(options["epochs"]):
        for at, batches in enumerate(_groups(prompts, options, epoch)):
            step = epoch * each + at
            if step < len(losses):
                continue
            # Dropout is drawn by step, so that a run that was stopped draws as one that was not.
            torch.manual_seed(options["seed"] * 1_000_003 + step)
            loss = 0.0
            for batch in batches:
                part = network.loss(batch, window) / len(batches)
                part.backward()
                loss += float(part.detach())
            nn.utils.clip_grad_norm_(trained.values(), options["clip"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss)
            print(f"step {step + 1} of {total}: loss {loss:.4f}", flush=True)
            if len(losses) % options["save_every"] == 0 or len(losses) == total:
                state = {name: p.detach() for name, p in trained.items()}
                kept = {"trained": state, "optimizer": optimizer.state_dict(), "losses": losses}
                with replacing(file) as temporary:
                    torch.save({**kept, "schedule": schedule.state_dict()}, temporary)
    return losses


def _groups(prompts: PromptSet, options: dict[str, Any], epoch: int) -> Iterator[list[dict[str, Tensor]]]:
    """The batches whose gradients one optimizer step adds up."""
    group: list[dict[str, Tensor]] = []
    for batch in prompts.batches(options["batch_size"], epoch):
        group.append(batch)
        if len(group) == options["accumulate"]:
            yield group
            group = []
    if group:
        yield group


def _answer(
    network: WindowedModel, prompts: PromptSet, tokens: Tokens, graph: TextGraph, config: dict[str, Any]
) -> list[tuple[int, str, str]]:
    """Node, class and what was generated, for each test prompt. A hit is an exact match, as in the release."""
    options = config["evaluation"]
    without = PromptSet(
        *(graph, prompts.writer, prompts.centres[: options["limit"]], prompts.y[: options["limit"]]),
        prompts.fan_out,
        seed=prompts.seed,
        side="left",
        answer=False,
    )
    generation = {
        "num_beams": options["beams"],
        "max_new_tokens": options["max_new_tokens"],
        "do_sample": False,
        "pad_token_id": tokens.pad,
        "suppress_tokens": [tokens.node],  # node tokens are input only
    }
    network.eval()
    answers = []
    for batch in without.batches(options["batch_size"]):
        for row, label in zip(
            network.generate(batch, config["window"]["evaluate"], **generation).tolist(),
            batch["y"].tolist(),
            strict=True,
        ):
            answers.append((len(answers), graph.classes[label], tokens.decode(row).strip()))
    nodes = without.centres.tolist()
    return [(nodes[at], answer, generated) for at, answer, generated in answers]


def _graph(data: dict[str, Any]) -> TextGraph:
    from graphattn_datasets.text_graphs import TEXT_GRAPHS

    if data["name"] in TEXT_GRAPHS:
        graph = load_text_graph(data["name"], seed=data["split"])
    else:
        from graphattn_datasets import load_dataset

        graph = TextGraph.from_data(load_dataset(data["name"], split_index=data["split"])[0], name=data["name"])
    if graph.split is None:
        raise ArgumentError(f"data.name must be a graph whose nodes have classes and a split, got {data['name']!r}")
    return graph


def _prompts(graph: TextGraph, writer: PromptWriter, number: int, config: dict[str, Any]) -> PromptSet:
    assert graph.split is not None
    nodes = (graph.split == number).nonzero().flatten()
    prompts = PromptSet(
        graph, writer, nodes, graph.y[nodes], config["data"]["fan_out"], seed=config["training"]["seed"], side="left"
    )
    longest = config["training"]["max_length"]
    width = prompts[range(min(len(prompts), 64))]["tokens"].shape[1]
    if width > longest:
        raise ArgumentError(f"training.max_length must hold a prompt, got {longest} for prompts of {width} tokens")
    return prompts


def _configuration(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for change in changes:
        key, equals, value = change.partition("=")
        part, _, name = key.partition(".")
        if not equals or name not in config.get(part, {}):
            raise ArgumentError(f"--set takes part.name=value with a name of {path}, got {change!r}")
        config[part][name] = yaml.safe_load(value)
    return config


def _write(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

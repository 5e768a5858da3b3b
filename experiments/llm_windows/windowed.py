"""A language model of Hugging Face with adapters that reads prompts with node tokens in a window."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphattn.errors import ArgumentError
from graphattn.nn import NodeTokens
from graphattn.optional import require
from graphattn_datasets.text_graphs import TextGraph

__all__ = ["PROJECTION", "WindowedModel", "replacing"]

PROJECTION = "node_projection.safetensors"
"""The file, beside the adapters, of the projection of node features."""


class WindowedModel(nn.Module):
    """A causal language model with adapters, and the projection that embeds nodes.

    Args:
        name: The model, on the hub or a folder; it is not changed.
        graph: Whose feature rows node tokens are made of.
        vocabulary: Tokens that there are, the node token included.
        config: ``model`` and ``lora`` of a configuration.
        device: Where it runs.
        adapter: A folder that :meth:`save` wrote: what it holds goes on; default: new adapters and a new projection.

    Raises:
        ArgumentError: If the projection in the folder does not fit the graph and the model.
    """

    def __init__(
        self,
        name: str,
        graph: TextGraph,
        vocabulary: int,
        config: dict[str, Any],
        device: str,
        adapter: Path | None = None,
    ) -> None:
        super().__init__()
        from graphattn.bridge import hf

        transformers = require("transformers", extra="lora")
        peft = require("peft", extra="lora", purpose="experiments.llm_windows.lora")
        options, lora = config["model"], config["lora"]
        loading: dict[str, Any] = {"dtype": getattr(torch, options["dtype"]), "attn_implementation": hf.NAME}
        if options["load_in_8bit"]:
            loading["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
            loading["device_map"] = {"": device}
        model = transformers.AutoModelForCausalLM.from_pretrained(name, **loading)
        if model.get_input_embeddings().num_embeddings < vocabulary:
            model.resize_token_embeddings(vocabulary)
        if not options["load_in_8bit"]:
            model.to(device)
        if options["gradient_checkpointing"]:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.nodes = NodeTokens(graph.x, model.config.hidden_size).to(device)
        if adapter is not None:
            self.model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
            self._load_projection(adapter / PROJECTION)
            return
        adapters = peft.LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=list(lora["targets"]),
            modules_to_save=["embed_tokens"] if options["train_embeddings"] else None,
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(model, adapters)

    def save(self, folder: Path) -> None:
        """Write all that was trained: the adapters as PEFT has them, and beside them the projection of nodes."""
        self.model.save_pretrained(folder)
        files = require("safetensors.torch", extra="lora")
        with replacing(folder / PROJECTION) as temporary:
            files.save_file({name: x.contiguous() for name, x in self.nodes.state_dict().items()}, temporary)

    def _load_projection(self, file: Path) -> None:
        if not file.is_file():
            raise ArgumentError(f"adapter must be a folder that WindowedModel.save wrote, there is no {file}")
        kept = require("safetensors.torch", extra="lora").load_file(file)
        mine = {name: tuple(x.shape) for name, x in self.nodes.state_dict().items()}
        theirs = {name: tuple(x.shape) for name, x in kept.items()}
        if mine != theirs:
            raise ArgumentError(f"{file} must fit the features of the graph and the model, {mine}, got {theirs}")
        self.nodes.load_state_dict(kept)

    def rows(self, batch: dict[str, Tensor]) -> Tensor:
        """Embedded prompts ``[B, T, width]``."""
        return self.nodes(self.model.get_input_embeddings()(batch["tokens"]), batch["node_ids"])

    def loss(self, batch: dict[str, Tensor], window: str) -> Tensor:
        """Of the answers' tokens."""
        from graphattn.bridge import hf

        with hf.graph_window(batch, window):
            return self.model(
                inputs_embeds=self.rows(batch), attention_mask=batch["attention_mask"], labels=batch["labels"]
            ).loss

    @torch.no_grad()
    def generate(self, batch: dict[str, Tensor], window: str, **options: Any) -> Tensor:
        """Token numbers ``[B, new]`` after prompts without answers."""
        from graphattn.bridge import hf

        with hf.graph_window(batch, window):
            return self.model.generate(
                inputs_embeds=self.rows(batch), attention_mask=batch["attention_mask"].long(), **options
            )


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file that is there as a whole, or as it was."""
    temporary = file.with_suffix(".tmp")
    yield temporary
    os.replace(temporary, file)

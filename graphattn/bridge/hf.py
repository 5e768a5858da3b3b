"""Language models of Hugging Face's transformers on graph windows, without touching their code.

Importing this module registers the attention implementation ``"graphattn"``::

    from graphattn.bridge import hf
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="graphattn")
    with hf.graph_window(batch, "uni-2"):
        loss = model(inputs_embeds=rows, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss

Only prompts are windowed. Outside of such a block, and for tokens generated after the prompts (inside of it, too, as in
the released code; with kept keys and values or without), attention is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from graphattn.attention import attend, draw_seed
from graphattn.errors import ArgumentError
from graphattn.graph import TokenGraph, patterns
from graphattn.graph.graph_window import GraphWindow
from graphattn.mechanisms.graph_window import Window
from graphattn.optional import require

__all__ = ["NAME", "PromptMask", "attention", "attention_mask", "graph_window", "register"]

NAME = "graphattn"
"""The name to give as ``attn_implementation``."""

_UNKNOWN = ("softcap", "s_aux", "position_bias")  # scores that are not a scaled dot product


@dataclass
class _Prompts:
    """What :func:`graph_window` hands to the mask function."""

    batch: Mapping[str, Tensor]
    window: Window
    depth: int | None
    read: bool = False
    """Whether there was a pass over the prompts, so that longer ones are generation without kept keys and values."""

    def graph(self, tokens: int, mask: Tensor | None, copies: int) -> TokenGraph:
        """The window over ``copies`` prompts, some of which may be beams of one, and tokens generated after them."""
        fields = {key: self.batch[key] for key in ("node_of_token", "parents", "nodes") if key in self.batch}
        given, length = fields["node_of_token"].shape
        if copies % given:
            raise ArgumentError(f"graph_window was given a batch of {given} prompts, the model one of {copies}")
        if tokens < length or (tokens > length and not self.read):
            raise ArgumentError(
                f"graph_window was given prompts of {length} tokens, the model {tokens}: "
                + (
                    "prompts must be read as a whole (generate without prefill_chunk_size)"
                    if tokens < length
                    else "node_of_token must say of every token, padding too, what it stands for (-1: text); generated "
                    "tokens may follow (use_cache=False) only after a pass over the prompts"
                )
            )
        self.read = True
        fields["node_of_token"] = functional.pad(fields["node_of_token"], (0, tokens - length), value=-1)
        fields = {key: value.repeat_interleave(copies // given, 0) for key, value in fields.items()}
        if mask is not None:
            fields["attention_mask"] = mask
        return self.window.graph(fields, depth=self.depth)


_PROMPTS: ContextVar[_Prompts | None] = ContextVar("graphattn_prompts", default=None)


@contextmanager
def graph_window(
    batch: Mapping[str, Tensor], window: Window | str = "uni-2", *, depth: int | None = None
) -> Iterator[None]:
    """Lay a window on the prompts that models with ``attn_implementation="graphattn"`` read inside the block.

    A backward pass may come after it (with gradient checkpointing, too). Threads have their own.

    Args:
        batch: ``node_of_token [B, T]``, ``parents [B, V]`` and, for distances between nodes, ``nodes [B, V]`` (see
            :class:`graphattn_datasets.text_graphs.PromptWriter`), on the model's device. Padding is taken from the
            ``attention_mask`` that the model is given.
        window: A :class:`~graphattn.mechanisms.Window`, or how one is written: ``"uni-2"``, ``"bidi-4"``,
            ``"uni-all"``.
        depth: Depth of the sampled trees, where it is known: ``"uni-4"`` on trees of depth 2 is then plain causal
            attention, bit by bit.

    Raises:
        ArgumentError: If a field is missing or the window is written otherwise.
    """
    missing = [key for key in ("node_of_token", "parents") if key not in batch]
    if missing:
        raise ArgumentError(f"batch must have node_of_token and parents, {' and '.join(missing)} missing")
    chosen = Window.parse(window) if isinstance(window, str) else window
    token = _PROMPTS.set(_Prompts(batch, chosen, depth))
    try:
        yield
    finally:
        _PROMPTS.reset(token)


class PromptMask:
    """What the layers of a model get as ``attention_mask``: the graph of the prompts.

    Handed through the layers, not looked up there, so that recomputation in a backward pass finds the same. To
    transformers it looks like a mask that is prepared already.
    """

    ndim = 4

    def __init__(self, graph: TokenGraph) -> None:
        self.graph = graph

    @property
    def shape(self) -> tuple[int, ...]:
        """As a mask of all pairs."""
        return (self.graph.num_copies, 1, self.graph.num_targets, self.graph.num_sources)

    def to(self, *args: Any, **kwargs: Any) -> PromptMask:
        """Itself: graphs are made where the model's inputs are."""
        return self

    def contiguous(self) -> PromptMask:
        """Itself."""
        return self


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | PromptMask | None = None,
    **options: Any,
) -> PromptMask | Tensor | None:
    """The mask function registered under :data:`NAME`: a graph for the first pass over plain causal prompts, and what
    the implementation ``"sdpa"`` of transformers gets for anything else (later tokens, sliding windows shorter than the
    prompts, packed texts).

    Args: those of ``transformers.AttentionMaskInterface``.

    Raises:
        ArgumentError: If a window is active and does not fit the prompts, or the layer has another window.
    """
    masks = require("transformers.masking_utils", extra="hf")
    if isinstance(attention_mask, PromptMask):
        return attention_mask
    plain = mask_function is None or mask_function is masks.causal_mask_function
    if q_length > 1 and int(q_offset) == 0 and kv_offset == 0:
        prompts = _PROMPTS.get()
        if prompts is not None and not plain and not options.get("use_vmap"):
            plain = _is_causal(mask_function, batch_size, q_length, options.get("device"))
        if plain and kv_length >= q_length:
            there = None if attention_mask is None else attention_mask[:, :q_length].bool()
            return PromptMask(_graph(prompts, batch_size, q_length, there, options.get("device")))
        if prompts is not None:
            raise ArgumentError(
                "graph_window needs layers with plain causal attention; this model has a sliding or chunked window "
                f"shorter than the {q_length} tokens of the prompts (turn use_sliding_window off), or reads packed "
                "texts (give attention_mask)"
            )
    return masks.sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function or masks.causal_mask_function,
        attention_mask=attention_mask,
        **options,
    )


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PromptMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function registered under :data:`NAME`.

    Args:
        module: The layer that calls.
        query: ``[B, H, T, D]``.
        key: ``[B, H_kv, S, D]``; H a multiple of H_kv.
        value: Likewise.
        attention_mask: From :func:`attention_mask`.
        scaling: Factor on the scores; default ``D ** -0.5``.
        dropout: On the weights.
        **options: ``graph_window``: a :class:`~graphattn.graph.patterns.GraphWindow`, for models that hand keyword
            arguments of their forward to their layers (Llama, Qwen): instead of the context manager. Others as
            transformers has them.

    Returns:
        ``[B, T, H, D]``, and no weights.

    Raises:
        ArgumentError: If the layer asks for a score that is not a scaled dot product, where a graph is used.
    """
    window = options.pop("graph_window", None)
    graph = attention_mask.graph if isinstance(attention_mask, PromptMask) else None
    tokens = query.shape[2]
    if window is not None and tokens > 1:
        graph = _checked(window, tokens, attention_mask)
    if graph is None:
        functions = require("transformers.integrations.sdpa_attention", extra="hf")
        options |= {"scaling": scaling, "dropout": dropout}
        return functions.sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    asked = [name for name in _UNKNOWN if options.get(name) is not None]
    if asked:
        raise ArgumentError(f"attn_implementation={NAME!r} has no {asked[0]}, which {type(module).__name__} asks for")
    groups = query.shape[1] // key.shape[1]
    key, value = key[:, :, :tokens], value[:, :, :tokens]  # a cache of fixed size is empty behind the prompt
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    seed = draw_seed(device=query.device) if dropout else None
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out = attend(graph, q, k, v, scale=scaling, dropout_p=dropout, dropout_seed=seed)
    assert isinstance(out, Tensor)
    return out.contiguous(), None


def register() -> None:
    """Make :data:`NAME` known to transformers: attention and mask function together, for an attention function alone
    would silently get no mask. Done when this module is imported.

    Raises:
        MissingPackageError: If transformers is missing, or too old to have both tables.
    """
    functions = require("transformers.modeling_utils", extra="hf", purpose="graphattn.bridge.hf")
    masks = require("transformers.masking_utils", extra="hf", purpose="graphattn.bridge.hf")
    functions.AttentionInterface.register(NAME, attention)
    masks.AttentionMaskInterface.register(NAME, attention_mask)


def _graph(prompts: _Prompts | None, copies: int, tokens: int, mask: Tensor | None, device: Any) -> TokenGraph:
    if prompts is None:
        if mask is None or bool(mask.all()):
            return patterns.causal(tokens, device=device)
        text, none = torch.full_like(mask, -1, dtype=torch.int64), mask.new_zeros(copies, 0, dtype=torch.int64)
        return patterns.graph_window(text, none, None, mask=mask)
    return prompts.graph(tokens, None if mask is None or bool(mask.all()) else mask, copies)


def _is_causal(mask_function: Any, copies: int, tokens: int, device: Any) -> bool:
    """Whether a mask function of transformers lets the same pairs through as the causal one: a sliding window or a
    chunk that is longer than the prompts does."""
    at = torch.arange(tokens, device=device)
    prompt = torch.arange(copies, device=device).view(-1, 1, 1, 1)
    found = mask_function(prompt, at.new_zeros(1, 1, 1, 1), at.view(1, 1, -1, 1), at.view(1, 1, 1, -1))
    return bool((found == (at <= at.unsqueeze(1))).all())


def _checked(window: Any, tokens: int, mask: PromptMask | Tensor | None) -> TokenGraph:
    if not isinstance(window, TokenGraph) or window.num_targets != tokens:
        got = f"one of {window.num_targets} tokens" if isinstance(window, TokenGraph) else type(window).__name__
        raise ArgumentError(f"graph_window must be the graph of prompts of {tokens} tokens, got {got}")
    padded = (
        mask.graph.mask is not None if isinstance(mask, PromptMask) and isinstance(mask.graph, GraphWindow) else False
    )
    if padded and (not isinstance(window, GraphWindow) or window.mask is None):
        raise ArgumentError("graph_window must be made with the mask that the model is given as attention_mask")
    return window


register()

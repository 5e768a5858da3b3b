"""Models of transformers on windows, beside their own eager attention."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import transformers

from graphattn import patterns
from graphattn.bridge import hf
from graphattn.errors import ArgumentError
from graphattn.mechanisms import Window

pytestmark = pytest.mark.requires("hf")

TOKENS, VOCABULARY = 30, 97
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SHARED),
    "qwen2": lambda: transformers.Qwen2Config(**SHARED),
    "qwen3": lambda: transformers.Qwen3Config(**SHARED, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
    ),
}
EVERY = pytest.mark.parametrize("name", list(CONFIGS))
SIDE = pytest.mark.parametrize("side", [None, "left", "right"])


def pair(name: str) -> tuple[Any, Any]:
    """One model with its own eager attention, and with ours. Each has a config of its own: it holds the choice."""
    config = CONFIGS[name]()
    torch.manual_seed(0)
    eager, ours = (
        transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention).eval()
        for attention in ("eager", hf.NAME)
    )
    for parameter in eager.parameters():
        if parameter.dim() > 1:  # the usual small values hide differences
            torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(eager.state_dict())
    return eager, ours


def inputs(side: str | None) -> dict[str, Tensor]:
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    if side == "left":
        mask[1, :5] = 0
    if side == "right":
        mask[1, -5:] = 0
    tokens = torch.randint(2, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    found = {"input_ids": tokens}
    if side is not None:
        found |= {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return found


def prompts() -> dict[str, Tensor]:
    vertex = torch.full((2, TOKENS), -1)
    vertex[0, torch.tensor([9, 12, 14, 15, 20])] = torch.arange(5)
    vertex[1, torch.tensor([8, 9, 11, 17])] = torch.arange(4)
    return {"node_of_token": vertex, "parents": torch.tensor([[-1, 0, 1, 1, 0], [-1, 0, 0, 2, -1]])}


def there(batch: dict[str, Tensor]) -> Tensor:
    return batch.get("attention_mask", torch.ones(2, TOKENS)).bool()


@EVERY
@SIDE
def test_without_a_window_it_is_the_model(name: str, side: str | None) -> None:
    eager, ours = pair(name)
    batch = inputs(side)
    mask = there(batch)
    torch.testing.assert_close(ours(**batch).logits[mask], eager(**batch).logits[mask], atol=1e-5, rtol=1e-5)


@EVERY
@SIDE
@pytest.mark.parametrize("window", ["uni-0", "uni-1", "bidi-2"])
def test_with_a_window_it_is_the_model_under_a_dense_mask(name: str, side: str | None, window: str) -> None:
    eager, ours = pair(name)
    batch, maps = inputs(side), prompts()
    mask = there(batch)
    chosen = Window.parse(window)
    graph = patterns.graph_window(maps["node_of_token"], maps["parents"], chosen.hops, chosen.direction, mask=mask)
    dense = torch.where(graph.to_dense().unsqueeze(1), 0.0, torch.finfo(torch.float32).min)
    expected = eager(**{**batch, "attention_mask": dense}).logits
    with hf.graph_window(maps, window):
        found = ours(**batch).logits
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert (
        float((found - ours(**batch).logits)[mask].detach().abs().max()) > 1e-3
    )  # the window matters, and is gone again
    if name != "gpt2":  # whose layers get keyword arguments of the model's forward as well, but not of every release
        given = ours(**batch, graph_window=graph).logits
        torch.testing.assert_close(given[mask], expected[mask], atol=1e-5, rtol=1e-5)


@EVERY
@SIDE
def test_the_widest_window_is_the_plain_model_bit_by_bit(name: str, side: str | None) -> None:
    _, ours = pair(name)
    batch = inputs(side)
    plain = ours(**batch).logits
    for window, depth in (("uni-all", None), ("uni-4", 2)):
        with hf.graph_window(prompts(), window, depth=depth):
            assert torch.equal(ours(**batch).logits, plain)


@EVERY
def test_only_the_prompt_is_windowed(name: str) -> None:
    """Keys of the windowed prompt are kept; later tokens read all of them, as in a whole pass of the dense mask."""
    eager, ours = pair(name)
    maps, tokens = prompts(), inputs(None)["input_ids"]
    with torch.no_grad(), hf.graph_window(maps, "bidi-1"):
        cached = ours(tokens[:, :TOKENS], use_cache=True)
        after = ours(tokens[:, :3], past_key_values=cached.past_key_values, use_cache=True).logits
        last = ours(tokens[:, 3:4], past_key_values=cached.past_key_values).logits
    longer = torch.cat([tokens, tokens[:, :4]], 1)
    vertex = torch.nn.functional.pad(maps["node_of_token"], (0, 4), value=-1)
    graph = patterns.graph_window(vertex, maps["parents"], 1, "bidi")
    dense = torch.where(graph.to_dense().unsqueeze(1), 0.0, torch.finfo(torch.float32).min)
    expected = eager(longer, attention_mask=dense).logits[:, -4:]
    torch.testing.assert_close(torch.cat([after, last], 1), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_generation(name: str, options: dict[str, Any]) -> None:
    eager, ours = pair(name)
    batch = inputs("left")
    batch.pop("position_ids")
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **options}
    expected = eager.generate(**batch, **settings)
    assert torch.equal(ours.generate(**batch, **settings), expected)
    with hf.graph_window(prompts(), "uni-all"):
        assert torch.equal(ours.generate(**batch, **settings), expected)
    with hf.graph_window(prompts(), "bidi-0"):
        windowed = ours.generate(**batch, **settings)
        first = ours(**batch, position_ids=inputs("left")["position_ids"]).logits[:, -1].argmax(-1)
    if "num_beams" not in options:
        assert torch.equal(windowed[:, TOKENS], first)
    if "cache_implementation" not in options:  # without kept keys, all tokens are read again each time
        with hf.graph_window(prompts(), "bidi-0"):
            assert torch.equal(ours.generate(**batch, **settings, use_cache=False), windowed)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_also_where_layers_are_computed_again(name: str) -> None:
    eager, ours = pair(name)
    maps, tokens = prompts(), inputs(None)["input_ids"]
    graph = patterns.graph_window(maps["node_of_token"], maps["parents"], 1, "bidi")
    dense = torch.where(graph.to_dense().unsqueeze(1), 0.0, torch.finfo(torch.float32).min)
    eager(tokens, attention_mask=dense, labels=tokens).loss.backward()
    for again in (False, True):
        ours.zero_grad()
        ours.train()  # checkpointing is for training; dropout is off in these configurations
        for module in ours.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if again:
            ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with hf.graph_window(maps, "bidi-1"):
            loss = ours(tokens, labels=tokens, use_cache=False).loss
        loss.backward()  # after the block
        for (key, mine), other in zip(ours.named_parameters(), eager.parameters(), strict=True):
            assert mine.grad is not None and other.grad is not None, key
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-3, msg=key)


def test_dropout_of_attention() -> None:
    config = transformers.LlamaConfig(**SHARED, attention_dropout=0.5)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=hf.NAME).train()
    tokens = inputs(None)["input_ids"]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with hf.graph_window(prompts(), "uni-1"):
            found.append(model(tokens).logits)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_blocks_nest_and_threads_have_their_own() -> None:
    _, ours = pair("llama")
    batch = inputs(None)
    plain = ours(**batch).logits
    found = []
    with hf.graph_window(prompts(), "uni-0"):
        outer = ours(**batch).logits
        with hf.graph_window(prompts(), "uni-1"):
            inner = ours(**batch).logits
        assert torch.equal(ours(**batch).logits, outer) and not torch.equal(inner, outer)
        thread = threading.Thread(target=lambda: found.append(ours(**batch).logits))
        thread.start()
        thread.join()
    assert torch.equal(found[0], plain)


@pytest.mark.parametrize("length", [TOKENS, 64])
@pytest.mark.parametrize("name", ["mistral", "qwen2"])
@pytest.mark.parametrize("side", [None, "left"])
def test_a_sliding_window_that_is_as_long_as_the_prompts(name: str, side: str | None, length: int) -> None:
    options = {**SHARED, "sliding_window": length}
    config: Any = transformers.MistralConfig(**options)
    if name == "qwen2":  # one layer with a sliding window, one without
        config = transformers.Qwen2Config(**options, use_sliding_window=True, max_window_layers=1)
        assert config.layer_types == ["full_attention", "sliding_attention"]
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=hf.NAME).eval()
    other = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    batch, maps = inputs(side), prompts()
    mask = there(batch)
    graph = patterns.graph_window(maps["node_of_token"], maps["parents"], 1, "bidi", mask=mask)
    dense = torch.where(graph.to_dense().unsqueeze(1), 0.0, torch.finfo(torch.float32).min)
    expected = other(**{**batch, "attention_mask": dense}).logits
    with hf.graph_window(maps, "bidi-1"):
        found = model(**batch).logits
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_what_it_cannot_do_is_said() -> None:
    _, ours = pair("llama")
    maps, batch = prompts(), inputs(None)
    with pytest.raises(ArgumentError, match="node_of_token and parents, parents missing"):
        with hf.graph_window({"node_of_token": maps["node_of_token"]}):
            pass
    with pytest.raises(ArgumentError, match="a window is written 'uni-2'"):
        with hf.graph_window(maps, "2"):
            pass
    with hf.graph_window(maps), pytest.raises(ArgumentError, match="prompts of 30 tokens, the model 20"):
        ours(batch["input_ids"][:, :20])
    with hf.graph_window(maps), pytest.raises(ArgumentError, match=r"the model 10: .*\(generate without prefill_c"):
        ours.generate(**batch, max_new_tokens=2, pad_token_id=0, prefill_chunk_size=10)
    longer = torch.cat([batch["input_ids"]] * 2, 1)
    with hf.graph_window(maps), pytest.raises(ArgumentError, match=r"the model 60: .*\(use_cache=False\) only after"):
        ours(longer)
    with hf.graph_window(maps), pytest.raises(ArgumentError, match="a batch of 2 prompts, the model one of 3"):
        ours(batch["input_ids"][[0, 1, 1]])
    with pytest.raises(ArgumentError, match="graph_window must be the graph of prompts of 30 tokens, got one of 20"):
        ours(**batch, graph_window=patterns.causal(20))
    with pytest.raises(ArgumentError, match="must be made with the mask that the model is given"):
        graph = patterns.graph_window(maps["node_of_token"], maps["parents"], 1)
        ours(**inputs("left"), graph_window=graph)
    sliding = transformers.MistralConfig(**SHARED, sliding_window=8)
    model = transformers.AutoModelForCausalLM.from_config(sliding, attn_implementation=hf.NAME).eval()
    other = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(sliding), attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(**batch).logits, other(**batch).logits, atol=1e-5, rtol=1e-5)
    with hf.graph_window(maps), pytest.raises(ArgumentError, match="window shorter than the 30 tokens of the prompts"):
        model(**batch)
    query = torch.randn(1, 2, 4, 8)
    with pytest.raises(ArgumentError, match="has no softcap, which Linear asks for"):
        hf.attention(torch.nn.Linear(1, 1), query, query, query, hf.PromptMask(patterns.causal(4)), softcap=30.0)

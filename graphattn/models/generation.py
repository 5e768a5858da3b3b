"""What a causal language model needs to continue a text: kept keys and values, and a draw from its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphattn.errors import ArgumentError
from graphattn.nn import rotate

if TYPE_CHECKING:
    from graphattn.models.sequence import CausalTransformer

__all__ = ["HeadTransform", "KeyValueCache", "draw_next", "generate"]


class KeyValueCache:
    """Keys and values of earlier tokens, layer by layer.

    Args:
        capacity: Tokens to make room for at once; ``None``: room doubles as it is needed.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._lengths: list[int] = []

    @property
    def length(self) -> int:
        """Tokens that every layer has kept."""
        return min(self._lengths, default=0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values ``[..., N, H, D]`` of a layer's new tokens; returns those of all, ``[..., S, H, D]``.

        Raises:
            ArgumentError: If they do not fit those that are there.
        """
        if layer == len(self._rows):
            room = max(self.capacity or 0, k.shape[-3])
            self._rows.append((_room(k, room), _room(v, room)))
            self._lengths.append(0)
        keys, values = self._rows[layer]
        begin, end = self._lengths[layer], self._lengths[layer] + k.shape[-3]
        if k.shape[:-3] != keys.shape[:-3] or k.shape[-2:] != keys.shape[-2:]:
            raise ArgumentError(f"keys of new tokens must be like those kept, {list(keys.shape)}, got {list(k.shape)}")
        if end > keys.shape[-3]:
            room = max(end, 2 * keys.shape[-3])
            grown = _room(keys, room), _room(values, room)
            for old, new in zip((keys, values), grown, strict=True):
                new[..., :begin, :, :] = old[..., :begin, :, :]
            keys, values = self._rows[layer] = grown
        keys[..., begin:end, :, :] = k.detach()
        values[..., begin:end, :, :] = v.detach()
        self._lengths[layer] = end
        return keys[..., :end, :, :], values[..., :end, :, :]


class HeadTransform:
    """What a language model does to queries, keys and values inside a mechanism: turn them by their positions, keep
    keys and values (a :data:`graphattn.mechanisms.Transform`).

    Args:
        waves: Of :class:`graphattn.nn.Rotary`; ``None``: nothing is turned.
        cache: Where keys and values are kept; ``None``: nowhere.
        layer: Number of the layer.
    """

    def __init__(self, waves: tuple[Tensor, Tensor] | None, cache: KeyValueCache | None, layer: int) -> None:
        self.waves, self.cache, self.layer = waves, cache, layer

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the new tokens, keys and values of all."""
        if self.waves is not None:
            q, k = rotate(q, *self.waves), rotate(k, *self.waves)
        if self.cache is not None:
            k, v = self.cache.append(self.layer, k, v)
        return q, k, v


def draw_next(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """A token for each row of scores.

    Args:
        logits: ``[..., vocab]``.
        temperature: Divides the scores; 0: the best token (the first of equals).
        top_k: Draw among the best so many.
        generator: Source of chance; default: the global one of the device.

    Returns:
        int64 ``[...]``.

    Raises:
        ArgumentError: If the temperature is negative or ``top_k`` not positive.
    """
    if not temperature >= 0.0:
        raise ArgumentError(f"temperature must be 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ArgumentError(f"top_k must be 1 or more, got {top_k}")
    logits = logits.float()
    if temperature == 0.0:
        return logits.argmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        best = logits.topk(top_k)  # not all that equal the last of them
        logits = torch.full_like(logits, float("-inf")).scatter(-1, best.indices, best.values)
    share = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)  # finite at any temperature
    device = share.device if generator is None else generator.device
    drawn = torch.multinomial(share.reshape(-1, share.shape[-1]).to(device), 1, generator=generator)
    return drawn.to(logits.device).reshape(logits.shape[:-1])


@torch.no_grad()
def generate(
    model: CausalTransformer,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    *,
    mask: Tensor | None = None,
    stop: int | None = None,
    use_cache: bool | None = None,
) -> Tensor:
    """Continue texts, token after token, in evaluation mode.

    Args:
        model: A causal language model.
        tokens: int64 ``[B, N]`` or ``[N]``, N at least 1.
        max_new_tokens: How many.
        temperature: Divides the scores; 0: always the best token.
        top_k: Draw among the best so many.
        generator: Source of chance.
        mask: bool ``[B, N]``: the tokens that are there; texts padded on the right go on after the padding.
        stop: A token that ends a text; it is repeated to the end.
        use_cache: Keep keys and values; default: where each mechanism allows it
            (:attr:`Mechanism.reads_row_by_row <graphattn.mechanisms.Mechanism.reads_row_by_row>`). Both give the same
            where the model's graph has the same answer for a token however many follow.

    Returns:
        int64 ``[..., N + max_new_tokens]``; fewer where all texts ended before.

    Raises:
        ArgumentError: If there is no token to go on from, or a cache is asked for that the mechanism does not allow.
    """
    if tokens.shape[-1] < 1:
        raise ArgumentError(f"tokens must hold at least one token to go on from, got {list(tokens.shape)}")
    if mask is not None and not bool(mask.any(-1).all()):
        raise ArgumentError("mask must leave at least one token of each text to go on from, got a row of padding alone")
    can = model.can_cache
    if use_cache and not can:
        raise ArgumentError("use_cache must be False: the mechanism needs all of a sequence at once")
    cache = KeyValueCache(tokens.shape[-1] + max_new_tokens) if can and use_cache is not False else None
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        new, last = tokens, None
        if mask is not None:  # of texts padded on the right, the last token is further left
            last = (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).argmax(-1)
        ended = torch.zeros(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
        for _ in range(max_new_tokens):
            rows = model.features(new, mask=mask, cache=cache)
            rows = rows[..., -1, :] if last is None else rows[torch.arange(len(rows), device=rows.device), last]
            found = draw_next(model.head(rows), temperature, top_k, generator)
            if stop is not None:
                found = found.masked_fill(ended, stop)
                ended = ended | (found == stop)
            tokens = torch.cat([tokens, found.unsqueeze(-1)], dim=-1)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=-1)
            if stop is not None and bool(ended.all()):
                break
            new, last = tokens if cache is None else found.unsqueeze(-1), None
        return tokens
    finally:
        for module, mode in modes:
            module.training = mode


def _room(like: Tensor, tokens: int) -> Tensor:
    return like.new_empty(*like.shape[:-3], tokens, *like.shape[-2:])

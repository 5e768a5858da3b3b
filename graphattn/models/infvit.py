"""InfViT: vision transformers with InfSA (Roffo et al., "Self-Attention And Beyond the Infinite", arXiv 2603.00175).

Nothing that can be read states width, heads or patch size of the published networks, and no model code is released.
What stands here is *inferred* from the published numbers of parameters (4 layers: 57.7 M, linear 53.5 M; 24 layers:
330.6 M), all of which it meets:

- (330.6 - 57.7) / 20 = 13.645 M a layer, which are five linear maps 1024 x 1024, a feed-forward network of 4 x 1024,
  their biases and two norms: 13,645,824. Attention has four such maps (q, k, v, output); where the fifth one stands
  is unknown, here it follows the output (``mixer_projection``). Linear-InfSA has one less: 57.7 - 53.5 = 4 x 1.05.
- 332 k tokens at 9216 x 9216 pixels: patches of 16 x 16.
- What remains, 3.07 M, are patches, positions and class token at 224 x 224, the classifier, and one more map of
  1024 x 1024: taken for the hidden layer before the classifier of the ViT paper.
- 16 heads of 64 channels are a habit of this width, nothing more; they do not change the count.
"""

from __future__ import annotations

from typing import Any

from graphattn.models.image import VisionTransformer

__all__ = ["infvit_24", "infvit_4", "infvit_linear_4"]


def _infvit(**options: Any) -> VisionTransformer:
    width = options.get("embed_dim", 1024)
    defaults: dict[str, Any] = {"embed_dim": width, "num_heads": 16, "patch_size": 16, "representation_size": width}
    return VisionTransformer(**{**defaults, **options})


def infvit_4(**options: Any) -> VisionTransformer:
    """InfViT with 4 layers of InfSA: 57.65 M parameters (published: 57.7 M; the configuration is inferred, see
    :mod:`graphattn.models.infvit`)."""
    return _infvit(**{"attention": "infsa", "depth": 4, "mixer_projection": True, **options})


def infvit_linear_4(**options: Any) -> VisionTransformer:
    """InfViT with 4 layers of Linear-InfSA: 53.45 M parameters (published: 53.5 M; the configuration is inferred, see
    :mod:`graphattn.models.infvit`)."""
    return _infvit(**{"attention": "linear_infsa", "depth": 4, **options})


def infvit_24(**options: Any) -> VisionTransformer:
    """InfViT with 24 layers of InfSA: 330.57 M parameters (published: 330.6 M; the configuration is inferred, see
    :mod:`graphattn.models.infvit`)."""
    return _infvit(**{"attention": "infsa", "depth": 24, "mixer_projection": True, **options})

"""Networks for images."""

from graphattn.models.image._timm import POOLINGS, from_timm
from graphattn.models.image.backbone import ConvBackbone
from graphattn.models.image.connnet import ConnNet
from graphattn.models.image.heads import HEADS, Reading, read_logits
from graphattn.models.image.pruned import PrunedVisionTransformer
from graphattn.models.image.vision_transformer import ATTENTIONS, VisionTransformer

__all__ = [
    "ATTENTIONS",
    "HEADS",
    "POOLINGS",
    "ConnNet",
    "ConvBackbone",
    "PrunedVisionTransformer",
    "Reading",
    "VisionTransformer",
    "from_timm",
    "read_logits",
]

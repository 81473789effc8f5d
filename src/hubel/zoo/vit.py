"""A vision transformer, and one whose stem is convolutional: two ends to compare convolution with self-attention.

vit_tiny: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, in the size of Touvron et al., arXiv
2012.12877, and timm's names (vit_tiny_patch16_224).
vitc_1gf: Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881: four strided 3×3
convolutions and a 1×1 see the image before eleven blocks of attention; otherwise the same.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from hubel.errors import ModelError
from hubel.zoo.layers import ReLU
from hubel.zoo.network import Network, he_fan_out, rows

PATCH = 16
EPSILON = 1e-6


class PatchEmbedding(nn.Module):
    """One convolution whose kernels lie beside each other: (N, C, H, W) → (N, H/16 · W/16, width)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Four strided 3×3 convolutions and a 1×1 in the place of the patches: the same shapes."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = in_channels
        for out in (width // 8, width // 4, width // 2, width):
            parts += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), ReLU()]
            channels = out
        self.convs = nn.Sequential(*parts, nn.Conv2d(channels, width, 1))
        he_fan_out(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convs(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Every token looks at every other (Vaswani et al., arXiv 1706.03762). (N, tokens, width) → the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        N, T, C = x.shape
        q, k, v = self.qkv(x).reshape(N, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v)
        return self.proj(seen.transpose(1, 2).reshape(N, T, C))


class MLP(nn.Module):
    """Two linear layers, a token at a time."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention, then a token's own layers, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int, expand: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = MLP(width, expand * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """images: (N, in_channels, image_size, image_size). Returns logits (N, num_classes).

    stem: from images to tokens; depth: blocks; expand: width of the inner layer in a block, in widths.
    """

    def __init__(
        self,
        stem: type[PatchEmbedding] | type[ConvStem],
        depth: int,
        expand: int,
        width: int = 192,
        heads: int = 3,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        if not isinstance(image_size, int) or image_size < PATCH or image_size % PATCH:
            raise ModelError(
                f"image_size of a vision transformer is a multiple of {PATCH}, the side of a patch. Received: "
                f"{image_size!r}. Write {max(1, round(int(image_size) / PATCH)) * PATCH}."
            )
        self.image_size = image_size
        self.patch_embed = stem(in_channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // PATCH) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, expand) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


_SHARED = {
    "input": (3, 224, 224),
    "smallest": (224, 224),
    "num_classes": 1000,
    "options": {"image_size": "a side of the images, a multiple of 16; 224"},
}

VITS = rows(
    Network(
        name="vit_tiny",
        factory=partial(VisionTransformer, PatchEmbedding, 12, 4),
        parameters=5_717_416,
        year=2020,
        source="Dosovitskiy et al., An Image is Worth 16x16 Words; in DeiT's size",
        arxiv="2010.11929",
        names="timm",
        **_SHARED,
    ),
    Network(
        name="vitc_1gf",
        factory=partial(VisionTransformer, ConvStem, 11, 3),
        parameters=4_567_936,
        year=2021,
        source="Xiao et al., Early Convolutions Help Transformers See Better: convolutions, then attention",
        arxiv="2106.14881",
        **_SHARED,
    ),
)

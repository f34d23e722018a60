"""EVP (Liu et al., CVPR 2023, arXiv 2303.10883), as SAM-Adapter (Chen et al., arXiv 2304.09148) takes it for SAM.

In front of each block i of a frozen ViT, tokens of the image's fine detail are added to its own:

    x_i' = x_i + U GELU(T_i (D e + G h))

e are the patch embeddings, h is the image without its low frequencies, G a patch embedding of its own; D, G and U serve
all blocks. This is the Adapter of GPS's Table 5. EVP's form for hierarchical trunks is another.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..registry import METHODS
from ..trunks import norm_of, used
from ..trunks.walk import refuse_options, reroute, through_block, walk
from .base import Method, integer, number


class DetailTokens(nn.Module):
    """What is trained: D `embed`, G `patch` (a convolution), T_i `tune`, U `up`.

    Initial values are those of the authors' code: D, T, U normal of 0.02 (truncated), their biases zero, G normal of
    sqrt(2 / fan-out).

    Args:
        width (int): C, of the trunk.
        rank (int): r, inside.
        blocks (int): L.
        patch (tuple): height and width of a patch, px.
    """

    def __init__(self, width, rank, blocks, patch):
        super().__init__()
        self.embed, self.embed_bias = matrix(rank, width), nn.Parameter(torch.zeros(rank))
        self.up, self.up_bias = matrix(width, rank), nn.Parameter(torch.zeros(width))
        self.tune = nn.ParameterList(matrix(rank, rank) for _ in range(blocks))
        self.tune_biases = nn.ParameterList(torch.zeros(rank) for _ in range(blocks))
        self.patch = nn.Parameter(torch.normal(0., math.sqrt(2 / (math.prod(patch) * rank)), (rank, 3, *patch)))
        bound = 1 / math.sqrt(3 * math.prod(patch))
        self.patch_bias = nn.Parameter(nn.init.uniform_(torch.empty(rank), -bound, bound))

    def inner(self, tokens, detail, shape):
        """D e + G h, (B, h w, r), of patch embeddings (B, h w, C) and a filtered image (B, 3, H, W)."""
        size = self.patch.shape[-2:]
        lacking = [side * step - given for side, step, given in zip(shape, size, detail.shape[-2:])]
        detail = F.pad(detail, (0, lacking[1], 0, lacking[0]))          # to whole patches, as the trunk does
        drawn = F.conv2d(detail, self.patch, self.patch_bias, stride=size)
        return F.linear(tokens, self.embed, self.embed_bias) + drawn.flatten(2).transpose(1, 2)

    def outer(self, i, inner):
        """What is added in front of block i, (B, h w, C)."""
        tuned = F.gelu(F.linear(inner, self.tune[i], self.tune_biases[i]))
        return F.linear(tuned, self.up, self.up_bias)


def matrix(out, width):
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(out, width), std=0.02))


@METHODS.register_module()
class EVP(Method):
    """Tokens of fine detail in front of each block of a ViT (SAM's ViT-B, 1024 px: 63,312 parameters).

    Args:
        reduction (int): the width inside is the trunk's divided by it.
        frequencies (float): share of the spectrum's area that is taken out, the low frequencies; below 1.
        train_out_norms (bool): see `Method`.
    """

    starts_at_trunk = False
    takes = ('vit_mm', 'vit_timm', 'vit_sam')

    def __init__(self, reduction=32, frequencies=0.25, train_out_norms=False):
        super().__init__(train_out_norms)
        self.reduction = integer('reduction', reduction)
        self.frequencies = number('frequencies', frequencies, low=0, below=1)

    def refusal(self, family):
        return None if family in (None, *self.takes) else 'its prompts are tokens of one width and grid, of a plain ViT'

    def apply(self, trunk, parts):
        blocks = [block for stage in used(trunk) for block in stage]
        like = norm_of(blocks[0]).weight
        integer('reduction', self.reduction, high=like.numel())
        patch = [module for module in trunk.patch_embed.modules() if isinstance(module, nn.Conv2d)][-1].kernel_size
        trunk.evp = DetailTokens(like.numel(), like.numel() // self.reduction, len(blocks), patch).to(like)
        reroute(trunk, parts, prompted)


def prompted(trunk, image, **options):
    """The stock forward, with tokens of the image's detail added in front of each block."""
    refuse_options(trunk, options)
    parts, own = trunk.tuning.parts, trunk.evp
    tokens, shape = patches(trunk, image)
    inner = own.inner(tokens, high_pass(image, trunk.tuning.method.frequencies), shape)

    def through(i, j, block, x, shape):
        added = own.outer(j, inner)
        if x.dim() == 4:                                                # SAM's maps; else class tokens stand in front
            return through_block(parts, i, j, block, x + added.unflatten(1, x.shape[1:3]), shape)
        return through_block(parts, i, j, block, x + F.pad(added, (0, 0, x.shape[1] - added.shape[1], 0)), shape)

    return walk(trunk, parts, image, through)


def patches(trunk, image):
    """Patch embeddings without positions, (B, h w, C), and (h, w), whatever the library's layout."""
    found = trunk.patch_embed(image)
    if isinstance(found, tuple):                                        # OpenMMLab's
        return found
    if found.dim() == 4:                                                # timm's for images of any size
        return found.flatten(1, 2), found.shape[1:3]
    return found, trunk.patch_embed.grid_size


def high_pass(image, share):
    """|image without its lowest frequencies|, a rectangle of `share` of the spectrum's area, (B, 3, H, W)."""
    height, width = image.shape[-2:]
    half = int(math.sqrt(height * width * share)) // 2
    spectrum = torch.fft.fftshift(torch.fft.fft2(image.float()), dim=(-2, -1))
    rows, columns = (slice(max(0, side // 2 - half), side // 2 + half) for side in (height, width))
    kept = torch.ones(height, width, device=image.device)
    kept[rows, columns] = 0
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * kept, dim=(-2, -1))).real.abs().to(image.dtype)

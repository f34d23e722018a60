"""SAM 2's Hiera of timm: maps (B, H, W, C), attention in windows that pad; a stage begins with a block that pools.

That block changes the width too: its attention is added to a projection of the normed map, pooled. Its windows shrink
as the queries in them are pooled. Images are whole numbers of windows of the first stage (32 pixels), by the stock
model's positions.
"""
from torch.nn import functional as F

from .family import Branch
from .hiera import HEAD, INSIDE, NORMS, ROLES, run, stages  # noqa: F401  the parts have the names of Hiera's

CLASSES = ('timm.:HieraDet',)
BLOCKS = ('timm.:MultiScaleBlock',)


def stem(trunk, image):
    return trunk._pos_embed(trunk.patch_embed(image)), None


def branches(block, shape):
    return dict(attn=Branch(lambda x: block.ls1(attention(block, block.norm1(x))), block.drop_path1,
                            (lambda x: pooled(block, block.proj(block.norm1(x)))) if block.dim != block.dim_out else
                            None),
                mlp=Branch(lambda x: block.ls2(block.mlp(block.norm2(x))), block.drop_path2))


def pooled(block, x):
    return x if block.pool is None else block.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def attention(block, x):
    """The block's attention to normed maps, in its windows."""
    if not block.is_windowed:
        return block.attn(x)
    from timm.models.hieradet_sam2 import window_partition, window_unpartition
    size, stride = block.window_size, block.q_stride or (1, 1)
    grid = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -grid[1] % size[1], 0, -grid[0] % size[0]))
    count = [length // side for length, side in zip(x.shape[1:3], size)]
    x = block.attn(window_partition(x, size))
    x = window_unpartition(x, x.shape[1:3], [n * side for n, side in zip(count, x.shape[1:3])])
    return x[:, :grid[0] // stride[0], :grid[1] // stride[1]].contiguous()

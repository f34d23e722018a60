"""EVA-02 of mmpretrain: tokens (B, L, C), the class token first; rotary positions, MLPs with a gate (SwiGLU)."""
from .family import Branch
from .role import Role
from .vit_mm import emit, idle_norms, out_norms, stages, stem  # noqa: F401 in these it is the plain ViT

CLASSES = ('mmpretrain.:ViTEVA02',)
BLOCKS = ('mmpretrain.:EVA02EndcoderLayer',)
QKV = r'layers\.\d+\.attn\.qkv'
ROLES = dict(
    q=Role(QKV, 0, 3), k=Role(QKV, 1, 3), v=Role(QKV, 2, 3),
    proj=Role(r'layers\.\d+\.attn\.proj'), fc1=Role(r'layers\.\d+\.mlp\.w12'), fc2=Role(r'layers\.\d+\.mlp\.w3'))
NO_PROMPTS = 'its attention turns every token but the first by its place on the map, and prompts have none'


def branches(block, shape):
    return dict(attn=Branch(lambda x: block.attn(block.norm1(x), shape), block.drop_path),
                mlp=Branch(lambda x: block.mlp(block.norm2(x)), block.drop_path))

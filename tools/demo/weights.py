"""Read the ViT-S/14 inside an exported ONNX graph as a state dict of timm's `vit_small_patch14_dinov2`.

The exporter folded every linear weight into an initializer with an anonymous name (`onnx::MatMul_1966`), already
transposed for `x @ W`; the nodes kept their module paths (`/backbone/encoder/layer.0/mlp/fc1/MatMul`), so a weight is
found through the node that reads it. Query, key and value are separate there and one `qkv` in timm.
"""
import re

import onnx
import torch
from onnx import numpy_helper

from e3va.datasets.checkpoints import mmpretrain_vit

# module path in the graph (Hugging Face's DINOv2) -> name in timm
NAMES = {
    'norm1': 'norm1',
    'attention/output/dense': 'attn.proj',
    'layer_scale1': 'ls1',
    'norm2': 'norm2',
    'mlp/fc1': 'mlp.fc1',
    'mlp/fc2': 'mlp.fc2',
    'layer_scale2': 'ls2',
}


def read_onnx(path):
    """The timm state dict (float32, original position grid) of the DINOv2 backbone in the ONNX file `path`.

    Raises ValueError where the file is no such graph.
    """
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:                                           # protobuf raises its own family
        raise ValueError(f'{path} is not a readable ONNX file ({error})') from None
    given = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    reads = {}                                                           # node path -> the initializer it reads
    for node in graph.node:
        held = [name for name in node.input if name in given and given[name].numel() > 1]
        if held:
            reads[node.name] = given[held[0]]

    def take(node):
        if node not in reads:
            raise ValueError(f'{path} has no weight at node {node}: it is not the DINOv2 graph this reader knows')
        return reads[node]

    def linear(stem):
        return take(f'{stem}/MatMul').t().contiguous(), take(f'{stem}/Add')

    root = '/backbone/embeddings'
    stem = f'{root}/patch_embeddings/projection/Conv'
    state = {
        'cls_token': take(f'{root}/Expand'),
        'pos_embed': position(graph, given, path),
        'patch_embed.proj.weight': take(stem),
        'patch_embed.proj.bias': next(given[n.input[2]] for n in graph.node if n.name == stem),
    }
    depth = 1 + max((int(i) for name in reads for i in re.findall(r'/encoder/layer\.(\d+)/', name)), default=-1)
    if depth == 0:
        raise ValueError(f'{path} has no encoder layers: it is not the DINOv2 graph this reader knows')
    for i in range(depth):
        layer = f'/backbone/encoder/layer.{i}'
        parts = [linear(f'{layer}/attention/attention/{role}') for role in ('query', 'key', 'value')]
        state[f'blocks.{i}.attn.qkv.weight'] = torch.cat([weight for weight, _ in parts])
        state[f'blocks.{i}.attn.qkv.bias'] = torch.cat([bias for _, bias in parts])
        for theirs, ours in NAMES.items():
            stem, name = f'{layer}/{theirs}', f'blocks.{i}.{ours}'
            if 'scale' in theirs:
                state[f'{name}.gamma'] = take(f'{stem}/Mul')
            elif 'norm' in theirs:
                state[f'{name}.weight'], state[f'{name}.bias'] = take(f'{stem}/Mul'), take(f'{stem}/Add_1')
            else:
                state[f'{name}.weight'], state[f'{name}.bias'] = linear(stem)
    state['norm.weight'], state['norm.bias'] = take('/backbone/layernorm/Mul'), take('/backbone/layernorm/Add_1')
    return state


def position(graph, given, path):
    """The position table (1, 1 + patches, C): the class token's row and the grid were folded into two constants."""
    found = {'Concat': [], 'Reshape': []}
    for node in graph.node:
        if node.op_type in found and node.name.startswith('/backbone/embeddings/'):
            found[node.op_type] += [given[name] for name in node.input if name in given and given[name].dim() == 3]
    if [len(tables) for tables in found.values()] != [1, 1]:
        raise ValueError(f'{path} has no single position table: it is not the DINOv2 graph this reader knows')
    return torch.cat([found['Concat'][0], found['Reshape'][0]], dim=1)


def for_mmpretrain(state):
    """The same weights under the names of mmpretrain's `VisionTransformer(arch='dinov2-s', layer_scale_init_value=1.)`.

    Its images are 518 px with patches of 14 (`img_size=518, patch_size=14`) for the original position grid.
    """
    return {name.removeprefix('backbone.'): value for name, value in mmpretrain_vit(state).items()}

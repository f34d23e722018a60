"""Checkpoint files of random values in the formats that public trunk weights come in.

They stand in for downloads. Shapes and buffers come from timm's model of that name, the order of Swin's merged channels
from mmdet's own converter. One architecture and seed give one network: its files in the three formats hold the same
weights under different names. Of SAM there is the official format alone, its shapes come from the authors' package.
"""
import difflib
import re
from pathlib import Path

import timm
import torch
from timm.models.swin_transformer import SwinTransformer, get_relative_position_index
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..files.whole import replacing
from ..models.timm_scheme import mmpretrain_vit

FORMATS = ('official', 'mmpretrain', 'timm')
SAM = dict(sam_vit_b=dict(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11)),
           sam_vit_l=dict(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
           sam_vit_h=dict(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)))


def make_checkpoint(path, arch, format='official', seed=0, **shape):
    """Write a checkpoint.

    Args:
        path: the file to write; an existing one is never replaced.
        arch: a Swin or ViT of timm, such as 'swin_large_patch4_window12_384.ms_in22k' (the tag decides the number of
            classes), 'swin_tiny_patch4_window7_224' or 'vit_small_patch14_dinov2'; or 'sam_vit_b', '_l', '_h'.
        format: 'official' is `{'model': ...}` as microsoft/Swin-Transformer and facebookresearch/deit release it, of
            SAM the bare state dict of facebookresearch/segment-anything (sam_vit_b_01ec64.pth);
            'mmpretrain' is `{'state_dict': ...}` of an ImageClassifier with the entries `backbone.` and `head.`, which
            mmseg's Swin reads too; 'timm' is the bare state dict of the timm model.
        seed: a number from 0.
        shape: changes to the architecture, in the names of timm: `embed_dim=24, depths=(1, 1, 2, 1),
            num_heads=(1, 2, 4, 8), window_size=7, img_size=224, num_classes=10`; for a ViT `depth=2`; for a SAM also
            `out_chans=32, global_attn_indexes=(1, 3)`.

    Returns:
        The path.

    Raises:
        ValueError: an unknown architecture, format or shape, or the file exists.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f'unknown format {format!r}; there are: {", ".join(FORMATS)}')
    if path.exists():
        raise ValueError(f'{path} exists; remove it or name another file')
    model = (_describe_sam if arch in SAM else _describe)(arch, shape)
    values = _values(model, seed)
    if arch in SAM:
        if format != 'official':
            raise ValueError(f'of {arch} there is the official format alone, not {format!r}')
        contents = values
    elif format == 'mmpretrain':
        named = _mmpretrain_swin(values, model) if isinstance(model, SwinTransformer) else mmpretrain_vit(values)
        contents = dict(meta={}, state_dict=named)
    elif format == 'official':
        contents = dict(model=_official_swin(values, model) if isinstance(model, SwinTransformer) else values)
    else:
        contents = values
    with replacing(path) as file:
        torch.save(contents, file)
    return path


def _describe(arch, shape):
    """timm's model on the meta device: names and shapes, no values."""
    name = arch.partition('.')[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(['swin_*', 'vit_*', 'deit_*']), n=3)
        raise ValueError(f'unknown architecture {arch!r}' + (f'; did you mean {", ".join(near)}?' if near else ''))
    try:
        with torch.device('meta'):
            model = timm.create_model(arch, pretrained=False, **shape)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f'{arch} cannot be built with {shape or "its own shape"}: {error}') from error
    if type(model) not in (SwinTransformer, VisionTransformer):
        raise ValueError(f'{arch} is a {type(model).__name__}; checkpoints are made for Swin and ViT')
    return model


def _describe_sam(arch, shape):
    """The authors' image encoder with their prompt encoder and mask decoder on the meta device."""
    from segment_anything.modeling import ImageEncoderViT

    from ..models.sam import prompts_and_masks
    options = {**dict(img_size=1024, out_chans=256, window_size=14), **SAM[arch], **shape}
    size, grid = (options['img_size'],) * 2, (options['img_size'] // 16,) * 2
    try:
        with torch.device('meta'):
            prompts, masks = prompts_and_masks(options['out_chans'], grid, size)
            return nn.ModuleDict(dict(image_encoder=ImageEncoderViT(use_rel_pos=True, **options),
                                      prompt_encoder=prompts, mask_decoder=masks))
    except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f'{arch} cannot be built with {shape or "its own shape"}: {error}') from error


def _values(model, seed):
    """The model's state dict with random values as large as initialisation makes them: norms near 1, others 0.02."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f'seed must be a whole number from 0; got {seed!r}')
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, entry in model.state_dict().items():
        values[name] = torch.empty(entry.shape).normal_(std=0.02, generator=generator)
        if entry.ndim == 1 and name.endswith('.weight'):  # only norms have such a weight
            values[name] += 1
    return values


def _official_swin(values, model):
    """As released: merges at the end of a stage (timm: at the start of the next), and buffers that timm leaves out."""
    named = {}
    for name, value in values.items():
        name = re.sub(r'layers\.(\d+)\.downsample', lambda match: f'layers.{int(match[1]) - 1}.downsample', name)
        named[name.replace('head.fc.', 'head.')] = value
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks):
            prefix = f'layers.{i}.blocks.{j}.'
            named[prefix + 'attn.relative_position_index'] = get_relative_position_index(*block.attn.window_size)
            mask = block.get_attn_mask(device='cpu', dtype=torch.float32)
            if mask is not None:
                named[prefix + 'attn_mask'] = mask
    return named


def _mmpretrain_swin(values, model):
    from mmdet.models.backbones.swin import swin_converter  # slow to import, so not at the top
    named = {name: value for name, value in swin_converter(_official_swin(values, model)).items()
             if not name.endswith('attn_mask')}
    for leaf in ('weight', 'bias'):
        named[f'backbone.norm{len(model.layers) - 1}.{leaf}'] = named.pop(f'backbone.norm.{leaf}')
        if f'head.fc.{leaf}' in values:
            named[f'head.fc.{leaf}'] = values[f'head.fc.{leaf}']
    return named

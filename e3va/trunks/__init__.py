"""Where each family of trunks keeps its parts, and how to read one block.

A family is a file with one set of functions (`x` is a token tensor in the family's own layout, `shape` what its blocks
need to know besides, e.g. the height and width in patches):

    owns(trunk)                -> whether the trunk is of this family, with the stock forward that the file describes
    ROLES                      -> {role: Role}: where the linears of a role are
    BRANCHES                   -> the branches of a block: 'attn' (see attend), 'mlp' (see feed)
    AXIS                       -> the channels' axis in x
    HEAD                       -> pattern of a classifier that is part of the module itself (timm), or None
    out_norms(trunk)           -> names of the norms in front of the neck or head
    idle_norms(trunk)          -> names of norms, or whole stages, that no output passes; only where there can be such
    ENTRY(trunk)               -> name of the method that the highway takes over
    IN_PLACE                   -> pattern of layers whose outputs the trunk changes in place, or None
    size(trunk)                -> (height, width) that images must have, or None
    stages(trunk)              -> list of stages, each a list of blocks
    merges(trunk)              -> {stage: module that leads to the next stage}
    taps(trunk)                -> the places that the trunk gives out, as (stage, block) or (stage, 'merged')
    stem(trunk, image)         -> x, shape
    attend(block, x, shape, tap) -> f, x': output of the attention's branch (before or after DropPath), and x with it
    feed(block, x, shape, tap) -> f, x': the same of the MLP's branch
    fuse_attention(trunk)      -> None; only where the stock attention is not torch's fused one already
    merge(module, x, shape)    -> x, shape
    emit(trunk, tap, x, shape) -> what the trunk gives out at a tap: norm and layout
    pack(trunk, outs)          -> the container that the trunk returns
"""
import re

from . import (
    beit,
    beit_mm,
    convnext,
    davit,
    davit_mm,
    eva,
    eva02_mm,
    hiera,
    hieradet,
    hivit,
    maxxvit,
    metaformer,
    mvit_mm,
    mvitv2,
    pvt_mm,
    pvt_v2,
    swin_mm,
    swin_timm,
    swinv2_mm,
    swinv2_timm,
    tiny_vit,
    vit_mm,
    vit_sam,
    vit_sam_timm,
    vit_timm,
)
from .family import Branch, Family, OfTimm
from .role import Role, stock

FAMILIES = dict(swin_mm=Family(swin_mm), swin_timm=OfTimm(swin_timm), vit_mm=Family(vit_mm),
                vit_timm=OfTimm(vit_timm), vit_sam=Family(vit_sam), convnext=Family(convnext), eva=OfTimm(eva),
                pvt_mm=Family(pvt_mm), beit_mm=Family(beit_mm), eva02_mm=Family(eva02_mm), swinv2_mm=Family(swinv2_mm),
                davit_mm=Family(davit_mm), hivit=Family(hivit), mvit_mm=Family(mvit_mm),
                beit=OfTimm(beit), swinv2_timm=OfTimm(swinv2_timm), vit_sam_timm=OfTimm(vit_sam_timm),
                pvt_v2=OfTimm(pvt_v2), tiny_vit=OfTimm(tiny_vit), davit=OfTimm(davit),
                hiera=OfTimm(hiera), hieradet=OfTimm(hieradet), mvitv2=OfTimm(mvitv2), metaformer=OfTimm(metaformer),
                maxxvit=OfTimm(maxxvit))


def family_of(trunk):
    """Name of the trunk's family, or None."""
    return next((name for name, family in FAMILIES.items() if stock(trunk, family.CLASSES, None)
                 and family.owns(trunk)), None)


def alternatives(role):
    """What a family says of a role, as a tuple: it may be a slice of a fused layer, or a layer of its own."""
    return role if isinstance(role, tuple) else (role, )


def norm_of(block):
    """The first norm of a block: it has the block's width, type and device."""
    return block.norm1 if hasattr(block, 'norm1') else block.norm


def used(trunk):
    """The blocks up to the last output, as a list of stages; ValueError if the trunk gives nothing out."""
    parts = FAMILIES[family_of(trunk)]
    if not parts.taps(trunk):
        raise ValueError(f'{type(trunk).__name__} gives nothing out: out_indices={trunk.out_indices}')
    stage, end = parts.taps(trunk)[-1]
    stages = parts.stages(trunk)[:stage + 1]
    return stages if end == 'merged' else stages[:-1] + [stages[-1][:end + 1]]


def unused(trunk):
    """Name prefixes of the blocks, merges and norms behind the last output: nothing put there would get a gradient."""
    parts = FAMILIES[family_of(trunk)]
    kept = [block for blocks in used(trunk) for block in blocks]
    stage, end = parts.taps(trunk)[-1]
    idle = [block for blocks in parts.stages(trunk) for block in blocks if not any(block is other for other in kept)]
    idle += [merge for i, merge in parts.merges(trunk).items() if i > stage or (i == stage and end != 'merged')]
    idle += [trunk.get_submodule(name) for name in getattr(parts, 'idle_norms', lambda trunk: [])(trunk)]
    return tuple(f'{name}.' for name, module in trunk.named_modules() if any(module is other for other in idle))


def head_entries(trunk):
    """Names of the entries of a classifier that is part of the trunk itself, as it is now: users replace heads.

    A family says where it is; of any other a timm model does, by `get_classifier`.
    """
    tuning = getattr(trunk, 'tuning', None)
    if tuning and tuning.rest:                              # a whole model: its neck and heads, as they were
        return tuning.rest
    family = tuning.family if tuning else family_of(trunk)
    parts, names = FAMILIES.get(family), list(trunk.state_dict())
    if parts:
        return frozenset(name for name in names if parts.HEAD and re.fullmatch(parts.HEAD, name))
    found = trunk.get_classifier() if hasattr(trunk, 'get_classifier') else ()
    found = found if isinstance(found, tuple) else (found, )
    places = tuple(f'{name}.' for name, module in trunk.named_modules() if any(module is one for one in found))
    return frozenset(name for name in names if name.startswith(places))


__all__ = ['FAMILIES', 'Branch', 'Role', 'alternatives', 'family_of', 'head_entries', 'norm_of', 'unused', 'used']

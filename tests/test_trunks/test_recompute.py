"""Blocks that are run again in backward: gradients against the plain run, bytes, and what is undone."""
import copy
import pickle
from unittest import mock

import pytest
import timm
import torch

import e3va
from e3va.cost.saved import saved_bytes
from e3va.pear import plan as pear
from e3va.trunks.recompute import MARK, rows
from tests.conftest import METHODS, before_step, build, distance, image, in_two_processes, pairs, projected, stir

CHOSEN = ('full', 'lora', 'adapter', 'adaptformer', 'mona', 'ssf', 'gps', 'dmlora', 'compacter', 'fact_tt', 'vpt_deep',
          'evp')
SPLIT = ['swin_mmdet', 'swin_timm', 'vit_mmpretrain', 'vit_timm', 'vit_sam', 'convnext_mmpretrain', 'convnext_timm']


def gradients(model, x, seed=3):
    before_step(model, 0)
    torch.manual_seed(seed)                                             # DropPath and dropout draw the same
    model.zero_grad()
    projected(model(x)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def cosine(a, b):
    a, b = (torch.cat([grads[name].flatten() for name in a]).double() for grads in (a, b))
    return a @ b / a.norm() / b.norm()


def both(trunk, method, way):
    """The same tuned trunk without and with recomputation, in training."""
    made = [build(trunk, dict(METHODS[method], **options)).train() for options in ({}, dict(recompute=way))]
    for model in made:
        stir(model)
    return made


@pytest.mark.parametrize('trunk, method', pairs(SPLIT, CHOSEN)[::2])        # on each trunk every other one
def test_gradients(trunk, method):
    """'block' gives the plain gradients bit for bit; fewer bits give nearly these, and none is lost."""
    plain, again = both(trunk, method, 'block')
    x = image(trunk)
    want, found = gradients(plain, x), gradients(again, x)
    assert want.keys() == found.keys() and all(torch.equal(want[name], found[name]) for name in want)
    for way, least in (('block_bf16', 0.998), ('block_int8', 0.998)):
        rounded = gradients(both(trunk, method, way)[1], x)
        assert rounded.keys() == want.keys() and cosine(want, rounded) > least


@pytest.mark.parametrize('way', ['block', 'block_bf16', 'block_int8'])
def test_what_is_kept(way):
    """Of a block its input: 4 bytes an entry, 2, or 1 and a scale of 4 bytes for each token."""
    depth, tokens, width = 4, 2 * 17, 24
    held = dict(block=4 * width, block_bf16=2 * width, block_int8=width + 4)[way]
    model, x = both('vit_mmpretrain', 'lora', way)[1], image('vit_mmpretrain')
    norm = tokens * (held + 8 * (way == 'block'))           # behind the last block; its mean and deviation
    weights = 2 * width * 4                                 # of the test's own loss
    assert saved_bytes(lambda: projected(model(x)), model) == depth * tokens * held + norm + weights


@pytest.mark.parametrize('trunk', SPLIT)
def test_far_less_is_kept(trunk):
    plain, again = both(trunk, 'lora', 'block_int8')
    x = image(trunk)
    assert saved_bytes(lambda: projected(again(x)), again) < 0.25 * saved_bytes(lambda: projected(plain(x)), plain)


def test_mixed_precision():
    plain, again = both('swin_mmdet', 'lora', 'block')
    with torch.autocast('cpu', torch.bfloat16):
        want, found = (gradients(model, image('swin_mmdet')) for model in (plain, again))
    assert all(torch.equal(want[name], found[name]) for name in want)
    with torch.autocast('cpu', torch.bfloat16):
        assert cosine(want, gradients(both('swin_mmdet', 'lora', 'block_int8')[1], image('swin_mmdet'))) > 0.99


@pytest.mark.parametrize('way', ['block', 'block_int8'])
def test_compiled(way):
    plain, again = both('vit_timm', 'lora', way)
    for model in (plain, again):
        model.eval()                                                    # no DropPath, which compiled draws otherwise
    x = image('vit_timm')
    want = gradients(plain, x)
    found = gradients(torch.compile(again, backend='aot_eager'), x)
    assert cosine(want, {name.removeprefix('_orig_mod.'): value for name, value in found.items()}) > 1 - 1e-6


def one_of_two(rank, folder):
    model = both('vit_timm', 'lora', 'block_int8')[1]
    ddp = torch.nn.parallel.DistributedDataParallel(model)              # finds no unused parameters
    torch.manual_seed(rank)
    projected(ddp(torch.randn(1, 3, 70, 84))).backward()
    torch.save({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, folder / f'{rank}.pth')


def test_two_processes(tmp_path):
    first, second = (torch.load(in_two_processes(one_of_two, tmp_path) / f'{rank}.pth') for rank in (0, 1))
    assert first and all(torch.equal(first[name], second[name]) for name in first)


# ---- trunks of no known family

def resnet(**options):
    torch.manual_seed(0)
    model = timm.create_model('resnet18', num_classes=3, channels=(8, 8, 16, 16), stem_width=8)
    return e3va.tune(model, **options).train()


@pytest.mark.parametrize('method', [dict(type='LoRA', rank=2), dict(type='Full')])
@pytest.mark.parametrize('way', ['block', 'block_bf16'])
def test_any_trunk(method, way):
    """ResNet's blocks are found; the running statistics of norms that train move once, not twice."""
    assert len(rows(resnet(method=method))) == 8
    plain, again, x = resnet(method=method), resnet(method=method, recompute=way), torch.randn(2, 3, 64, 64)
    want, found = gradients(plain, x), gradients(again, x)
    assert want.keys() == found.keys() and cosine(want, found) > (1 - 1e-9 if way == 'block' else 0.99)
    assert distance(*([buffer.float() for buffer in model.buffers()] for model in (plain, again))) == 0


def test_no_blocks():
    with pytest.raises(ValueError, match='Sequential has no rows of blocks that could be run again'):
        e3va.tune(torch.nn.Sequential(torch.nn.Linear(2, 2)), dict(type='LoRA', rank=1), recompute='block')


def test_a_shared_table_that_trains_gets_its_gradient():
    """BEiT's blocks are handed the biases of their attention, which belong to the trunk."""
    grads = []
    for options in ({}, dict(recompute='block_int8')):
        torch.manual_seed(0)
        model = timm.create_model('beitv2_base_patch16_224', img_size=48, embed_dim=24, depth=2, num_heads=2,
                                  num_classes=3, use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
        e3va.tune(model, dict(type='LoRA', rank=2), also=['rel_pos_bias'], **options).train()
        grads.append(gradients(model, torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))))
    assert any('rel_pos' in name for name in grads[0]) and grads[0].keys() == grads[1].keys()
    assert cosine(*grads) > 0.999


@pytest.mark.parametrize('way', ['block', 'block_bf16', 'block_int8'])
@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'poolformerv2_s12'])
def test_blocks_where_nothing_trains(name, way):
    """A classifier outside of them does; PoolFormer's GroupNorms ask for a gradient where none comes in."""
    grads = []
    for options in ({}, dict(recompute=way)):
        torch.manual_seed(0)
        model = e3va.tune(timm.create_model(name, num_classes=3), dict(type='Partial'), **options).train()
        grads.append(gradients(model, torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))))
    assert grads[0].keys() == grads[1].keys() and cosine(*grads) > (1 - 1e-9 if way == 'block' else 0.998)


# ---- the option

def test_ways_to_say_it():
    kept = [build('swin_mmdet', dict(METHODS['lora'], recompute='block_bf16')),
            e3va.tune(build('swin_mmdet'), METHODS['lora'], recompute='block_bf16'),
            build('swin_mmdet', METHODS['lora'], recompute='block_bf16')]
    for model in kept:
        assert {vars(block)[MARK].form for stage in model.stages for block in stage.blocks} == {'bf16'}
        assert 'recompute' not in model.tuning.method.config            # a delta is the same with it and without


@pytest.mark.parametrize('options, message', [
    (dict(type='LoRA', recompute='all'), "recompute must be one of 'block', 'block_bf16', 'block_int8', not 'all'"),
    (dict(type='E3VA', recompute='block'), "E3VA backpropagates nothing .* Its own mode='stream' runs the")])
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build('swin_mmdet', options)


def test_the_trunks_own_checkpointing_gives_way():
    model = build('swin_mmdet_partial', dict(METHODS['lora'], recompute='block'))
    assert not any(getattr(module, 'with_cp', False) for module in model.modules())


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'vit_timm'])
def test_copies_and_merging(trunk):
    """A copy runs its own blocks again; a merged trunk keeps nothing of it."""
    plain, again = both(trunk, 'lora', 'block')
    x = image(trunk)
    want = gradients(plain, x)
    for model in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        again.zero_grad()
        found = gradients(model, x)
        assert all(torch.equal(want[name], found[name]) for name in want)
        assert all(parameter.grad is None for parameter in again.parameters())
    merged = e3va.merge(again)
    assert not any(MARK in vars(module) for module in merged.modules())
    merged.eval(), plain.eval()
    assert distance(merged(x), plain(x)) < 1e-4
    with mock.patch('e3va.trunks.recompute.again', side_effect=AssertionError):
        projected(merged(x)).backward()


@pytest.mark.parametrize('trunk, method', [('vit_mmpretrain', 'lora'), ('vit_timm', 'adaptformer')])
@pytest.mark.parametrize('way', ['block', 'block_int8'])
def test_a_module_that_serves_in_other_blocks_gets_all_of_its_gradient(trunk, method, way):
    made = both(trunk, method, way)
    for model in made:
        units = model.tuning.method.units(model)
        pear.prune(model, pear.plan(torch.rand(len(units), generator=torch.Generator().manual_seed(0)),
                                    *pear.alike(model, 'global'), 0.5))
    want, found = (gradients(model, image(trunk)) for model in made)
    assert want.keys() == found.keys() and cosine(want, found) > (1 - 1e-9 if way == 'block' else 0.999)

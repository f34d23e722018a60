"""The gradient of a share of the images: against the plain run on these images, its mean, bytes, and what is undone."""
import copy
import math
import pickle
from unittest import mock

import pytest
import torch
from torch import nn

import e3va
from e3va.cost.saved import saved_bytes
from e3va.dmlora.method import mixtures
from tests.conftest import (
    before_step,
    build,
    distance,
    image,
    in_two_processes,
    pairs,
    projected,
    steady,
    tensors,
)

CHOSEN = ('full', 'lora', 'adaptformer', 'mona', 'gps', 'dmlora', 'fact_tt', 'vpt_deep', 'evp')
SPLIT = ['swin_mmdet', 'swin_timm', 'vit_mmpretrain', 'vit_timm', 'vit_sam', 'convnext_mmpretrain', 'convnext_timm']


def drawn(model, x, u, use=slice(None)):
    """Outputs and gradients of the loss on some of the images, the draw being u."""
    model.zero_grad()
    with mock.patch('e3va.trunks.sampled.torch.rand', lambda size: torch.tensor(u)):
        outs = model(x)
    weight = torch.zeros(len(x))
    weight[use] = 1.
    loss = sum((out * weight.view(-1, *[1] * (out.dim() - 1))
                * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum() for out in tensors(outs))
    loss.backward()
    return outs, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize('trunk, method', pairs(SPLIT, CHOSEN))
def test_gradients(trunk, method):
    """Outputs of all images, and of the first half the gradient, twice."""
    plain, part = steady(trunk, method), steady(trunk, method, backward=0.5)
    x = image(trunk)
    want, expected = drawn(plain, x, 0., slice(1))
    found, gradients = drawn(part, x, 0.)
    assert distance(want, found) <= 1e-5 * max(float(out.abs().max()) for out in tensors(want))
    scale = max(float(value.abs().max()) for value in expected.values() if value is not None)
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        assert (value is None) == (expected[name] is None)
        assert value is None or float((value - 2 * expected[name]).abs().max()) <= 1e-4 * scale


def test_the_draws():
    """Of two images one in two steps, under a share of a quarter; no step leaves a parameter without gradient."""
    model, x, seen = steady('vit_timm', 'lora', backward=0.25), image('vit_timm'), []
    for u in (0., 0.49, 0.51, 0.99):
        outs, gradients = drawn(model, x, u)
        moved = [float(value.abs().max()) > 0 for value in gradients.values()]
        assert all(moved) or not any(moved)
        seen.append(all(moved))
    assert seen == [False, False, True, True]


def test_the_mean_is_the_whole_gradient():
    plain, part, x = steady('vit_timm', 'lora'), steady('vit_timm', 'lora', backward=0.25), image('vit_timm')
    want, total, order = drawn(plain, x, 0.)[1], {}, torch.tensor([1, 0])
    for images in (x, x[order]):                                        # both images stand first as often
        for u in (0.125, 0.375, 0.625, 0.875):
            model = copy.deepcopy(part)
            with mock.patch('e3va.trunks.sampled.torch.rand', lambda size: torch.tensor(u)):
                outs = tensors(model(images))
            outs = [out if images is x else out[order] for out in outs]
            sum((out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum()
                for out in outs).backward()
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    total[name] = total.get(name, 0) + parameter.grad / 8
    assert all(torch.allclose(total[name], want[name], rtol=1e-4, atol=1e-4) for name in want)


def test_less_is_kept():
    """Of four images what LoRA keeps of one."""
    x = image('vit_mmpretrain', batch=4)
    plain, part = steady('vit_mmpretrain', 'lora'), steady('vit_mmpretrain', 'lora', backward=0.25)

    def kept(model, x):                                                 # the loss keeps its weights beside
        return saved_bytes(lambda: projected(model(x)), model) - sum(out.nbytes for out in tensors(model(x)))

    assert kept(part, x) == kept(plain, x[:1])


def test_with_recompute():
    plain, part = steady('swin_mmdet', 'lora'), steady('swin_mmdet', 'lora', backward=0.5, recompute='block')
    x = image('swin_mmdet')
    expected, gradients = drawn(plain, x, 0., slice(1))[1], drawn(part, x, 0.)[1]
    assert all(torch.allclose(gradients[name], 2 * expected[name], rtol=1e-4, atol=1e-4) for name in expected)


def test_outside_of_training():
    """Evaluation and a pass without gradients are the plain ones, and gradients in eval are whole."""
    plain, part = steady('vit_timm', 'lora').eval(), steady('vit_timm', 'lora', backward=0.25).eval()
    x = image('vit_timm')
    (want, expected), (found, gradients) = drawn(plain, x, 0.), drawn(part, x, 0.)
    assert distance(want, found) == 0 and all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_copies_and_merge():
    part, x = steady('vit_timm', 'lora', backward=0.5), image('vit_timm')
    want = drawn(part, x, 0.)[1]
    for other in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        before_step(other, 0)
        assert all(torch.equal(value, want[name]) for name, value in drawn(other, x, 0.)[1].items())
    merged = e3va.merge(part).train()
    assert distance(merged.eval()(x), part.eval()(x)) <= 1e-4
    with mock.patch('e3va.trunks.sampled.draw') as draw:
        merged.train()(x)
    assert not draw.called                                              # all images' gradient


def one_of_two(rank, folder):
    model = steady('vit_timm', 'lora', backward=0.25)
    ddp = nn.parallel.DistributedDataParallel(model)                    # finds no unused parameters
    with mock.patch('e3va.trunks.sampled.torch.rand', lambda size: torch.tensor(0.9 * rank)):
        projected(ddp(image('vit_timm', seed=rank))).backward()         # one image of one process, none of the other
    torch.save({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, folder / f'{rank}.pth')


def test_what_the_step_did_not_draw_is_left_alone():
    """A batch of which no image is drawn gives zero gradients to what the step would train, and none to the rest."""
    from e3va.noah.method import SizedBottleneck, set_sizes, space_of
    mixed, x = steady('vit_timm', 'dmlora', backward=0.25), image('vit_timm')
    gradients = drawn(mixed, x, 0.)[1]
    branches = [one for module in mixtures(mixed) for one in module.all]
    held = [one for one in branches if one.grad is not None]
    assert held and {id(one) for one in held} == {id(module.drawn) for module in mixtures(mixed)}
    assert not any(value.any() for value in gradients.values() if value is not None)
    noah = build('vit_timm', dict(type='NOAH', backward=0.25)).train()
    space = space_of(noah, noah.tuning.method)
    set_sizes(noah, dict(prompt=[5] * space.blocks, lora=[5] * space.blocks, adapter=[0] * space.blocks))
    drawn(noah, x, 0.)
    units = [module for module in noah.modules() if isinstance(module, SizedBottleneck)]
    assert {bool(unit.size) for unit in units} == {True, False}
    assert all((one.grad is not None) == bool(unit.size) for unit in units for one in unit.parameters())


def test_two_processes(tmp_path):
    first, second = (torch.load(in_two_processes(one_of_two, tmp_path) / f'{rank}.pth') for rank in (0, 1))
    assert first and all(torch.equal(first[name], second[name]) for name in first)
    assert any(float(value.abs().max()) > 0 for value in first.values())


def test_a_classifier_of_timm():
    """Its head learns from all images, its trunk from some."""
    import timm
    def model(**options):
        torch.manual_seed(0)
        return e3va.tune(timm.create_model('deit_tiny_patch16_224', img_size=32, depth=2, num_classes=3),
                         dict(type='LoRA', rank=2, **options)).train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    grads = []
    for options in ({}, dict(backward=0.5)):
        made = model(**options)
        made(x).square().sum().backward()
        grads.append({name: p.grad for name, p in made.named_parameters() if p.requires_grad})
    assert torch.allclose(grads[0]['head.weight'], grads[1]['head.weight'], atol=1e-5)
    assert not torch.allclose(grads[0]['blocks.0.attn.qkv.pairs.0.up'], grads[1]['blocks.0.attn.qkv.pairs.0.up'])


@pytest.mark.parametrize('value', [0, 1, -0.5, 2, math.nan, 'half', True])
def test_wrong_shares(value):
    with pytest.raises(ValueError, match='backward'):
        build('vit_timm', dict(type='LoRA', backward=value))


def test_where_nothing_goes_through_the_trunk():
    with pytest.raises(ValueError, match='backward=0.5: E3VA backpropagates nothing through the trunk'):
        build('vit_timm', dict(type='E3VA', backward=0.5))


def test_batch_norms_that_train():
    with pytest.raises(ValueError, match=r'backward=0.5: the batch norm 1 of Sequential trains'):
        e3va.tune(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), dict(type='Full', backward=0.5))

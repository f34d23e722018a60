"""GELUs that keep 8 bits: torch's own output, the derivative of the formula, its bytes, gradients on real trunks."""
import copy
import math
import pickle

import pytest
import torch
from timm.layers import GELU, GELUTanh
from torch import nn
from torch.nn import functional as F

import e3va
from e3va.cost.saved import saved_bytes
from e3va.layers.gelu import STEP, Gelu8, keep_8_bits
from tests.conftest import build, image, pairs, projected, steady, tensors

CHOSEN = ('full', 'lora', 'adaptformer', 'gps', 'dmlora', 'vpt_deep')
WITH = ['swin_mmdet', 'swin_timm', 'vit_mmpretrain', 'vit_timm', 'vit_sam', 'convnext_mmpretrain', 'convnext_timm']


def saved(model, x):
    return saved_bytes(lambda: projected(model(x)), model)


def gradients(model, x):
    model.zero_grad()
    outs = model(x)
    projected(outs).backward()
    return outs, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize('kind', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_the_function(kind, approximate):
    """The output is torch's, bit for bit; the slope is Phi(x) + x phi(x) to half a step, also at its two extremes."""
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([-math.sqrt(2), math.sqrt(2), 0.])])
    x = x.to(kind).requires_grad_()
    out = Gelu8.apply(x, approximate)
    assert torch.equal(out, F.gelu(x, approximate=approximate))
    slope, = torch.autograd.grad(out.sum(), x)
    at = x.detach().double()
    if approximate == 'none':
        formula = 0.5 * (1 + torch.erf(at / math.sqrt(2))) + at * torch.exp(-at ** 2 / 2) / math.sqrt(2 * math.pi)
    else:
        inner = math.sqrt(2 / math.pi) * (at + 0.044715 * at ** 3)
        rate = math.sqrt(2 / math.pi) * (1 + 0.134145 * at ** 2)
        formula = 0.5 * (1 + inner.tanh()) + 0.5 * at * (1 - inner.tanh() ** 2) * rate
    rounding = 0.01 if kind is torch.bfloat16 else 1e-6
    assert float((slope.double() - formula).abs().max()) <= STEP / 2 + rounding
    assert float((slope.double() - formula).mean().abs()) <= (0.003 if kind is torch.bfloat16 else 2e-4)    # no bias


@pytest.mark.parametrize('layer', [nn.GELU(), nn.GELU('tanh'), GELU(), GELUTanh()])
def test_a_layer(layer):
    """A byte an entry where there were four; nothing where no gradient is asked for; the layer's own form."""
    trunk, x = nn.Sequential(layer), torch.randn(8, 100).requires_grad_()
    whole, want = saved_bytes(lambda: trunk(x), trunk), layer(x)
    slope, = torch.autograd.grad(want.sum(), x)
    keep_8_bits(trunk)
    assert (whole, saved_bytes(lambda: trunk(x), trunk)) == (3200, 800)
    out = trunk(x)
    assert torch.equal(out, want)
    assert float((torch.autograd.grad(out.sum(), x)[0] - slope).abs().max()) <= STEP / 2 + 1e-6
    assert saved_bytes(lambda: trunk(x.detach()), trunk) == 0
    with torch.no_grad():
        assert torch.equal(trunk(x), want)
    with torch.autocast('cpu', torch.bfloat16):
        assert trunk(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(copy.deepcopy(trunk)(x), want) and torch.equal(pickle.loads(pickle.dumps(trunk))(x), want)


@pytest.mark.parametrize('trunk, method', pairs(WITH, CHOSEN)[::2])
def test_on_a_trunk(trunk, method):
    """The outputs are those without; gradients have a cosine above 0.999 each, and fewer bytes are kept."""
    plain, less = steady(trunk, method), steady(trunk, method, gelu='int8')
    x = image(trunk)
    want, expected = gradients(plain, x)
    outs, found = gradients(less, x)
    assert all(torch.equal(one, other) for one, other in zip(tensors(want), tensors(outs)))
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in found.items():
        if float(expected[name].norm()) > 1e-4 * largest:
            one, other = value.double(), expected[name].double()
            assert float((one * other).sum() / one.norm() / other.norm()) > 0.999
    assert saved(less, x) < saved(plain, x)


def test_of_lora():
    """Three bytes fewer of each entry; blocks that run again give the same gradients."""
    plain, less, again = (steady('vit_timm', 'lora', **options) for options in (
        {}, dict(gelu='int8'), dict(gelu='int8', recompute='block')))
    x = image('vit_timm')
    entries = []                                                        # of what goes into the GELUs
    for block in plain.blocks:
        block.mlp.act.register_forward_pre_hook(lambda act, given: entries.append(given[0].numel()))
    kept = saved(plain, x)
    assert kept - saved(less, x) == 3 * sum(entries) and len(entries) == len(plain.blocks)
    _, one = gradients(less, x)
    assert all(torch.equal(value, one[name]) for name, value in gradients(again, x)[1].items())


def test_the_mix_has_it():
    """By default, and without a word where a trunk has no GELU; who wants torch's own says so."""
    model = steady('vit_timm', 'e3va_mix')
    assert model.tuning.method.gelu == 'int8' and 'forward' in vars(model.blocks[0].mlp.act)
    assert 'forward' not in vars(steady('vit_timm', 'e3va_mix', gelu='exact').blocks[0].mlp.act)
    e3va.tune(nn.ModuleDict(dict(q=nn.Linear(4, 4))), dict(type='E3VAMix', targets='q'))


def test_merged():
    """Nothing of it is left."""
    model = steady('vit_timm', 'lora', gelu='int8')
    assert 'forward' not in vars(e3va.merge(model).blocks[0].mlp.act)


@pytest.mark.parametrize('method, words', [
    (dict(type='LoRA', gelu='int4'), "gelu must be one of 'exact', 'int8'"),
    (dict(type='E3VA', gelu='int8'), 'backpropagates nothing through the trunk, whose GELUs keep nothing')])
def test_wrong(method, words):
    with pytest.raises(ValueError, match=words):
        build('vit_timm', method)


def test_no_gelu():
    with pytest.raises(ValueError, match='Sequential has no GELU'):
        e3va.tune(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), dict(type='LoRA', targets='0', gelu='int8'))

"""SPT: its layer and its rule written out by hand, the sums of squares, what is refused."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import e3va
from e3va.gps.gradients import select
from e3va.gps.method import selected, sparse_layers
from e3va.spt.method import AllottedLinear
from tests.conftest import alike, build, distance, image, projected

ROWS = dict(q=(0, 1), k=(1, 2), v=(2, 3))
BUDGETS = dict(budget=2000, rank=2, step=50, alpha=8.)


def scores_of(tuned, seed=0):
    """Squared random numbers, some parameters' larger than others'."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(weight.shape, generator=generator) * 4 ** torch.randn(1, generator=generator)).square()
            for name, (_, weight) in tuned.tuning.method.scored(tuned).items()}


def apart(scores):
    """As the public code has a ViT: q, k and v as matrices and biases of their own, {name: flat scores}."""
    found = {}
    for name, score in scores.items():
        if '.qkv.' in name:
            found.update({name.replace('qkv', f'qkv.{i}'): third.flatten() for i, third in enumerate(score.chunk(3))})
        else:
            found[name] = score.flatten()
    return found


def rule(scores, shapes, budget, step, rank, adapter, alpha, beta, fixed):
    """The public code's rule in its own order: masks for each tau, the nearest of all; of two as near the later."""
    best, flat = (None, float('inf')), torch.cat(list(scores.values()))
    for tau in range(step, 3 * budget, step):
        mask = torch.zeros(len(flat), dtype=torch.bool)
        mask[flat.topk(tau).indices] = True
        total, modules, entries = fixed, set(), {}
        for (name, score), own in zip(scores.items(), mask.split([len(score) for score in scores.values()])):
            count = int(own.sum())
            if name in shapes:
                out, inputs = shapes[name]
                size = (2 * out * rank + rank + out) if adapter else rank * (out + inputs)
                as_one = count >= size / alpha
                modules |= {name} if as_one else set()
                entries[name] = torch.zeros_like(own) if as_one else own
            else:
                size, as_one = len(score), count >= len(score) / beta
                entries[name] = torch.ones_like(own) if as_one else own
            total += size if as_one else count
        if abs(total - budget) <= best[1]:
            best = (total, modules, entries), abs(total - budget)
    return best[0]


@pytest.mark.parametrize('module', ['lora', 'adapter'])
def test_the_rule(module):
    """Modules, entries and their number are those of the rule; the budget is met to a step."""
    tuned = build('vit_mmpretrain', dict(type='SPT', module=module, **BUDGETS))
    scores = scores_of(tuned)
    shapes = {f'{name}.weight' if layer.of == 1 else f'{name}.{i}.weight': (layer.out_features // layer.of,
                                                                            layer.in_features)
              for name, layer in sparse_layers(tuned).items() for i in range(layer.of)}
    assert not selected(tuned) and e3va.report(tuned)['trained'] == 2000
    total, modules, entries = rule(apart(scores), shapes, 2000, 50, 2, module == 'adapter', 8., 5., fixed=24)
    tuned.tuning.method.choose(tuned, scores)
    assert selected(tuned) and e3va.report(tuned)['trained'] == total and abs(total - 2000) < 200
    kept = {f'{name}.weight' if layer.of == 1 else f'{name}.{i}.weight'
            for name, layer in sparse_layers(tuned).items() for i in layer.pairs}
    assert kept == modules and 0 < len(modules) < len(shapes)
    for name, (owner, weight) in tuned.tuning.method.scored(tuned).items():
        leaf = name.rpartition('.')[2]
        index = owner.index if isinstance(owner, AllottedLinear) and leaf == 'weight' else owner.entries.index(leaf)
        want = apart({name: torch.zeros_like(weight)})
        mask = torch.cat([entries[one] for one in want]).nonzero().flatten()
        assert torch.equal(index.flatten().long(), mask), name


@pytest.mark.parametrize('module', ['lora', 'adapter'])
def test_equation(module):
    """Entries inside the weight; LoRA on the input, an adapter on the output of a slice; other slices as they are."""
    old, x = nn.Linear(12, 18).requires_grad_(False), torch.randn(5, 7, 12)
    layer = AllottedLinear(old, module, 3, (0, 1, 2), 3, 0.1, 0.1).eval()
    del layer.pairs['1']
    layer.reshape((1, 2))
    layer.select(torch.tensor([[6 * 12 + 3, 6 * 12 + 5]]))
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter)
    weight = layer.weight.detach().clone()
    weight[6, 3], weight[6, 5] = layer.values.flatten()
    want = list((x @ weight.T + layer.bias).chunk(3, -1))
    for i in (0, 2):
        unit = layer.pairs[str(i)]
        want[i] = want[i] + (x @ unit.down.T @ unit.up.T if module == 'lora' else F.gelu(
            want[i] @ unit.down.T + unit.down_bias) @ unit.up.T + unit.up_bias)
    torch.testing.assert_close(layer(x), torch.cat(want, -1), rtol=1e-4, atol=1e-4)
    if module == 'lora':
        torch.testing.assert_close(layer.merged()(x), torch.cat(want, -1), rtol=1e-4, atol=1e-4)


def test_dropout_and_drop_path():
    """In training the module's input loses a share, and images lose all of what it adds."""
    layer = AllottedLinear(nn.Linear(8, 8).requires_grad_(False), 'lora', 4, (0,), 1, 0., 0.5)
    nn.init.ones_(layer.pairs['0'].up)
    x = torch.randn(64, 3, 8)
    added = layer(x) - F.linear(x, layer.weight, layer.bias)
    want = 2 * layer.pairs['0'](x)
    kept = added.flatten(1).abs().sum(1) > 1e-4
    torch.testing.assert_close(added[kept], want[kept], rtol=1e-4, atol=1e-4)
    assert 16 < int(kept.sum()) < 48


def test_sums_of_squares():
    """Each batch's gradient is squared, then they are summed; what is chosen by them is what is chosen by hand."""
    tuned = build('vit_timm', dict(type='SPT', **BUDGETS)).eval()
    again = copy.deepcopy(tuned)
    batches = [image('vit_timm', seed=seed) for seed in range(3)]
    assert select(tuned, batches, lambda batch: projected(tuned(batch))) == dict(used=3, skipped=0)
    scored = again.tuning.method.scored(again)
    sums = {name: torch.zeros_like(weight) for name, (_, weight) in scored.items()}
    stock = build('vit_timm', seed=0).requires_grad_(True).eval()
    stock.load_state_dict({name: again.state_dict()[name] for name in stock.state_dict()})
    for batch in batches:
        stock.zero_grad()
        projected(stock(batch)).backward()
        for name in sums:
            sums[name] += stock.get_parameter(name).grad.square()
    again.tuning.method.choose(again, sums)
    one, other = tuned.state_dict(), again.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if name.endswith('index'))


def test_a_selection_comes_with_the_weights():
    """A fresh trunk takes the shapes of a selection; one with another selection, or of another size, refuses it."""
    tuned = alike('swin_mmdet', 'spt_lora', stirred=True)
    method = dict(tuned.tuning.method.config, criterion='gradient')
    fresh = build('swin_mmdet', method, seed=4)
    fresh.load_state_dict(tuned.state_dict())
    x = image('swin_mmdet')
    assert distance(fresh.eval()(x), tuned.eval()(x)) == 0 and fresh.tuning.hooked
    other = build('swin_mmdet', dict(tuned.tuning.method.config, seed=9))
    with pytest.raises(ValueError, match='another selection than this trunk, first in'):
        other.load_state_dict(tuned.state_dict())


@pytest.mark.parametrize('options, words', [
    (dict(budget=10 ** 6), 'budget=1,000,000 parameters cannot be spent here: the most that trains is'),
    (dict(budget=10, step=5), 'budget=10 parameters cannot be spent here: the least that trains is'),
    (dict(module='vpt'), "module must be one of 'lora', 'adapter'"), (dict(rank=25), 'rank must be an integer')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_mmpretrain', dict(dict(type='SPT', rank=2, budget=1000, criterion='random'), **options))


def test_no_gradient():
    tuned = build('vit_timm', dict(type='SPT', **BUDGETS))
    with pytest.raises(ValueError, match='SPT cannot select: no gradient reaches any of'):
        select(tuned, [image('vit_timm')], lambda batch: 0 * projected(tuned(batch)))
    assert not selected(tuned) and not any(parameter.grad is not None for parameter in tuned.parameters())
    with pytest.raises(ValueError, match='SPT trains wrongly without its hook; add .*e3va.SPTHook'):
        tuned.train()(image('vit_timm'))

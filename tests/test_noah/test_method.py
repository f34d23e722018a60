"""NOAH: a subnet against the standalone modules, a supernet against its subnets, counts, what is drawn and refused."""
import pytest
import torch

import e3va
from e3va.noah.method import Space, count, drawn, largest, parts_of, set_sizes, space_of
from tests.conftest import build, distance, image, pair
from tests.test_methods.counts import count as counted

FOUR = dict(prompt=[3, 0, 1, 0], lora=[2, 1, 0, 0], adapter=[0, 3, 0, 2])
FIVE = dict(prompt=[3, 0, 1, 0, 2], lora=[2, 1, 0, 0, 1], adapter=[0, 3, 0, 2, 0])


def of(trunk, **options):
    return dict(type='NOAH', subnet=FIVE if trunk.startswith('swin') else FOUR, **options)


@pytest.mark.parametrize('kind', ['prompt', 'lora', 'adapter'])
@pytest.mark.parametrize('trunk', ['swin_mmdet', 'vit_mmpretrain'])
def test_the_standalone_modules(kind, trunk):
    """Of one kind in every block, with the same weights: VPT, LoRA and an adapter of the same size."""
    blocks = 5 if trunk.startswith('swin') else 4
    subnet = dict(dict.fromkeys(('prompt', 'lora', 'adapter'), [0] * blocks), **{kind: [3] * blocks})
    stock, tuned = pair(trunk, dict(type='NOAH', subnet=subnet), stirred=True)
    alone = dict(prompt=dict(type='VPT', tokens=3), lora=dict(type='LoRA', rank=3, targets=r'.*\.qkv'), adapter=dict(
        type='Adapter', rank=3, roles=('fc2',), activation='quick_gelu', init='xavier'))[kind]
    other = build(trunk, alone)
    other.load_state_dict(stock.state_dict(), strict=False)
    mine, own = ([parameter for parameter in model.parameters() if parameter.requires_grad] for model in (tuned, other))
    assert [one.shape for one in mine] == [one.shape for one in own]
    with torch.no_grad():
        for one, value in zip(own, mine):
            one.copy_(value)
    x = image(trunk).double()                                           # in float32 they round apart
    assert distance(tuned.double().eval()(x), other.double().eval()(x)) <= 1e-6


@pytest.mark.parametrize('trunk', ['swin_timm', 'vit_timm'])
def test_a_subnet_is_the_supernet_s(trunk):
    """Of the supernet's weights it has the first ones; its parameters are as many as were counted before."""
    stock, supernet = pair(trunk, dict(type='NOAH', sizes=(1, 2, 3)), stirred=True)
    method = of(trunk)
    tuned = build(trunk, method)
    tuned.load_state_dict(stock.state_dict(), strict=False)
    whole = supernet.state_dict()
    for name, value in tuned.named_parameters():
        if value.requires_grad:
            value.data = whole[name][tuple(slice(size) for size in value.shape)].clone()
    set_sizes(supernet, method['subnet'])
    assert distance(tuned.eval()(image(trunk)), supernet.eval()(image(trunk))) <= 1e-6
    assert count(supernet, method['subnet']) == e3va.report(tuned)['trained']
    assert count(supernet, largest(space_of(supernet, supernet.tuning.method))) == e3va.report(supernet)['trained']
    assert len(parts_of(tuned)) == sum(map(bool, sum(method['subnet'].values(), [])))


def test_draws():
    """A depth for each kind, a size for each of its first blocks; all alike likely, the same for the same step."""
    space = Space(8, (1, 5, 10), (2, 4, 6, 8))
    rows = [drawn(space, step, 3) for step in range(300)]
    assert rows == [drawn(space, step, 3) for step in range(300)]
    assert rows != [drawn(space, step) for step in range(300)]
    for kind in rows[0]:
        depths = [sum(map(bool, row[kind])) for row in rows]
        assert all(row[kind] == row[kind][:depth] + [0] * (8 - depth) for row, depth in zip(rows, depths))
        assert all(50 < depths.count(depth) < 100 for depth in space.depths)
        assert all(60 < [row[kind][0] for row in rows].count(size) < 140 for size in space.sizes)
    assert sum(row['prompt'] == row['lora'] for row in rows) < 20
    assert space_of(build('vit_timm', 'noah'), build('vit_timm', 'noah').tuning.method).depths == (1, 2, 3, 4)


def test_counts():
    """k C of prompts, 4 k C of LoRAs, (2 k + 1) C + k of adapters; the published subnet for CIFAR-100."""
    subnet = dict(prompt=[10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10], lora=[10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1],
                  adapter=[5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1])
    by_hand = 69 * 768 + 47 * 4 * 768 + 74 * (2 * 768 + 1) + 12 * 768
    assert counted(dict(type='NOAH', subnet=subnet)) == by_hand == 320_330
    assert counted(dict(type='NOAH')) == 12 * (10 * 768 + 40 * 768 + 10 * 1537 + 768)


@pytest.mark.parametrize('options, words', [
    (dict(subnet=FIVE), 'sizes for 5 blocks, and VisionTransformer has 4: it was found for another trunk'),
    (dict(subnet=dict(FOUR, lora=[1])), 'one size a block each, and these have'),
    (dict(subnet=[1]), 'subnet is a dict'),
    (dict(subnet=dict.fromkeys(FOUR, [0] * 4)), 'is empty'), (dict(subnet=dict(FOUR, lora=[1, 2, 3, -1])), r'subnet\['),
    (dict(subnet=dict(FOUR, lora=[25, 0, 0, 0])), 'lora of block 0 must be'), (dict(sizes=()), 'sizes takes'),
    (dict(depths=(2, 5)), r'depths=\(2, 5\): .* has 4 blocks')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_timm', dict(type='NOAH', **options))

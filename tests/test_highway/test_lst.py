"""LST: the ladder written out by hand on a ViT, its pruning, what hierarchical trunks have, its count and bytes."""
import pytest
import torch
from torch.nn import functional as F

import e3va
from e3va.cost.saved import saved_bytes
from e3va.highway.lst import CELLS, averaged
from tests.conftest import build, image, pair, projected, stir, tensors
from tests.test_methods.counts import count


def linear(x, dense):
    return x @ dense.s.T + dense.bias


def normed(x, norm):
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def attention(q, k, v, heads):
    """Softmax attention, each head by itself."""
    outs = []
    for i in range(heads):
        one, other, value = (tokens.chunk(heads, -1)[i] for tokens in (q, k, v))
        outs.append((one @ other.transpose(1, 2) / one.shape[-1] ** 0.5).softmax(-1) @ value)
    return torch.cat(outs, -1)


def side_block(block, x, seen=None):
    y = normed(x, block.norm1)
    q, k, v = linear(y, block.qkv).chunk(3, -1)
    if seen is not None:
        _, k, v = linear(seen(y), block.qkv).chunk(3, -1)
    x = x + linear(attention(q, k, v, block.heads), block.proj)
    return x + linear(F.gelu(linear(normed(x, block.norm2), block.fc1)), block.fc2)


@pytest.mark.parametrize('join', ['add', 'gate'])
def test_the_ladder_of_a_vit(join):
    """s_i = B_i(g s + (1 - g) D l_i) with l_i the stock blocks' outputs; a block without a rung is passed by."""
    stock, tuned = pair('vit_mmpretrain', dict(type='LST', reduction=4, join=join, without=(1,)), stirred=True)
    stock.eval(), tuned.eval()
    outputs, x = [], image('vit_mmpretrain')
    for layer in stock.layers:
        layer.register_forward_hook(lambda layer, _, out: outputs.append(out))
    stock.layers[0].register_forward_pre_hook(lambda layer, inputs: outputs.append(inputs[0]))
    stock(x)
    side = tuned.lst
    s = linear(outputs[0], side.first)
    for i, l in enumerate(outputs[1:]):
        if i != 1:
            rung = side.stages[0][str(i)]
            gate = torch.sigmoid(rung['gate'].alpha / 0.1)
            s = side_block(rung['block'], gate * s + (1 - gate) * linear(l, rung['down']))
    top = side.ups['0_3']
    added = linear(normed(s, top['norm']), top['up'])
    gate = torch.sigmoid(top['gate'].alpha / 0.1) if join == 'gate' else None
    out = l + added if join == 'add' else gate * l + (1 - gate) * added
    torch.testing.assert_close(tuned(x)[-1], tuned.ln1(out)[:, 0], rtol=1e-4, atol=1e-5)
    assert sorted(side.stages[0]) == ['0', '2', '3']


def test_stages():
    """Each has its width; the map is averaged to the next grid and projected; tokens attend to the map's means."""
    stock, tuned = pair('swin_mmdet', dict(type='LST', reduction=4), stirred=True)
    stock.eval(), tuned.eval()
    outputs, x = [], image('swin_mmdet')
    for blocks in tuned.tuning.parts.stages(stock):
        for block in blocks:
            block.register_forward_hook(lambda block, inputs, out: outputs.append((out, inputs[1])))
    first = []
    stock.stages[0].blocks[0].register_forward_pre_hook(lambda block, inputs: first.append(inputs))
    stock(x)
    side, got = tuned.lst, tuned(x)
    assert [side.stages[i]['0']['block'].norm1.weight.numel() for i in range(4)] == [6, 12, 24, 48]

    def tokens(map_):
        return map_.flatten(1, 2)

    l, grid = first[0]
    s, outs, number = linear(l, side.first).unflatten(1, grid), [], 0
    for i, rungs in enumerate(side.stages):
        for j, rung in rungs.items():
            l, grid = outputs[number]
            number += 1
            if i and j == '0':
                s = linear(averaged(s, grid), side.merges[str(i)])
            gate = torch.sigmoid(rung['gate'].alpha / 0.1)
            s = gate * s + (1 - gate) * linear(l, rung['down']).unflatten(1, grid)

            def seen(y, grid=grid):
                if max(grid) <= CELLS:
                    return y
                maps = y.unflatten(1, grid).permute(0, 3, 1, 2)
                return F.adaptive_avg_pool2d(maps, [min(n, CELLS) for n in grid]).flatten(2).transpose(1, 2)

            s = side_block(rung['block'], tokens(s), seen).unflatten(1, grid)
        top = side.ups[f'{i}_{len(rungs) - 1}']
        out = getattr(tuned, f'norm{i}')(l + tokens(linear(normed(s, top['norm']), top['up'])))
        outs.append(out.unflatten(1, grid).permute(0, 3, 1, 2))
    for mine, want in zip(got, outs, strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('trunk', ['vit_timm', 'swin_timm'])
def test_pruning(trunk):
    """By loops: of the stream the channels that proj and fc2 write most to, of each head and of the MLP the largest."""
    tuned = build(trunk, dict(type='LST', reduction=4))
    blocks = tuned.blocks if trunk == 'vit_timm' else tuned.layers[1].blocks
    rungs, width = tuned.lst.stages[0 if trunk == 'vit_timm' else 1], len(blocks[0].norm1.weight)
    w, heads = width // 4, blocks[0].attn.num_heads

    def most(scores, n):
        return sorted(sorted(range(len(scores)), key=lambda i: -float(scores[i]))[:n])

    stream = most(sum(block.attn.proj.weight.abs().sum(1) + block.mlp.fc2.weight.abs().sum(1) for block in blocks), w)
    for j, block in enumerate(blocks):
        side = rungs[str(j)]['block']
        assert side.heads == heads
        q, k, v = block.attn.qkv.weight.chunk(3)
        rows = {'qk': [], 'v': []}
        for h in range(heads):
            part = range(h * width // heads, (h + 1) * width // heads)
            for name, score in (('qk', q.abs().sum(1) + k.abs().sum(1)), ('v', v.abs().sum(1))):
                rows[name] += [part[i] for i in most(score[part.start:part.stop], w // heads)]
        want = torch.cat([q[rows['qk']][:, stream], k[rows['qk']][:, stream], v[rows['v']][:, stream]])
        assert torch.equal(side.qkv.s, want)
        assert torch.equal(side.proj.s, block.attn.proj.weight[stream][:, rows['v']])
        inner = most(block.mlp.fc1.weight.abs().sum(1), block.mlp.fc1.out_features // 4)
        assert torch.equal(side.fc1.s, block.mlp.fc1.weight[inner][:, stream])
        assert torch.equal(side.fc1.bias, block.mlp.fc1.bias[inner])
        assert torch.equal(side.fc2.s, block.mlp.fc2.weight[stream][:, inner])
        assert torch.equal(side.norm2.weight, block.norm2.weight[stream])


def test_pruned_from_the_weights_that_arrive():
    """A stock checkpoint is pruned anew; one of the method is not."""
    tuned, source = build('vit_timm', 'lst'), build('vit_timm', seed=8)
    tuned.load_state_dict(source.state_dict(), strict=False)
    fresh = e3va.tune(build('vit_timm', seed=8), dict(type='LST', reduction=4))
    for name, value in fresh.lst.state_dict().items():
        if '.block.' in name:
            assert torch.equal(value, tuned.lst.state_dict()[name]), name
    stir(tuned)
    again = build('vit_timm', 'lst', seed=3)
    again.load_state_dict(tuned.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_nothing_goes_through_the_trunk():
    """What autograd keeps: the taps of each block, and the side network; not the blocks."""
    x = image('swin_mmdet')

    def kept(method, **options):
        trunk = build('swin_mmdet', dict(type=method, **options)).train()
        graphs = []
        if method == 'LST':
            for block in (block for blocks in trunk.tuning.parts.stages(trunk) for block in blocks):
                block.register_forward_hook(lambda block, _, out: graphs.append(tensors(out)[0].requires_grad))
        found = saved_bytes(lambda: projected(trunk(x)), trunk)
        assert not any(graphs)
        return found
    assert kept('Fixed') < kept('LST', reduction=8) < 0.6 * kept('LoRA', rank=2)


def test_counts():
    """ViT-B, r = 8: what V-PETL-Bench prints as 2.38 M, worked out from the widths."""
    w, wide = 96, 768
    block = 2 * 2 * w + 3 * w * (w + 1) + w * (w + 1) + 4 * w * (w + 1) + w * (4 * w + 1)
    total = 12 * block + 13 * w * (wide + 1) + 12 + 2 * w + wide * (w + 1)
    assert count(dict(type='LST', train_out_norms=False)) == total == 2_376_492


@pytest.mark.parametrize('options, words', [
    (dict(without=4), 'without must be an integer of at least 0 and at most 3'),
    (dict(reduction=0), 'reduction must be'), (dict(join='sum'), "join must be one of 'add', 'gate'"),
    (dict(init='fisher'), "init must be one of 'pruned'")])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_timm', dict(type='LST', **options))

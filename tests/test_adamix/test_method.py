"""AdaMix: a draw and the mean written out by hand, the divergence, the plain adapter that is left, counts."""
import pytest
import torch
from torch.nn import functional as F

import e3va
from e3va.adamix.method import MixAdapter, divergence
from e3va.dmlora.method import AGAIN, average, draw, mixtures
from tests.conftest import alike, build, distance, image
from tests.test_methods.counts import count


def test_equation():
    """The drawn projections, each with its own bias, in training; their means, biases too, in evaluation."""
    layer, x = MixAdapter(6, 3, 4, 2, 'gelu'), torch.randn(5, 7, 6)
    for branch in layer.parameters():
        branch.data.normal_()
    downs, ups = layer.down.all, layer.up.all
    assert (len(downs), len(ups)) == (4, 2)

    def adapter(down, up):
        return x + F.gelu(x @ down[:, :6].T + down[:, 6]) @ up[:, :3].T + up[:, 3]
    layer.down.choose(2), layer.up.choose(1)
    torch.testing.assert_close(layer.train()(x), adapter(downs[2], ups[1]))
    layer(x).sum().backward()
    assert [branch.grad is not None for branch in downs] == [False, False, True, False]
    torch.testing.assert_close(layer.eval()(x), adapter(torch.stack(downs).mean(0), torch.stack(ups).mean(0)))


def test_divergence():
    """(KL(p | q) + KL(q | p)) / 2 by torch's own KL, a mean over images and pixels; zero for the same logits."""
    one, other = torch.randn(2, 4, 5, 3, 3)
    p, q = (logits.permute(0, 2, 3, 1).reshape(-1, 5).log_softmax(1) for logits in (one, other))
    kl = F.kl_div(q, p, log_target=True, reduction='batchmean') + F.kl_div(p, q, log_target=True, reduction='batchmean')
    torch.testing.assert_close(divergence(one, other), kl / 2)
    assert divergence(one, one + 3.) < 1e-6


def test_draws():
    """Down and up, layers and the two passes of a step are drawn independently; each one with the same chance."""
    tuned = build('vit_timm', dict(type='AdaMix', rank=2, branches=4))

    def numbers(step, stream=0):
        draw(tuned, step, 5, stream)
        return [next(i for i, one in enumerate(found.all) if one is found.drawn) for found in mixtures(tuned)]
    first, second = [[numbers(step, stream) for step in range(200)] for stream in (0, AGAIN)]
    assert first == [numbers(step) for step in range(200)]
    for rows in (first, second):
        for column in zip(*rows):
            assert min(column.count(i) for i in range(4)) > 25
    columns = [*zip(*first), *zip(*second)]
    for i, one in enumerate(columns):
        for other in columns[:i]:
            assert 20 < sum(a == b for a, b in zip(one, other)) < 80    # 50 of 200


def test_one_plain_adapter_is_left():
    """Averaged, it is the AdapterPfeiffer of these weights; its outputs are what the mixture's were in evaluation."""
    tuned = alike('vit_mmpretrain', dict(type='AdaMix', rank=4, branches=3), stirred=True)
    x = image('vit_mmpretrain')
    want = tuned.eval()(x)
    gone = average(tuned)
    assert len(gone) == 4 * 2 * 2 and distance(tuned(x), want) <= 1e-6
    plain = build('vit_mmpretrain', dict(type='AdapterPfeiffer', rank=4, activation='gelu'))
    plain.load_state_dict({name: value for name, value in tuned.state_dict().items() if name in tuned.tuning.keys},
                          strict=False)
    adapters = [module for module in tuned.modules() if isinstance(module, MixAdapter)]
    for layer, mine in zip([block.ffn.layers[1].adapter for block in plain.layers], adapters, strict=True):
        (down,), (up,) = mine.down.all, mine.up.all
        layer.down.data, layer.down_bias.data = down[:, :-1].clone(), down[:, -1].clone()
        layer.up.data, layer.up_bias.data = up[:, :-1].clone(), up[:, -1].clone()
    assert distance(plain.eval()(x), want) <= 1e-6


def test_lora_merges():
    tuned = alike('swin_mmdet', dict(type='AdaMix', module='lora', rank=2, branches=3), stirred=True)
    x = image('swin_mmdet')
    merged = e3va.merge(tuned)
    tuned.eval(), merged.eval()
    assert distance(merged(x), tuned(x)) <= 1e-5 and not hasattr(merged, 'tuning')


def test_counts():
    """n (2 r C + r + C) a block; of LoRAs on q and v n 4 r C; a shared projection is one."""
    wide, blocks = 768, 12
    assert count(dict(type='AdaMix', rank=16, branches=4)) == 4 * blocks * (2 * 16 * wide + 16 + wide) == 4 * 304_320
    assert count(dict(type='AdaMix', rank=16, branches=4, share='up')) == blocks * (
        4 * 16 * (wide + 1) + wide * 17)
    assert count(dict(type='AdaMix', module='lora', rank=8, branches=4)) == 4 * 294_912


@pytest.mark.parametrize('options, words', [
    (dict(module='vpt'), "module must be one of 'adapter', 'lora'"), (dict(targets=['qkv']), 'names layers for LoRAs'),
    (dict(roles=('q',)), "roles must be one of 'proj', 'fc2'"), (dict(branches=0), 'branches must be'),
    (dict(rank=25), 'rank must be')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_timm', dict(dict(type='AdaMix', rank=2), **options))

"""E2VPT: rows for keys and values against VPT, importance by a mask, what is cut, pruned deltas, counts."""
import copy

import pytest
import torch

import e3va
from e3va.e2vpt.method import importance, prompts_of, prune, pruned, survivors
from e3va.methods.vpt import attention_of
from e3va.trunks import norm_of, used
from tests.conftest import build, distance, image, pair, projected, stir
from tests.test_methods.counts import count
from tests.test_methods.test_vpt import vits

METHOD = dict(type='E2VPT', tokens=4, key_values=3, segments=4)


def keys_and_values(block, tokens):
    """(2, k, C) of tokens (k, C), by the stock weights."""
    attention = attention_of(block)
    if hasattr(attention, 'qkv'):
        weight, bias = attention.qkv.weight, attention.qkv.bias
    else:
        weight, bias = attention.attn.in_proj_weight, attention.attn.in_proj_bias
    whole = torch.nn.functional.linear(norm_of(block)(tokens), weight, bias).detach()
    return whole.unflatten(-1, (3, -1)).unbind(1)[1:]


@pytest.mark.parametrize('trunk', [
    'swin_mmdet', 'swin_mmpretrain', 'swin_timm', 'vit_timm', 'mmpretrain', 'mmseg', 'timm'])
def test_rows_for_keys_and_values(trunk):
    """Rows that are the keys and values of three further prompts act as these: VPT with seven prompts."""
    torch.manual_seed(0)
    stock = build(trunk) if '_' in trunk else vits()[trunk][0]
    stir(stock)
    tuned = e3va.tune(copy.deepcopy(stock), dict(METHOD, shared=False)).eval()
    vpt = e3va.tune(stock, dict(type='VPT', tokens=7)).eval()
    for mine, other in zip(sum(used(tuned), []), sum(used(vpt), []), strict=True):
        whole = other.prompts.tokens.data
        mine.prompts.tokens.data = whole[:4].unflatten(1, (4, -1)).clone()
        mine.key_values.rows.data = torch.stack(keys_and_values(other, whole[4:]))
    x = image(trunk) if '_' in trunk else torch.randn(2, 3, 64, 64)
    assert distance(tuned(x), vpt(x)) <= 1e-5


def test_shared_rows_and_zeros():
    """One row is key and value; a cut segment is zeros at its place."""
    tuned = build('vit_timm', METHOD).eval()
    rows = tuned.blocks[0].key_values()
    assert torch.equal(rows[0], rows[1]) and len(tuned.blocks[0].key_values.rows) == 1
    prompts = tuned.blocks[0].prompts
    want = prompts.tokens.detach().clone()[[0, 3]]
    want[0, 1] = want[1, 0] = 0
    prune(tuned, torch.tensor([0, 3]), torch.tensor([[0, 2, 3], [1, 2, 3]]))
    assert torch.equal(prompts(2)[1], want.flatten(1)) and pruned(tuned)
    prune(tuned, torch.tensor([1]), torch.tensor([[0, 2]]))             # once more, of what is left
    assert torch.equal(prompts.segments, torch.tensor([[1, 3]]))


@pytest.mark.parametrize('kind', ['absolute', 'signed'])
@pytest.mark.parametrize('trunk', ['swin_mmdet', 'vit_mmpretrain'])
def test_importance(trunk, kind):
    """By a mask over tokens and one over segments that multiply the prompts of all blocks, at one."""
    tuned = build(trunk, METHOD).eval()
    batches = [image(trunk, seed=seed) for seed in range(3)]
    tokens, segments = importance(tuned, batches, lambda batch: projected(tuned(batch)), kind)
    whole, parts = torch.ones(4, 1, 1, requires_grad=True), torch.ones(4, 4, 1, requires_grad=True)
    watches = [prompts.register_forward_hook(lambda _, __, out: (
        out.unflatten(-1, (4, -1)) * whole * parts).flatten(-2)) for prompts in prompts_of(tuned).values()]
    found = [torch.autograd.grad(projected(tuned(batch)), (whole, parts)) for batch in batches]
    size = torch.abs if kind == 'absolute' else torch.positive
    for got, want in zip((tokens, segments), zip(*found)):
        want = torch.stack([size(one) for one in want]).mean(0).view_as(got)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    assert len(watches) and not any(parameter.grad is not None for parameter in tuned.parameters())


def test_survivors():
    """As the public code: sorted by importance, the first int(share n) go; one stays; of equal ones the first goes."""
    tokens = torch.tensor([3., -1., 2., 2., 5.])
    segments = torch.tensor([[1., 0, 2, 0], [9, 9, 9, 9], [4, 3, 2, 1], [0, 0, 0, 0], [-5, 5, 1, 0]])
    left, kept = survivors(tokens, segments, 0.5, 0.5)
    assert left.tolist() == [0, 3, 4] and kept.tolist() == [[0, 2], [2, 3], [1, 2]]
    left, kept = survivors(tokens, segments, 1, 0)
    assert left.tolist() == [4] and kept.tolist() == [[0, 1, 2, 3]]


def test_pruned_delta(tmp_path):
    """It holds what survived; a fresh trunk takes its shape and gives the same outputs."""
    stock, tuned = pair('swin_mmdet', METHOD, stirred=True)
    prune(tuned, torch.tensor([1, 2]), torch.tensor([[0, 3], [1, 3]]))
    for stage, width in enumerate((24, 48, 96, 192)):
        assert e3va.delta(tuned)[f'stages.{stage}.blocks.0.prompts.tokens'].shape == (2, 2, width // 4)
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    again = build('swin_mmdet', METHOD, seed=5)
    again.load_state_dict(stock.state_dict(), strict=False)
    e3va.load_delta(again, tmp_path / 'delta.safetensors')
    x = image('swin_mmdet')
    assert distance(again.eval()(x), tuned.eval()(x)) == 0
    state = tuned.state_dict()
    state['stages.0.blocks.0.prompts.segments'] = torch.full((2, 2), 4)
    with pytest.raises(ValueError, match='segments names segments that a prompt of 4 has not'):
        again.load_state_dict(state)


def test_counts():
    """(p + k) C L; keys and values apart 2 k; of five tokens and sixteen segments half are 3 x 8 x 48."""
    assert count(dict(type='E2VPT')) == 10 * 768 * 12 == 92_160
    assert count(dict(type='E2VPT', tokens=20, key_values=10, shared=False)) == 40 * 768 * 12
    tuned = build('vit_mmpretrain', dict(METHOD, tokens=5))
    prune(tuned, *survivors(torch.rand(5), torch.rand(5, 4), 0.5, 0.5))
    assert e3va.report(tuned)['trained'] == 4 * (3 * 2 * 6 + 3 * 24)


@pytest.mark.parametrize('options, words', [
    (dict(key_values=0), 'key_values must be'), (dict(segments=5), 'segments=5 does not divide the width of 24'),
    (dict(shared='yes'), 'shared must be one of'), (dict(tokens=201), 'at most 200')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_timm', dict(METHOD, **options))


def test_no_importance():
    tuned = build('vit_timm', METHOD).eval()
    with pytest.raises(ValueError, match='there is no training data'):
        importance(tuned, [], None)
    with pytest.raises(ValueError, match='no gradient reaches the prompts'):
        importance(tuned, [image('vit_timm')], lambda batch: 0 * projected(tuned(batch)))
    with pytest.raises(ValueError, match='gradient of batch 1 is not finite'):
        importance(tuned, [image('vit_timm'), torch.full((1, 3, 71, 90), torch.nan)],
                   lambda batch: projected(tuned(batch)))

"""Deltas of quantised matrices: their bytes, the file, and the same bits after every way of loading."""
import copy

import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file

import e3va
from e3va.delta import file as delta_file
from e3va.layers.quantised import quantised_entries
from e3va.registry import MODELS
from tests.conftest import alike, build, distance, image, pair, projected

METHOD = dict(type='LoRA', rank=6, bits=2)
VIT_B = dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', arch='b')


def same(*paths):
    """Whether two files hold the same."""
    a, b = map(load_file, paths)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('method,bits,exact', [
    ('AdaptFormer', 1, 73_920), ('LoRA', 1, 147_840)])                  # the sizes of the paper's files, less the head
def test_bytes_on_vit_b(method, bits, exact, tmp_path):
    """`delta_bytes` is the payload in the file; around it there are less than 16 KiB, also with a base and classes."""
    tuned = MODELS.build(dict(VIT_B, method=dict(type=method, rank=32, bits=bits)))
    assert e3va.report(tuned)['delta_bytes'] == exact
    path = tmp_path / 'delta.safetensors'
    e3va.save_delta(tuned, path, base='https://download.openmmlab.com/some/folder/vit-base-p16.pth',
                    dataset_meta=dict(classes=[f'class {i}' for i in range(20)]))
    assert sum(value.numel() * value.element_size() for value in load_file(path).values()) == exact
    assert exact < path.stat().st_size < exact + 16 * 1024


@pytest.mark.parametrize('trunk,method', [
    ('vit_timm', dict(type='LoRA', rank=3, bits=1)), ('vit_timm', dict(type='AdaptFormer', rank=5, bits=2)),
    ('swin_mmdet', dict(type='LoRA', rank=5, bits=4, roles=('proj', 'fc1'))),
    ('convnext_timm', dict(type='AdaptFormer', rank=3, bits=1))])
def test_round_trips(trunk, method, tmp_path):
    """The same bits in what it gives out; saved again, and loaded as an ordinary checkpoint, the same file."""
    stock, tuned = pair(trunk, method, stirred=True)
    first, second, third = (tmp_path / f'{i}.safetensors' for i in range(3))
    x = image(trunk)
    want = tuned.eval()(x)
    e3va.save_delta(tuned, first)
    assert e3va.report(tuned)['delta_bytes'] == sum(value.numel() * value.element_size()
                                                    for value in load_file(first).values())
    again = build(trunk, method, seed=5)
    again.load_state_dict(stock.state_dict(), strict=False)
    assert e3va.load_delta(again, first) is again
    assert distance(again.eval()(x), want) == 0
    for other in (copy.deepcopy(again), again):
        e3va.save_delta(other, second)
        assert same(second, first)
    whole = build(trunk, method, seed=6)                                # as from mmengine's checkpoint
    whole.load_state_dict(again.state_dict())
    assert distance(whole.eval()(x), want) == 0
    whole.load_state_dict(tuned.state_dict())                           # the floats themselves
    assert distance(whole(x), want) == 0
    e3va.save_delta(whole, third)
    assert same(third, first)


def test_training_goes_on(tmp_path):
    """From a loaded delta: the formula of the floats that came, whether or not anybody calls `train()`."""
    method = dict(type='LoRA', rank=6, bits=1, dropout=0.)
    tuned = alike('vit_mmpretrain', method, stirred=True)
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    x, runs = image('vit_mmpretrain'), []
    for calls_train in (True, False):
        stock, again = pair('vit_mmpretrain', method)
        assert again.training
        e3va.load_delta(again, tmp_path / 'delta.safetensors')
        if calls_train:
            again.eval()
            again.train()
        for module in again.modules():
            if hasattr(module, 'drop_prob'):
                module.drop_prob = 0.
        loss = projected(again(x))
        torch.testing.assert_close(loss, projected(tuned.eval()(x)), rtol=1e-5, atol=1e-6)
        loss.backward()
        torch.optim.SGD([p for p in again.parameters() if p.requires_grad], lr=0.1).step()
        unit = again.layers[0].attn.qkv.pairs['0'].eval()
        w, centre = unit.down.detach(), unit.down.detach().mean()
        torch.testing.assert_close(unit.value('down'), torch.where(w > centre, 1., -1.) * 0.67449 * w.std() + centre,
                                   rtol=1e-4, atol=1e-6)
        runs.append(again.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_scheme_and_converter(tmp_path):
    """e3va://FILE is an ordinary checkpoint of the tuned config; merged it is one of the stock config."""
    from e3va.delta.scheme import whole_checkpoint
    stock, tuned = pair('vit_mmpretrain', METHOD, stirred=True)
    base, path = tmp_path / 'base.pth', tmp_path / 'delta.safetensors'
    for unit in tuned.layers[1].attn.qkv.pairs.values():                # codes that do not stay when they are stretched
        unit.down.data = torch.rand(6, 24) ** 8
    torch.save(dict(state_dict=stock.state_dict()), base)
    e3va.save_delta(tuned, path, base=str(base))
    found = CheckpointLoader.load_checkpoint(f'e3va://{path}')['state_dict']
    again = build('vit_mmpretrain', METHOD, seed=4)
    again.load_state_dict(found)
    x = image('vit_mmpretrain')
    assert distance(again.eval()(x), tuned.eval()(x)) == 0
    plain = build('vit_mmpretrain', seed=4)
    plain.load_state_dict(whole_checkpoint(path, merged=True)['state_dict'])
    plain.eval()
    assert distance(plain(x), tuned(x)) <= 1e-5
    merged = e3va.merge(e3va.load_delta(build('vit_mmpretrain', METHOD, seed=4), path))     # in training mode
    merged.eval()
    assert distance(merged(x), tuned(x)) <= 1e-5


def test_other_bits_are_refused(tmp_path):
    stock, tuned = pair('vit_timm', METHOD, stirred=True)
    path = tmp_path / 'delta.safetensors'
    e3va.save_delta(tuned, path)
    for bits in (1, 32):
        with pytest.raises(ValueError, match=r"quantised, or in other bits.*trained with .*'bits': 2"):
            e3va.load_delta(pair('vit_timm', dict(type='LoRA', rank=6, bits=bits))[1], path)


def test_floats_keep_their_file(tmp_path):
    """Without quantised matrices nothing is packed."""
    tuned = alike('vit_timm', 'lora', stirred=True)
    assert quantised_entries(tuned) == {}
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    tensors, meta = delta_file.read(tmp_path / 'delta.safetensors')
    assert set(tensors) == set(e3va.delta(tuned)) == set(load_file(tmp_path / 'delta.safetensors'))

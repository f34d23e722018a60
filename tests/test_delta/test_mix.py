"""Strength and sums: weights are interpolated exactly where a method is linear, and refused where it is not."""
import pytest
import torch

import e3va
from e3va.delta.scheme import whole_checkpoint
from tests.conftest import METHODS, build, stir

LINEAR = ('lora', 'dmlora', 'dmlora_one_stage', 'fact_tt', 'fact_tk', 'fourierft', 'mora', 'ssf', 'gps', 'gps_net',
          'bitfit', 'norm_tuning', 'partial', 'repadapter', 'e3va_mix', 'fixed_norms')
OTHERS = ('lora_1bit', 'e3va', 'adapter', 'adaptformer', 'compacter', 'lorand', 'mona', 'vpt_deep', 'evp')
SUMS = ('lora', 'e3va_mix', 'ssf', 'bitfit', 'mora', 'fourierft', 'norm_tuning')


def saved(folder, method, seed=1, trunk='vit_mmpretrain', **changes):
    """(delta, its trunk) over the weights of the seed 0, in the file trunk.pth."""
    stock = build(trunk)
    torch.save(stock.state_dict(), folder / 'trunk.pth')
    method = dict(METHODS[method], **changes)
    tuned = build(trunk, method, init_cfg=dict(type='Pretrained', checkpoint=str(folder / 'trunk.pth')))
    tuned.load_state_dict(stock.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuned.eval()
    path = folder / f'{seed}.safetensors'
    e3va.save_delta(tuned, path)
    return path, tuned


def weights(path, **options):
    """The stock trunk's weights that a delta is merged to, in double precision."""
    state = whole_checkpoint(str(path), merged=True, **options)['state_dict']
    return {name: value.double() for name, value in state.items() if value.is_floating_point()}


def off(found, wanted):
    return max(float((found[name] - value).abs().max()) for name, value in wanted.items())


@pytest.mark.parametrize('method', LINEAR)
def test_strength_interpolates_all_weights(tmp_path, method):
    """WiSE-FT's (1 - t) trunk + t task of the merged model, whatever the method's own entries are."""
    path, _ = saved(tmp_path, method)
    stock = {name: value.double() for name, value in torch.load(tmp_path / 'trunk.pth').items()}
    task = weights(path)
    assert off(task, {name: stock[name] for name in task}) > 0.01
    for t in (0., 0.3, 1.5):
        wanted = {name: (1 - t) * stock[name] + t * value for name, value in task.items()}
        assert off(weights(path, strength=t), wanted) < 2e-6


@pytest.mark.parametrize('method', OTHERS)
def test_others_are_refused(tmp_path, method):
    path, _ = saved(tmp_path, method)
    from mmengine.runner import CheckpointLoader
    with pytest.raises(ValueError, match='strength=0.5: .* is not linear in what it trains'):
        CheckpointLoader.load_checkpoint(f'e3va://{path}?strength=0.5')
    assert CheckpointLoader.load_checkpoint(f'e3va://{path}?strength=1')['state_dict']
    with pytest.raises(ValueError, match='not linear|no deltas of few bits'):
        e3va.blend([path, path], [0.5, 0.5])


@pytest.mark.parametrize('method', SUMS)
def test_blend_sums_the_changes(tmp_path, method):
    a, _ = saved(tmp_path, method, 1)
    b, _ = saved(tmp_path, method, 2)
    e3va.blend([a, f'e3va://{b}'], [0.7, 0.3], out=tmp_path / 'sum.safetensors')
    one, two = weights(a), weights(b)
    wanted = {name: 0.7 * value + 0.3 * two[name] for name, value in one.items()}
    assert off(weights(tmp_path / 'sum.safetensors'), wanted) < 2e-6


def test_blend_of_other_ranks(tmp_path):
    a, _ = saved(tmp_path, 'lora', 1, rank=2, alpha=8)
    b, _ = saved(tmp_path, 'lora', 2, rank=5, alpha=1)
    e3va.blend([a, b], [1.2, -0.2], out=tmp_path / 'sum.safetensors')
    one, two = weights(a), weights(b)
    wanted = {name: 1.2 * value - 0.2 * two[name] for name, value in one.items()}
    assert off(weights(tmp_path / 'sum.safetensors'), wanted) < 2e-6


def test_what_cannot_be_blended(tmp_path):
    a, _ = saved(tmp_path, 'lora', 1)
    with pytest.raises(ValueError, match='two deltas or more'):
        e3va.blend([a], [1.])
    with pytest.raises(ValueError, match='sum to 0.9, and must to 1'):
        e3va.blend([a, a], [0.5, 0.4])
    b, _ = saved(tmp_path, 'ssf', 2)
    with pytest.raises(ValueError, match='is of LoRA and .* of SSF'):
        e3va.blend([a, b], [0.5, 0.5])
    c, _ = saved(tmp_path, 'lora', 3, roles=('q', ))
    with pytest.raises(ValueError, match='one setting of a method'):
        e3va.blend([a, c], [0.5, 0.5])
    other = build('vit_mmpretrain', 'lora', seed=9)
    stir(other)
    e3va.save_delta(other, tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match='other frozen weights'):
        e3va.blend([a, tmp_path / 'other.safetensors'], [0.5, 0.5])
    for method in ('gps', 'dmlora', 'fact_tt'):
        d, _ = saved(tmp_path, method, 4)
        with pytest.raises(ValueError, match='cannot hold the sum'):
            e3va.blend([d, d], [0.5, 0.5])

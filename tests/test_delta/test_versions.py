"""Files of each format go on loading; `versions/` has those that the version before the recorded config wrote.

They were made by commit 341e009 from trunks of `TRUNK` with the values of `base.safetensors`.
"""
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file

import e3va
from e3va.delta import file as delta_file
from e3va.delta.scheme import whole_checkpoint

FILES = Path(__file__).with_name('versions')
TRUNK = dict(trunk='mmpretrain.VisionTransformer', img_size=32, patch_size=16, arch=dict(
    embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32))
METHODS = dict(lora=dict(type='LoRA', rank=2, alpha=4), gps=dict(type='GPS', k=2, criterion='magnitude'),
               lora_1bit=dict(type='LoRA', rank=3, bits=1), e3va=dict(type='E3VA', rank=2))


def stock():
    return load_file(FILES / 'base.safetensors')


@pytest.mark.parametrize('name', METHODS)
def test_version_1(name):
    """By load_delta, and whole with its base; the outputs are those of then."""
    expected = load_file(FILES / 'expected.safetensors')
    tuned = MODELS.build(dict(type='e3va.Tuned', method=METHODS[name], **TRUNK))
    tuned.load_state_dict(stock(), strict=False)
    e3va.load_delta(tuned, FILES / f'{name}.safetensors')
    again = MODELS.build(dict(type='e3va.Tuned', method=METHODS[name], **TRUNK))
    whole = whole_checkpoint(FILES / f'{name}.safetensors', str(FILES / 'base.safetensors'))
    again.load_state_dict(whole['state_dict'])
    for model in (tuned, again):
        model.eval()
        with torch.no_grad():
            assert torch.allclose(model(expected['image'])[0], expected[f'expected.{name}'], atol=1e-6)
    meta = delta_file.read(FILES / f'{name}.safetensors')[1]
    assert meta['version'] == 1 and meta['dataset_meta']['classes'] == ['a', 'b'] and meta.get('config') is None


def test_version_2():
    """Of two tuned trunks."""
    expected = load_file(FILES / 'expected.safetensors')
    two = torch.nn.ModuleDict({name: MODELS.build(dict(type='e3va.Tuned', method='BitFit', **TRUNK)) for name in 'ab'})
    for trunk in two.values():
        trunk.load_state_dict(stock(), strict=False)
    e3va.load_delta(two, FILES / 'two_trunks.safetensors')
    two.eval()
    with torch.no_grad():
        found = torch.cat([trunk(expected['image'])[0] for trunk in two.values()])
    assert torch.allclose(found, expected['expected.two_trunks'], atol=1e-6)

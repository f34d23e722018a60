"""timm:// gives mmpretrain's VisionTransformer the weights of a timm ViT: files in both formats, and bad ones."""
import numpy as np
import pytest
import timm
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

import e3va
from e3va.datasets.checkpoints import make_checkpoint
from e3va.registry import MODELS
from tests.conftest import stir

NAME = 'vit_tiny_patch16_224'
WIDTH, DEPTH, HEADS = 192, 12, 3


def mm_vit(checkpoint):
    from mmpretrain.models import VisionTransformer
    init_default_scope('mmpretrain')
    trunk = VisionTransformer(
        'deit-tiny', img_size=224, patch_size=16, out_type='cls_token',
        init_cfg=ConfigDict(type='Pretrained', checkpoint=checkpoint, prefix='backbone'))
    trunk.init_weights()
    trunk.eval()            # mmpretrain's returns nothing
    return trunk


@pytest.fixture(scope='module')
def google(tmp_path_factory):
    """A file in the format of Google's ViT-B_16.npz: kernels are (in, out), attention's split into heads."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp('npz') / 'ViT.npz'
    def draw(*shape):
        return rng.normal(0, 0.02, shape).astype(np.float32)
    norm = 'Transformer/encoder_norm'
    values = {'embedding/kernel': draw(16, 16, 3, WIDTH), 'embedding/bias': draw(WIDTH), 'cls': draw(1, 1, WIDTH),
              'Transformer/posembed_input/pos_embedding': draw(1, 197, WIDTH),
              f'{norm}/scale': 1 + draw(WIDTH), f'{norm}/bias': draw(WIDTH),
              'head/kernel': draw(WIDTH, 21843), 'head/bias': draw(21843)}
    for i in range(DEPTH):
        block = f'Transformer/encoderblock_{i}'
        attention = f'{block}/MultiHeadDotProductAttention_1'
        for role in ('query', 'key', 'value'):
            values[f'{attention}/{role}/kernel'] = draw(WIDTH, HEADS, WIDTH // HEADS)
            values[f'{attention}/{role}/bias'] = draw(HEADS, WIDTH // HEADS)
        values[f'{attention}/out/kernel'] = draw(HEADS, WIDTH // HEADS, WIDTH)
        values[f'{attention}/out/bias'] = draw(WIDTH)
        for j, shape in ((0, (WIDTH, 4 * WIDTH)), (1, (4 * WIDTH, WIDTH))):
            values[f'{block}/MlpBlock_3/Dense_{j}/kernel'] = draw(*shape)
            values[f'{block}/MlpBlock_3/Dense_{j}/bias'] = draw(shape[1])
        for j in (0, 2):
            values[f'{block}/LayerNorm_{j}/scale'], values[f'{block}/LayerNorm_{j}/bias'] = 1 + draw(WIDTH), draw(WIDTH)
    np.savez(path, **values)
    return path, values


def test_googles_file(google):
    """Every parameter lies where the format says: q, k, v stacked as rows, kernels transposed."""
    path, values = google
    trunk = mm_vit(f'timm://{NAME}?file={path}')
    own = {name: parameter.detach().numpy() for name, parameter in trunk.named_parameters()}
    attention = 'Transformer/encoderblock_3/MultiHeadDotProductAttention_1'
    stacked = np.concatenate([values[f'{attention}/{role}/kernel'].reshape(WIDTH, WIDTH).T
                              for role in ('query', 'key', 'value')])
    for name, value in {
            'layers.3.attn.qkv.weight': stacked,
            'layers.3.attn.proj.weight': values[f'{attention}/out/kernel'].reshape(WIDTH, WIDTH).T,
            'layers.3.ffn.layers.0.0.weight': values['Transformer/encoderblock_3/MlpBlock_3/Dense_0/kernel'].T,
            'layers.3.ffn.layers.1.bias': values['Transformer/encoderblock_3/MlpBlock_3/Dense_1/bias'],
            'layers.3.ln2.weight': values['Transformer/encoderblock_3/LayerNorm_2/scale'],
            'ln1.bias': values['Transformer/encoder_norm/bias'],
            'patch_embed.projection.weight': values['embedding/kernel'].transpose(3, 2, 0, 1),
            'pos_embed': values['Transformer/posembed_input/pos_embedding'], 'cls_token': values['cls']}.items():
        assert np.array_equal(own[name], value), name


def test_outputs_are_timms(tmp_path):
    path = make_checkpoint(tmp_path / 'vit.pth', NAME, 'timm')
    model = timm.create_model(NAME, num_classes=1000).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(mm_vit(f'timm://{NAME}?file={path}')(image)[-1],
                                   model.forward_features(image)[:, 0], rtol=1e-4, atol=1e-5)


def test_a_delta_finds_its_base_there(tmp_path):
    """What is recorded as the base of a delta is the timm:// address; e3va:// loads it again."""
    path = make_checkpoint(tmp_path / 'vit.pth', NAME, 'timm')
    init_default_scope('mmpretrain')
    trunk = MODELS.build(dict(
        type='e3va.Tuned', trunk='VisionTransformer', method=dict(type='LoRA', rank=2), arch='deit-tiny',
        init_cfg=dict(type='Pretrained', checkpoint=f'timm://{NAME}?file={path}', prefix='backbone')))
    trunk.init_weights()
    stir(trunk)
    e3va.save_delta(trunk, tmp_path / 'delta.safetensors')
    found = CheckpointLoader.load_checkpoint(f'e3va://{tmp_path}/delta.safetensors')['state_dict']
    assert all(torch.equal(found[name], value) for name, value in trunk.state_dict().items())


@pytest.mark.parametrize('source, says', [
    ('vit_tiny_patch16', "timm has no model 'vit_tiny_patch16'; near: vit_tiny_patch16"),
    ('vit_tiny_patch16_224.no_such_tag', 'cannot fetch the weights .*no_such_tag'),
    ('vit_tiny_patch16_224?file=OTHER', 'OTHER leaves 24 parameters of vit_tiny_patch16_224 at random'),
])
def test_bad_sources_are_one_error(tmp_path, monkeypatch, source, says):
    monkeypatch.chdir(tmp_path)
    if 'OTHER' in source:
        make_checkpoint('OTHER', NAME, 'timm', depth=10)
    with pytest.raises(ValueError, match=says):
        CheckpointLoader.load_checkpoint(f'timm://{source}')


def test_without_a_way_to_the_hub(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError('no network')
    monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', offline)
    monkeypatch.setattr(timm.models._builder, 'load_custom_from_hf', offline)
    with pytest.raises(ValueError, match='cannot fetch the weights .OSError: no network.* give timm://vit_base'):
        CheckpointLoader.load_checkpoint('timm://vit_base_patch16_224.orig_in21k')

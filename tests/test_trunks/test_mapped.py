"""Trunks whose weights stay in their file give what those give that load it."""
import mmdet.models  # noqa: F401 registers
import mmpretrain.models  # noqa: F401 registers
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from safetensors.torch import save_file

from e3va.trunks.mapped import mapping

TRUNKS = {
    'mmdet.SwinTransformer': dict(embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
    'mmpretrain.VisionTransformer': dict(arch='deit-tiny', out_type='featmap', img_size=64),
    'mmpretrain.ConvNeXt': dict(arch='atto', gap_before_final_norm=False),
    'e3va.TimmTrunk': dict(name='swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1)),
}
LORA = dict(type='LoRA', rank=2)


def config(trunk, file):
    return ConfigDict(type='e3va.Tuned', trunk=trunk, method=LORA, **TRUNKS[trunk],
                      init_cfg=dict(type='Pretrained', checkpoint=str(file)))


def saved(trunk, file, dtype=torch.float32, less=()):
    module = MODELS.build(dict(type=trunk, **TRUNKS[trunk]))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    prefix = 'backbone.' if trunk.startswith('mmdet') else ''
    save_file({prefix + name: value.to(dtype) if value.is_floating_point() else value
               for name, value in module.state_dict().items() if name not in less}, file)


@pytest.mark.parametrize('trunk', TRUNKS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_as_loaded(trunk, dtype, tmp_path):
    saved(trunk, file := tmp_path / 'trunk.safetensors', dtype)
    loaded = MODELS.build(config(trunk, file))
    loaded.init_weights()
    with mapping():
        mapped = MODELS.build(config(trunk, file))
    mapped.init_weights()
    want, got = loaded.state_dict(), mapped.state_dict()
    assert got.keys() == want.keys()
    assert all(got[name].dtype == value.dtype and got[name].shape == value.shape for name, value in want.items())
    loaded.eval(), mapped.eval()
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        assert all(torch.equal(one, other) for one, other in zip(loaded(image), mapped(image), strict=True))
    trains = [{name for name, one in model.named_parameters() if one.requires_grad} for model in (loaded, mapped)]
    assert trains[0] == trains[1]


@pytest.mark.parametrize('checkpoint', [None, '/there/is/none.safetensors', __file__])
def test_no_file(checkpoint):
    with pytest.raises(ValueError, match=r'need a \.safetensors file at hand'), mapping():
        MODELS.build(config('e3va.TimmTrunk', checkpoint))


def test_a_file_that_lacks_weights(tmp_path):
    trunk = 'mmpretrain.VisionTransformer'
    saved(trunk, file := tmp_path / 'less.safetensors', less=('layers.1.ln1.weight', 'cls_token'))
    with pytest.raises(ValueError, match='leaves 2 parameters of the trunk VisionTransformer without'), mapping():
        MODELS.build(config(trunk, file))
    MODELS.build(dict(type=trunk, **TRUNKS[trunk]))                     # and all is as it was

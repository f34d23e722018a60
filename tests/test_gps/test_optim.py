"""The wrappers of GPS: masks in front of the step, behind the clipping; rates of values; the AMP twin."""
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper

from e3va.command.config import use_amp
from e3va.gps.method import sparse_layers
from e3va.gps.optim import AmpGPSOptimWrapper, GPSOptimWrapper
from e3va.registry import OPTIM_WRAPPERS
from tests.conftest import build, image, projected


def test_clipped_first_and_masked_then():
    """Public code: the norm is the whole gradient's; SGD then moves the selected entries by it, no other."""
    model = build('vit_timm', dict(type='GPS', mode='mask', criterion='magnitude', train=()))
    model.tuning.hooked = True
    wrapper = GPSOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.), clip_grad=dict(max_norm=0.1))
    wrapper.mask(model)
    before = {name: layer.weight.detach().clone() for name, layer in sparse_layers(model).items()}
    loss = projected(model(image('vit_timm')))
    weights = [layer.weight for layer in sparse_layers(model).values()]
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    wrapper.update_params(loss)
    for (name, layer), gradient in zip(sparse_layers(model).items(), gradients):
        want = torch.zeros(layer.weight.numel())
        index = layer.index.flatten().long()
        want[index] = gradient.flatten()[index] * 0.1 / norm
        torch.testing.assert_close((before[name] - layer.weight.detach()).flatten(), want, atol=1e-6, rtol=1e-3)
        assert int((before[name] != layer.weight).sum()) <= len(index)


def test_sparse_mode_is_the_plain_wrapper():
    model = build('vit_timm', 'gps')
    wrapper = GPSOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.), accumulative_counts=2)
    assert isinstance(wrapper, OptimWrapper) and wrapper.masked == []
    before = model.blocks[0].attn.qkv.values.detach().clone()
    wrapper.initialize_count_status(model, 0, 4)
    for _ in range(2):
        assert torch.equal(before, model.blocks[0].attn.qkv.values)
        with wrapper.optim_context(model):
            wrapper.update_params(projected(model(image('vit_timm'))))
    assert not torch.equal(before, model.blocks[0].attn.qkv.values)


def test_values_are_pretrained_weights():
    """A tenth of the rate for the backbone is a tenth for its values, which LoRA's factors are spared."""
    model = torch.nn.ModuleDict(dict(backbone=build('vit_timm', 'gps')))
    wrapper = build_optim_wrapper(model, dict(
        optimizer=dict(type='AdamW', lr=1.), constructor='e3va.TunedOptimWrapperConstructor',
        paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))))
    own = set(model.parameters())
    assert {group['lr'] for group in wrapper.param_groups if own & set(group['params'])} == {0.1}


def test_amp_twin():
    cfg = use_amp(Config(dict(optim_wrapper=dict(type='e3va.GPSOptimWrapper'))))
    assert OPTIM_WRAPPERS.get(cfg.optim_wrapper.type) is AmpGPSOptimWrapper

"""The constructor against mmengine's own: the same settings for every tensor, in fewer groups."""
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import LinearLR, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from e3va.command.config import apply_method, load_config, load_method, prepare
from tests.conftest import SWIN_ARCH, VIT_ARCH, build


def settings(wrapper, model):
    own = set(model.parameters())         # mmengine adds one of its own, for the base rate
    return {parameter: (group['lr'], group['weight_decay']) for group in wrapper.param_groups
            for parameter in group['params'] if parameter in own}


def test_same_settings_in_fewer_groups(caplog):
    model = torch.nn.ModuleDict(dict(backbone=build('swin_mmdet', 'e3va'), head=torch.nn.Linear(2, 2)))
    config = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(bias_lr_mult=2., custom_keys=dict(norm=dict(decay_mult=0.), head=dict(lr_mult=0.1))))
    lines = []
    MMLogger.get_instance('constructor')
    logger = MMLogger.get_current_instance()

    def listen(record):
        lines.append(record.getMessage())
        return True
    stock = build_optim_wrapper(model, config)
    logger.handlers[0].addFilter(listen)
    ours = build_optim_wrapper(model, dict(config, constructor='e3va.TunedOptimWrapperConstructor'))
    logger.handlers[0].removeFilter(listen)
    assert settings(ours, model) == settings(stock, model)
    assert len(stock.param_groups) > 50 and len(ours.param_groups) == len(set(settings(stock, model).values())) + 1
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    assert not [line for line in lines if 'is skipped' in line or 'paramwise_options' in line]
    assert f'optimizer: {frozen} frozen tensors left out' in lines


def test_a_slow_backbone_does_not_slow_the_method_down():
    """Mask2Former's keys: a tenth of the rate for the trunk's own weights, all of it for LoRA's, half by name."""
    keys = dict(backbone=dict(lr_mult=0.1), query=dict(lr_mult=3.), norm=dict(decay_mult=0.))

    def rates(**more):
        model = torch.nn.ModuleDict(dict(
            backbone=build('swin_mmdet', dict(type='LoRA', train_out_norms=True)), query=torch.nn.Linear(2, 2)))
        config = dict(optimizer=dict(type='AdamW', lr=1., weight_decay=0.5), paramwise_cfg=dict(
            custom_keys=dict(keys, **more)), constructor='e3va.TunedOptimWrapperConstructor')
        found = settings(build_optim_wrapper(model, config), model)
        return {name: found[parameter] for name, parameter in model.named_parameters() if parameter in found}

    down = 'backbone.stages.0.blocks.0.attn.w_msa.qkv.pairs.0.down'
    want = {down: (1., 0.5), 'backbone.norm3.weight': (0.1, 0.5), 'query.weight': (3., 0.5)}
    found = rates()
    assert {name: found[name] for name in want} == want
    assert all(rate == (1. if name.endswith(('.up', '.down')) else 3. if 'query' in name else 0.1)
               for name, (rate, _) in found.items())
    named = rates(**{'w_msa.qkv.pairs.0.down': dict(lr_mult=0.5)})
    assert named[down] == (0.5, 0.5)
    assert rates(**{'backbone.': dict(lr_mult=0.2)})[down] == (1., 0.5)
    assert keys['backbone'] == dict(lr_mult=0.1)


LAYERWISE = {
    'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py': dict(arch=VIT_ARCH, img_size=64),
    'mmpretrain::simmim/benchmarks/swin-base-w7_8xb256-coslr-100e_in1k.py': dict(arch=SWIN_ARCH, img_size=64),
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py': {},
    'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py': {}}


def layerwise(config, method, **paramwise):
    """(model, wrapper) of a library's config whose constructor lowers the rates of the first layers."""
    cfg = prepare(apply_method(load_config(config), load_method(method)))
    cfg.model.backbone.update(LAYERWISE[config], init_cfg=None)
    cfg.model.pop('data_preprocessor', None)
    if 'rank' in cfg.model.backbone.method:
        cfg.model.backbone.method.rank = 4
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        return model, build_optim_wrapper(model, dict(
            cfg.optim_wrapper, paramwise_cfg=dict(cfg.optim_wrapper.paramwise_cfg, **paramwise)))


@pytest.mark.parametrize('method', ['lora', 'ssf', 'adaptformer', 'mona', 'bitfit', 'gps'])
@pytest.mark.parametrize('config', LAYERWISE)
def test_layerwise_rates_are_the_trunk_s(config, method):
    """What is added has the whole rate in every block; the trunk's own weights, and GPS's entries, that of their layer.
    """
    model, wrapper = layerwise(config, method)
    base, trunk = wrapper.optimizer.defaults['lr'], model.backbone
    found = {parameter: group for group in wrapper.optimizer.param_groups for parameter in group['params']}
    assert set(found) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    rates = {name: found[parameter]['lr'] / base for name, parameter in trunk.named_parameters() if parameter in found}
    if method in ('bitfit', 'gps'):
        assert min(rates.values()) < 0.8 and len(set(rates.values())) > 3
    else:
        assert set(trunk.tuning.keys).isdisjoint(rates) and set(rates.values()) == {1.}
    for group in wrapper.optimizer.param_groups:
        assert group['lr_scale'] == pytest.approx(group['lr'] / base)
        assert len(group.get('param_names', group['params'])) == len(group['params'])
    LinearLR(wrapper, start_factor=0.5, end=2)                          # a warm-up keeps the ratios
    assert all(group['lr'] == pytest.approx(0.5 * group['initial_lr']) for group in wrapper.optimizer.param_groups)
    assert all(group['initial_lr'] == pytest.approx(base * group['lr_scale'])
               for group in wrapper.optimizer.param_groups)


def test_decay_and_names_under_layerwise_rates():
    """The decay is the constructor's; a key that names what is added acts, one that names the backbone does not."""
    config = next(iter(LAYERWISE))
    keys = {'backbone': dict(lr_mult=0.1), 'pairs.0.up': dict(lr_mult=0.5, decay_mult=0.)}
    model, wrapper = layerwise(config, 'lora', custom_keys=keys)
    found = settings(wrapper, model)
    pair = model.backbone.layers[0].attn.qkv.pairs['0']
    assert found[pair.down] == (2e-3, 0.05) and found[pair.up] == (1e-3, 0.)
    ssf, wrapper = layerwise('mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', 'ssf')
    assert settings(wrapper, ssf)[ssf.backbone.stages[0][0].norm.scale] == (1e-4, 0.)       # of one dimension


def test_the_constructor_is_said():
    cfg = load_config(next(iter(LAYERWISE)))
    stock = dict(cfg.optim_wrapper.paramwise_cfg)
    for _ in range(2):                                                  # a prepared config may be prepared again
        cfg = prepare(apply_method(cfg, load_method('lora')) if 'method' not in cfg.model.backbone else cfg)
        assert cfg.optim_wrapper.constructor == 'e3va.TunedOptimWrapperConstructor'
        assert cfg.optim_wrapper.paramwise_cfg == dict(stock, constructor='LearningRateDecayOptimWrapperConstructor')
    untouched = prepare(load_config(next(iter(LAYERWISE))))
    assert untouched.optim_wrapper.constructor == 'LearningRateDecayOptimWrapperConstructor'

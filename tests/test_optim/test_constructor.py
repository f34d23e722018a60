"""The constructor against mmengine's own: the same settings for every tensor, in fewer groups."""
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper

from tests.conftest import build


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
    assert len(stock.param_groups) > 100 and len(ours.param_groups) == len(set(settings(stock, model).values())) + 1
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

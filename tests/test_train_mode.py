"""What a method holds in eval is the stock trunk in eval, where modules do work in their own `train`, too."""
import copy

import pytest
import timm
import torch

import e3va
from e3va.tuned import tune

# Modules with a `train` of their own inside the trunk keep attention biases for eval; the rest have one at their root.
MM = {
    'mmpretrain.TinyViT': {}, 'mmpretrain.LeViT': dict(arch='128s'), 'mmpretrain.EfficientFormer': {},
    'mmpretrain.DenseNet': {}, 'mmpretrain.RepVGG': dict(arch='A0'), 'mmpretrain.MobileOne': dict(arch='s0'),
    'mmpretrain.ResNet': dict(depth=18, frozen_stages=1, norm_eval=True), 'mmpretrain.PoolFormer': {},
    'mmpretrain.EdgeNeXt': {}, 'mmpretrain.RIFormer': {}, 'mmpretrain.MobileViT': {},
    'mmdet.ResNet': dict(depth=18), 'mmdet.EfficientNet': {}, 'mmdet.CSPDarknet': dict(widen_factor=0.25),
    'mmseg.MobileNetV3': {}, 'mmseg.CGNet': {}}
TIMM = ['levit_128s', 'efficientformer_l1', 'efficientformerv2_s0', 'tiny_vit_5m_224', 'efficientvit_m0']
CACHED = [*list(MM)[:3], *TIMM]


def trunk_of(name):
    torch.manual_seed(0)
    if name in TIMM:
        model = timm.create_model(name)
        with torch.no_grad():                                           # branches end in norms with weights of zero
            for parameter in model.parameters():
                parameter.fill_(0.5) if parameter.dim() == 1 and not parameter.any() else None
        return model
    import mmdet.models  # noqa: F401 registers
    import mmpretrain.models  # noqa: F401
    import mmseg.models  # noqa: F401
    from mmengine.registry import MODELS
    return MODELS.build(dict(type=name, **MM[name]))


def tensors(outs):
    return [outs] if isinstance(outs, torch.Tensor) else [one for out in outs for one in tensors(out)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other)))


@pytest.mark.parametrize('name', [*MM, *TIMM])
def test_fixed(name):
    """In training the held trunk gives what the stock one gives in eval, epoch after epoch."""
    stock, tuned = trunk_of(name), tune(trunk_of(name), 'Fixed')
    x = torch.randn(1, 3, 224, 224)
    stock.eval()                                                        # gives None in OpenMMLab's
    with torch.no_grad():
        out = stock(x)
    for mode in (True, False, True):
        tuned.train(mode)
        assert tuned.training == mode
        assert same(tuned(x), out)
        inner = [child for child in tuned.modules() if child is not tuned]
        held = [child for child in inner if not any(p.requires_grad for p in child.parameters())]
        assert not any(child.training for child in held)


@pytest.mark.parametrize('name', CACHED)
def test_biases_that_are_kept_for_eval(name, tmp_path):
    """Made again in eval after they have trained, or were loaded or merged; they get gradients in training."""
    class Biases(e3va.methods.Method):
        needs_family, mergeable, trunk_mode = False, True, 'eval'

        def apply(self, trunk, parts):
            for key, parameter in trunk.named_parameters():
                parameter.requires_grad_('attention_bias' in key)

    tuned = e3va.tune(trunk_of(name), Biases())
    x = torch.randn(1, 3, 224, 224)
    start = [one.clone() for one in tensors(tuned.eval()(x))]
    own = [p for key, p in tuned.named_parameters() if 'attention_bias' in key]
    assert own
    tuned.train()
    sum(out.square().mean() for out in tensors(tuned(x))).backward()
    assert all(p.grad is not None for p in own)
    with torch.no_grad():
        for p in own:
            p.add_(torch.randn_like(p))
    trained = [one.clone() for one in tensors(tuned.eval()(x))]
    assert not same(start, trained)

    fresh = trunk_of(name)
    fresh.load_state_dict(tuned.state_dict())
    fresh.train(), fresh.eval()
    with torch.no_grad():
        assert same(fresh(x), trained)
        again = e3va.tune(trunk_of(name), Biases()).eval()
        again(x)                                                        # it has what it keeps for eval
        again.load_state_dict(tuned.state_dict())
        assert same(again(x), trained)
        merged = e3va.merge(copy.deepcopy(again))
        assert same(merged(x), trained)


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_mmseg', 'swin_mmpretrain', 'convnext_mmpretrain'])
@pytest.mark.parametrize('method', ['lora', 'ssf', 'bitfit'])
def test_the_stock_with_cp(trunk, method):
    """OpenMMLab's own checkpointing keeps no more under a method than under full fine-tuning; gradients stay."""
    from e3va.cost.saved import saved_bytes
    from tests.conftest import build, image, pair, projected
    kept = {}
    for name in ('full', method):
        model = pair(trunk, name)[1]
        other = build(trunk, name, with_cp=True)
        other.load_state_dict(model.state_dict())
        gradients = []
        for one in (model, other):
            for module in one.train().modules():
                if type(module).__name__ == 'DropPath':
                    module.drop_prob = 0.
            kept[name, one is other] = saved_bytes(lambda: one(image(trunk)), one)
            projected(one(image(trunk))).backward()
            gradients.append({key: p.grad for key, p in one.named_parameters() if p.requires_grad})
        assert all(torch.allclose(value, gradients[1][key], atol=1e-6) for key, value in gradients[0].items())
    assert kept[method, True] <= kept['full', True] < kept['full', False]


def test_nothing_asks_for_gradients_where_nothing_trains():
    """Neither a frozen trunk nor the blocks in front of those that train are made to keep anything."""
    from e3va.cost.saved import saved_bytes
    from tests.conftest import build, image
    for method in ('fixed', dict(type='Partial', blocks=1)):
        plain, checkpointed = (build('swin_mmdet', method, with_cp=flag).train() for flag in (False, True))
        assert saved_bytes(lambda: checkpointed(image('swin_mmdet')), checkpointed) <= saved_bytes(
            lambda: plain(image('swin_mmdet')), plain)


def test_a_merged_trunk_is_free_of_hooks():
    """Whose method demanded one trains on as a stock trunk."""
    from tests.conftest import build, image
    model = build('swin_mmdet', dict(type='GPS', k=2, criterion='random'), with_cp=True)
    merged = e3va.merge(model)
    merged.train()
    merged(image('swin_mmdet'))
    assert not any(one._forward_pre_hooks for one in merged.modules())

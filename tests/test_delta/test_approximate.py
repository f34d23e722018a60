"""Deltas of fully fine-tuned models: the closest of their rank, the largest changes, and what is no matrix whole."""
import copy

import pytest
import torch
from torch import nn

import e3va
from tests.conftest import build, distance, image


def moved(model, ranks=None, seed=0):
    """A copy that was fine-tuned, in matrices of a rank."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            change = torch.randn(parameter.shape, generator=generator)
            if ranks and parameter.dim() > 1:
                flat = change.flatten(1)
                change = (flat[:, :ranks] @ flat[:ranks]).view_as(parameter) if min(flat.shape) > ranks else change
            parameter.add_(0.02 * change)
    model.eval()                                                        # which gives nothing back in some libraries
    return model


@pytest.mark.parametrize('trunk', ['vit_mmpretrain', 'swin_mmdet', 'convnext_timm'])
def test_a_change_of_low_rank_is_found(trunk, tmp_path):
    """Outputs equal the fine-tuned trunk's; the delta saves, loads and merges; base stays as it is."""
    base = build(trunk)
    base.eval()
    before = copy.deepcopy(base.state_dict())
    tuned = moved(base, ranks=3)
    whole = max(min(p.flatten(1).shape) for p in base.parameters() if p.dim() > 1)
    found = e3va.extract(base, tuned, rank=whole)
    found.eval()
    x = image(trunk)
    with torch.no_grad():
        assert distance(found(x), tuned(x)) < 1e-3 and found.extraction[''] < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    merged = e3va.merge(found).state_dict()
    assert set(merged) == set(before)
    e3va.save_delta(found, tmp_path / 'delta.safetensors')
    again = e3va.tune(build(trunk), found.tuning.method.config)
    again.load_state_dict(before, strict=False)
    again.eval()
    e3va.load_delta(again, tmp_path / 'delta.safetensors')
    with torch.no_grad():
        assert distance(found(x), again(x)) == 0


def test_the_closest_of_its_rank():
    """Eckart and Young, layer by layer; the error that is reported is the one that is made."""
    base = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7))
    tuned = moved(base)
    found = e3va.extract(base, tuned, rank=4)
    for name in ('0', '2'):
        change = (tuned.get_submodule(name).weight - base.get_submodule(name).weight).detach().double()
        values = torch.linalg.svdvals(change)
        best = float(values[4:].square().sum().sqrt() / values.square().sum().sqrt())
        assert abs(found.extraction[name] - best) < 1e-5
        assert torch.equal(found.get_submodule(name).bias, tuned.get_submodule(name).bias)


def test_sparse():
    """The largest changes of the net, k for each neuron on the mean, have the fine-tuned values to the bit."""
    base = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7))
    tuned = moved(base)
    found = e3va.extract(base, tuned, k=3)
    changes = torch.cat([(tuned.get_submodule(n).weight - base.get_submodule(n).weight).abs().flatten() for n in '02'])
    merged = e3va.merge(found)
    same = torch.cat([(merged.get_submodule(n).weight == tuned.get_submodule(n).weight).flatten() for n in '02'])
    best = changes.topk(3 * 27).indices
    assert same[best].all() and int(same.sum()) <= 3 * 27 + 2


def test_a_whole_model(tmp_path):
    """A detector by a checkpoint of its names: neck and heads are the fine-tuned ones."""
    from mmengine.registry import MODELS, DefaultScope

    from tests.test_serve.models import config
    cfg = config('mmpretrain', 'none', 'lora', vit=True)
    cfg.model.backbone.pop('method'), cfg.model.backbone.pop('trunk')
    cfg.model.backbone.type = 'mmpretrain.VisionTransformer'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        base = MODELS.build(cfg.model)
    tuned = moved(base)
    torch.save(dict(state_dict=tuned.state_dict()), tmp_path / 'tuned.pth')
    found = e3va.extract(base, tmp_path / 'tuned.pth', rank=50).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(found(x, mode='tensor')[0], tuned(x, mode='tensor')[0], atol=1e-3)
    assert torch.equal(found.head.layers.head.weight if hasattr(found.head, 'layers') else found.head.fc.weight,
                       tuned.head.layers.head.weight if hasattr(tuned.head, 'layers') else tuned.head.fc.weight)


def test_batch_norms():
    """Their statistics move in full fine-tuning, and are no parameters: they are taken over too."""
    from mmdet.models import ResNet
    base = ResNet(18, base_channels=8, stem_channels=8, norm_eval=False)
    tuned = moved(base)
    for name, buffer in tuned.named_buffers():
        buffer.mul_(2)
    found, x = e3va.extract(base, tuned, rank=200), torch.randn(1, 3, 64, 64)
    found.eval()
    with torch.no_grad():
        assert distance(found(x), tuned(x)) < 1e-3 < 0.1 < float(tuned(x)[-1].max())


def test_bad_input():
    base = nn.Sequential(nn.Linear(12, 20))
    with pytest.raises(ValueError, match='nothing in the trunk has changed'):
        e3va.extract(base, copy.deepcopy(base))
    with pytest.raises(ValueError, match='lacks 2 entries of the base, such as 0.weight'):
        e3va.extract(base, {'a': torch.zeros(1)})
    with pytest.raises(ValueError, match='other shapes than the base: 0.weight'):
        e3va.extract(base, nn.Sequential(nn.Linear(13, 20)))
    with pytest.raises(ValueError, match='base has a method already'):
        e3va.extract(e3va.tune(nn.Sequential(nn.Linear(12, 20)), 'LoRA'), base)

"""The cache of features: each image once, in training alone, and gone where it would be wrong."""
import copy
import pickle

import pytest
import timm
import torch

import e3va
from e3va.registry import MODELS
from tests.conftest import build, distance, image, pair, tensors

CACHED = dict(type='Fixed', cache=True)


def classifier(name, **options):
    return timm.create_model(name, num_classes=3, **options)


def counted(trunk):
    """A list to which the number of images is added that reach the trunk's first convolution."""
    seen = []
    first = next(module for module in trunk.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_timm', 'vit_mmpretrain', 'vit_timm', 'convnext_mmpretrain'])
def test_each_image_once(trunk):
    """The stock outputs, bit for bit where the batch is the same; none is computed twice, none kept in evaluation."""
    stock, tuned = pair(trunk, CACHED)
    stock.eval(), tuned.train()
    x, seen = image(trunk, batch=4), counted(tuned)
    want = tensors(stock(x))
    assert distance(want, tuned(x)) == 0 and seen == [4]
    order = [2, 2, 0, 3]
    got = tuned(x[order])
    assert distance([one[order] for one in want], got) == 0 and seen == [4]
    tuned(torch.cat([x[:1], image(trunk, batch=1, seed=5)]))
    assert seen == [4, 1] and len(tuned.e3va_cache) == 5
    tuned.eval()
    assert distance(want, tuned(x)) == 0 and seen == [4, 1, 4]
    assert type(got) is type(stock(x))


@pytest.mark.parametrize('name, options', [
    ('vit_tiny_patch16_224', dict(img_size=32, embed_dim=24, depth=2, num_heads=2)), ('resnet18', {})])
def test_classifiers_of_timm(name, options):
    """The classifier, which trains, is behind the cache; the trunk may be of no family."""
    stock = classifier(name, **options)
    tuned = e3va.tune(copy.deepcopy(stock), CACHED).train()
    stock.eval()
    x, seen = torch.randn(2, 3, 32, 32), counted(tuned)
    for _ in range(2):
        tuned.zero_grad()
        tuned(x).sum().backward()
        assert distance(stock(x), tuned(x)) == 0
    assert seen == [2] and tuned.get_classifier().weight.grad.any()


def test_a_cache_is_its_trunk_s_own():
    """Copies have none, a load of weights and a merge take it away."""
    stock, tuned = pair('vit_timm', CACHED)
    x = image('vit_timm')
    tuned.train()(x)
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert not len(other.e3va_cache) and distance(other(x), tuned(x)) == 0
        assert len(other.e3va_cache) == len(tuned.e3va_cache) == 2
    other = build('vit_timm', seed=7).eval()
    tuned.load_state_dict(other.state_dict())
    assert not len(tuned.e3va_cache) and distance(other(x), tuned(x)) == 0
    merged, seen = e3va.merge(tuned).requires_grad_(False), []
    assert not hasattr(merged, 'e3va_cache')
    seen = counted(merged.train())
    merged(x), merged(x)
    assert seen == [2, 2]


@pytest.mark.parametrize('options, words', [
    (dict(method=dict(CACHED, train_out_norms=True)), 'cache=True with train_out_norms=True'),
    (dict(method=dict(CACHED, also=['patch_embed'])), r'a part of this VisionTransformer trains \(also='),
    (dict(method=CACHED, in_chans=1), 'the first layer, for images that are not RGB')])
def test_what_changes_is_not_cached(options, words):
    with pytest.raises(ValueError, match=words):
        MODELS.build(dict(type='e3va.Tuned', trunk='e3va.TimmTrunk', name='vit_tiny_patch16_224', depth=1, **options))

"""Several highways beside one pass: what each gives out is what it gives out alone, bit for bit."""
import pytest
import torch

from e3va.highway.shared import same_pass, together
from tests.conftest import METHODS, TRUNKS, build, image, refusal, stir, tensors

KINDS = [name for name in METHODS if METHODS[name]['type'] == 'E3VA']


def tuned(trunk, method, **changes):
    """The trunk of a seed under a method whose own values are its own."""
    made = build(trunk, method, **changes)
    if hasattr(made, '_is_init'):
        made._is_init = True
    stock = build(trunk, seed=3, **changes)
    made.load_state_dict(stock.state_dict(), strict=False)
    stir(made)
    return made.eval()


@pytest.mark.parametrize('trunk', TRUNKS)
def test_together_is_alone(trunk):
    """Of all kinds of highways of a float trunk; run counts show that there was one pass."""
    plain = [method for method in KINDS if not refusal(trunk, method) and 'trunk_weights' not in METHODS[method]
             and (trunk.startswith('swin') or method != 'e3va_trainable')]
    trunks = [tuned(trunk, method) for method in plain]
    block = trunks[0].tuning.parts.stages(trunks[0])[0][0]
    calls = []
    next(block.children()).register_forward_hook(lambda *args: calls.append(1))
    x = image(trunk)
    outs = together(trunks, x)
    once = len(calls)
    for one, out in zip(trunks, outs):
        with torch.no_grad():
            alone = one(x)
        assert type(out) is type(alone)
        assert all(map(torch.equal, tensors(out), tensors(alone)))
    assert once == len(calls) - once                                    # alone the first trunk runs them once more


def test_other_outputs_on_the_way():
    """Trunks that give out at other places, and end at another depth."""
    trunks = [tuned('swin_mmdet', 'e3va', out_indices=indices) for indices in ((0, 1, 2, 3), (1,), (0, 2), (3,))]
    x = image('swin_mmdet')
    for one, out in zip(trunks, together(trunks, x)):
        with torch.no_grad():
            assert all(map(torch.equal, out, one(x)))


def test_classes_of_the_libraries():
    """One Swin in three libraries is one pass; other weights, or other rounding, are not."""
    options = dict(out_indices=(0, 1, 2, 3))
    detection, segmentation = tuned('swin_mmdet', 'e3va', **options), tuned('swin_mmseg', 'e3va', **options)
    assert same_pass(detection, segmentation)
    x = image('swin_mmdet')
    for one, out in zip((detection, segmentation), together([detection, segmentation], x)):
        with torch.no_grad():
            assert all(map(torch.equal, out, one(x)))
    other = tuned('swin_mmdet', 'e3va')
    with torch.no_grad():
        other.stages[1].blocks[0].ffn.layers[1].weight[0, 0] += 1e-3
    assert not same_pass(detection, other)
    assert not same_pass(detection, tuned('swin_mmdet', 'e3va_quick'))
    assert not same_pass(detection, tuned('vit_mmpretrain', 'e3va'))

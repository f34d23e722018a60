"""The modes of the highway: what each keeps for backward, and its gradients against plain autograd."""
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from e3va.cost.saved import saved_bytes
from e3va.highway import segment, side
from e3va.layers import recompute
from tests.conftest import SWIN, TRUNKS, alike, build, distance, image, pair, projected, refusal

FLOAT = 4


def adapted(adapter, x):
    """U(GELU(D(x))) + x, each projection (s_1 t_1 + s_2 t_2) x + b (section 3.3)."""
    def project(of, x):
        return F.linear(x, of.s @ of.t, of.bias)
    return project(adapter.up, F.gelu(project(adapter.down, x))) + x


def plain(tuned, x):
    """Equation 8 in plain autograd, with the trunk read as its family does; the join replaces."""
    parts = tuned.tuning.parts
    with torch.no_grad():
        l, shape = parts.stem(tuned, x)
    e, outs = l, []
    for i, adapters in enumerate(tuned.e3va.stages):
        for j, own in enumerate(adapters):
            with torch.no_grad():
                block, outputs = parts.stages(tuned)[i][j], {}
                for name in parts.names(block):
                    outputs[name], l = (parts.attend if name == 'attn' else parts.feed)(block, l, shape)
            for name, f in outputs.items():
                e = e + adapted(own[name], f.movedim(parts.AXIS, -1)).movedim(-1, parts.AXIS)
            if (i, j) in parts.taps(tuned):
                outs.append(parts.emit(tuned, (i, j), e, shape))
        if i + 1 < len(tuned.e3va.stages) or (i, 'merged') in parts.taps(tuned):
            merge = parts.merges(tuned)[i]
            e = parts.merge(merge, e, shape)[0]
            with torch.no_grad():
                l, shape = parts.merge(merge, l, shape)
            if (i, 'merged') in parts.taps(tuned):
                outs.append(parts.emit(tuned, (i, 'merged'), e, shape))
    return parts.pack(tuned, outs)


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(outs, model):
    return torch.autograd.grad(projected(outs), trained(model))


def cosine(a, b):
    a, b = a.double().flatten(), b.double().flatten()                   # some are smaller than torch's own epsilon
    return float(a @ b / (a.norm() * b.norm()))


def method(mode, **options):
    return dict(type='E3VA', rank=2, mode=mode, **options)


@pytest.mark.parametrize('mode', ['exact', 'stream'])
@pytest.mark.parametrize('trunk', [trunk for trunk in TRUNKS if not refusal(trunk, 'e3va')])
def test_same_gradients_as_plain_autograd(trunk, mode):
    tuned = alike(trunk, method(mode), stirred=True)
    tuned.train()
    x = image(trunk)
    want, got = plain(tuned, x), tuned(x)
    assert distance(want, got) <= 1e-5
    for a, b in zip(gradients(want, tuned), gradients(got, tuned)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('mode,least', [('bf16', 0.9999), ('int8', 0.999), ('stream_bf16', 0.999)])
@pytest.mark.parametrize('trunk', [trunk for trunk in TRUNKS if not refusal(trunk, 'e3va')])
def test_fewer_bits(trunk, mode, least):
    """The outputs are the exact ones, the gradients point their way: cosine for each tensor."""
    exact = alike(trunk, method('exact'), stirred=True)
    tuned = alike(trunk, method(mode), stirred=True)
    exact.train(), tuned.train()
    x = image(trunk)
    want, got = exact(x), tuned(x)
    assert distance(want, got) == 0
    for a, b in zip(gradients(want, exact), gradients(got, tuned)):
        assert cosine(a, b) >= least
        assert a.numel() < 2 or 0.98 <= float(a.norm() / b.norm()) <= 1.02


@pytest.mark.parametrize('options', [dict(arrangement='stacked', adapter='standard'), dict(skip=False, join='sum'),
                                     dict(join='post'), dict(downsampling='trainable')])
def test_options_stream_as_they_do_exactly(options):
    """test_formula.py compares the exact mode with the formula by hand."""
    options = {'rank': 2, **options} if options.get('adapter') != 'standard' else options
    models = [pair('swin_mmdet', dict(type='E3VA', init='random', mode=mode, **options), stirred=True)[1]
              for mode in ('exact', 'stream')]
    x = image('swin_mmdet')
    outs = [model.train()(x) for model in models]
    assert distance(*outs) == 0
    assert distance(gradients(outs[0], models[0]), gradients(outs[1], models[1])) <= 1e-6


@pytest.mark.parametrize('share', ['two blocks', 'one block', 'factor'])
@pytest.mark.parametrize('mode', ['exact', 'stream'])
def test_shared_adapters(mode, share):
    """A parameter that serves two places gets the sum of both gradients, as in plain autograd."""
    tuned = alike('swin_mmdet', method(mode), stirred=True)
    first, second = tuned.e3va.stages[1]
    if share == 'two blocks':
        second['attn'] = first['attn']
    elif share == 'one block':
        first['mlp'] = first['attn']
    else:
        second['mlp'].down.t = first['attn'].down.t
    x = image('swin_mmdet')
    tuned.train()
    for a, b in zip(gradients(plain(tuned, x), tuned), gradients(tuned(x), tuned)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('arrangement', ['parallel', 'stacked'])
@pytest.mark.parametrize('mode', ['exact', 'stream'])
def test_frozen_adapters(mode, arrangement):
    """What does not train gets no gradient; a stage in which nothing trains keeps no inputs."""
    tuned = alike('swin_mmdet', method(mode, arrangement=arrangement), stirred=True)
    tuned.train()
    x = image('swin_mmdet')
    names = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    want = dict(zip(names, gradients(tuned(x), tuned)))
    before = saved_bytes(lambda: tuned(x), tuned)
    tuned.e3va.stages[1][1].requires_grad_(False)
    tuned.e3va.stages[2].requires_grad_(False)
    tuned.e3va.stages[3][0]['mlp'].up.s.requires_grad_(False)
    for name, parameter in tuned.named_parameters():
        parameter.grad = None
    projected(tuned(x)).backward()
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, want[name], rtol=1e-4, atol=1e-6)
        else:
            assert parameter.grad is None
    assert saved_bytes(lambda: tuned(x), tuned) < before


def test_parameters_changed_between_forward_and_backward():
    tuned = alike('swin_mmdet', method('exact'), stirred=True)
    out = projected(tuned(image('swin_mmdet')))
    tuned.e3va.stages[1].requires_grad_(False)
    with pytest.raises(RuntimeError, match='between forward and backward'):
        out.backward()
    tuned = alike('swin_mmdet', method('exact'), stirred=True)
    others = {name: 2 * parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    out = projected(torch.func.functional_call(tuned, others, (image('swin_mmdet'),)))
    with pytest.raises(RuntimeError, match='between forward and backward'):
        out.backward()


@pytest.mark.parametrize('join', ['replace', 'sum', 'post'])
@pytest.mark.parametrize('mode', ['exact', 'bf16'])
def test_outputs_of_several_tensors(mode, join):
    """mmseg's ViT gives map and class token: as many, and of the same kind, as the stock trunk gives."""
    from e3va.registry import MODELS
    options = dict(img_size=32, patch_size=16, embed_dims=24, num_layers=2, num_heads=2, out_indices=(0, 1),
                   output_cls_token=True, final_norm=True)
    stock = MODELS.build(dict(type='mmseg.VisionTransformer', **options))
    tuned = MODELS.build(dict(type='e3va.Tuned', trunk='mmseg.VisionTransformer', method=method(mode, join=join),
                              **options))
    stock.train(), tuned.train()
    x = torch.randn(2, 3, 32, 32)
    want, got = stock(x), tuned(x)
    assert [type(out) for out in want] == [type(out) for out in got]
    assert [[each.shape for each in out] for out in want] == [[each.shape for each in out] for out in got]
    projected(got).backward()
    assert all(parameter.grad is not None for parameter in trained(tuned))


def test_other_entries_of_timm_do_not_go_past_the_highway():
    import timm

    import e3va
    for name, entry in (('swin_tiny_patch4_window7_224', 'forward_intermediates'),
                        ('vit_tiny_patch16_224', 'get_intermediate_layers')):
        model = e3va.tune(timm.create_model(name), method('exact'))
        with pytest.raises(ValueError, match='tuned by E3VA, whose forward'):
            getattr(model, entry)(torch.randn(1, 3, 224, 224))


def test_droppath_is_drawn_once():
    """With the trunk in its own training mode, what runs again in backward draws what it drew before."""
    tuned = alike('swin_mmdet', method('stream', trunk_mode='config', tap='after'), stirred=True)
    x = image('swin_mmdet')
    tuned.train()
    torch.manual_seed(5)
    exact = build('swin_mmdet', method('exact', trunk_mode='config', tap='after'))
    exact.load_state_dict(tuned.state_dict())
    exact.train()
    torch.manual_seed(5)
    want = exact(x)
    torch.manual_seed(5)
    got = tuned(x)
    torch.rand(7)                                                       # the heads draw, too
    state = torch.get_rng_state()
    assert distance(want, got) == 0
    assert distance(gradients(want, exact), gradients(got, tuned)) <= 1e-6
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('mode', segment.MODES)
def test_autocast(mode):
    """bf16 autocast, with the backward outside of it as in a training loop: 8 bits of mantissa through 8 blocks."""
    tuned = alike('swin_mmdet', method(mode), stirred=True)
    tuned.train()
    x = image('swin_mmdet')
    want = gradients(tuned(x), tuned)
    with torch.autocast('cpu', torch.bfloat16):
        outs = tuned(x)
    got = gradients([out.float() for out in outs], tuned)
    for a, b in zip(want, got):
        assert b.dtype == torch.float32
        assert cosine(a, b) >= 0.98


@pytest.fixture
def tiny():
    """One block of 8 channels and the merge behind it, in double; its streams e and l, (1, 16, 8)."""
    tuned = build('swin_mmdet', dict(type='E3VA', rank=1, mid=2, init='random'), embed_dims=8, num_heads=(1, 1, 1, 1),
                  depths=(1, 1, 1, 1)).double().train()
    e, l = torch.randn(2, 1, 16, 8, dtype=torch.double)
    return tuned, e.requires_grad_(), l


@pytest.mark.parametrize('mode', ['exact', 'stream'])
def test_gradcheck_of_a_segment(tiny, mode):
    """Finite differences: e and all parameters of the pair."""
    tuned, e, l = tiny
    part = segment.Segment(tuned, (4, 4), [tuned.e3va.stages[0][0]], [tuned.stages[0].blocks[0]])
    parameters = list(tuned.e3va.stages[0][0].parameters())
    assert torch.autograd.gradcheck(lambda e, *_: part(e, l, segment.MODES[mode])[0], (e, *parameters))


def test_gradcheck_of_again(tiny):
    """Finite differences: e and the parameters of a merge that trains."""
    tuned, e, _ = tiny
    own = tuned.stages[0].downsample.requires_grad_(True)
    double = recompute.Form(*map(vars(recompute.FORMS['exact']).get, ('pack', 'unpack')))

    def run(e, *_):
        merge = partial(side.merge, tuned.tuning.parts, own, (4, 4))
        return recompute.again(merge, double, recompute.hold(double, e), e, own.parameters())
    assert torch.autograd.gradcheck(run, (e, *own.parameters()))


def stage_bytes(x):
    """Bytes of a token tensor of each stage."""
    _, _, height, width = x.shape
    area = [-(-height // (4 * 2 ** i)) * -(-width // (4 * 2 ** i)) for i in range(4)]
    return [FLOAT * len(x) * area[i] * 24 * 2 ** i for i in range(4)]


def test_saved_bytes():
    """By hand: two inputs a block and one tensor a stage; the statistics of the norms are two numbers a token."""
    x = torch.randn(1, 3, 64, 224)                                      # padded to whole windows in height alone
    size, depths = stage_bytes(x), SWIN['depths']
    statistics = sum(2 * size[i] // (24 * 2 ** i) for i in range(4))
    inputs, ends = sum(2 * d * s for d, s in zip(depths, size)), sum(size)
    scales = sum(2 * d * s // (24 * 2 ** i) for i, (d, s) in enumerate(zip(depths, size)))
    want = dict(
        exact=inputs + ends + statistics,
        bf16=inputs // 2 + ends // 2,
        int8=inputs // 4 + scales + ends // 2,
        # stages 1 to 3: their first and their last tensor; stage 0: the image
        stream=2 * sum(size[1:]) + sum(2 * size[i] // (24 * 2 ** i) for i in (1, 2, 3)) + x.nbytes,
        stream_bf16=sum(size[1:]) + x.nbytes)
    for mode, expected in want.items():
        tuned = build('swin_mmdet', method(mode)).train()
        assert saved_bytes(lambda: tuned(x), tuned) == expected, mode
        with torch.no_grad():
            assert saved_bytes(lambda: tuned(x), tuned) == 0

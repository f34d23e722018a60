"""VPT: the equations by hand on the stock blocks of ViTs and, window for window, on those of Swins."""
import copy
import math

import pytest
import timm
import torch
from torch import nn

import e3va
from e3va.registry import MODELS
from tests.conftest import TRUNKS, VIT_ARCH, alike, build, distance, image, pair, projected, stir, tensors

FORMS = pytest.mark.parametrize('deep', [False, True], ids=['shallow', 'deep'])
SWINS = ['swin_mmdet', 'swin_mmseg', 'swin_mmpretrain', 'swin_mmpretrain_late', 'swin_timm']


def prompts_of(tuned):
    """The prompts of each block that has some, in order, (p, C) each."""
    return [value.detach() for name, value in tuned.named_parameters() if name.endswith('prompts.tokens')]


def vits():
    """(stock ViT that gives out all tokens, its blocks, its last norm) of three libraries."""
    import mmpretrain.models  # noqa: F401
    import mmseg.models  # noqa: F401
    mmpretrain = MODELS.build(dict(type='mmpretrain.VisionTransformer', arch=VIT_ARCH, img_size=64, patch_size=16,
                                   out_type='raw', layer_scale_init_value=0.1))
    mmseg = MODELS.build(dict(type='mmseg.VisionTransformer', img_size=(64, 64), embed_dims=24, num_layers=3,
                              num_heads=2, out_indices=(1, 2), final_norm=True))
    plain = timm.create_model('vit_tiny_patch16_224', img_size=64, depth=3, embed_dim=24, num_heads=2, num_classes=5,
                              qk_norm=True, reg_tokens=2, init_values=0.1)
    return dict(mmpretrain=(mmpretrain, mmpretrain.layers, mmpretrain.ln1), mmseg=(mmseg, mmseg.layers, mmseg.ln1),
                timm=(plain, plain.blocks, plain.norm))


@FORMS
@pytest.mark.parametrize('library', ['mmpretrain', 'mmseg', 'timm'])
def test_vit(library, deep):
    """Eq. 4, 5 and 7: [x, P, E] through the stock blocks, in the paper's order; what is given out has no prompts."""
    torch.manual_seed(0)
    stock, blocks, norm = vits()[library]
    stir(stock), stock.eval()
    tuned = e3va.tune(copy.deepcopy(stock), dict(type='VPT', tokens=5, deep=deep)).eval()
    prompts, x = prompts_of(tuned), torch.randn(2, 3, 64, 64)
    assert len(prompts) == (len(blocks) if deep else 1)
    if library == 'timm':
        got = tuned.forward_features(x)
    else:
        got = tuned(x)[-1]

    y, _ = tuned.tuning.parts.stem(stock, x)
    rest = y[:, 1:]
    for i, block in enumerate(blocks):
        if i == 0 or deep:
            y = torch.cat((y[:, :1], prompts[i].expand(2, -1, -1), rest), dim=1)
        y = block(y)
        rest = y[:, 6:]
    want = norm(torch.cat((y[:, :1], rest), dim=1))
    if library == 'mmseg':
        want = want[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(got, want)


def swin_by_hand(stock, tuned, x, deep):
    """VPT on a stock Swin, window for window; only embedding, merges of the map and output norms are the library's."""
    parts, given = tuned.tuning.parts, iter(prompts_of(tuned))
    x, shape = parts.stem(stock, x)
    prompts, outs, taps = None, [], parts.taps(stock)
    for i, blocks in enumerate(parts.stages(stock)):
        for j, block in enumerate(blocks):
            flat = x.dim() == 3
            height, width = shape if flat else x.shape[1:3]
            x = x.reshape(len(x), height, width, -1)
            if deep or prompts is None:
                prompts = next(given).expand(len(x), -1, -1)
            f, g = windows_by_hand(block, block.norm1(x), block.norm1(prompts), pad_first=flat)
            x, prompts = x + f, prompts + g
            mlp = (lambda t: block.ffn.layers(block.norm2(t))) if flat else (lambda t: block.mlp(block.norm2(t)))
            x, prompts = x + mlp(x), prompts + mlp(prompts)
            x = x.flatten(1, 2) if flat else x
            if (i, j) in taps:
                outs.append(parts.emit(stock, (i, j), x, shape))
        if len(outs) == len(taps):
            return outs
        merge = parts.merges(stock)[i]
        four = prompts.repeat_interleave(4, dim=-1) if flat else prompts.repeat(1, 1, 4)    # mm: torch's Unfold order
        prompts = merge.reduction(merge.norm(four))
        x, shape = parts.merge(merge, x, shape)
        if (i, 'merged') in taps:
            outs.append(parts.emit(stock, (i, 'merged'), x, shape))
        if len(outs) == len(taps):
            return outs


def windows_by_hand(block, x, prompts, pad_first):
    """The attention over normed x (B, H, W, C) and prompts (B, p, C): loops over windows, formulas from the papers."""
    attention = getattr(block.attn, 'w_msa', block.attn)
    size = block.attn.window_size if pad_first else block.window_size[0]
    shift = block.attn.shift_size if pad_first else block.shift_size[0]
    batch, height, width, channels = x.shape
    heads, p = attention.num_heads, prompts.shape[1]
    tall, wide = math.ceil(height / size) * size, math.ceil(width / size) * size
    y = x.new_zeros(batch, tall, wide, channels)
    if pad_first:
        y[:, :height, :width] = x
        y = torch.roll(y, (-shift, -shift), (1, 2))
    else:
        y[:, :height, :width] = torch.roll(x, (-shift, -shift), (1, 2))

    def region(at, length):                                             # which part of the unshifted map
        return 0 if not shift or at < length - size else 1 if at < length - shift else 2

    cells = [(a, b) for a in range(size) for b in range(size)]
    table = attention.relative_position_bias_table
    bias = torch.stack([table[(a - c + size - 1) * (2 * size - 1) + b - d + size - 1]
                        for a, b in cells for c, d in cells]).view(size ** 2, size ** 2, heads)
    out, results = torch.zeros_like(y), []
    for top in range(0, tall, size):
        for left in range(0, wide, size):
            window = y[:, top:top + size, left:left + size].reshape(batch, -1, channels)
            q, k, v = attention.qkv(torch.cat((prompts, window), dim=1)).chunk(3, dim=-1)
            q, k, v = (t.view(batch, -1, heads, channels // heads) for t in (q, k, v))
            scores = torch.einsum('bnhc,bmhc->bhnm', q, k) / math.sqrt(channels // heads)
            scores[:, :, p:, p:] += bias.permute(2, 0, 1)
            ids = torch.tensor([3 * region(top + a, tall) + region(left + b, wide) for a, b in cells])
            scores[:, :, p:, p:] -= 100. * (ids[:, None] != ids[None])
            made = attention.proj(torch.einsum('bhnm,bmhc->bnhc', scores.softmax(-1), v).flatten(2))
            results.append(made[:, :p])
            out[:, top:top + size, left:left + size] = made[:, p:].reshape(batch, size, size, channels)
    if pad_first:
        out = torch.roll(out, (shift, shift), (1, 2))[:, :height, :width]
    else:
        out = torch.roll(out[:, :height, :width], (shift, shift), (1, 2))
    return out, torch.stack(results).mean(0)


@FORMS
@pytest.mark.parametrize('trunk', SWINS)
def test_swin(trunk, deep):
    """Prompts in every window, no bias and no mask for them, their mean over an image's windows, merged as four."""
    stock, tuned = pair(trunk, dict(type='VPT', tokens=3, deep=deep), stirred=True)
    for model in (stock, tuned):                                        # a table of zeros would hide a wrong bias
        for name, value in model.named_parameters():
            if name.endswith('relative_position_bias_table'):
                nn.init.normal_(value, generator=torch.Generator().manual_seed(len(name)))
    stock.eval(), tuned.eval()
    x = image(trunk)
    with torch.no_grad():
        assert distance(tuned(x), swin_by_hand(stock, tuned, x, deep)) <= 2e-5


@FORMS
@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_timm', 'vit_timm'])
def test_images_keep_their_prompts(trunk, deep):
    """An image's maps do not depend on what else is in the batch (the public code's shallow Swin trades prompts)."""
    tuned = alike(trunk, dict(type='VPT', tokens=3, deep=deep), stirred=True)
    tuned.eval()
    x = image(trunk, batch=3)
    alone = [tensors(tuned(one[None])) for one in x]
    assert distance(tuned(x), [torch.cat(outs) for outs in zip(*alone)]) <= 1e-5


@pytest.mark.parametrize('trunk,deep,names', [
    ('vit_mmpretrain', False, {'layers.0'}), ('vit_mmpretrain', True, {f'layers.{i}' for i in range(4)}),
    ('vit_mmpretrain_maps', True, {f'layers.{i}' for i in range(3)}),
    ('swin_timm', False, {'layers.0.blocks.0'}),
    ('swin_mmdet_partial', True, {'stages.0.blocks.0', 'stages.1.blocks.0', 'stages.1.blocks.1',
                                  'stages.2.blocks.0'})])
def test_names(trunk, deep, names):
    """Prompts on the first block, or on every one up to the last output."""
    tuned = build(trunk, dict(type='VPT', tokens=2, deep=deep))
    assert set(tuned.state_dict()) - set(tuned.tuning.keys) == {f'{name}.prompts.tokens' for name in names}


def test_counts():
    """p d and p d L on ViT-B/16; with the head 926,214 and 351,373, as the authors' demo prints for two VTAB tasks."""
    def count(tokens, deep, classes=0):
        model = timm.create_model('vit_base_patch16_224', num_classes=classes)
        report = e3va.report(e3va.tune(model, dict(type='VPT', tokens=tokens, deep=deep)))
        return report['trained'] + report['head']

    assert count(50, deep=False) == 50 * 768 == 38_400
    assert count(50, deep=True) == 50 * 768 * 12 == 460_800
    assert count(100, deep=True, classes=6) == 926_214
    assert count(5, deep=True, classes=397) == 351_373


def test_counts_of_swin():
    """Per stage: p times the sum of depth x width, 12,032 in Swin-B."""
    import mmdet.models  # noqa: F401
    base = dict(type='e3va.Tuned', trunk='mmdet.SwinTransformer', embed_dims=128, depths=(2, 2, 18, 2),
                num_heads=(4, 8, 16, 32))
    for deep, want in ((False, 10 * 128), (True, 10 * 12_032)):
        trunk = MODELS.build(dict(base, method=dict(type='VPT', tokens=10, deep=deep)))
        assert e3va.report(trunk)['trained'] == want


def test_start():
    """Uniform in +-sqrt(6 / (3 x 16 x 16 + d)); Swin's later stages take the first one's bound."""
    tuned = build('vit_mmpretrain', dict(type='VPT', tokens=200))
    for tokens in prompts_of(tuned):
        bound = math.sqrt(6 / (3 * 16 * 16 + 24))
        assert 0.95 * bound < tokens.abs().max() <= bound and abs(tokens.mean()) < 0.05 * bound
    for tokens in prompts_of(build('swin_mmdet', dict(type='VPT', tokens=50))):
        bound = math.sqrt(6 / (3 * 4 * 4 + 24))
        assert 0.95 * bound < tokens.abs().max() <= bound


@FORMS
@pytest.mark.parametrize('trunk', ['swin_timm', 'vit_mmpretrain_maps'])
def test_training(trunk, deep):
    """The trunk runs in eval mode; the prompts' dropout draws, for each image where the public code does."""
    still = build(trunk, dict(type='VPT', tokens=3, deep=deep)).train()
    x = image(trunk)[:1].repeat(2, 1, 1, 1)
    assert still.training and distance(still(x), still(x)) == 0
    drawn = build(trunk, dict(type='VPT', tokens=3, deep=deep, dropout=0.5)).train()
    outs = tensors(drawn(x))
    assert distance(outs, drawn(x)) > 0
    alike = all(torch.equal(out[0], out[1]) for out in outs)
    assert alike == (deep and trunk == 'swin_timm')                     # there one draw for all images
    drawn.eval()
    assert distance(drawn(x), drawn(x)) == 0


@FORMS
@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_timm', 'vit_timm'])
def test_with_cp(trunk, deep):
    """Activation checkpointing gives the same gradients, dropout included."""
    gradients = []
    for flag in (False, True):
        model = build(trunk, dict(type='VPT', tokens=3, deep=deep, dropout=0.2), with_cp=flag).train()
        torch.manual_seed(4)
        projected(model(image(trunk))).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        assert len(gradients[-1]) == len(prompts_of(model))
    assert distance(*gradients) <= 1e-6


@pytest.mark.parametrize('trunk,options,words', [
    ('vit_mmpretrain', dict(tokens=0), 'tokens'), ('vit_mmpretrain', dict(tokens=2.5), 'tokens'),
    ('vit_mmpretrain', dict(tokens=201), r'in a ViT\) must be an integer of at least 1 and at most 200, not 201'),
    ('swin_mmdet', dict(tokens=51), r'in each window of a Swin\) must be .* at most 50, not 51'),
    ('vit_mmpretrain', dict(deep='yes'), 'deep must be one of True, False'),
    ('vit_mmpretrain', dict(dropout=1.0), 'dropout'), ('vit_mmpretrain', dict(dropout=-0.1), 'dropout')])
def test_refusals(trunk, options, words):
    with pytest.raises(ValueError, match=words):
        build(trunk, dict(type='VPT', **options))


@FORMS
def test_masks_are_refused(deep):
    """timm's forward takes masks over the tokens that it knows."""
    model = e3va.tune(timm.create_model('vit_tiny_patch16_224', depth=1), dict(type='VPT', tokens=2, deep=deep))
    with pytest.raises(ValueError, match='attn_mask'):
        model(torch.randn(1, 3, 224, 224), attn_mask=torch.zeros(197, 197))


def test_other_window_attention():
    """mmpretrain lets a Swin have the second version's attention, which compares angles."""
    from mmpretrain.models.utils.attention import WindowMSAV2
    blocks = dict(attn_cfgs=dict(window_msa=WindowMSAV2))
    options = dict(TRUNKS['swin_mmpretrain'][1], stage_cfgs=dict(block_cfgs=blocks))
    with pytest.raises(ValueError, match='first Swin, not WindowMSAV2'):
        MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.SwinTransformer', method='VPT', **options))

"""E3VA against the paper's equations 7 and 8 written out by hand, on the stock Swin's own branch outputs."""
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import build, distance, image, pair, projected


def branches(stock, x):
    """{block: (f_P1(l_i), f_P2(l_i + f_P1(l_i)))} and the first block's input, seen by hooks on the stock trunk."""
    seen, first, hooks = {}, [], []
    for i, stage in enumerate(stock.stages):
        for j, block in enumerate(stage.blocks):
            hooks += [
                block.attn.register_forward_hook(lambda m, a, out, key=(i, j): seen.update({key: [out]})),
                block.ffn.layers.register_forward_hook(lambda m, a, out, key=(i, j): seen[key].append(out))]
    hooks.append(stock.stages[0].blocks[0].register_forward_pre_hook(lambda m, args: first.append(args)))
    with torch.no_grad():
        stock(x)
    for hook in hooks:
        hook.remove()
    return seen, first[0]


def matrix(projection, rank):
    """W = sum over the two branches of s_i t_i (section 3.3)."""
    s, t = projection.s, projection.t
    return s[:, :rank] @ t[:rank] + s[:, rank:] @ t[rank:]


def by_hand(stock, tuned, x, rank, skip, join, stacked):
    """Pyramid maps by the formulas, from the stock trunk's branch outputs and the tuned trunk's parameters."""
    seen, (l, hw) = branches(stock, x)
    parameters = dict(tuned.named_parameters())
    e, maps = l, []
    for i, stage in enumerate(stock.stages):
        for j in range(len(stage.blocks)):
            def adapt(z, which):
                down = tuned.e3va.stages[i][j][which].down
                up = tuned.e3va.stages[i][j][which].up
                inner = F.gelu(z @ matrix(down, rank).T + down.bias)
                return inner @ matrix(up, rank).T + up.bias + (z if skip else 0)
            f1, f2 = seen[i, j]
            l = l + f1 + f2                                             # eq. 7
            if stacked:
                e = e + adapt(f2 + adapt(f1, 'attn'), 'mlp')
            else:
                e = e + adapt(f1, 'attn') + adapt(f2, 'mlp')            # eq. 8
        weight, bias = parameters[f'norm{i}.weight'], parameters[f'norm{i}.bias']

        def norm(z):
            return F.layer_norm(z, z.shape[-1:], weight, bias)
        joined = {'replace': lambda: norm(e), 'sum': lambda: norm(l + e), 'post': lambda: norm(l) + norm(e)}[join]()
        maps.append(joined.transpose(1, 2).reshape(len(x), -1, *hw))
        if stage.downsample is not None:
            (e, _), (l, hw) = stage.downsample(e, hw), stage.downsample(l, hw)
    return maps


@pytest.mark.parametrize('skip', [True, False])
@pytest.mark.parametrize('join', ['replace', 'sum', 'post'])
@pytest.mark.parametrize('arrangement', ['parallel', 'stacked'])
def test_equations(skip, join, arrangement):
    """Outputs and the gradient of every trained parameter."""
    options = dict(type='E3VA', rank=3, skip=skip, join=join, arrangement=arrangement, init='random')
    stock, tuned = pair('swin_mmdet', options, stirred=True)
    stock.eval(), tuned.train()                                         # the trunk stays in eval by itself
    x = image('swin_mmdet')
    want = by_hand(stock, tuned, x, 3, skip, join, arrangement == 'stacked')
    got = tuned(x)
    scale = max(float(out.abs().max()) for out in want)
    assert distance(want, got) <= 1e-5 * scale
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    a = torch.autograd.grad(projected(want), trained)
    b = torch.autograd.grad(projected(got), trained)
    for one, other in zip(a, b):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_gradient_enters_the_trunk():
    """Nothing of the trunk is kept for backward: the kept bytes are the highway's, far below the trunk's own."""
    def kept(method):
        model, total, seen = build('swin_mmdet', method), 0, set()
        model.train()

        def pack(tensor):
            nonlocal total
            if not isinstance(tensor, torch.nn.Parameter) and tensor.untyped_storage().data_ptr() not in seen:
                seen.add(tensor.untyped_storage().data_ptr())
                total += tensor.untyped_storage().nbytes()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(image('swin_mmdet'))
            del out
        return total
    assert kept('e3va') < 0.5 * kept('full')
    tuned = build('swin_mmdet', 'e3va')
    seen = []
    tuned.stages[0].blocks[0].attn.register_forward_hook(lambda m, a, out: seen.append(out.requires_grad))
    tuned.train()
    tuned(image('swin_mmdet'))
    assert seen == [False]


def test_downsampling_is_shared_or_copied():
    """Inherited: the trunk's own module, no new entry. Trainable: copies that follow the trunk's weights at load."""
    inherited = build('swin_mmdet', 'e3va')
    assert not [name for name in inherited.state_dict() if 'e3va.merges' in name]
    stock = build('swin_mmdet', seed=7)
    copied = build('swin_mmdet', dict(type='E3VA', downsampling='trainable'))
    copied.load_state_dict(stock.state_dict(), strict=False)
    for i in range(3):
        want = stock.stages[i].downsample.reduction.weight
        assert torch.equal(copied.e3va.merges[str(i)].reduction.weight, want)
        assert copied.e3va.merges[str(i)].reduction.weight.requires_grad
    # A tuned checkpoint brings its own trained copies: they are not refreshed from the trunk.
    trained = {name: value + 1 if 'e3va.merges' in name else value for name, value in copied.state_dict().items()}
    copied.load_state_dict(trained)
    assert torch.equal(copied.e3va.merges['0'].reduction.weight, stock.stages[0].downsample.reduction.weight + 1)


def test_nothing_past_the_last_output():
    """Adapters end with the last stage, or the last block of a ViT, that is given out."""
    swin = build('swin_mmdet_partial', 'e3va')
    assert [len(stage) for stage in swin.e3va.stages] == [1, 2, 1]
    vit = build('vit_mmpretrain_maps', 'e3va')                          # blocks 0 and 2 of 4
    assert [len(stage) for stage in vit.e3va.stages] == [3]
    late = build('swin_mmpretrain_late', dict(type='E3VA', downsampling='trainable'))
    assert [len(stage) for stage in late.e3va.stages] == [1, 2, 1] and set(late.e3va.merges) == {'0', '1', '2'}


def test_tap_before_droppath():
    """In training mode a tap before DropPath is the same at each call; after it, it is what the trunk drew."""
    x = image('swin_mmdet')
    for tap, fixed in (('before', True), ('after', False)):
        tuned = build('swin_mmdet', dict(type='E3VA', tap=tap, trunk_mode='config', join='replace'))
        tuned.train()
        block, tokens = tuned.stages[3].blocks[0], torch.randn(2, 9, 192)
        parts = tuned.tuning.parts
        draws = [parts.attend(block, tokens, (3, 3), tap)[0] for _ in range(8)]
        assert all(torch.equal(draws[0], draw) for draw in draws) == fixed
        assert block.attn.drop.training                                 # left as it was
        tuned(x)

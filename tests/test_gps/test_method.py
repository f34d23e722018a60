"""GPS: which entries and parameters train, by the rules written out; the sparse layer against autograd; deltas."""
import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import e3va
from e3va.gps.gradients import select
from e3va.gps.method import highest, selected, sparse_layers
from e3va.layers import SparseConv2d, SparseLinear
from tests.conftest import build, distance, image, pair, projected


def sparse(layer, columns=2):
    """A layer in the place of a copy of `layer`, the last `columns` entries of each row selected."""
    new = (SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d)(copy.deepcopy(layer))
    new.weight.requires_grad_(False)
    new.sparse(len(layer.weight), columns)
    size = layer.weight[0].numel()
    new.select(torch.arange(len(layer.weight))[:, None] * size + torch.arange(size - columns, size))
    return new


def small_vit(**options):
    import timm
    torch.manual_seed(0)
    return timm.create_model('vit_tiny_patch16_224', img_size=32, depth=3, embed_dim=24, num_heads=2, num_classes=5,
                             **options)


def batches(count=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(count)]


# ---- the layer

@pytest.mark.parametrize('layer,shape', [
    (nn.Linear(6, 4), (3, 5, 6)), (nn.Linear(48, 20), (2, 9, 48)), (nn.Linear(6, 4, bias=False), (2, 3, 5, 6)),
    (nn.Linear(6, 4), (7, 6)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)), (nn.Conv2d(4, 4, 7, padding=3, groups=4), (2, 4, 9, 8)),
    (nn.Conv2d(3, 5, 4, stride=4, bias=False), (2, 3, 8, 8))])
def test_layer(layer, shape):
    """W with values in their places (Eq. 5, 6): output, gradients of x and the bias, and of the selected entries, all
    with the bits of the stock layer."""
    ours, x = sparse(layer), torch.randn(shape)
    moved = torch.randn_like(ours.values)
    whole = layer.weight.detach().clone()
    whole.flatten(1)[:, -2:] = moved
    with torch.no_grad():
        ours.values.copy_(moved)
        layer.weight.copy_(whole)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [module(each) for module, each in zip((ours, layer), inputs)]
    assert torch.equal(*outs)
    for out in outs:
        projected(out).backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(ours.values.grad, layer.weight.grad.flatten(1)[:, -2:])
    if layer.bias is not None:
        assert torch.equal(ours.bias.grad, layer.bias.grad)
    assert ours.weight.grad is None and not torch.equal(ours.weight, whole)
    merged = ours.merged()
    assert type(merged) is type(layer) and torch.equal(merged.weight, whole)
    assert merged.extra_repr() == layer.extra_repr()


def test_layer_under_autocast():
    layer = nn.Linear(6, 4)
    ours, x = sparse(layer), torch.randn(3, 6, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        outs = [module(x) for module in (ours, layer)]
    assert torch.equal(*outs) and outs[0].dtype == torch.bfloat16
    for out in outs:
        projected(out).backward()
    assert torch.equal(ours.values.grad, layer.weight.grad[:, -2:]) and ours.values.grad.dtype == torch.float32


@pytest.mark.parametrize('shape', [(2, 5, 6), (7, 6)])
def test_an_in_place_operation_may_follow(shape):
    """As in mmcv's FFN: relu(x W^T) has the stock layers' gradients."""
    layer = nn.Linear(6, 4)
    ours, x = sparse(layer), torch.randn(shape)
    for module in (ours, layer):
        projected(nn.ReLU(inplace=True)(module(x))).backward()
    assert torch.equal(ours.values.grad, layer.weight.grad[:, -2:]) and torch.equal(ours.bias.grad, layer.bias.grad)


def read_by(*columns, inputs=64, outputs=9):
    """A sparse layer whose neurons select these inputs in turn, and another one each."""
    layer = SparseLinear(nn.Linear(inputs, outputs))
    layer.weight.requires_grad_(False)
    layer.sparse(outputs, 2)
    chosen = torch.tensor([[columns[i % len(columns)], columns[(i + 1) % len(columns)]] for i in range(outputs)])
    layer.select(chosen.sort(1).values + inputs * torch.arange(outputs)[:, None])
    return layer, chosen.sort(1).values


@pytest.mark.parametrize('columns', [(3, 60), (40, 7, 63, 8, 0), tuple(range(0, 64, 7)), tuple(range(40))])
def test_only_the_inputs_that_are_read(columns):
    """dL/dw_rc = sum over tokens of g_r x_c: the gradient by hand; of x the graph keeps the columns c."""
    from e3va.cost.saved import saved_bytes
    layer, chosen = read_by(*columns)
    for made in (layer, copy.deepcopy(layer).double(), pickle.loads(pickle.dumps(layer))):
        x, g = torch.randn(3, 5, 64, dtype=made.weight.dtype), torch.randn(3, 5, 9, dtype=made.weight.dtype)
        (made(x) * g).sum().backward()
        want = torch.stack([(g.reshape(15, 9) * x.reshape(15, 64)[:, column]).sum(0) for column in chosen.T], dim=1)
        torch.testing.assert_close(made.values.grad, want)
        tiles = -(-len(chosen.unique()) // 16)
        kept = 16 * tiles if tiles <= 2 else 64
        noted = 0 if kept == 64 else kept * 8                           # the list of the columns
        assert saved_bytes(lambda: made(x), made) == x.numel() // 64 * kept * x.element_size() + noted


def test_a_layer_without_entries():
    """As a selection over the net leaves some: the input's gradient is the stock layer's."""
    layer, x = SparseLinear(nn.Linear(64, 9)), torch.randn(3, 5, 64, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer.sparse(1, 0)
    layer.select(torch.zeros(1, 0, dtype=torch.int32))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    assert layer.values.grad.shape == (1, 0)


def test_nothing_is_read_before_a_selection():
    """Then the gradient is that of the whole, and so it is where a load takes a selection away."""
    layer, _ = read_by(3, 60)
    assert layer.columns.tolist() == [*range(15), 60]                   # 3, 60 and what fills the tile
    layer.select(torch.zeros_like(layer.index))
    assert layer.columns is None
    tuned = e3va.tune(small_vit(), dict(type='GPS', criterion='magnitude', level='net'))
    again = e3va.tune(small_vit(), dict(type='GPS', criterion='random', level='net'))
    again.load_state_dict(tuned.state_dict())
    for one, two in zip(sparse_layers(tuned).values(), sparse_layers(again).values()):
        assert (one.columns is None) == (two.columns is None)
        assert one.columns is None or torch.equal(one.columns, two.columns)


def test_what_the_graph_keeps():
    """No copy of the weight, no mask: the inputs that are read."""
    from e3va.cost.saved import saved_bytes
    ours, x = sparse(nn.Linear(64, 64)), torch.randn(2, 64)
    assert saved_bytes(lambda: ours(x), ours) == 16 * 2 * 4 + 16 * 8
    ours = sparse(nn.Linear(64, 64), 33)
    assert saved_bytes(lambda: ours(x), ours) == x.numel() * 4


# ---- what is selected

def reference(model, k):
    """The rule of the public code, by names, on the gradients of a timm ViT: {name: what trains, as a mask}."""
    masks = {}
    for name, parameter in model.named_parameters():
        if 'norm' in name or 'pos_embed' in name or 'cls_token' in name:
            masks[name] = np.zeros(parameter.shape, bool)
        elif 'head' in name or 'bias' in name or 'gamma' in name:
            masks[name] = np.ones(parameter.shape, bool)
        else:
            rows = np.abs(parameter.grad.numpy().reshape(len(parameter), -1))
            mask = np.zeros(rows.shape, bool)
            for row, order in zip(mask, rows.argsort(1)):
                row[order[-k:]] = True
            masks[name] = mask.reshape(parameter.shape)
    return masks


@pytest.mark.parametrize('k', [1, 3])
def test_selection_is_the_public_code_s(k):
    """Gradients of batches are added up, the K largest of each row taken; the same rest trains."""
    stock = small_vit(init_values=0.1)
    tuned = e3va.tune(copy.deepcopy(stock), dict(type='GPS', k=k))
    stock.train()
    for batch in batches():
        projected(stock(batch)).backward()
    assert select(tuned.train(), batches(), lambda batch: projected(tuned(batch))) == dict(used=2, skipped=0)
    layers = sparse_layers(tuned)
    for name, mask in reference(stock, k).items():
        layer = layers.get(name.removesuffix('.weight')) if name.endswith('.weight') else None
        if layer is None:
            assert tuned.get_parameter(name).requires_grad == mask.all() and mask.all() == mask.any(), name
        else:
            chosen = np.zeros(mask.size, bool)
            chosen[layer.index.flatten().numpy()] = True
            assert (chosen.reshape(mask.shape) == mask).all(), name
            assert not layer.weight.requires_grad and layer.values.requires_grad and layer.weight.grad is None


@pytest.mark.parametrize('level,words', [
    ('neuron', 'in blocks.2.attn.qkv, blocks.2.attn.proj, .*: no gradient reaches these'), ('net', None)])
def test_layers_without_gradient(level, words):
    """Sorting zeros would select the last inputs. Over the net such layers get no entry."""
    tuned = e3va.tune(small_vit(), dict(type='GPS', level=level))

    def loss(batch):
        x = tuned.blocks[:2](tuned._pos_embed(tuned.patch_embed(batch)))
        return projected(x)
    if words:
        with pytest.raises(ValueError, match=words):
            select(tuned, batches(), loss)
        assert not selected(tuned)
        without = e3va.tune(small_vit(), dict(type='GPS', level=level, without=2))
        tuned = without
    select(tuned, batches(), loss)
    assert selected(tuned)
    assert level == 'neuron' or tuned.blocks[2].attn.qkv.index.numel() == 0


@pytest.mark.parametrize('level', ['neuron', 'layer', 'net'])
def test_no_gradient_at_all(level):
    """A norm of zeros behind the trunk; the weights end as they were."""
    tuned = e3va.tune(small_vit(), dict(type='GPS', level=level))
    torch.nn.init.zeros_(tuned.norm.weight)
    before = copy.deepcopy(tuned.state_dict())
    with pytest.raises(ValueError, match='no gradient reaches the trunk, in none of its 13 layers.*layer of zeros'):
        select(tuned, batches(), lambda batch: projected(tuned(batch)))
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_a_head_of_zeros():
    """timm's: random for the selection, the same whatever was drawn before, and zeros afterwards."""
    found = []
    for draw in (1, 2):
        tuned = e3va.tune(small_vit(), 'GPS')
        torch.nn.init.zeros_(tuned.head.weight)
        torch.manual_seed(draw)
        select(tuned, batches(), lambda batch: projected(tuned(batch)), seed=3)
        assert not tuned.head.weight.any() and tuned.head.weight.requires_grad
        found.append(torch.cat([layer.index.flatten() for layer in sparse_layers(tuned).values()]))
    assert torch.equal(*found)


@pytest.mark.parametrize('trunk,rest', [
    ('swin_mmdet', {'relative_position_bias_table', 'qkv.bias', 'proj.bias', '0.0.bias', 'layers.1.bias',
                    'projection.bias'}),
    ('swin_timm', {'relative_position_bias_table', 'qkv.bias', 'proj.bias', 'fc1.bias', 'fc2.bias'}),
    ('vit_mmpretrain_maps', {'gamma1.weight', 'gamma2.weight', 'qkv.bias', 'proj.bias', '0.0.bias', 'layers.1.bias',
                             'projection.bias'}),
    ('vit_timm', {'ls1.gamma', 'ls2.gamma', 'qkv.bias', 'proj.bias', 'fc1.bias', 'fc2.bias'}),
    ('convnext_mmpretrain', {'gamma', 'depthwise_conv.bias', 'pointwise_conv1.bias', 'pointwise_conv2.bias', '.0.bias',
                             '.1.bias'}),
    ('convnext_timm', {'conv_dw.bias', 'fc1.bias', 'fc2.bias', 'grn.weight', 'grn.bias', '.0.bias', '.1.bias'})])
def test_what_trains_whole(trunk, rest):
    """Biases of linears and convolutions, tables, layer scales; no norm, position or token, whatever it is called."""
    tuned = build(trunk, dict(type='GPS'))
    names = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    whole = {name for name in names if not name.endswith('.values')}
    assert all(name.endswith(tuple(rest)) for name in whole)
    assert all(any(name.endswith(tail) for name in whole) for tail in rest)
    norms = {name for name, module in tuned.named_modules() if 'Norm' in type(module).__name__}
    assert not any(name.rpartition('.')[0] in norms for name in whole if 'grn' not in name)
    for kind, tail in [('norm', 'norm3.weight'), ('embedding', 'pos_embed')]:
        if tail in tuned.tuning.keys:
            assert tuned.get_parameter(tail).requires_grad is False
            assert build(trunk, dict(type='GPS', train=kind)).get_parameter(tail).requires_grad
    only = build(trunk, dict(type='GPS', train=()))
    assert all(name.endswith('.values') for name, parameter in only.named_parameters() if parameter.requires_grad)


def test_levels_compete_for_the_same_number():
    """Magnitudes by hand: the largest of a row, of a layer, of all layers; equal budgets."""
    budgets = {}
    for level in ('neuron', 'layer', 'net'):
        tuned = build('vit_timm', dict(type='GPS', k=2, criterion='magnitude', level=level))
        layers = sparse_layers(tuned)
        budgets[level] = sum(layer.values.numel() for layer in layers.values())
        assert selected(tuned)
        every = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()])
        least = every.sort(descending=True).values[budgets[level] - 1]
        for layer in layers.values():
            size = layer.weight.detach().abs()
            rows, chosen = size.flatten(1), torch.zeros(size.numel(), dtype=torch.bool)
            chosen[layer.index.flatten().long()] = True
            if level == 'neuron':
                want = rows >= rows.sort(1, descending=True).values[:, 1:2]
            elif level == 'layer':
                want = rows >= rows.flatten().sort(descending=True).values[2 * len(rows) - 1]
            else:
                want = rows >= least
            assert torch.equal(chosen.view_as(want), want)
            assert torch.equal(layer.values.detach().flatten(), layer.weight.flatten()[layer.index.flatten().long()])
    assert len(set(budgets.values())) == 1


def test_random_is_the_same_everywhere():
    def index(seed):
        tuned = build('vit_timm', dict(type='GPS', criterion='random', seed=seed))
        return torch.cat([layer.index.flatten() for layer in sparse_layers(tuned).values()])
    assert torch.equal(index(0), index(0)) and not torch.equal(index(0), index(1))


def test_without_blocks():
    tuned = build('swin_mmdet', dict(type='GPS', without=(0, 2)))               # depths 1, 2, 1, 1
    frozen = ('stages.0.blocks.0.', 'stages.1.blocks.1.')
    names = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(frozen) for name in names)
    whole = {name for name, parameter in build('swin_mmdet', dict(type='GPS')).named_parameters()
             if parameter.requires_grad}
    assert names == {name for name in whole if not name.startswith(frozen)}


def test_more_than_the_inputs(caplog):
    """K is clipped to the fan-in, and said: convnext's depthwise convolutions have 7 x 7 inputs."""
    from mmengine.logging import MMLogger
    lines = []
    MMLogger.get_instance('clip')
    logger = MMLogger.get_current_instance()
    logger.handlers[0].addFilter(lambda record: lines.append(record.getMessage()) or True)
    tuned = build('convnext_mmpretrain', dict(type='GPS', k=60, criterion='magnitude'))
    assert tuned.stages[0][0].depthwise_conv.values.shape == (12, 49)
    assert selected(tuned)
    assert any('stages.0.0.depthwise_conv (49)' in line and 'k=60' in line for line in lines)


@pytest.mark.parametrize('k', [1, 2, 15])
def test_counts(k):
    """ViT-B/16 has 12 (3 + 1 + 4 + 1) 768 + 768 neurons and as many biases: 167,424 with K = 1 (ALGORITHMS 1.4)."""
    import timm
    neurons = 12 * 9 * 768 + 768
    assert neurons * 2 == 167_424
    with torch.device('meta'):
        stock = timm.create_model('vit_base_patch16_224', num_classes=10)
    report = e3va.report(e3va.tune(stock, dict(type='GPS', k=k)))
    assert report['trained'] == neurons * (k + 1) and report['head'] == 7_690
    assert report['delta_bytes'] == 4 * neurons * (k + 1)


def test_counts_of_swin_and_convnext():
    import timm
    with torch.device('meta'):
        swin = timm.create_model('swin_base_patch4_window7_224', num_classes=0)
        convnext = timm.create_model('convnext_base', num_classes=0)
    widths, depths, heads = (128, 256, 512, 1024), (2, 2, 18, 2), (4, 8, 16, 32)
    blocks = sum(depth * width for depth, width in zip(depths, widths))
    tables = sum(depth * 169 * head for depth, head in zip(depths, heads))
    assert e3va.report(e3va.tune(swin, 'GPS'))['trained'] == 2 * (9 * blocks + 128) + sum(widths[1:]) + tables
    blocks = sum(depth * width for depth, width in zip((3, 3, 27, 3), widths))
    assert e3va.report(e3va.tune(convnext, 'GPS'))['trained'] == 2 * 6 * blocks + blocks + 2 * sum(widths)


# ---- training

def adam(model, decay=0., kind=torch.optim.Adam, lr=1e-3):
    return kind([parameter for parameter in model.parameters() if parameter.requires_grad], lr=lr, weight_decay=decay)


def steps(model, optimizer, count, before=lambda: None):
    torch.manual_seed(0)
    model.train()
    for step in range(count):
        optimizer.zero_grad()
        projected(model(batches(1)[0]), seed=step).backward()
        before()
        optimizer.step()


@pytest.mark.parametrize('mode', ['autograd', 'mask'])
def test_sparse_training_is_masked_training(mode):
    """50 steps of Adam: the stock model with masked gradients, and ours, end with the same weights to 1e-6."""
    ours = e3va.tune(small_vit(), dict(type='GPS', k=2))
    select(ours, batches(), lambda batch: projected(ours(batch)))
    if mode == 'mask':
        from e3va.gps.optim import GPSOptimWrapper
        other = e3va.tune(small_vit(), dict(type='GPS', k=2, mode='mask'))
        select(other, batches(), lambda batch: projected(other(batch)))
        with pytest.raises(ValueError, match='without its hook'):       # nothing masks as yet
            other.train()(batches()[0])
        optimizer = adam(other)
        GPSOptimWrapper(optimizer).mask(other)
        steps(other, optimizer, 50)
        assert e3va.report(other)['trained'] == e3va.report(ours)['trained']
        other = e3va.merge(other)
    else:
        other = small_vit()
        masks = {name: torch.zeros(layer.weight.numel()).index_fill(0, layer.index.flatten().long(), 1)
                 for name, layer in sparse_layers(ours).items()}
        for name, parameter in other.named_parameters():
            layer = name.removesuffix('.weight')
            parameter.requires_grad_(layer in masks or ours.get_parameter(name).requires_grad)

        def mask():
            for name, chosen in masks.items():
                weight = other.get_parameter(f'{name}.weight')
                weight.grad *= chosen.view_as(weight)
        steps(other, adam(other), 50, mask)
    start = small_vit().state_dict()
    steps(ours, adam(ours), 50)
    merged = e3va.merge(ours).state_dict()
    assert max(float((merged[name] - value).abs().max()) for name, value in other.state_dict().items()) <= 1e-6
    assert float((merged['blocks.1.mlp.fc1.weight'] - start['blocks.1.mlp.fc1.weight']).abs().max()) > 1e-3


def test_nothing_else_moves():
    """100 steps of AdamW with decay: outside the selection every bit of the merged weights is the start's."""
    ours = e3va.tune(small_vit(), dict(type='GPS'))
    select(ours, batches(), lambda batch: projected(ours(batch)))
    steps(ours, adam(ours, 0.1, torch.optim.AdamW, 1e-2), 100)
    start, merged = small_vit().state_dict(), e3va.merge(ours).state_dict()
    for name, layer in sparse_layers(ours).items():
        same = (start[f'{name}.weight'] == merged[f'{name}.weight']).flatten()
        chosen = layer.index.flatten().long()
        assert same.sum() == same.numel() - chosen.numel() and not same[chosen].any()
        assert torch.equal(layer.weight, start[f'{name}.weight'])
    assert all(torch.equal(start[name], merged[name]) for name in start if 'norm' in name or 'embed' == name[-5:])


def test_decay_acts_on_the_weights_themselves():
    """A value is the entry, not its change: a step of SGD without gradients shrinks it by lr x decay."""
    ours = build('vit_timm', dict(type='GPS', criterion='magnitude'))
    layer = ours.blocks[0].attn.qkv
    before = layer.values.detach().clone()
    layer.values.grad = torch.zeros_like(layer.values)
    torch.optim.SGD([layer.values], lr=0.5, weight_decay=0.2).step()
    torch.testing.assert_close(layer.values.detach(), 0.9 * before)


def test_bytes_follow_the_selection():
    """Gradients and Adam's moments are those of LoRA with as many parameters, to 5 %; full fine-tuning has 20 x."""
    def trained_bytes(method, **options):
        model = build('vit_timm', method, embed_dim=96, depth=2, out_indices=(1,))
        select(model, [image('vit_timm')], lambda batch: projected(model(batch))) if options else None
        optimizer = adam(model)
        projected(model(image('vit_timm'))).backward()
        optimizer.step()
        state = [value for values in optimizer.state.values() for value in values.values() if value.dim()]
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        count = e3va.report(model)['trained']
        return count, sum(value.numel() * value.element_size() for value in state + gradients)
    count, ours = trained_bytes(dict(type='GPS', k=2), select=True)
    other, lora = trained_bytes(dict(type='LoRA', rank=4))
    assert ours / count <= 1.05 * lora / other
    assert trained_bytes(dict(type='Full'))[1] > 20 * ours


# ---- deltas and loading

@pytest.mark.parametrize('level', ['neuron', 'net'])
def test_delta_is_indices_and_values(tmp_path, level):
    """On the stock model it gives the same weights bit for bit; the file holds no weight."""
    method = dict(type='GPS', k=2, level=level)
    tuned = e3va.tune(small_vit(), method)
    assert not selected(tuned)
    select(tuned, batches(), lambda batch: projected(tuned(batch)))
    steps(tuned, adam(tuned), 3)
    names = {name.rpartition('.')[2] for name in e3va.delta(tuned) if not name.startswith('head')}
    assert names == {'index', 'values', 'bias'}
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    again = e3va.load_delta(e3va.tune(small_vit(), method), tmp_path / 'delta.safetensors')
    assert selected(again) and again.tuning.hooked
    one, two = e3va.merge(tuned), e3va.merge(again)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    stock = small_vit()
    stock.load_state_dict(one.state_dict())
    x = batches()[0]
    assert torch.equal(stock.eval()(x), tuned.eval()(x))
    assert torch.equal(pickle.loads(pickle.dumps(tuned))(x), tuned(x))


def test_selection_of_another_model(tmp_path):
    tuned = e3va.tune(small_vit(), dict(type='GPS', criterion='magnitude'))
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    with pytest.raises(ValueError, match=r'selection of \(24, 1\).*which has \(24, 2\).*another k'):
        e3va.load_delta(e3va.tune(small_vit(), dict(type='GPS', k=2)), tmp_path / 'delta.safetensors')
    state = tuned.state_dict()
    state['blocks.0.attn.qkv.index'] = state['blocks.0.attn.qkv.index'].flip(0)
    with pytest.raises(ValueError, match='blocks.0.attn.qkv belongs to another architecture'):
        e3va.tune(small_vit(), 'GPS').load_state_dict(state)


def test_a_stock_load_takes_a_selection_away():
    """Other weights have other gradients; magnitudes are read anew."""
    tuned = e3va.tune(small_vit(), 'GPS')
    select(tuned, batches(), lambda batch: projected(tuned(batch)))
    assert tuned.tuning.hooked and selected(tuned)
    other = small_vit()
    for parameter in other.parameters():
        parameter.data.neg_()
    tuned.load_state_dict(other.state_dict(), strict=False)
    assert not selected(tuned) and not tuned.tuning.hooked
    assert torch.equal(tuned.eval()(batches()[0]), other.eval()(batches()[0]))
    by_size, tuned = (pair('vit_timm', dict(type='GPS', criterion='magnitude'))[i] for i in (0, 1))
    best = by_size.blocks[0].attn.qkv.weight.abs().argmax(1)
    assert torch.equal(tuned.blocks[0].attn.qkv.index[:, 0].long(), best + 24 * torch.arange(72))


def test_drawn_weights_are_taken_over():
    """init_weights without a checkpoint: the values are the new weights'."""
    tuned = build('vit_mmpretrain', dict(type='GPS', criterion='magnitude'))
    layer = tuned.layers[0].ffn.layers[1]
    before = layer.weight.detach().clone()
    tuned.init_weights()
    assert not torch.equal(before, layer.weight)
    assert torch.equal(layer.values, layer.weight.flatten()[layer.index.long()])
    index = layer.index.clone()
    layer.values.data += 1
    tuned.init_weights()                                                # once is enough: mmengine only warns
    assert torch.equal(layer.index, index) and not torch.equal(layer.values, layer.weight.flatten()[index.long()])


# ---- refusals

@pytest.mark.parametrize('options,words', [
    (dict(k=0), 'k must be an integer of at least 1'), (dict(level='block'), "level must be one of 'neuron'"),
    (dict(criterion='fisher'), 'criterion must be'), (dict(train=('weights',)), "train must be one of 'bias'"),
    (dict(without=(9,)), 'without must be.*at most 3'), (dict(mode='dense'), 'mode must be'),
    (dict(seed=-1), 'seed must be')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        build('vit_timm', dict(type='GPS', **options))


def test_torch_s_attention():
    """mmseg's ViT attends by torch's module, which reads its weights itself: the public code's rule holds there too."""
    import mmseg.models  # noqa: F401

    from e3va.registry import MODELS

    def make(**method):
        torch.manual_seed(0)
        return MODELS.build(dict(
            type='e3va.Tuned', trunk='mmseg.VisionTransformer', img_size=(64, 64), embed_dims=24, num_layers=2,
            num_heads=2, mlp_ratio=2, drop_path_rate=0., method=method))
    stock, x = make(type='Full'), torch.randn(2, 3, 64, 64)
    tuned = make(type='GPS', k=2)
    assert all('values' in name or not parameter.requires_grad for name, parameter in tuned.named_parameters()
               if name.endswith('weight'))
    projected(stock(x)).backward()
    select(tuned, [x], lambda batch: projected(tuned(batch)))
    layers = sparse_layers(tuned)
    assert {'layers.0.attn.attn', 'layers.0.attn.attn.out_proj'} < set(layers)
    for name in ('layers.1.attn.attn.in_proj_weight', 'layers.1.attn.attn.out_proj.weight'):
        best = stock.get_parameter(name).grad.abs().sort(1).indices[:, -2:].sort(1).values
        layer = layers[name.removesuffix('.in_proj_weight').removesuffix('.weight')]
        assert torch.equal(layer.index.long() % 24, best)
    optimizers = [adam(stock), adam(tuned)]
    chosen = {f'{name}.in_proj_weight' if name.endswith('attn.attn') else f'{name}.weight': layer.index
              for name, layer in layers.items()}
    for step in range(5):
        for model, optimizer in zip((stock, tuned), optimizers):
            optimizer.zero_grad()
            projected(model(x), seed=step).backward()
            for name, parameter in model.named_parameters():
                if model is stock and name in chosen:
                    kept = parameter.grad.flatten()[chosen[name].long()]
                    parameter.grad.zero_().view(-1)[chosen[name].long()] = kept
                elif model is stock and not tuned.get_parameter(name).requires_grad:
                    parameter.grad = None
            optimizer.step()
    merged = e3va.merge(copy.deepcopy(tuned))
    assert [type(module) for module in merged.modules()] == [type(module) for module in stock.modules()]
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, atol=1e-6, rtol=0)
    tuned.eval(), merged.eval()
    assert distance(tuned(x), merged(x)) <= 1e-6
    assert 'weight' not in vars(tuned.layers[0].attn.attn.out_proj)


def test_any_trunk():
    """A ResNet: filters are the neurons; its batch norms stay, statistics too."""
    import mmdet.models  # noqa: F401

    from e3va.registry import MODELS
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.ResNet', depth=18, method='GPS'))
    assert e3va.report(trunk)['trained'] == 64 + 4 * 64 + 5 * (128 + 256 + 512)     # filters; no convolution has a bias
    before = copy.deepcopy(trunk.state_dict())
    x = torch.randn(2, 3, 64, 64)
    select(trunk.train(), [x], lambda batch: projected(trunk(batch)))
    trunk(x)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items()
               if not name.endswith(('index', 'values')))
    with pytest.raises(ValueError, match='does not know the blocks of ResNet'):
        MODELS.build(dict(type='e3va.Tuned', trunk='mmdet.ResNet', depth=18, method=dict(type='GPS', without=(0,))))


class ByItself(nn.Module):
    """Reads the weight of its layer without calling it, as BEiT's attention does."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return nn.functional.linear(self.first(x), self.qkv.weight, self.qkv.bias)


def test_a_weight_that_is_read_by_itself():
    """The layer is called in its place: its selected values train, as the dense weights of the reference do."""
    x, kept = torch.randn(3, 6), []
    for mode in ('sparse', 'mask'):
        torch.manual_seed(0)
        ours = e3va.tune(ByItself(), dict(type='GPS', mode=mode))
        select(ours, [x], lambda batch: projected(ours(batch)))
        ours.tuning.hooked = True
        projected(ours(x)).backward()
        index = ours.qkv.index.long()
        gradient = ours.qkv.values.grad if mode == 'sparse' else ours.qkv.weight.grad.flatten()[index]
        kept.append((index, gradient.view_as(index)))
    assert torch.equal(kept[0][0], kept[1][0]) and kept[0][1].any()
    assert torch.allclose(kept[0][1], kept[1][1], atol=1e-6)


def test_layers_that_compute_otherwise():
    """A convolution that standardises its weight has no entries to train; mmcv's wrappers are plain layers."""
    from mmcv.cnn.bricks.wrappers import Conv2d
    from timm.layers import StdConv2d
    with pytest.raises(ValueError, match='0 of Sequential is a StdConv2d, which computes something else'):
        e3va.tune(nn.Sequential(StdConv2d(3, 4, 3)), 'GPS')
    assert sparse_layers(e3va.tune(nn.Sequential(Conv2d(3, 4, 3)), 'GPS'))


def test_head_of_a_timm_model_of_any_kind():
    """It trains whole, also where the trunk is of no family: 512 x 5 + 5."""
    import timm
    report = e3va.report(e3va.tune(timm.create_model('resnet18', num_classes=5), 'GPS'))
    assert report['head'] == 512 * 5 + 5


def test_values_for_the_wrong_mode():
    """Those of a sparse run would be lost among dense weights."""
    tuned, masked = (build('vit_timm', dict(type='GPS', criterion='magnitude', mode=mode))
                     for mode in ('sparse', 'mask'))
    with pytest.raises(ValueError, match="values of a run with mode='sparse' are given"):
        masked.load_state_dict(tuned.state_dict(), strict=False)


def test_untrained_selection():
    """Without a selection the first step stops."""
    tuned = build('vit_timm', dict(type='GPS'))
    with pytest.raises(ValueError, match=r"default_hooks = dict\(gps=dict\(type='e3va.GPSHook'\)\)"):
        tuned.train()(image('vit_timm'))
    assert distance(tuned.eval()(image('vit_timm')), build('vit_timm').eval()(image('vit_timm'))) == 0


def test_what_cannot_be_selected_on():
    """No data, no loss, a gradient that is not finite; what trained before trains afterwards."""
    tuned = e3va.tune(small_vit(), 'GPS')
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    for given, loss, words in [
            ([], None, 'there is no training data'), ([1, 2], lambda batch: None, 'none of the 2 batches'),
            (batches(), lambda batch: projected(tuned(batch)) / 0, 'in batch 0 the loss, the gradient of'),
            ([batches()[0], batches()[0] * float('nan')], lambda batch: projected(tuned(batch)), 'in batch 1')]:
        with pytest.raises(ValueError, match=words):
            select(tuned, given, loss)
    assert trained == [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert not selected(tuned)


def test_of_equal_scores_the_last():
    """Those of a stable sort, whether all, some or none are equal; numbers that are none are the highest, as there."""
    draw = torch.Generator().manual_seed(0)
    for count in (1, 5, 40):
        for levels in (1, 3, 1e6):
            scores = (torch.rand(30, 40, generator=draw) * levels).floor()
            scores[3, ::2] = float('nan')
            wanted = scores.sort(dim=1, stable=True).indices[:, 40 - count:].sort(dim=1).values
            assert torch.equal(highest(scores, count), wanted)


class Attends(nn.Module):
    """A module of no known family that attends by torch's module, with a layer at a classifier's place."""

    def __init__(self):
        super().__init__()
        self.attn, self.fc = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(self.attn(x, x, x, need_weights=False)[0])


def test_torch_s_attention_without_its_last_layer(caplog):
    x = torch.randn(2, 5, 12)
    tuned = e3va.tune(Attends(), dict(type='GPS', targets=['attn'])).train()
    select(tuned, [x], lambda batch: projected(tuned(batch)))
    projected(tuned(x)).backward()
    assert tuned.attn.values.grad.any() and type(tuned.attn.out_proj.weight) is nn.Parameter
    assert distance(tuned.eval()(x), e3va.merge(copy.deepcopy(tuned)).eval()(x)) <= 1e-6


def test_a_classifier_that_does_not_say_so(capsys):
    """As under LoRA it is left out, which is said; `also` trains it whole, as the paper does."""
    tuned = e3va.tune(Attends(), 'GPS')
    assert [name for name, one in tuned.named_parameters() if one.requires_grad and name.startswith('fc')] == []
    assert 'the classifier left out (also= trains it)' in ''.join(capsys.readouterr())
    whole = e3va.tune(Attends(), 'GPS', also=['fc'])
    assert {name for name, one in whole.named_parameters() if one.requires_grad and name.startswith('fc')} == {
        'fc.weight', 'fc.bias'}
    x = torch.randn(2, 5, 12)
    select(whole, [x], lambda batch: projected(whole(batch)))
    projected(whole.train()(x)).backward()
    assert 'were not called' not in ''.join(capsys.readouterr())        # torch reads the weight of `out_proj`

"""DMLoRA: equation 2 on the drawn branches by hand, the draws' statistics, halvings, evaluation, counts, cost."""
import copy
import math

import pytest
import torch
from torch import nn

import e3va
from e3va.command.config import apply_method, load_config, load_method
from e3va.cost.saved import saved_bytes
from e3va.dmlora.method import Branches, MixLoRALinear, average, draw, halve, mixtures
from e3va.methods import build_method
from e3va.registry import MODELS
from tests.conftest import before_step, build, distance, image, projected, stir, tensors
from tests.test_methods.counts import count


def layer_of(of=3, slices=(0, 2), downs=4, ups=3, rank=2, scale=0.5, width=8):
    torch.manual_seed(0)
    layer = MixLoRALinear(nn.Linear(12, width * of), rank, downs, ups, scale, slices, of)
    for branches in layer.up:
        for branch in branches.all:
            nn.init.normal_(branch)
    return layer


def drawn(model):
    """Numbers of the drawn branches."""
    return [next(i for i, branch in enumerate(each.all) if branch is each.drawn) for each in mixtures(model)]


@pytest.mark.parametrize('of,slices', [(1, (0,)), (3, (0, 2)), (3, (1,))])
def test_equation(of, slices):
    """Training: W x + b + s B_j A_i x with the drawn i and j of each slice; evaluation: s mean(B) mean(A)."""
    layer = layer_of(of, slices)
    x = torch.randn(5, 7, 12)
    plain = x @ layer.weight.T + layer.bias
    for iteration in range(3):
        draw(layer.train(), iteration, seed=4)
        numbers = drawn(layer)
        downs, ups = numbers[:len(slices)], numbers[len(slices):]
        want = plain.clone()
        for k, part in enumerate(slices):
            a, b = layer.down[k].all[downs[k]], layer.up[k].all[ups[k]]
            want[..., part * 8:part * 8 + 8] += 0.5 * (x @ a.T @ b.T)
        torch.testing.assert_close(layer(x), want)
    want = plain.clone()
    for k, part in enumerate(slices):
        a, b = sum(layer.down[k].all) / 4, sum(layer.up[k].all) / 3
        want[..., part * 8:part * 8 + 8] += 0.5 * (x @ a.T @ b.T)
    layer.eval()
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(x @ (layer.weight + layer.delta()).T + layer.bias, want)
    torch.testing.assert_close(layer.merged()(x), want)


def test_gradients_of_the_drawn_alone():
    """Every drawn branch gets the gradient of its formula, the others none at all."""
    layer = layer_of().train()
    layer.weight.requires_grad_(False), layer.bias.requires_grad_(False)
    draw(layer, 1)
    x, out = torch.randn(6, 12), torch.randn(6, 24)
    (layer(x) * out).sum().backward()
    for k, part in enumerate((0, 2)):
        a, b, grad = layer.down[k].drawn, layer.up[k].drawn, out[:, part * 8:part * 8 + 8]
        torch.testing.assert_close(a.grad, 0.5 * b.T @ grad.T @ x)
        torch.testing.assert_close(b.grad, 0.5 * grad.T @ (x @ a.T))
    assert sum(one.grad is not None for one in layer.parameters()) == 4
    assert layer.scale.grad is None


def test_start():
    """A by kaiming with a = sqrt(5), i.e. uniform in +-1 / sqrt(in), each its own; B zero; W is adopted."""
    old = nn.Linear(400, 12)
    layer = MixLoRALinear(old, 5, 3, 3, 10.)
    assert layer.weight is old.weight and layer.bias is old.bias
    assert not any(branch.any() for branch in layer.up[0].all)
    first, *others = layer.down[0].all
    assert not any(torch.equal(first, other) for other in others)
    bound = 1 / math.sqrt(400)
    for branch in layer.down[0].all:
        assert 0.98 * bound < branch.abs().max() <= bound and abs(branch.std() * math.sqrt(3) / bound - 1) < 0.05
    assert layer.scale.tolist() == [10.] and not layer.scale.requires_grad
    x = torch.randn(2, 400)
    assert torch.equal(layer.train()(x), old(x)) and torch.equal(layer.eval()(x), old(x))


# ---- the draws

def table(iterations, seed=0, branches=4):
    """Drawn numbers, (iterations, 8 factors)."""
    model = nn.Sequential(*(layer_of(downs=branches, ups=branches) for _ in range(2)))
    rows = []
    for iteration in iterations:
        draw(model, iteration, seed)
        rows.append(drawn(model))
    return torch.tensor(rows)


def chi_square(pairs, n):
    """Of the joint counts of two draws against uniform ones: n^2 - 1 degrees of freedom."""
    counts = torch.bincount(pairs[0] * n + pairs[1], minlength=n * n).double()
    expected = len(pairs[0]) / n ** 2
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_are_uniform_and_independent():
    """Chi-square over all pairs of factors and of successive iterations; 37.7 is the 0.1 % point of 15 degrees."""
    rows = table(range(3000))
    factors = [rows[:, i] for i in range(8)]
    values = [chi_square((one, other), 4) for i, one in enumerate(factors) for other in factors[:i]]
    values += [chi_square((one[:-1], other[1:]), 4) for one in factors for other in factors]
    assert sum(value > 37.7 for value in values) <= 2                   # of 92; the mean is 15
    assert 13 < sum(values) / len(values) < 17
    seeds = torch.stack([table([7], seed)[0] for seed in range(1000)])
    assert all(chi_square((seeds[:, i], seeds[:, j]), 4) < 50 for i in range(8) for j in range(i))


def test_draws_have_no_state():
    """A function of seed and iteration alone: any order, any process, whatever torch and numpy have drawn."""
    rows = table(range(20), seed=3)
    torch.rand(5)
    assert torch.equal(table([13, 2, 13], seed=3), rows[[13, 2, 13]])
    assert not torch.equal(table(range(20), seed=4), rows)
    layer, state = layer_of(ups=4), torch.get_rng_state()
    draw(layer, 3), halve(layer, 'dropout')
    assert torch.equal(state, torch.get_rng_state())
    # A known answer: if the stream ever changed, a later version could not resume a run exactly.
    assert table([0, 1, 1000], seed=5).tolist() == [
        [1, 0, 3, 2, 2, 3, 1, 3],
        [1, 3, 0, 0, 1, 1, 1, 2],
        [2, 2, 0, 0, 1, 2, 3, 2]]


def test_recomputation_takes_the_same_branches():
    """Activation checkpointing computes the forward twice; the draw is the step's."""
    gradients = []
    for flag in (False, True):
        model = build('swin_mmdet', dict(type='DMLoRA', branches=4), with_cp=flag, drop_path_rate=0.)
        stir(model)
        draw(model.train(), 11)
        projected(model(image('swin_mmdet'))).backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 5 * 2 * 2
    assert distance(list(gradients[0].values()), list(gradients[1].values())) <= 1e-6


def test_compiled_once():
    """torch.compile takes the draws as data: one graph for all of them, and the right gradients."""
    from torch._dynamo.testing import CompileCounter
    torch._dynamo.reset()
    model = build('vit_timm', dict(type='DMLoRA', rank=2, branches=4), drop_path_rate=0.)
    stir(model)
    draw(model.train(), 0)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for iteration in range(5):
        draw(model, iteration)
        found = []
        for forward in (model, compiled):
            model.zero_grad()
            projected(forward(image('vit_timm'))).backward()
            found.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
        assert found[0].keys() == found[1].keys()
        assert distance(list(found[0].values()), list(found[1].values())) <= 1e-5
    assert counter.frame_count == 1


# ---- halving

def test_dropout():
    """Of each factor a random half stays, as it is and in its order; the draws then know these alone."""
    model = nn.Sequential(*(layer_of(downs=8, ups=8) for _ in range(50)))
    before = [branches.all for branches in mixtures(model)]
    gone = halve(model, 'dropout', seed=2)
    places = []
    for branches, old in zip(mixtures(model), before):
        kept = [next(i for i, one in enumerate(old) if one is branch) for branch in branches.all]
        assert kept == sorted(kept) and len(set(kept)) == 4
        assert [name for name, _ in branches.named_parameters()] == ['0', '1', '2', '3']
        places.append(kept)
    assert len(gone) == 200 * 4 and all(kept is None for _, kept in gone)
    left = {one for branches in mixtures(model) for one in branches.all}
    assert not left & {one for one, _ in gone}
    counts = torch.bincount(torch.tensor(places).flatten(), minlength=8)
    assert 4 * 20 < counts.min() and counts.max() < 6 * 20              # 100 each, of 200 factors
    assert len(set(map(tuple, places))) > 60                            # of the 70 subsets: each factor draws its own
    other = nn.Sequential(*(layer_of(downs=8, ups=8) for _ in range(50)))
    old = [branches.all for branches in mixtures(other)]
    halve(other, 'dropout', seed=2)
    assert places == [[next(i for i, one in enumerate(all_) if one is branch) for branch in branches.all]
                      for branches, all_ in zip(mixtures(other), old)]
    for wanted in (2, 1, 1):
        halve(model, 'dropout')
        assert {len(branches) for branches in mixtures(model)} == {wanted}


def test_average():
    """Scheme B: (A_1 + A_2) / 2, (A_3 + A_4) / 2; what evaluation takes does not change."""
    layer = layer_of(ups=4).eval()
    x = torch.randn(3, 12)
    want, old = layer(x).detach(), [one.detach().clone() for one in layer.down[0].all]
    gone = halve(layer, 'average')
    torch.testing.assert_close(layer.down[0].all[1], nn.Parameter((old[2] + old[3]) / 2))
    assert len(gone) == 4 * 2 and all(kept is not None for _, kept in gone)
    torch.testing.assert_close(layer(x), want)
    average(layer)
    assert {len(branches) for branches in mixtures(layer)} == {1}
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.train()(x), want)                  # one branch: training is evaluation


def test_moments_of_averaged_branches():
    """The optimizer goes on with the mean of both moments; where one was never drawn, with the other's."""
    from e3va.dmlora.optim import DMLoRAOptimWrapper
    from e3va.train.retire import retire
    layer = layer_of(of=1, slices=(0,), downs=4, ups=1).train()
    wrapper = DMLoRAOptimWrapper(torch.optim.AdamW(layer.parameters(), lr=0.1))
    for i in (0, 0, 1, 2):
        layer.down[0].choose(i)
        wrapper.update_params(layer(torch.randn(4, 12)).square().sum())
    one, two, three, four = layer.down[0].all
    state = wrapper.optimizer.state
    want = {name: (state[one][name] + state[two][name]) / 2 for name in state[one]}
    alone = copy.deepcopy(state[three])
    assert float(state[one]['step']) == 2 and float(state[two]['step']) == 1 and four not in state
    retire(wrapper.optimizer, halve(layer, 'average'))
    assert layer.down[0].all[0] is one and layer.down[0].all[1] is three
    assert all(torch.equal(state[one][name], want[name]) for name in want)
    assert all(torch.equal(state[three][name], alone[name]) for name in alone)
    assert two not in state and four not in state
    assert not {two, four} & set(wrapper.param_groups[0]['params'])
    wrapper.update_params(layer(torch.randn(4, 12)).square().sum())


def test_undrawn_branches_stand_still():
    """Neither momentum nor weight decay moves a branch in a step that does not draw it."""
    from e3va.dmlora.optim import DMLoRAOptimWrapper
    layer = layer_of(of=1, slices=(0,)).train()
    wrapper = DMLoRAOptimWrapper(torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5))
    for iteration in range(20):
        draw(layer, iteration)
        before = {one: one.detach().clone() for branches in mixtures(layer) for one in branches.all}
        wrapper.update_params(layer(torch.randn(4, 12)).square().sum())
        moved = {one for one in before if not torch.equal(one, before[one])}
        assert moved == {branches.drawn for branches in mixtures(layer)}


# ---- in a trunk

def test_placement_and_names():
    tuned = build('vit_mmpretrain', dict(type='DMLoRA', rank=2, branches=3))
    names = {name for name in tuned.state_dict() if name not in tuned.tuning.keys}
    assert names == {f'layers.{i}.attn.qkv.{factor}.{part}.{branch}' for i in range(4) for factor in ('down', 'up')
                     for part in range(2) for branch in range(3)} | {f'layers.{i}.attn.qkv.scale' for i in range(4)}
    shared = build('vit_mmpretrain', dict(type='DMLoRA', branches=4, share='up'))
    assert [len(branches) for branches in mixtures(shared)][:4] == [4, 4, 1, 1]     # A of q and v, B of q and v
    shared = build('vit_mmpretrain', dict(type='DMLoRA', branches=4, share='down'))
    assert [len(branches) for branches in mixtures(shared)][:4] == [1, 1, 4, 4]


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_mmseg', 'swin_mmpretrain', 'swin_timm', 'vit_timm'])
def test_every_trunk_merges_at_any_time(trunk):
    """With 4 branches, with 2 and with 1: stock names, and the outputs to 1e-5."""
    tuned = build(trunk, dict(type='DMLoRA', branches=4, scale=2.)).eval()
    stir(tuned)
    x = image(trunk)
    for _ in range(3):
        merged = e3va.merge(tuned)
        assert set(merged.state_dict()) == set(tuned.tuning.keys)
        assert distance(tensors(merged(x)), tensors(tuned(x))) <= 1e-5
        halve(tuned, 'dropout')


def test_loads_take_what_there_is(tmp_path):
    """State dicts and deltas with fewer or more branches than the model has."""
    tuned = build('vit_mmpretrain', dict(type='DMLoRA', branches=4)).eval()
    stir(tuned)
    halve(tuned, 'dropout')
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    for count_ in (4, 1):
        again = build('vit_mmpretrain', dict(type='DMLoRA', branches=count_), seed=1).eval()
        again.load_state_dict(tuned.state_dict(), strict=True)
        assert distance(again(image('vit_mmpretrain')), tuned(image('vit_mmpretrain'))) == 0
        again = build('vit_mmpretrain', dict(type='DMLoRA', branches=count_)).eval()
        e3va.load_delta(again, tmp_path / 'delta.safetensors')
        assert distance(again(image('vit_mmpretrain')), tuned(image('vit_mmpretrain'))) == 0
        assert {len(branches) for branches in mixtures(again)} == {2}


def test_scheme_of_a_delta(tmp_path):
    """`e3va://` rebuilds a trunk by the delta's method, which names the branches of the start."""
    from mmengine.runner import CheckpointLoader
    tuned = build('vit_mmpretrain', dict(type='DMLoRA', branches=4))
    stir(tuned)
    average(tuned)
    torch.save({name: value for name, value in tuned.state_dict().items() if name in tuned.tuning.keys},
               tmp_path / 'base.pth')
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors', base=str(tmp_path / 'base.pth'))
    found = CheckpointLoader.load_checkpoint(f'e3va://{tmp_path}/delta.safetensors')['state_dict']
    assert found.keys() == tuned.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in tuned.state_dict().items())


def test_conversion_keeps_the_draw():
    branches = Branches(nn.Parameter(torch.randn(2, 3)) for _ in range(3))
    branches.choose(2)
    branches.double()
    assert branches.drawn is branches.all[2] and branches.drawn.dtype is torch.float64
    other = copy.deepcopy(branches)
    assert other.drawn is other.all[2] and other.drawn is not branches.drawn


def test_counts():
    """ViT-B/16, r = 8 on q and v: n branches train n times 294,912; merged into one 294,912, exactly (.29 M)."""
    assert count(dict(type='DMLoRA', branches=1)) == 294_912
    assert count(dict(type='DMLoRA', branches=4)) == 4 * 294_912
    assert count(dict(type='DMLoRA', branches=4, share='up')) == (4 + 1) * 294_912 // 2
    assert count(dict(type='DMLoRA', branches=1, learn_scale=True)) == 294_912 + 24
    trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', arch='b',
                              method=dict(type='DMLoRA', branches=4)))
    average(trunk)
    assert e3va.report(trunk)['trained'] == 294_912
    assert e3va.report(trunk)['delta_bytes'] == 4 * (294_912 + 24)      # the scales are saved, too


def test_branches_cost_no_activations():
    """What autograd saves does not depend on n, and is LoRA's (ViT-S of two blocks, 224 px); in the paper 1 % more."""
    common = dict(arch=dict(embed_dims=384, num_layers=2, num_heads=6, feedforward_channels=1536), img_size=224)
    found = {}
    for name, method in dict(lora=dict(type='LoRA'), one=dict(type='DMLoRA', branches=1),
                             many=dict(type='DMLoRA', branches=32)).items():
        trunk = MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', method=method, **common))
        before_step(trunk.train(), 5)
        found[name] = saved_bytes(lambda: trunk(torch.zeros(2, 3, 224, 224)), trunk)
    assert found['one'] == found['many'] == found['lora']


# Table 3: reduce branch, pruning by dropout (DB) or averaging (AB), sharing of up (SU) or down (SD).
TABLE_3 = dict(a=('none', None), b=('average', None), c=('dropout', 'up'), d=('dropout', 'down'), e=('dropout', None))


@pytest.mark.parametrize('scheme', TABLE_3)
def test_schemes(scheme):
    """The five configs are the rows of Table 3; each builds with its wrapper and its hook."""
    from mmengine.registry import HOOKS, OPTIM_WRAPPERS
    cfg = load_method(f'dmlora_scheme_{scheme}')
    hook = HOOKS.build(cfg.default_hooks.dmlora)
    assert (hook.halving, build_method(cfg.method).share) == TABLE_3[scheme]
    assert hook.scale_length is None
    assert OPTIM_WRAPPERS.get(cfg.optim_wrapper.type).__name__ == 'DMLoRAOptimWrapper'


def test_configs_of_the_scalar():
    """Two stages: 10 epochs behind 100 at 1e-2 (section 4.1); one stage: the scales train from the start (Table 5)."""
    two, one = load_method('dmlora'), load_method('dmlora_one_stage')
    assert (two.default_hooks.dmlora.scale_length, two.default_hooks.dmlora.scale_lr) == (0.1, 1e-2)
    assert one.default_hooks.dmlora.scale_length is None and build_method(one.method).learn_scale
    assert not build_method(two.method).learn_scale


@pytest.mark.parametrize('amp', [False, True])
def test_wrapper_of_a_tuned_config(amp):
    """`--method` puts the wrapper, or its twin for mixed precision, into a task's config."""
    from mmengine.registry import OPTIM_WRAPPERS
    task = load_config('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')
    if amp:
        task.optim_wrapper.type = 'AmpOptimWrapper'
    cfg = apply_method(task, load_method('dmlora'))
    kind = OPTIM_WRAPPERS.get(cfg.optim_wrapper.type)
    assert kind.__name__ == ('Amp' if amp else '') + 'DMLoRAOptimWrapper'
    assert 'BranchMixin' == kind.__mro__[1].__name__
    assert cfg.default_hooks.dmlora.type == 'e3va.DMLoRAHook' and 'checkpoint' in cfg.default_hooks


def test_refusals():
    for options, words in [(dict(rank=0), 'rank'), (dict(rank=999), 'at most'), (dict(branches=0), 'branches'),
                           (dict(branches=2.5), 'branches'), (dict(scale='big'), 'scale'), (dict(scale=0), 'scale'),
                           (dict(learn_scale='yes'), 'learn_scale'), (dict(roles=()), 'roles'),
                           (dict(share='both'), "share must be one of None, 'up', 'down'")]:
        with pytest.raises(ValueError, match=words):
            build('vit_mmpretrain', dict(type='DMLoRA', **options))

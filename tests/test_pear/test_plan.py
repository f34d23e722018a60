"""Pear's scores, plans, knowledge checkpoints and routes, against a second computation by hand."""
import copy
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import e3va
from e3va.layers import Emptied
from e3va.methods.routing import routing_of
from e3va.pear import plan as pear
from tests.conftest import alike, build, distance, image, pair, projected, stir, tensors

METHODS = dict(
    lora=dict(type='LoRA', rank=2, roles=('q', 'v', 'proj')), bi_lora=dict(type='LoRA', rank=4, bits=1),
    adaptformer=dict(type='AdaptFormer', rank=2), bi_adaptformer=dict(type='AdaptFormer', rank=4, bits=1),
    adapter=dict(type='Adapter', rank=2), pfeiffer=dict(type='AdapterPfeiffer', rank=2), e3va=dict(type='E3VA', rank=1),
    e3va_stream=dict(type='E3VA', rank=1, mode='stream'), e3va_standard=dict(type='E3VA', adapter='standard', mid=4))
every = pytest.mark.parametrize('trunk,method', [
    *(('vit_mmpretrain', method) for method in METHODS),
    *(('swin_mmdet', method) for method in ('lora', 'adaptformer', 'adapter', 'e3va', 'e3va_stream')),
    ('swin_timm', 'lora'), ('vit_timm', 'bi_adaptformer'), ('convnext_timm', 'adaptformer')])


def units_of(trunk):
    return trunk.tuning.method.units(trunk)


def pruned(trunk, method, ratio=0.5, share=True, scope='global', share_scope='global', seed=1, **options):
    """(stock, tuned and stirred, its plan): pruned by random scores."""
    stock, tuned = pair(trunk, METHODS[method], stirred=True)
    scores = pear.score(list(units_of(tuned).values()), 'random', seed=seed)
    plan = pear.plan(scores, *pear.alike(tuned, share_scope), ratio, scope, share)
    pear.prune(tuned, plan, **options)
    return stock, tuned, plan


# ---- contributions

def test_scores_by_hand():
    """Two units of two factors, with numbers that one can add up."""
    units = [nn.ParameterDict(dict(a=nn.Parameter(torch.tensor([1., -2.])), b=nn.Parameter(torch.tensor([3.])))),
             nn.ParameterDict(dict(a=nn.Parameter(torch.tensor([0., 4.])), b=nn.Parameter(torch.tensor([-1.]))))]
    a, b, c, d = (one for unit in units for one in unit.parameters())
    moments = {a: (torch.tensor([2., 1.]), torch.tensor([4., 3.])), b: (torch.tensor([-1.]), torch.tensor([1.])),
               c: (torch.tensor([5., -1.]), torch.tensor([25., 2.])), d: (torch.tensor([2.]), torch.tensor([9.]))}
    want = dict(taylor=[2 + 2 + 3, 0 + 4 + 2], taylor_sum=[3, 4 + 2], fisher=[4 + 12 + 9, 32 + 9],
                gradient=[4, 8], magnitude=[6, 5])
    for criterion, values in want.items():
        assert pear.score(units, criterion, moments).tolist() == values
    with pytest.raises(ValueError, match="^2 parameters of the units have no moments, and 'taylor' is made of them"):
        pear.score(units, 'taylor', {a: moments[a], b: moments[b]})
    first, again, other = (pear.score(units, 'random', seed=seed).tolist() for seed in (1, 1, 2))
    assert first == again != other and all(0 <= value < 1 for value in first)


# ---- plans

def by_hand(scores, ratio):
    """The paper's list of steps on one group, with the reading for ratios above a half."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    m = math.floor(round(ratio * len(scores), 9))
    gone, stay = order[:m][::-1], order[m:][::-1]                       # the strongest first
    serves = stay[:m]
    return {i: serves[j if len(serves) == m else math.floor(j * len(serves) / m)] for j, i in enumerate(gone)}


@pytest.mark.parametrize('n,ratio', [(12, 0.5), (24, 0.5), (7, 0.5), (10, 0.3), (100, 0.29), (10, 0.7), (9, 0.8),
                                     (8, 0), (3, 0.3), (5, 0.99)])
def test_rank_to_rank(n, ratio):
    scores = torch.rand(n, generator=torch.Generator().manual_seed(n))
    plan = pear.plan(scores, ['same'] * n, [10] * n, ratio)
    pruned = by_hand(scores.tolist(), ratio)
    assert plan.served_by == [pruned.get(i, i) for i in range(n)]
    assert plan.pruned == sorted(pruned, key=lambda i: scores[i]) and len(pruned) == plan.wanted == math.floor(
        n * 29 / 100 if n == 100 else round(ratio * n, 9))
    assert pear.plan(scores, ['same'] * n, [10] * n, ratio, share=False).served_by == [
        -1 if i in pruned else i for i in range(n)]


def test_the_figure_of_the_paper():
    """Fig. 2: of six, those of index 0, 2 and 3 are the weakest; the strongest of them gets the strongest of the rest.
    """
    plan = pear.plan(torch.tensor([1., 5., 2., 3., 6., 4.]), [0] * 6, [1] * 6, 0.5)
    assert plan.served_by == [5, 1, 1, 4, 4, 5]


def test_several_groups():
    """By the contribution per entry; only within a group; one of each stays."""
    scores, sizes = torch.tensor([10., 1., 9., 8., 7., 6.]), [100, 100, 1, 1, 1, 1]
    groups = ['large', 'large', 'small', 'small', 'small', 'small']
    # per entry 0.1, 0.01, 9, 8, 7, 6: one of large may go, then the 6 and the 7 of small
    plan = pear.plan(scores, groups, sizes, 0.5)
    assert plan.served_by == [0, 0, 2, 3, 2, 3] and plan.pruned == [1, 5, 4]
    assert plan.scores.tolist() == pytest.approx([0.1, 0.01, 9, 8, 7, 6])
    plan = pear.plan(scores, groups, sizes, 0.9)
    assert plan.served_by == [0, 0, 2, 2, 2, 2] and plan.wanted == 5 and len(plan.pruned) == 4
    # a third of each: none of two, one of four
    assert pear.plan(scores, groups, sizes, 1 / 3, 'group').served_by == [0, 1, 2, 3, 4, 2]


def test_groups_of_a_swin():
    """The same width, rank and kind: the stages are apart, q and v together, or apart by `same_role`."""
    trunk = build('swin_mmdet', METHODS['lora'])
    names = list(units_of(trunk))
    stage = [int(name.split('.')[1]) for name in names]
    groups, _ = pear.alike(trunk, 'global')
    assert all((a == b) == (i == j) for a, i in zip(groups, stage) for b, j in zip(groups, stage))
    roles = [trunk.tuning.method.place(trunk, name)[1] for name in names]
    groups, _ = pear.alike(trunk, 'same_role')
    places = list(zip(groups, stage, roles))
    assert all((a == b) == (i == j and p == q) for a, i, p in places for b, j, q in places)
    assert pear.alike(trunk)[0] == groups
    for scope in ('global', 'group'):
        for ratio in (0.5, 0.9):
            served = pruned('swin_mmdet', 'lora', ratio, scope=scope)[2].served_by
            assert all(stage[i] == stage[k] for i, k in enumerate(served))
            assert {stage[k] for k in served} == {0, 1, 2, 3}


@pytest.mark.parametrize('trunk,method', [('vit_mmpretrain', 'lora'), ('swin_mmdet', 'e3va')])
def test_roles_share_by_default(trunk, method):
    """In a trunk of one stage, and on E3VA's highway."""
    trunk = build(trunk, METHODS[method])
    assert pear.alike(trunk) == pear.alike(trunk, 'global') != pear.alike(trunk, 'same_role')


# ---- the knowledge checkpoint

@pytest.mark.parametrize('checkpoint,coefficients', [('da', None), ('sba', (0.5, 0.5)), ('sba', (0.7, 0.2)),
                                                     ('sba', 'scores')])
@pytest.mark.parametrize('method,ratio', [('lora', 0.5), ('bi_lora', 0.7), ('e3va', 0.75), ('adaptformer', 0.5)])
def test_knowledge_checkpoint(method, ratio, checkpoint, coefficients):
    """Equations 2 and 3, factor by factor; several pruned ones each on the original, averaged for SBA."""
    tuned = build('vit_mmpretrain', METHODS[method])
    stir(tuned)
    before = [[one.detach().clone() for one in unit.parameters()] for unit in units_of(tuned).values()]
    scores = pear.score(list(units_of(tuned).values()), 'random', seed=3)
    plan = pear.plan(scores, *pear.alike(tuned, 'global'), ratio)
    pear.prune(tuned, plan, checkpoint, coefficients)
    several = 0
    for k, unit in enumerate(units_of(tuned).values()):
        if isinstance(unit, Emptied):
            continue
        takes = [i for i, by in enumerate(plan.served_by) if by == k != i]
        several += len(takes) > 1
        for j, now in enumerate(unit.parameters()):
            own, want = before[k][j], before[k][j]
            if checkpoint == 'da':
                for i in takes:
                    want = want + before[i][j]
            elif takes:
                each = []
                for i in takes:
                    c1, c2 = coefficients if coefficients != 'scores' else (
                        float(scores[k] / (scores[k] + scores[i])), float(scores[i] / (scores[k] + scores[i])))
                    each.append(c1 * own + c2 * before[i][j])
                want = sum(each) / len(each)
            torch.testing.assert_close(now.detach(), want)
    assert several or ratio == 0.5


@pytest.mark.parametrize('checkpoint', ['da', 'sba'])
def test_knowledge_checkpoint_of_a_loaded_delta(tmp_path, checkpoint):
    """In evaluation too, the servers compute with the mean and deviation of what they have become."""
    tuned = alike('vit_mmpretrain', METHODS['bi_lora'], stirred=True)
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    tuned = e3va.load_delta(pair('vit_mmpretrain', METHODS['bi_lora'])[1], tmp_path / 'delta.safetensors').eval()
    plan = pear.plan(torch.arange(8.), *pear.alike(tuned), 0.5)
    pear.prune(tuned, plan, checkpoint)
    for unit in list(units_of(tuned).values())[4:]:
        w = unit.down.detach()
        z = (w - w.mean()) / (w.std() + 1e-5)
        torch.testing.assert_close(unit.value('down'), 0.67449 * z.sign() * w.std() + w.mean(), rtol=1e-4, atol=1e-5)


# ---- routes

@every
@pytest.mark.parametrize('share', [True, False])
def test_outputs_are_those_of_copies(trunk, method, share):
    """A pruned trunk computes what an unpruned one does that holds the servers' values in their places, or zeros."""
    _, tuned, plan = pruned(trunk, method, share=share)
    whole = alike(trunk, METHODS[method], stirred=True)
    units, bits = list(units_of(whole).values()), METHODS[method].get('bits')
    if bits and not share:
        pytest.skip('zeros in 1 bit are no zeros')
    before = [[one.detach().clone() for one in unit.parameters()] for unit in units]
    with torch.no_grad():
        for i, k in enumerate(plan.served_by):
            for j, one in enumerate(units[i].parameters()):
                one.copy_(before[k][j]) if k >= 0 else one.zero_()
    tuned.eval(), whole.eval()
    assert distance(tuned(image(trunk)), whole(image(trunk))) <= 1e-6
    assert len(list(tuned.parameters())) < len(list(whole.parameters()))


@every
def test_gradients_add_up(trunk, method):
    """A shared unit gets the sum of what its positions' own copies would get."""
    _, tuned, plan = pruned(trunk, method)
    whole = alike(trunk, METHODS[method], stirred=True)
    units = list(units_of(whole).values())
    with torch.no_grad():
        for i, k in enumerate(plan.served_by):
            for one, other in zip(units[i].parameters(), units[k].parameters()):
                one.copy_(other)
    for model in (tuned, whole):
        model.eval()
        projected(model(image(trunk))).backward()
    for k, unit in enumerate(units_of(tuned).values()):
        if not isinstance(unit, Emptied):
            for j, one in enumerate(unit.parameters()):
                want = sum(list(units[i].parameters())[j].grad for i, by in enumerate(plan.served_by) if by == k)
                torch.testing.assert_close(one.grad, want, rtol=1e-4, atol=1e-6)
    assert all(one.grad is not None for one in tuned.parameters() if one.requires_grad)


@every
@pytest.mark.parametrize('share', [True, False])
def test_delta_round_trip(trunk, method, share, tmp_path):
    """Each unit once, and a table: a fresh model is pruned alike by the load, with bit-equal outputs."""
    stock, tuned, plan = pruned(trunk, method, share=share)
    e3va.save_delta(tuned, tmp_path / 'delta.safetensors')
    again = build(trunk, METHODS[method], seed=5)
    again.load_state_dict(stock.state_dict(), strict=False)
    e3va.load_delta(again, tmp_path / 'delta.safetensors')
    assert routing_of(again).served_by.tolist() == plan.served_by
    tuned.eval(), again.eval()
    assert distance(tuned(image(trunk)), again(image(trunk))) == 0
    names = [name.rpartition('.')[0] for name in e3va.delta(tuned)]
    kept = [name for name, unit in units_of(tuned).items() if not isinstance(unit, Emptied)]
    assert {name for name in units_of(tuned) if any(other.startswith(f'{name}.') or other == name for other in names)
            } == set(kept)


@pytest.mark.parametrize('trunk,method', [('vit_mmpretrain', 'lora'), ('swin_mmdet', 'lora'), ('vit_timm', 'bi_lora')])
@pytest.mark.parametrize('share', [True, False])
def test_merge_is_by_position(trunk, method, share):
    stock, tuned, _ = pruned(trunk, method, share=share)
    merged = e3va.merge(tuned)
    stock.load_state_dict(merged.state_dict(), strict=True)
    assert [type(module) for module in merged.modules()] == [type(module) for module in stock.modules()]
    stock.eval(), tuned.eval()
    assert distance(stock(image(trunk)), tuned(image(trunk))) <= 1e-5


@every
def test_copies(trunk, method):
    """deepcopy and pickle give a model of its own, which shares within itself."""
    _, tuned, _ = pruned(trunk, method)
    tuned.eval()
    want = [out.detach().clone() for out in tensors(tuned(image(trunk)))]
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert distance(other(image(trunk)), want) == 0
        for parameter in other.parameters():
            parameter.data.zero_()
        assert distance(tuned(image(trunk)), want) == 0
        mine = {id(module) for module in other.modules()}
        assert all(id(unit.server[0]) in mine for unit in units_of(other).values() if isinstance(unit, Emptied))


@pytest.mark.parametrize('method', ['lora', 'e3va'])
def test_compile(method):
    _, tuned, _ = pruned('vit_mmpretrain', method)
    tuned.eval()
    torch._dynamo.reset()
    compiled = torch.compile(tuned, backend='aot_eager')
    assert distance(tuned(image('vit_mmpretrain')), compiled(image('vit_mmpretrain'))) <= 1e-5


@pytest.mark.parametrize('method', ['lora', 'adapter'])
def test_checkpointing_under_ddp(method, tmp_path):
    """OpenMMLab's checkpointing would hand a shared parameter to DDP once for each block, which DDP refuses."""
    gradients = []
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        for with_cp in (False, True):
            tuned = build('swin_mmdet', METHODS[method], with_cp=with_cp).eval()
            stir(tuned)
            scores = pear.score(list(units_of(tuned).values()), 'random', seed=1)
            pear.prune(tuned, pear.plan(scores, *pear.alike(tuned, 'global'), 0.5))
            model = torch.nn.parallel.DistributedDataParallel(tuned) if with_cp else tuned
            projected(model(image('swin_mmdet'))).backward()
            gradients.append([one.grad for one in tuned.parameters() if one.requires_grad])
    finally:
        torch.distributed.destroy_process_group()
    assert any(gradient.any() for gradient in gradients[0]) and distance(*gradients) <= 1e-6


# ---- bytes

VIT = dict(type='mmpretrain.VisionTransformer', arch='base', img_size=224, patch_size=16)


@pytest.mark.parametrize('method,want', [
    (dict(type='AdaptFormer', rank=32, bits=1), 36_960), (dict(type='LoRA', rank=32, bits=1), 73_920),
    (dict(type='LoRA', rank=8), 294_912 // 2 * 4), (dict(type='AdaptFormer', rank=8, bias=False), 147_456 // 2 * 4)])
def test_bytes_on_vit_b(method, want, tmp_path):
    """Half of 73,920, 147,840, 294,912 * 4 and 147,456 * 4; the file has little else."""
    trunk = e3va.tune(e3va.registry.MODELS.build(dict(VIT)), method)
    whole = e3va.report(trunk)
    pear.prune(trunk, pear.plan(torch.rand(len(units_of(trunk))), *pear.alike(trunk, 'global'), 0.5))
    report = e3va.report(trunk)
    assert (report['delta_bytes'], whole['delta_bytes']) == (want, 2 * want)
    assert (2 * report['trained'], 2 * report['trained_bytes']) == (whole['trained'], whole['trained_bytes'])
    e3va.save_delta(trunk, tmp_path / 'delta.safetensors')
    assert want < (tmp_path / 'delta.safetensors').stat().st_size < want + 16 * 1024


# ---- bad input

def test_tables_that_do_not_fit():
    _, tuned, _ = pruned('vit_mmpretrain', 'lora')
    state = tuned.state_dict()
    with pytest.raises(ValueError, match='of a pruned trunk of 12 positions, and this has 4'):
        build('vit_mmpretrain', METHODS['adaptformer']).load_state_dict(state, strict=False)
    with pytest.raises(ValueError, match='pruned otherwise than this one'):
        pruned('vit_mmpretrain', 'lora', seed=7)[1].load_state_dict(state)
    with pytest.raises(ValueError, match='of a trunk that was not pruned, and this one was'):
        tuned.load_state_dict(build('vit_mmpretrain', METHODS['lora']).state_dict(), strict=False)
    tuned.load_state_dict(build('vit_mmpretrain').state_dict(), strict=False)      # the trunk's alone are welcome
    state = dict(state, **{'pear.served_by': torch.full((12,), 3, dtype=torch.int32)})
    state['pear.served_by'][3] = 5
    with pytest.raises(ValueError, match='damaged'):
        build('vit_mmpretrain', METHODS['lora']).load_state_dict(state, strict=False)


@pytest.mark.parametrize('method,words', [
    ('lora', 'the trunk that .* was trained on was not found'),
    (dict(type='LoRA', rank=3, roles=('q', 'v', 'proj')), 'other shapes')])
def test_a_refused_delta_changes_nothing(tmp_path, method, words):
    """Of another trunk, or of other shapes: the model has all its units, with their values."""
    e3va.save_delta(pruned('vit_mmpretrain', 'lora')[1], tmp_path / 'delta.safetensors')
    model = build('vit_mmpretrain', METHODS.get(method) if isinstance(method, str) else method, seed=9)
    stir(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        e3va.load_delta(model, tmp_path / 'delta.safetensors')
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_recipe_of_the_readme():
    """As it is printed: 12 of 24 pairs (A, B) go."""
    text = (Path(__file__).parents[2] / 'configs/pear/README.md').read_text()
    recipe, = (code for code in re.findall('```python\n(.*?)```', text, re.S) if 'moments' in code)
    names = {}
    exec(recipe, names)
    assert len(names['gone']) == 24 and len(set(routing_of(names['trunk']).served_by.tolist())) == 12

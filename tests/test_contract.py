"""What must hold for every method on every trunk (invariants 1 to 5, 7 and, for LoRA and the plain ones, 6)."""
import copy
import itertools
import pickle
import re

import pytest
import torch

import e3va
from tests.conftest import (
    METHODS,
    SWIN_ARCH,
    TRUNKS,
    VIT_ARCH,
    alike,
    before_step,
    build,
    distance,
    image,
    pair,
    pairs,
    projected,
    refusal,
    spread,
    stir,
    stock_state,
    tensors,
)

slow = pytest.mark.slow                                                 # minutes: the compiler compiles C++
# The first of METHODS of each class, and what runs other code: bits, E3VA's streams and rounded trunks, VPT's forms.
KINDS = [method for i, (method, options) in enumerate(METHODS.items()) if not refusal('vit_timm', method) and (
    options['type'] not in [other['type'] for other in list(METHODS.values())[:i]]
    or re.search('1bit|stream|int8|quick|stacked|shallow|mix|layer|_tk$|share', method))]
def over(offset):
    """One property's share of the pairs."""
    return pytest.mark.parametrize('trunk,method', spread(offset))


# How far a method may be from its trunk at the start, where its formula rounds; all others: not at all.
# The stacked arrangement adds in another order; Compacter's adapters start at 1e-8 of their input, which rounds.
ROUNDED = dict(e3va_stacked=5e-6, compacter=5e-6)


def train_steps(model, images, steps=5):
    """AdamW steps with weight decay, on a loss that moves every output; the names that got a gradient, step by step.

    It ends before `steps` when all that trains has moved: what stands behind a zero moves a step later.
    """
    model.train()
    start = {parameter: parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    reached = []
    for step in range(steps):
        before_step(model, step)
        loss = projected(model(images), seed=step)
        optimizer.zero_grad()
        if loss.requires_grad:                                          # Fixed has nothing to train inside the trunk
            loss.backward()
            optimizer.step()
        reached.append({name for name, parameter in model.named_parameters() if parameter.grad is not None})
        if step and not any(torch.equal(parameter, value) for parameter, value in start.items()):
            break
    return reached


@pytest.mark.parametrize('trunk,method', [(trunk, method) for trunk in TRUNKS for method in METHODS
                                          if refusal(trunk, method)])
def test_refused_pairs(trunk, method):
    """What a method cannot do it says, with the reason."""
    with pytest.raises(ValueError, match=f'cannot tune a .*{refusal(trunk, method)}'):
        build(trunk, method)


@over(0)
def test_keys_and_start(trunk, method):
    """1. A stock checkpoint lacks only the added entries. 2. The output before the first step is the stock trunk's."""
    stock, tuned = pair(trunk, method)
    added = set(tuned.state_dict()) - set(stock.state_dict())
    assert set(stock.state_dict()) <= set(tuned.state_dict())
    fresh = build(trunk, method, seed=3)
    missing, unexpected = fresh.load_state_dict(stock.state_dict(), strict=False)
    assert set(missing) == added and not unexpected
    stock.eval(), tuned.eval()
    want, found = stock(image(trunk)), tuned(image(trunk))
    kind = type(tuned.tuning.method).__name__
    if tuned.tuning.method.starts_at_trunk:
        assert distance(want, found) <= ROUNDED.get(method, 0), (
            f"{kind} does not start at the trunk. If it keeps something that was made from the trunk's values, refresh "
            f'it in {kind}.loaded, as the weights arrive after it was built; if its formula rounds, add its line of '
            'METHODS to ROUNDED above; if it is to start elsewhere, set starts_at_trunk = False')
    else:
        assert distance(want, found) > 0, f'{kind} starts at the trunk: leave starts_at_trunk = True'
    assert type(tuned) is type(stock) and type(found) is type(want)


@over(1)
def test_gradients_and_frozen(trunk, method):
    """3. What is frozen keeps its bits over AdamW steps with decay. 4. Everything that trains gets a gradient."""
    tuned = alike(trunk, method)
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    before = copy.deepcopy(tuned.state_dict())
    reached = train_steps(tuned, image(trunk))
    if trained:
        # A branch gets one in its turn.
        without = trained - (set.union if method.startswith(('dmlora', 'adamix')) else set.intersection)(*reached)
        if method == 'full' and ('partial' in trunk or 'late' in trunk or 'maps' in trunk):
            behind = ('stages.3.', 'stages.2.downsample.', 'layers.3.', 'ln1.')
            assert all(name.startswith(behind) for name in without)     # the stock trunk runs blocks it does not use
        else:
            assert not without
    moved = {name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= trained
    if method != 'full':
        assert moved == trained


@over(2)
def test_delta_round_trip(trunk, method, tmp_path):
    """5. Save, rebuild, load: bit-equal outputs."""
    tuned, again = alike(trunk, method, stirred=True), alike(trunk, method, seed=5)
    path = tmp_path / 'delta.safetensors'
    e3va.save_delta(tuned, path)
    e3va.load_delta(again, path)
    tuned.eval(), again.eval()
    assert distance(tuned(image(trunk)), again(image(trunk))) == 0
    frozen = set(tuned.state_dict()) - set(e3va.delta(tuned))
    assert frozen <= set(stock_state(trunk))


@over(3)
def test_merge(trunk, method):
    """6. Merged: the stock names and classes, the stock library loads it, outputs within 1e-5; or a clear refusal."""
    stock, tuned = pair(trunk, method, stirred=True)
    if not tuned.tuning.method.mergeable:
        with pytest.raises(ValueError, match='cannot be merged'):
            e3va.merge(tuned)
        return
    merged = e3va.merge(tuned)
    stock.load_state_dict(merged.state_dict(), strict=True)
    assert [type(module) for module in merged.modules()] == [type(module) for module in stock.modules()]
    stock.eval(), tuned.eval(), merged.eval()
    x = image(trunk)
    assert distance(stock(x), merged(x)) <= 1e-6
    assert distance(stock(x), tuned(x)) <= 1e-5
    assert hasattr(tuned, 'tuning') and not hasattr(merged, 'tuning')
    merged.train(), merged.requires_grad_(True)
    assert merged.training


@over(4)
def test_copies(trunk, method):
    """7. deepcopy (EMAHook) and pickle give a model of their own with the same results."""
    tuned = alike(trunk, method, stirred=True)
    tuned.eval()
    x = image(trunk)
    want = [out.detach().clone() for out in tensors(tuned(x))]
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert distance(other(x), want) == 0
        for parameter in other.parameters():
            parameter.data.zero_()
        assert distance(tuned(x), want) == 0
        assert other.train() is other and other.training


@over(5)
def test_autocast(trunk, method):
    """7. bf16 autocast stays within 5 % of the output's range of fp32 (8 bits of mantissa through at most 8 blocks)."""
    tuned = alike(trunk, method, stirred=True)
    tuned.eval()
    x = image(trunk)
    want = tensors(tuned(x))
    with torch.autocast('cpu', torch.bfloat16):
        got = tensors(tuned(x))
    for a, b in zip(want, got):
        assert (a - b.float()).abs().max() <= 0.05 * a.abs().max()


# What the compiler reads: two blocks, or two stages.
TWO = dict(swin_mmdet=dict(depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1)),
           swin_mmpretrain=dict(arch=dict(SWIN_ARCH, depths=[1, 2], num_heads=[1, 2]), out_indices=(0, 1)),
           swin_timm=dict(depths=(1, 2), num_heads=(1, 2)), vit_mmpretrain=dict(arch=dict(VIT_ARCH, num_layers=2)),
           vit_timm=dict(depth=2, out_indices=(1,)))
# Torch takes these whole, without a break in the graph.
WHOLE = [('vit_timm', method) for method in ('lora', 'adaptformer_1bit', 'e3va', 'gps')]


@pytest.mark.parametrize('trunk,method', [
    ('swin_mmdet', 'full'), ('swin_mmdet', 'lora'), *((trunk, 'e3va') for trunk in TWO), ('vit_mmpretrain', 'lora'),
    *(('vit_timm', method) for method in KINDS if method not in ('fixed', 'e3va'))])
def test_compile(trunk, method):
    """7. torch.compile changes outputs and gradients by at most 1e-5 (aot_eager: the graph, not the kernels)."""
    one = trunk == 'vit_timm' and not method.startswith(('e3va', 'gps', 'partial'))     # these are about several blocks
    blocks = dict(depth=1, out_indices=(0,)) if one else TWO[trunk]
    compiled_alike(build(trunk, method, **blocks), image(trunk), 'aot_eager', fullgraph=(trunk, method) in WHOLE)


@pytest.mark.parametrize('trunk,method', [
    pytest.param('swin_mmdet', 'e3va', marks=slow), pytest.param('swin_mmpretrain', 'lora', marks=slow),
    pytest.param('swin_timm', 'full', marks=slow), ('vit_mmpretrain', 'e3va'), ('vit_timm', 'lora')])
def test_inductor(trunk, method):
    """7. The same with the kernels of torch's own compiler."""
    compiled_alike(build(trunk, method, **TWO[trunk]), image(trunk), 'inductor')


def compiled_alike(tuned, x, backend, fullgraph=False):
    torch._dynamo.reset()
    stir(tuned)
    tuned.eval()                                                        # DropPath would draw differently

    def run(forward):
        tuned.zero_grad()
        out = forward(x)
        projected(out).backward()
        return out, [parameter.grad.clone() for parameter in tuned.parameters() if parameter.grad is not None]

    out, gradients = run(tuned)
    compiled_out, compiled_gradients = run(torch.compile(tuned, backend=backend, fullgraph=fullgraph))
    assert distance(out, compiled_out) <= 1e-5
    assert distance(gradients, compiled_gradients) <= 1e-5


# OpenMMLab's own Swins cut their windows by a Python number, and run at the batch of the example alone.
SHALLOW = dict(vit_timm=TWO['vit_timm'],
               swin_timm=dict(depths=(1, 1), num_heads=(1, 2), out_indices=(0, 1)))


def other_batch(trunk, method):
    """(model, example, images of another batch)."""
    tuned = build(trunk, method, **SHALLOW[trunk]).eval()
    stir(tuned)
    return tuned, image(trunk), image(trunk, batch=3, seed=4)


# Each method on one of the two, LoRA and E3VA and what only one takes on all.
@pytest.mark.parametrize('trunk,method', [
    (trunk, method) for trunk, method in pairs(SHALLOW) if method in ('lora', 'e3va')
    or any(refusal(other, method) for other in SHALLOW)
    or trunk == list(SHALLOW)[list(METHODS).index(method) % 2]])
def test_trace(trunk, method, tmp_path):
    """7. A trace that was saved and loaded gives the same outputs, at other batch sizes too."""
    tuned, example, images = other_batch(trunk, method)
    torch.jit.trace(tuned, example, check_trace=False).save(tmp_path / 'trace.pt')
    assert distance(tuned(images), torch.jit.load(tmp_path / 'trace.pt')(images)) <= 1e-5


@pytest.mark.parametrize('trunk,method', [*itertools.product(['vit_timm'], KINDS), *itertools.product(
    ['swin_timm'], ['lora', 'ssf', 'e3va', 'gps'])])
def test_export(trunk, method):
    """7. The same of torch.export with any number of images."""
    tuned, example, images = other_batch(trunk, method)
    with torch.no_grad():
        program = torch.export.export(tuned, (example,), dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))
        assert distance(tuned(images), program.module()(images)) <= 1e-5


@pytest.mark.parametrize('trunk,method', [
    ('swin_mmdet', 'full'), ('swin_mmdet', 'lora'), ('swin_mmdet', 'e3va'), ('vit_timm', 'full'), ('vit_timm', 'lora'),
    ('swin_mmdet', 'adaptformer'), ('swin_mmdet', 'compacter'), ('swin_mmdet', 'fact_tt'),
    ('convnext_mmpretrain', 'compacter'), ('convnext_mmpretrain', 'mona'), ('vit_timm', 'mona'),
    ('swin_mmdet', 'gps'), ('vit_timm', 'gps')])
def test_with_cp(trunk, method):
    """7. Activation checkpointing gives the same gradients."""
    models = [build(trunk, method, with_cp=flag) for flag in (False, True)]
    gradients = []
    for model in models:
        model.eval()
        projected(model(image(trunk))).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert distance(*gradients) <= 1e-6


@pytest.mark.parametrize('method', ['compacter', 'fact_tt', 'fact_tk'])
def test_checkpointing_of_shared_parameters_under_ddp(method, tmp_path):
    """OpenMMLab's checkpointing would hand a shared parameter to DDP once for each block, which DDP refuses."""
    plain, tuned = build('swin_mmdet', method).eval(), build('swin_mmdet', method, with_cp=True).eval()
    stir(plain), stir(tuned)
    projected(plain(image('swin_mmdet'))).backward()
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        projected(torch.nn.parallel.DistributedDataParallel(tuned)(image('swin_mmdet'))).backward()
    finally:
        torch.distributed.destroy_process_group()
    want, got = ([parameter.grad for parameter in model.parameters() if parameter.requires_grad]
                 for model in (plain, tuned))
    assert any(gradient.any() for gradient in want) and distance(want, got) <= 1e-6

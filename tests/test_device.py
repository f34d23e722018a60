"""What must hold on a GPU as it does on a CPU; each test marked `cuda` has a twin on the CPU, on fewer pairs.

On a machine with a card: `bash tools/gpu_check.sh OUT --only tests`, or `pytest tests/test_device.py -m cuda`.
"""
import copy
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

import e3va
from e3va.gps.gradients import select
from e3va.gps.method import sparse_layers
from e3va.layers import HalfLinear, Int8Linear
from tests.conftest import METHODS, before_step, build, distance, image, pairs, projected, stir, tensors
from tests.running import Classifier, assert_equal, finished, runner_of, state_of
from tests.test_highway.test_modes import cosine, gradients, plain, trained

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')             # before cuBLAS starts, which may then repeat
ROOT = Path(__file__).parents[1]
ON_A_CARD = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device'))
TRUNKS = ['swin_mmdet', 'vit_timm', 'convnext_mmpretrain']
# On the CPU, where tests/test_contract.py runs over all: one of each kind of arithmetic.
FEW = ['full', 'lora', 'lora_1bit', 'adaptformer_1bit', 'gps', 'e3va', 'e3va_int8', 'e3va_quick']
# Whose arithmetic rounds to bf16 or to int8, and may round to the other side on another device.
COARSE = r'int8|quick|bf16|1bit'


def over(cuda, cpu):
    """Parameters (..., device): all cases on a card, some on the CPU."""
    return [*(pytest.param(*case, 'cuda', marks=ON_A_CARD) for case in cuda), *((*case, 'cpu') for case in cpu)]


every = pytest.mark.parametrize('trunk,method,device', over(
    pairs(TRUNKS), [*pairs(['vit_timm'], FEW), ('swin_mmdet', 'e3va'), ('convnext_mmpretrain', 'lora')]))
few = partial(over, cpu=[('vit_timm', 'lora'), ('swin_mmdet', 'e3va')])
either = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=ON_A_CARD)])


@pytest.fixture(autouse=True)
def exact():
    """No TF32, which has ten bits of mantissa."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):    # matrix products have none by default
        yield


def loss_of(outs):
    """As `projected`, on any device, of outputs of any type."""
    return projected([out.float().cpu() for out in tensors(outs)])


def run(model, x, dtype=None):
    """Outputs, and gradients of what trains, of a model in eval mode (no dropout); autocast where a type is given."""
    model.eval().zero_grad()
    before_step(model, 0)
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        outs = tensors(model(x))
    loss = loss_of(outs)
    if loss.requires_grad:
        loss.backward()
    return outs, {name: parameter.grad.clone() for name, parameter in model.named_parameters()
                  if parameter.grad is not None}


def assert_alike(want, got, coarse=False, most=1e-3):
    """Outputs within `most` of their range, gradients that point the same way; both of another device perhaps."""
    for a, b in zip(want[0], got[0]):
        assert (a.cpu().float() - b.cpu().float()).abs().max() <= (0.05 if coarse else most) * a.abs().max()
    assert want[1].keys() == got[1].keys()
    for name, value in want[1].items():
        a, b = value.cpu().float(), got[1][name].cpu().float()
        if a.norm() > 1e-7:
            assert cosine(a, b) >= (0.98 if coarse or most > 1e-3 else 0.9999), name
            assert 0.9 <= a.norm() / b.norm() <= 1.1, name


@every
def test_forward_and_backward(trunk, method, device):
    """In fp32 as on the CPU."""
    model = build(trunk, method)
    stir(model)
    want = run(model, image(trunk))
    got = run(copy.deepcopy(model).to(device), image(trunk).to(device))
    assert all(out.device.type == device for out in got[0])
    assert_alike(want, got, coarse=re.search(COARSE, method))


@pytest.mark.parametrize('trunk,method,device', few(pairs(TRUNKS)))
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
def test_autocast(trunk, method, device, dtype):
    """Within 5 % of fp32, and a step of AdamW by a scaled loss that moves all that trains, to finite values."""
    model = build(trunk, method).to(device)
    stir(model)
    x = image(trunk).to(device)
    want, got = run(model, x), run(model, x, dtype)
    assert_alike((want[0], {}), (got[0], {}), most=0.05)
    for name, gradient in got[1].items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all(), name
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        return
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer, scaler = torch.optim.AdamW(parameters.values(), lr=1e-3), torch.amp.GradScaler(device, init_scale=2.**10)
    for _ in range(3):                                                  # a first one may overflow, and is left out
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = loss_of(model(x))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(parameter.isfinite().all() for parameter in parameters.values())
    reached = {name for name, parameter in parameters.items() if parameter.grad is not None and parameter.grad.any()}
    assert reached and all(not torch.equal(before[name], parameters[name]) for name in reached)


@pytest.mark.parametrize('trunk,method,device', over(
    pairs(TRUNKS, ['full', 'lora', 'adapter', 'ssf', 'gps', 'e3va', 'e3va_stream']),
    [('convnext_mmpretrain', 'e3va'), ('vit_timm', 'lora')]))
def test_channels_last(trunk, method, device):
    """Images and convolutions in that layout give the same."""
    model = build(trunk, method).to(device)
    stir(model)
    x = image(trunk).to(device)
    want = run(model, x)
    assert_alike(want, run(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize('trunk,method,changes,device', over(
    [('swin_mmdet', 'e3va', dict(depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))),
     ('vit_timm', 'lora', dict(depth=2, out_indices=(1, ))), ('convnext_mmpretrain', 'full', {})],
    [('vit_timm', 'lora', dict(depth=1, out_indices=(0, )))]))
def test_compile(trunk, method, changes, device):
    """Compiled by inductor for the card; on the CPU, where that takes minutes, the graph alone."""
    torch._dynamo.reset()
    model = build(trunk, method, **changes).to(device)
    stir(model)
    x = image(trunk).to(device)
    want = run(model, x)
    compiled = torch.compile(model, backend='inductor' if device == 'cuda' else 'aot_eager')
    got = tensors(compiled(x))
    assert_alike(want, (got, want[1]))
    model.zero_grad()
    loss_of(got).backward()
    assert all(parameter.grad is not None for parameter in trained(model))


@pytest.mark.parametrize('trunk,method,device', over(
    pairs(TRUNKS, ['full', 'lora', 'lora_1bit', 'dmlora', 'adapter_zero', 'mona', 'ssf', 'gps']),
    [('vit_timm', 'lora')]))
def test_recompute(trunk, method, device):
    """Blocks that run again in backward give the same outputs and gradients, bit for bit."""
    results = []
    for recompute in (None, 'block'):
        torch.manual_seed(0)
        model = build(trunk, dict(METHODS[method], recompute=recompute)).to(device)
        stir(model)
        results.append(run(model, image(trunk).to(device)))
    assert_equal(*({**dict(enumerate(outs)), **grads} for outs, grads in results))


@pytest.mark.parametrize('trunk,device', over([(trunk, ) for trunk in TRUNKS], [('swin_mmdet', )]))
def test_the_highway_s_modes(trunk, device):
    """Against equation 8 in plain autograd; what is streamed has the bits of what is kept."""
    models = {mode: build(trunk, dict(type='E3VA', rank=2, mode=mode)).to(device).train()
              for mode in ('exact', 'stream', 'bf16', 'int8', 'stream_bf16')}
    for model in models.values():
        model.load_state_dict(models['exact'].state_dict())
    for model in models.values():
        stir(model)
    x, first = image(trunk).to(device), models['exact']
    on_cpu = lambda outs: [out.cpu() for out in tensors(outs)]          # noqa: E731 where the random projection is
    want = gradients(on_cpu(plain(first, x)), first)
    outs = {mode: tensors(model(x)) for mode, model in models.items()}
    found = {mode: gradients(on_cpu(outs[mode]), model) for mode, model in models.items()}
    assert all(distance(outs['exact'], outs[mode]) == 0 for mode in models)
    assert distance(found['exact'], found['stream']) == 0
    for mode, least in dict(exact=0.99999, bf16=0.9999, int8=0.999, stream_bf16=0.999).items():
        assert all(cosine(a.cpu(), b.cpu()) >= least for a, b in zip(want, found[mode]) if a.norm() > 1e-7), mode


@pytest.mark.parametrize('trunk,method,device', over(
    pairs(TRUNKS, ['full', 'lora', 'adapter', 'e3va', 'e3va_stream', 'gps']), [('vit_timm', 'lora')]))
def test_determinism(trunk, method, device):
    """Two runs of three steps from one seed, dropout and DropPath at work, end with the same bits."""
    states = []
    torch.use_deterministic_algorithms(True, warn_only=True)            # ask, where there is a choice
    try:
        for _ in range(2):
            model = build(trunk, method).to(device).train()
            optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
            torch.manual_seed(1)
            for step in range(3):
                before_step(model, step)
                optimizer.zero_grad()
                loss_of(model(image(trunk).to(device))).backward()
                optimizer.step()
            states.append(model.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal(*states)


@pytest.mark.parametrize('weights,kind,device', over(
    [('bf16', HalfLinear), ('int8', Int8Linear)], [('int8', Int8Linear)]))
def test_trunks_of_few_bits(weights, kind, device):
    """They take their bits along to the device, and the file's weights arrive there."""
    stock = build('vit_timm').eval()
    model = build('vit_timm', dict(type='E3VA', rank=2, trunk_weights=weights)).to(device).eval()
    model.load_state_dict(stock.state_dict(), strict=False)
    assert any(isinstance(module, kind) for module in model.modules())
    x = image('vit_timm')
    for want, got in zip(tensors(stock(x)), tensors(model(x.to(device)))):
        assert got.device.type == device and (want - got.cpu()).abs().max() <= 0.03 * want.abs().max()
    assert e3va.report(model)['frozen_bytes'] < 0.8 * 4 * e3va.report(model)['frozen']


@pytest.mark.parametrize('trunk,device', over([(trunk, ) for trunk in TRUNKS], [('vit_timm', )]))
def test_gps_selects_and_trains(trunk, device):
    """It selects on the device what it selects on the CPU but for ties in the last bit, and moves no other weight."""
    places = {}
    for where in ('cpu', device):
        model = build(trunk, dict(type='GPS', k=2), drop_path_rate=0.).to(where)
        select(model.eval(), [image(trunk).to(where)], lambda x: loss_of(model(x)))
        places[where] = {name: set(layer.index.flatten().tolist()) for name, layer in sparse_layers(model).items()}
    same = [len(places['cpu'][name] & found) / len(found) for name, found in places[device].items()]
    assert sum(same) / len(same) >= 0.99 and min(same) >= 0.8
    before = {name: layer.weight.detach().clone() for name, layer in sparse_layers(model).items()}
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(image(trunk).to(device))).backward()
        optimizer.step()
    for name, layer in sparse_layers(model).items():
        assert layer.values.grad.shape == layer.index.shape and layer.values.grad.any(), name
        assert torch.equal(layer.weight, before[name])                  # its values are their own parameter


class Stop(Hook):
    """Stops before an iteration."""

    def __init__(self, iteration=None):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise KeyboardInterrupt


@either
@pytest.mark.parametrize('method', ['e3va', 'lora_1bit'])
def test_a_run_is_resumed_and_leaves_deltas(tmp_path, method, device):
    """By mmengine's runner, which takes a card where there is one; the delta loads to the run's own outputs."""
    hooks = dict(delta=dict(type='e3va.DeltaHook'))

    def start(name, stop=None, **options):
        model = partial(Classifier, METHODS[method], drop_path_rate=0.)
        return finished(runner_of(tmp_path / name, model, hooks, Stop(stop), epochs=2, **options))
    whole = start('whole')
    assert next(whole.model.parameters()).device.type == device or device == 'cpu'
    assert start('resumed', stop=3) is None
    again = start('resumed', resume=True)
    want, got = state_of(whole), state_of(again)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.equal(value, got[name]) if device == 'cpu' else torch.allclose(value, got[name], atol=1e-5), name
    fresh = Classifier(METHODS[method], drop_path_rate=0.)
    stock = {name: value for name, value in whole.model.backbone.state_dict().items()}
    fresh.load_state_dict({f'backbone.{name}': value for name, value in stock.items()
                           if name in fresh.backbone.tuning.keys}, strict=False)
    file, = (tmp_path / 'whole').glob('*epoch_2*.safetensors')
    e3va.load_delta(fresh, file)
    assert distance(fresh.to(device).eval().backbone(image('vit_mmpretrain').to(device)),
                    whole.model.to(device).eval().backbone(image('vit_mmpretrain').to(device))) <= 1e-6


@either
def test_one_process_of_ddp(tmp_path, device):
    """`dist_train.sh` with one process: NCCL on a card, gloo on the CPU."""
    from e3va.datasets import synthetic
    synthetic.make_imagenet(tmp_path / 'data/imagenet', images=8, size=(64, 64), classes=3)
    (tmp_path / 'config.py').write_text(f'''
_base_ = {str(ROOT / 'configs/_base_/tasks/imagenet_swin_b.py')!r}
model = dict(backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8]),
                           img_size=64, pad_small_map=True, init_cfg=None), head=dict(in_channels=192))
train_cfg = dict(max_epochs=1)
param_scheduler = None
val_cfg = val_dataloader = val_evaluator = None
test_cfg = test_dataloader = test_evaluator = None
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1))
''')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    hidden = {} if device == 'cuda' else dict(CUDA_VISIBLE_DEVICES='')
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    done = subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', 'config.py', '1', '--method', 'e3va', '--work-dir', 'run'], cwd=tmp_path,
        env=dict(os.environ, PATH=path, PORT=str(port), OMP_NUM_THREADS='1', **hidden), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'run' / 'epoch_1.pth').exists()

"""Small stock trunks of every family, and the methods, for tests that run over all pairs."""
import copy
import functools
import gc
import importlib.util
import os
import socket
import sys
import types
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from tqdm import tqdm
from yapf.yapflib import yapf_api

import e3va  # noqa: F401 helps the stack import, before any library
from e3va.registry import MODELS

os.environ['TORCHINDUCTOR_COMPILE_THREADS'] = '1'                       # no thread of another library runs beside a
tqdm.monitor_interval = 0                                               # test: a backward pass once never came back

yapf_api.FormatCode = lambda text, **style: (text, True)                # seconds a config, and how it looks is not ours
for device in (torch.cuda, torch.xpu, torch.mtia):                      # each keeps the stack of every seed, in text
    device.traceback = types.SimpleNamespace(format_stack=list)
gc.set_threshold(3000)                                                  # a model is thousands of objects

ROOT = Path(__file__).parents[1]
SWIN = dict(embed_dims=24, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8), window_size=7, drop_path_rate=0.3)
SWIN_ARCH = dict(embed_dims=24, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8])
VIT_ARCH = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48)

# name: (type, options, image height and width). Odd sizes, partial outputs, checkpointing are spread over the rows.
TRUNKS = dict(
    swin_mmdet=('mmdet.SwinTransformer', SWIN, (67, 90)),
    swin_mmdet_partial=('mmdet.SwinTransformer', dict(SWIN, out_indices=(1, 2), with_cp=True), (64, 96)),
    swin_mmseg=('mmseg.SwinTransformer', dict(SWIN, use_abs_pos_embed=False, out_indices=(0, 3)), (61, 64)),
    swin_mmpretrain=('mmpretrain.SwinTransformer', dict(
        arch=SWIN_ARCH, img_size=64, out_indices=(0, 1, 2, 3), pad_small_map=True, use_abs_pos_embed=True,
        drop_path_rate=0.3), (64, 80)),
    swin_mmpretrain_late=('mmpretrain.SwinTransformer', dict(
        arch=SWIN_ARCH, img_size=64, out_indices=(0, 2), out_after_downsample=True, pad_small_map=True), (64, 64)),
    swin_timm=('e3va.TimmTrunk', dict(
        name='swin_tiny_patch4_window7_224', img_size=64, embed_dim=24, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8),
        drop_path_rate=0.3), (67, 90)),
    vit_mmpretrain=('mmpretrain.VisionTransformer', dict(
        arch=VIT_ARCH, img_size=64, patch_size=16, drop_path_rate=0.3), (64, 64)),
    vit_mmpretrain_maps=('mmpretrain.VisionTransformer', dict(
        arch=VIT_ARCH, img_size=64, patch_size=16, out_type='featmap', out_indices=[0, 2], layer_scale_init_value=0.1,
        drop_path_rate=0.3), (80, 64)),
    vit_timm=('e3va.TimmTrunk', dict(
        name='vit_small_patch14_dinov2', img_size=70, depth=4, embed_dim=24, num_heads=2, out_indices=(1, 3),
        drop_path_rate=0.3), (71, 90)),
    vit_sam=('mmpretrain.ViTSAM', dict(
        arch=dict(VIT_ARCH, global_attn_indexes=[1, 3]), img_size=64, patch_size=16, out_channels=8, window_size=3,
        drop_path_rate=0.3), (80, 64)),
    convnext_mmpretrain=('mmpretrain.ConvNeXt', dict(
        arch=dict(depths=[1, 2, 2, 1], channels=[12, 24, 36, 48]), out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False, drop_path_rate=0.3, layer_scale_init_value=0.1), (67, 90)),
    convnext_timm=('e3va.TimmTrunk', dict(
        name='convnextv2_tiny', depths=(1, 2, 2, 1), dims=(12, 24, 36, 48), out_indices=(1, 2), drop_path_rate=0.3),
        (64, 96)),
)
METHODS = dict(
    full=dict(type='Full'),
    fixed=dict(type='Fixed'),
    fixed_cache=dict(type='Fixed', cache=True),
    fixed_norms=dict(type='Fixed', train_out_norms=True),
    lora=dict(type='LoRA', rank=3, alpha=6, roles=('q', 'v', 'proj', 'fc1', 'fc2')),
    lora_1bit=dict(type='LoRA', rank=3, bits=1),
    lora_last=dict(type='LoRA', rank=2, blocks=2),
    e3va_mix=dict(type='E3VAMix', rank=2, backward=0.5),
    # added modules
    adapter=dict(type='Adapter', rank=4, activation='quick_gelu', dropout=0.1, init='xavier'),
    adapter_zero=dict(type='Adapter', rank=4),
    adapter_pfeiffer=dict(type='AdapterPfeiffer', rank=4, bias=False),
    adaptformer=dict(type='AdaptFormer', rank=4, branches=('attn', 'mlp')),
    adaptformer_1bit=dict(type='AdaptFormer', rank=5, bits=1),
    lorand=dict(type='LoRand', rank=2),
    lorand_before=dict(type='LoRand', branches=3, rank=2, mid=5, second='before'),
    compacter=dict(type='Compacter', rank=4, n=2),
    mona=dict(type='Mona', rank=4),
    evp=dict(type='EVP', reduction=4),
    # weights
    bitfit=dict(type='BitFit'),
    dmlora=dict(type='DMLoRA', rank=3, branches=2, scale=2.),
    dmlora_one_stage=dict(type='DMLoRA', rank=2, branches=4, share='up', learn_scale=True,
                          roles=('q', 'v', 'proj', 'fc1', 'fc2')),
    adamix=dict(type='AdaMix', rank=3, branches=2, roles=('proj', 'fc2')),
    adamix_lora=dict(type='AdaMix', module='lora', rank=2, branches=2, share='down'),
    gps=dict(type='GPS', k=2, criterion='magnitude'),
    gps_layer=dict(type='GPS', level='layer', criterion='random', train=('bias', 'norm', 'embedding'), without=(1,)),
    gps_net=dict(type='GPS', k=3, level='net', criterion='random', train_out_norms=True),
    spt_lora=dict(type='SPT', budget=1100, rank=2, step=50, criterion='random'),
    spt_adapter=dict(type='SPT', module='adapter', budget=1500, rank=3, alpha=20., step=50, criterion='random'),
    norm_tuning=dict(type='NormTuning'),
    partial=dict(type='Partial', blocks=2),
    ssf=dict(type='SSF'),
    fact_tt=dict(type='FacT', rank=3, scale=0.5),
    fact_tk=dict(type='FacT', rank=4, variant='tk'),
    fact_tk_paper=dict(type='FacT', rank=4, variant='tk', pieces='paper', roles=('q', 'k', 'fc1', 'fc2')),
    repadapter=dict(type='RepAdapter', rank=4, scale=0.5),
    repadapter_attn=dict(type='RepAdapter', rank=3, groups=3, branches='attn'),
    fourierft=dict(type='FourierFT', n=40, scale=10.),
    fourierft_zero=dict(type='FourierFT', n=40, scale=10., init='zero', roles=('k', 'v', 'proj', 'fc2')),
    mora=dict(type='MoRA', rank=2, roles=('q', 'v', 'proj', 'fc1', 'fc2')),
    mora_share=dict(type='MoRA', rank=2, variant='share'),
    # prompts
    vpt_deep=dict(type='VPT', tokens=2, deep=True, dropout=0.1),
    vpt_shallow=dict(type='VPT', tokens=3, deep=False),
    noah=dict(type='NOAH', sizes=(1, 2, 3)),
    e2vpt=dict(type='E2VPT', tokens=3, key_values=2, segments=4),
    e3va=dict(type='E3VA', rank=2),
    e3va_sum=dict(type='E3VA', rank=2, join='sum', skip=False, init='random'),
    e3va_post=dict(type='E3VA', rank=2, join='post', tap='after', trunk_mode='config'),
    e3va_stacked=dict(type='E3VA', adapter='standard', arrangement='stacked', train_out_norms=False),
    e3va_stream=dict(type='E3VA', rank=2, mode='stream', trunk_mode='config'),
    e3va_int8=dict(type='E3VA', rank=2, mode='int8'),
    e3va_quick=dict(type='E3VA', rank=2, attention='fused', trunk_weights='bf16'),
    e3va_int8_trunk=dict(type='E3VA', rank=2, trunk_weights='int8'),
    lst=dict(type='LST', reduction=4),
    lst_gate=dict(type='LST', reduction=2, join='gate', without=(1,), train_out_norms=False),
    e3va_trainable=dict(type='E3VA', rank=2, downsampling='trainable', preset='paper'),
)


def refusal(trunk, method):
    """Why a method says that it cannot tune a trunk of this family, or None; the keys of TRUNKS begin with families."""
    from e3va.methods import build_method
    from e3va.trunks import FAMILIES
    family = next(family for family in FAMILIES if trunk.startswith(family))
    return build_method(METHODS[method]).refusal(family)


def pairs(trunks=TRUNKS, methods=METHODS):
    """(trunk, method) of all that go together."""
    return [(trunk, method) for trunk in trunks for method in methods if not refusal(trunk, method)]


def spread(offset, methods=METHODS):
    """(trunk, method): each method on a Swin, a ViT or a ConvNeXt, LoRA and E3VA on all of TRUNKS.

    A property that is tested on every pair is one of several that are; with another offset each of them takes other
    trunks, so that of six each method meets every kind twice. What trains on all families: test_trunks.
    """
    chosen = []
    for i, method in enumerate(methods):
        takes = [trunk for trunk, _ in pairs(methods=[method])]
        kinds = [kind for kind in ('swin', 'vit', 'convnext') if any(trunk.startswith(kind) for trunk in takes)]
        of_kind = [trunk for trunk in takes if trunk.startswith(kinds[(i + offset) % len(kinds)])]
        one = of_kind[(i + offset) // len(kinds) % len(of_kind)]
        chosen += [(trunk, method) for trunk in (takes if method in ('lora', 'e3va') else [one])]
    return chosen


def build(trunk, method=None, seed=0, **changes):
    """A small trunk of TRUNKS, tuned by a method of METHODS or a config, or stock where none is given."""
    import mmdet.models  # noqa: F401 the prefixes resolve by themselves; the imports make the first test's time honest
    import mmpretrain.models  # noqa: F401
    import mmseg.models  # noqa: F401
    kind, options, _ = TRUNKS[trunk]
    torch.manual_seed(seed)
    options = copy.deepcopy(dict(options, **changes))
    if method is None:
        return MODELS.build(dict(type=kind, **options))
    method = METHODS[method] if isinstance(method, str) else method
    return MODELS.build(dict(type='e3va.Tuned', trunk=kind, method=method, **options))


def image(trunk, batch=2, seed=0):
    """Random images of the trunk's size, (batch, 3, H, W)."""
    return torch.randn(batch, 3, *TRUNKS[trunk][2], generator=torch.Generator().manual_seed(seed))


@functools.cache
def stock_state(trunk):
    """Names and weights of the stock trunk of a name."""
    return build(trunk).state_dict()


def alike(trunk, method, stirred=False, seed=1):
    """A tuned trunk with the stock one's weights; `stirred` moves what trains away from its initial values."""
    state, tuned = stock_state(trunk), build(trunk, method, seed)
    if hasattr(tuned, '_is_init'):
        tuned._is_init = True
    tuned.load_state_dict(state, strict=False)
    if stirred:
        stir(tuned)
    return tuned


def pair(trunk, method, stirred=False):
    """(stock, tuned) with the same weights, see `alike`."""
    stock = build(trunk)
    if hasattr(stock, '_is_init'):
        stock._is_init = True
    return stock, alike(trunk, method, stirred)


def steady(trunk, method, **options):
    """A tuned trunk in training, stirred, without DropPath and dropout, so that two runs give the same."""
    model = build(trunk, dict(METHODS.get(method, method), **options)).train()
    stir(model)
    for module in model.modules():
        if type(module).__name__ in ('DropPath', 'Dropout'):
            module.training = False
        if isinstance(getattr(module, 'dropout', None), float):
            module.dropout = 0.
    before_step(model, 0)
    return model


def stir(model):
    """Move what trains away from its initial values."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def before_step(model, step):
    """In place of a method's hook: every branch of DMLoRA has its turn."""
    model.tuning.hooked = True
    for module in model.modules():
        if hasattr(module, 'choose'):
            module.choose(step % len(module))


def tensors(outs):
    """What a trunk gives out, as a list of tensors."""
    return [outs] if isinstance(outs, torch.Tensor) else [tensor for out in outs for tensor in tensors(out)]


def projected(outs, seed=0):
    """A scalar loss by fixed random weights (the mean square behind a norm would be flat)."""
    generator = torch.Generator().manual_seed(seed)
    return sum((out * torch.randn(out.shape, generator=generator)).mean() for out in tensors(outs))


def distance(a, b):
    """Largest absolute difference of two outputs of a trunk."""
    a, b = tensors(a), tensors(b)
    assert len(a) == len(b)
    return max(float((x - y).detach().abs().max()) for x, y in zip(a, b))


def in_processes(count, work, folder):
    """Run work(rank, folder) in the processes of a gloo group, `work` a function of a module; its folder is given back.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(one_of, (count, port, work, folder), nprocs=count, start_method='fork')
    return folder


in_two_processes = functools.partial(in_processes, 2)


def one_of(rank, count, port, work, folder):
    gc.freeze()                                                         # what is there is the parent's to free
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
                      WORLD_SIZE=str(count))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=count)
    try:
        work(rank, folder)
    finally:
        torch.distributed.destroy_process_group()


def tool(name):
    """A file of tools/ as a module, by its path there, e.g. 'analysis_tools/cost.py'."""
    spec = importlib.util.spec_from_file_location(f'tools_{Path(name).stem}', ROOT / 'tools' / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config_folder(tmp_path, monkeypatch, request):
    """A test runs in a folder that holds its module's CONFIGS, {name: text}, as NAME.py."""
    for name, text in request.module.CONFIGS.items():
        (tmp_path / f'{name}.py').write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def peft(monkeypatch):
    """HF PEFT, the reference; tools/setup_env.sh puts it into a folder of its own, .venv/peft.

    It needs transformers, and where that is found mmengine imports it too (seconds) and mmpretrain breaks (version 5).
    """
    import mmpretrain.models  # noqa: F401 so it comes first
    monkeypatch.setattr(sys, 'path', [*sys.path, str(Path(sys.prefix, 'peft'))])
    return pytest.importorskip('peft')


def the_libraries_stay():
    """The collector need not look through what was imported: tenths of a second each time, more than many a test."""
    if len(sys.modules) > the_libraries_stay.modules:
        the_libraries_stay.modules = len(sys.modules)
        gc.collect()
        gc.freeze()


the_libraries_stay.modules = 0


@pytest.fixture(autouse=True)
def nothing_of_the_test_before():
    """mmengine keeps loggers, which write to an output that is closed by now, and the scope in which names are read."""
    the_libraries_stay()
    MMLogger._instance_dict.clear()
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """Small tensors run faster on one thread, and the same everywhere."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

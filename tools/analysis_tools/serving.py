r"""What tasks on one trunk cost together: three highways beside one pass, and a change of the task under GPS.

    python tools/analysis_tools/serving.py --trunk vit-b --size 224 --rounds 7
    python tools/analysis_tools/serving.py --trunk swin-b --rounds 5 --trunk-only

Cascade Mask R-CNN, UPerNet and a classifier of random values under E3VA, on one trunk. Times are of runs in turn; what
is printed of them are ratios, medians of each round's own. Where others use the machine, `--cpu-time` counts this
program's alone. No data and no weights are needed.
"""
import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console

import e3va
from e3va.command.config import apply_method, load_config
from e3va.command.line import quiet
from e3va.cost.clock import interleaved, seconds
from e3va.cost.measure import device_name
from e3va.files.checkout import commit
from e3va.highway.shared import together
from e3va.serve import Server
from e3va.serve.server import predict, prepare

SWIN = dict(embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=7)
MEANS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
TASKS = dict(                                                           # library: config, name of what packs
    mmdet=('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 'PackDetInputs',
           dict(type='DetDataPreprocessor', bgr_to_rgb=True, **MEANS)),
    mmseg=('mmseg::swin/swin-base-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', 'PackSegInputs',
           dict(type='SegDataPreProcessor', bgr_to_rgb=True, **MEANS)),
    mmpretrain=('mmpretrain::swin_transformer/swin-base_16xb64_in1k.py', 'PackInputs',
                dict(type='ClsDataPreprocessor', to_rgb=True, num_classes=1000, **MEANS)))


def config(library, trunk, size, method, checkpoint):
    """A task's config on a trunk of a name."""
    file, pack, preprocessor = TASKS[library]
    cfg = load_config(file)
    cfg.model.data_preprocessor = preprocessor
    maps = library != 'mmpretrain'
    init = dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')
    if trunk == 'swin-b':
        kind = dict(type='SwinTransformer', init_cfg=init, drop_path_rate=0.)
        cfg.model.backbone = dict(kind, **SWIN) if maps else dict(kind, arch='base', img_size=224, pad_small_map=True)
        widths = [128, 256, 512, 1024]
    else:
        cfg.model.backbone = dict(type='mmpretrain.VisionTransformer', arch='b', img_size=224, patch_size=16,
                                  init_cfg=init, out_type='featmap' if maps else 'cls_token',
                                  out_indices=[2, 5, 8, 11] if maps else [11])
        widths = [768] * 4
    if library == 'mmdet':
        cfg.model.neck.in_channels = widths
    if library == 'mmseg':
        cfg.model.decode_head.update(in_channels=widths, norm_cfg=dict(type='BN'))
        cfg.model.pop('auxiliary_head')
        cfg.model.test_cfg = dict(mode='whole')
    if maps and trunk == 'vit-b':
        pyramid = dict(type='mmseg.Feature2Pyramid', embed_dim=768, norm_cfg=dict(type='BN'))
        cfg.model.neck = [pyramid, cfg.model.neck] if library == 'mmdet' else pyramid
    if not maps:
        cfg.model.head.in_channels = widths[-1]
        if trunk == 'vit-b':
            cfg.model.neck = None
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(size, size), keep_ratio=False),
        dict(type=pack, meta_keys=('img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
    return apply_method(cfg, Config(dict(method=method)))


def saved(folder, library, trunk, size, method, base, seed):
    """A delta with random values for a task."""
    torch.manual_seed(seed)
    cfg = config(library, trunk, size, method, str(base))
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
    model.backbone.load_state_dict(torch.load(base, weights_only=True), strict=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    model.backbone.tuning.hooked = True
    path = folder / f'{library}_{method["type"]}_{seed}.safetensors'
    e3va.save_delta(model, path, config=cfg, base=base)
    return path


def base_of(folder, trunk, size):
    """A file with random weights of the trunk."""
    torch.manual_seed(0)
    cfg = config('mmdet', trunk, size, dict(type='Fixed'), None)
    with DefaultScope.overwrite_default_scope('mmdet'):
        state = MODELS.build(cfg.model).backbone.state_dict()
    path = folder / 'trunk.pth'
    with e3va.files.whole.replacing(path) as file:
        torch.save(state, file)
    return path


def heads(tasks, image, outs):
    """Everything of the tasks but the trunk."""
    with torch.no_grad():
        for task, out in zip(tasks, outs):
            batch = prepare(task, image)
            task.trunk.given = batch['inputs'], out
            predict(task, batch)
            del task.trunk.given


def measure(trunk, size, rounds, rank, whole, clock, say):
    """A row of ratios and times."""
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say('building')
        base = base_of(folder, trunk, size)
        with Server(base=str(base)) as server:
            for i, library in enumerate(TASKS):
                server.add(library, saved(folder, library, trunk, size, dict(type='E3VA', rank=rank), base, i))
            tasks = list(server.tasks.values())
            if len({task.highway for task in tasks}) > 1:
                raise ValueError('the three trunks do not share a pass')
            with DefaultScope.overwrite_default_scope('mmdet'):
                stock = MODELS.build(config('mmdet', trunk, size, dict(type='Fixed'), None).model).backbone.eval()
            x = prepare(tasks[0], image)['inputs']
            trunks = [task.trunk for task in tasks]
            outs = together(trunks, x)

            def one_pass():
                with torch.no_grad():
                    stock(x)

            runs = dict(stock=one_pass, together=partial(together, trunks, x),
                        heads=partial(heads, tasks, image, outs), served=partial(server, image),
                        alone=lambda: [server(image, task.name) for task in tasks])
            runs = runs if whole else {name: runs[name] for name in ('stock', 'together')}
            times = interleaved({label: partial(seconds, run, 'cpu', clock) for label, run in runs.items()},
                                rounds, say)
            row = dict(trunk=trunk, size=size, rank=rank, rounds=rounds, clock=clock.__name__, memory_mib={
                key: round(value / 2 ** 20, 1) for key, value in
                (('trunk', server.memory['trunk']), *server.memory['tasks'].items())})

            def ratio(over, *under):
                return round(statistics.median(one[over] / sum(one[name] for name in under) for one in (
                    dict(zip(times, values)) for values in zip(*times.values()))), 3)

            row['shared_pass_to_stock_pass'] = ratio('together', 'stock')
            if whole:
                row['three_to_stock_pass_and_heads'] = ratio('served', 'stock', 'heads')
                row['one_by_one_to_stock_pass_and_heads'] = ratio('alone', 'stock', 'heads')
                row['heads_to_stock_pass'] = ratio('heads', 'stock')
        row.update(switches(folder, trunk, size, base, image, rounds, clock, say))
    return dict(row, commit=commit(), device=device_name('cpu'))


def switches(folder, trunk, size, base, image, rounds, clock, say):
    """Milliseconds of a change of the task, and what an image whose task was another one before takes more."""
    row = {}
    with Server(base=str(base)) as server:
        for method in (dict(type='GPS', criterion='random'), dict(type='LoRA', rank=8)):
            say(f'switching {method["type"]}')
            names = [f'{method["type"]} {seed}' for seed in (1, 2)]
            for name, seed in zip(names, (1, 2)):
                server.add(name, saved(folder, 'mmpretrain', trunk, size, dict(method, **(
                    dict(seed=seed) if method['type'] == 'GPS' else {})), base, seed))
            found = []
            for i in range(20 * rounds):
                task = server.tasks[names[i % 2]]
                start = clock()
                with server.writing, server.computing:
                    server.turn(task if task.written else None)
                found.append(1e3 * (clock() - start))
            row[f'switch_ms_{method["type"].lower()}'] = round(statistics.median(found), 3)
            same = interleaved({
                label: partial(seconds, lambda given=given: [server(image, name) for name in given], 'cpu', clock)
                for label, given in (('same', names[:1] * 2), ('other', names))}, rounds, say)
            row[f'in_turn_to_same_{method["type"].lower()}'] = round(statistics.median(
                b / a for a, b in zip(*same.values())), 3)
    return row


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trunk', choices=['swin-b', 'vit-b'], default='vit-b', help='default: %(default)s')
    parser.add_argument('--size', type=int, default=224, help='of the image, in px (default: %(default)s)')
    parser.add_argument('--rank', type=int, default=8, help="of E3VA's adapters (default: %(default)s)")
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds, after a warm-up (default: %(default)s)')
    parser.add_argument('--trunk-only', action='store_true', help='leave out the heads, which take most of the time')
    parser.add_argument('--cpu-time', action='store_true', help='seconds of the processor, of all threads together')
    args = parser.parse_args(argv)
    clock = time.process_time if args.cpu_time else time.perf_counter
    with quiet() as say:
        row = measure(args.trunk, args.size, args.rounds, args.rank, not args.trunk_only, clock, say)
    Console().print_json(json.dumps(row))


if __name__ == '__main__':
    main()

"""Seconds a step of tools/train.py on generated images; the demo, where its weights are at hand."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import ROOT, Record, part_arguments

STEPS, WARM = dict(cuda=30, cpu=4), dict(cuda=10, cpu=2)                # of a run; those that are not counted
SECONDS = dict(cuda=25, cpu=20)                                         # that a run takes
DEMO = 180
RUNS = (('full', ()), ('fixed', ()), ('e3va', ()), ('lora', ()), ('e3va', ('--amp', )))
# Mask R-CNN of mmdet with Swin-T at its own size; on a CPU a thin one.
CONFIG = '''
_base_ = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
model = dict(backbone=dict(init_cfg=None))
train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(data_root='coco/'))
val_dataloader = val_evaluator = val_cfg = test_dataloader = test_evaluator = test_cfg = None
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters={steps})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval={steps}))
log_processor = dict(by_epoch=False, window_size=1)
'''
THIN = '''
model['backbone'].update(embed_dims=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8])
model['neck'] = dict(in_channels=[24, 48, 96, 192], out_channels=32)
model['rpn_head'] = dict(in_channels=32, feat_channels=32)
model['roi_head'] = dict(
    bbox_roi_extractor=dict(out_channels=32), bbox_head=dict(in_channels=32, fc_out_channels=32),
    mask_roi_extractor=dict(out_channels=32), mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32))
train_dataloader['num_workers'] = 0
train_dataloader['persistent_workers'] = False
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(96, 64), keep_ratio=True), dict(type='PackDetInputs')]
'''


def main():
    args = part_arguments(__doc__)
    record = Record(args.out, 'training', args.device, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        with record.attempt('generated images', 10):
            steps(Path(folder), args.device, record)
        with record.attempt('demo'):
            demo(Path(folder), record)


def steps(folder, device, record):
    size = ['800', '1333'] if device == 'cuda' else ['64', '96']
    run('dataset_converters/make_synthetic.py', '--layout', 'coco', '--out', folder / 'coco', '--images', 8, '--size',
        *size, cwd=folder, seconds=60)
    (folder / 'config.py').write_text(CONFIG.format(steps=STEPS[device]) + (THIN if device == 'cpu' else ''))
    for method, options in RUNS:
        case = f'train.py, {" ".join([method, *options])}'
        if device == 'cpu' and options:
            record.row(case, 'not run', why="mmengine's AMP is for a card")
            continue
        with record.attempt(case, SECONDS[device], method=method) as there:
            if there:
                print(f'  {case}', flush=True)
                work_dir = folder / f'{method}{len(options)}'
                run('train.py', 'config.py', '--method', method, '--work-dir', work_dir, *options, cwd=folder,
                    seconds=record.left())
                rows = [json.loads(line) for line in max(work_dir.glob('*/vis_data/scalars.json')).open()]
                times = [row['time'] for row in rows if 'loss' in row]
                record.row(case, method=method, seconds_a_step=statistics.median(times[WARM[device]:]),
                           steps=len(times), loss=rows[-1]['loss'], loaded_seconds=statistics.median(
                               row['data_time'] for row in rows[WARM[device]:] if 'data_time' in row))


def run(tool, *arguments, cwd, seconds):
    """Run a file of tools/; what it says goes to stderr, and a failure is its last line."""
    done = subprocess.run([sys.executable, ROOT / 'tools' / tool, *map(str, arguments)], cwd=cwd, text=True,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, timeout=seconds)
    if done.returncode:
        sys.stderr.write(done.stdout[-2000:] + done.stderr[-2000:])
        raise RuntimeError((done.stderr.strip().splitlines() or ['no message'])[-1])


def demo(folder, record):
    """Three minutes of it; what it has finished by then is kept."""
    cache = Path(os.environ.get('E3VA_CACHE', '~/.cache/e3va')).expanduser()
    if not (cache / 'vit_s_focus.pth').is_file() or not (cache / 'trees' / 'val.json').is_file():
        record.row('demo', 'not run', why=f'no weights: python tools/demo/prepare.py, then --weights {cache.name}')
        return
    seconds = min(DEMO, record.left() - 5)
    if seconds < 60:
        record.row('demo', 'not run', why=f'out of time: 60 s are needed, {max(0, seconds):.0f} left')
        return
    print(f'  demo, {seconds:.0f} s', flush=True)
    try:
        run('demo/run.py', '--methods', 'e3va,lora,full', '--out', folder / 'demo', cwd=folder, seconds=seconds)
        ended = 'whole'
    except subprocess.TimeoutExpired:
        ended = f'stopped after {seconds:.0f} s'
    rows = [row for file in sorted((folder / 'demo').glob('*/*/*/*.json')) for row in json.loads(file.read_text())]
    for row in rows:
        record.row(f'demo, {row["method"]}, {row["split"]}', ended=ended, **{
            key: row[key] for key in ('task', 'method', 'seed', 'split', 'metric', 'value', 'steps', 'train_s',
                                      'saved_mib')})
    if not rows:
        record.row('demo', 'failed', why=f'no method was finished, {ended}')


if __name__ == '__main__':
    main()

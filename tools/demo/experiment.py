"""One run of the demo: a detector or classifier trained under one method with one seed, its scores, its cost."""
import contextlib
import os
import shlex
import sys
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from progress import ProgressHook

import e3va
from e3va.command.config import apply_method, load_config, load_method, prepare
from e3va.command.line import override
from e3va.cost.saved import saved_mib
from e3va.files.checkout import commit
from e3va.train.resume import newest_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
# what is shown of each evaluator's scores, the first to choose by, and what makes it percent
SCORES = dict(
    CocoMetric=dict(AP=('coco/bbox_mAP', 100), AP50=('coco/bbox_mAP_50', 100)),
    SingleLabelMetric=dict(accuracy=('single-label/recall', 1)))
LONGEST = 336                            # px at which the longest side of a user's image is shown by default
EPOCHS = 8                               # passes over a user's boxes; the config has those of the trees
PICTURED = 3                             # validation images in the picture


def task_config(found=None, epochs=None, size=None, crops=False, rate=None):
    """The demo's config, on a user's data where `found` (of `folder.read_folder` or `crops.make_crops`) is given.

    There the longest side of an image is shown at `size` px and there is a test score where there is a test split.
    """
    cfg = load_config(CONFIGS / ('crops_vit-s.py' if crops else 'atss_vit-s.py'))
    if found:
        classes = tuple(found['classes'])
        size = size or (max(cfg.shown) if crops else LONGEST)
        head = cfg.model.head if crops else cfg.model.bbox_head
        head.num_classes = len(classes)
        if crops:
            cfg.data_preprocessor.num_classes = len(classes)
        for split in ('train', 'val', 'test'):
            file, images = found.get(split, found['val'])
            dataset = cfg[f'{split}_dataloader'].dataset
            dataset.update(ann_file=file, metainfo=dict(classes=classes))
            dataset.update(dict(data_root='', data_prefix=images) if crops else dict(data_prefix=dict(img=images)))
            next(step for step in dataset.pipeline if step.type == 'Resize').scale = (size, size)
            if split != 'train':
                cfg[f'{split}_evaluator'].update(dict(num_classes=len(classes)) if crops else dict(ann_file=file))
        if not crops:
            epochs = epochs or EPOCHS
            cfg.epochs = EPOCHS
    if epochs:
        cfg.train_cfg.max_epochs = cfg.train_cfg.val_interval = epochs
        cfg.param_scheduler[-1].end = cfg.param_scheduler[-1].T_max = epochs
    if rate:
        cfg.optim_wrapper.optimizer.lr = rate
    return cfg


def run(cfg, method, seed, work_dir, console, splits=('val', 'test'), options=None):
    """Train and score one method; the logs go to `work_dir`/log.txt. What was trained before is scored only.

    Args:
        splits (sequence of str): where it is scored; 'test' only where it is not the same as val.
        options (dict): of --cfg-options.

    Returns:
        dict: `scores` in percent, a dict by split and name, `trained` parameters of the trunk and method, `saved_mib`
        of one training step, `train_s` of all training steps, `predictions` for the picture (of a detector).
    """
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg = prepare(override(apply_method(cfg, load_method(method)), options or {}))
    cfg.work_dir, cfg.randomness.seed, cfg.experiment_name = str(work_dir), seed, work_dir.name
    cfg.train_cfg.val_begin = cfg.train_cfg.max_epochs + 1               # scored below, once
    if cfg.test_dataloader.dataset == cfg.val_dataloader.dataset:
        splits = [split for split in splits if split != 'test']
    with open(work_dir / 'log.txt', 'a') as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        checkpoint = newest_checkpoint(work_dir)
        if checkpoint:                                                   # an interrupted run goes on
            cfg.resume, cfg.load_from = True, checkpoint
        runner = Runner.from_cfg(cfg)
        progress = ProgressHook(console, f'{method}, seed {seed}')
        runner.register_hook(progress)
        try:
            runner.train()
        finally:                                                         # after Ctrl-C too: the bar hides the cursor
            progress.bar.stop()
        scores = {split: getattr(runner, split)() for split in splits}
        times, _ = runner.message_hub.get_scalar('train/time').data
        return dict(
            scores={split: found for split, values in scores.items()
                    if (found := percent(values, SCORES[cfg.val_evaluator.type]))},
            trained=e3va.report(runner.model)['trained'], saved_mib=saved_mib(runner), train_s=float(times.sum()),
            predictions=predictions(runner) if 'bbox_head' in cfg.model else [])


def percent(values, names):
    """The scores of one split in percent by their names in `SCORES`.

    A detector that finds nothing at all has no score there: that is 0. A split without any box scores -1: left out.
    """
    return {name: factor * values.get(key, 0) for name, (key, factor) in names.items() if values.get(key, 0) >= 0}


def truth(dataset):
    """The validation images of the picture and their true boxes, in px of the file.

    Returns:
        dict: {index: dict(image, true)}; true is a list of [label, x1, y1, x2, y2].
    """
    boxed = [i for i in range(len(dataset)) if boxes(dataset, i)] or list(range(len(dataset)))
    chosen = sorted({boxed[k * (len(boxed) - 1) // max(PICTURED - 1, 1)] for k in range(PICTURED)})
    return {i: dict(image=dataset.get_data_info(i)['img_path'], true=boxes(dataset, i)) for i in chosen}


def validation_set(cfg):
    """The boxes to validate on, before there is a model to read the images for."""
    from mmdet.registry import DATASETS
    with contextlib.redirect_stdout(None):
        return DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=[]))


def predictions(runner):
    """`truth`, and as many of the model's most certain boxes under `predicted`: a list of dict."""
    model, dataset = runner.model.eval(), runner.val_dataloader.dataset
    out = []
    for i, image in truth(dataset).items():
        with torch.no_grad():
            found = model.test_step(pseudo_collate([dataset[i]]))[0].pred_instances.cpu()
        best = found.scores.argsort(descending=True)[:len(image['true'])]
        out.append(dict(image, predicted=[
            [int(label), *map(float, box)] for label, box in zip(found.labels[best], found.bboxes[best])]))
    return out


def boxes(dataset, i):
    return [[item['bbox_label'], *item['bbox']] for item in dataset.get_data_info(i)['instances']
            if not item['ignore_flag']]


def rows(task, method, seed, cfg, result):
    """The measured rows of one run, a dict for each split that was scored."""
    common = dict(
        task=task, method=method, seed=seed, epochs=cfg.train_cfg.max_epochs, shown=shown(cfg),
        rate=cfg.optim_wrapper.optimizer.lr, trained=result['trained'], saved_mib=round(result['saved_mib'], 2),
        train_s=round(result['train_s'], 1), commit=commit(), command=shlex.join(['python', *sys.argv]),
        device=device())
    out = []
    for split, scores in result['scores'].items():
        (metric, value), *others = scores.items()
        out.append(dict(common, split=split, metric=metric, value=round(value, 2),
                        **{name.lower(): round(score, 2) for name, score in others}))
    return out


def shown(cfg):
    """Px at which the longest side of an image is shown."""
    return max(next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Resize').scale)


def device():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{count}-core CPU'

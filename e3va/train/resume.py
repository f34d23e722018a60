"""From which checkpoint a run goes on, and whether it can."""
import contextlib
import os
import time
import zipfile
from pathlib import Path

from mmengine.logging import print_log

from ..files.checkpoint import CodeInside, read_checkpoint, recorded_config
from ..loading import shorten

TIME = '%Y%m%d_%H%M%S'                                                  # as mmengine records when it saved


def contents(path):
    """A checkpoint, its tensors left on the disk; empty where only running code that it brings would tell.

    Raises:
        ValueError: there is none, or it does not read (half-written, damaged, another format).
    """
    with contextlib.suppress(CodeInside):                               # whether to trust it is asked elsewhere
        return read_checkpoint(path, mmap=zipfile.is_zipfile(path))     # torch's older format is read whole
    return {}


def newest_checkpoint(folder, resumable=True):
    """The newest checkpoint that reads in the folder of a run; None where there is none.

    What counts is what the files record. `last_checkpoint` may be empty, a step behind, or name a place that the folder
    was moved from; it is asked where the folder itself has none.

    Args:
        resumable (bool): only one that holds the optimizer's state, so that a run can go on from it.

    Returns:
        str: its path.

    Raises:
        ValueError: there are checkpoints, and none of them will do.
    """
    recorded = recorded_checkpoint(folder)
    paths = files_beside(Path(folder, Path(recorded).name or 'none'))
    if not paths and recorded:
        if '://' in recorded or Path(recorded).is_dir():                # elsewhere, or deepspeed's
            return recorded
        paths = files_beside(Path(recorded))                            # CheckpointHook has an out_dir
    found, refused = {}, []
    for path in paths:
        try:
            checkpoint = contents(path)
        except ValueError as error:
            refused.append(str(error))
            continue
        meta, whole = checkpoint.get('meta'), not checkpoint or 'optimizer' in checkpoint
        if checkpoint and not (isinstance(meta, dict) and 'iter' in meta):      # weights from elsewhere
            continue
        if whole or not resumable:
            saved = time.strftime(TIME, time.localtime(path.stat().st_mtime))
            found[path] = (meta or {}).get('time', saved), (meta or {}).get('iter', 0), whole, saved
        elif not path.name.startswith('best_'):
            refused.append(f'{path} holds no state of the optimizer')
    if refused and not found:
        raise ValueError(f'{folder} has no checkpoint to go on from: {"; ".join(refused)}. Give another one, or '
                         'remove them to begin anew')
    for reason in refused:
        print_log(f'passed over: {reason}')
    return str(max(found, key=found.get)) if found else None


def recorded_checkpoint(folder):
    """What `last_checkpoint` in a folder says; '' where it is not there, or not a text."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(folder, 'last_checkpoint').read_text().strip().strip('\0')
    return ''


def files_beside(path):
    """The checkpoints in a path's folder, itself among them."""
    return sorted({file for pattern in ('*.pth', f'*{path.suffix or ".pth"}') for file in path.parent.glob(pattern)
                   if file.is_file() and not file.name.startswith('.')})


def check_resumable(path, cfg):
    """ValueError where a run of a config cannot go on from a local checkpoint; what only loading tells is left to that.
    """
    if '://' in path or os.path.isdir(path):
        return
    checkpoint = contents(path)
    if checkpoint and 'optimizer' not in checkpoint:
        raise ValueError(f'--resume: {path} holds {", ".join(list(checkpoint)[:4])} and no state of an optimizer, so '
                         'no run can go on from it: start from its weights by --cfg-options load_from=FILE')
    theirs, ours = method_of(checkpoint), (cfg.model.get('backbone') or {}).get('method')
    if theirs is not None and kind(theirs) != kind(ours):
        raise ValueError(f'--resume: {path} is of a run with {name(theirs)}, and this one is with {name(ours)}: resume '
                         'with the same method, or start from its weights by --cfg-options load_from=FILE')
    theirs, ours = classes_of((checkpoint or {}).get('meta'), 'dataset_meta'), classes_of(
        (cfg.get('train_dataloader') or {}).get('dataset'), 'metainfo')
    if None not in (theirs, ours) and theirs != ours:
        raise ValueError(f'--resume: {path} is of a run on the classes {shorten(theirs, 5)}, and this one is on '
                         f'{shorten(ours, 5)}: name another --work-dir, or start from its weights by --cfg-options '
                         'load_from=FILE')


def classes_of(holder, key):
    """The classes that a data set's settings, or what a checkpoint says of it, name one by one; else None."""
    classes = ((holder.get(key) if isinstance(holder, dict) else None) or {}).get('classes')
    return list(map(str, classes)) if isinstance(classes, (list, tuple)) else None


def method_of(checkpoint):
    """The method of the run that a checkpoint is of, {} without one, None where the checkpoint does not tell."""
    model = recorded_config(checkpoint).get('model')
    return None if model is None else model.get('backbone', {}).get('method') or {}


def kind(method):
    """The type of a method without its scope; None where there is none."""
    return str(method['type']).rpartition('.')[2] if method and 'type' in method else None


def name(method):
    """A method in a message."""
    options = ', '.join(f'{key}={option!r}' for key, option in (method or {}).items() if key != 'type')
    return f'the method {kind(method)}({options})' if kind(method) else 'no method'


def check_optimizer(runner, checkpoint):
    """ValueError where the optimizer's state in a checkpoint does not fit a runner's; torch's names neither."""
    theirs = (checkpoint.get('optimizer') or {}).get('param_groups')
    ours = runner.optim_wrapper.optimizer.param_groups
    if theirs is None or [len(group['params']) for group in theirs] == [len(group['params']) for group in ours]:
        return
    theirs, ours = [f'{sum(len(group["params"]) for group in groups)} parameters (groups: {len(groups)})'
                    for groups in (theirs, ours)]
    former = method_of(checkpoint)
    method = (runner.cfg.get('model') or {}).get('backbone') or {}
    methods = '' if former is None else f'; that was with {name(former)}, this one is with {name(method.get("method"))}'
    raise ValueError(f'the checkpoint to resume is of another run: its optimizer has {theirs}, this run\'s has {ours}'
                     f'{methods}. Resume with the same method, model and optimizer, or start from its weights by '
                     'load_from')

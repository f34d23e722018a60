"""What can be known to be missing or not to fit before minutes are spent on building it."""
import inspect
import os
import tempfile

from mmengine.model import ImgDataPreprocessor
from mmengine.registry import DATASETS, MODELS

from ..trunks.channels import RGB

NEEDED = dict(train=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'),
              test=('model', 'test_dataloader', 'test_cfg', 'test_evaluator'))


def check(cfg, task):
    """ValueError, naming the config's key, for the first thing that a run needs and does not find.

    Args:
        cfg (Config): the final config.
        task (str): 'train' or 'test'.
    """
    lacking = [key for key in NEEDED[task] if cfg.get(key) is None]
    if lacking:
        raise ValueError(f'this config cannot {task}: it has no {", ".join(lacking)}')
    check_work_dir(cfg.work_dir)
    check_weights(cfg)
    check_channels(cfg)
    for stage in ('train', 'val') if task == 'train' else ('test',):
        loader = cfg.get(f'{stage}_dataloader') or {}
        for key, dataset in datasets(loader.get('dataset'), f'{stage}_dataloader.dataset'):
            check_dataset(key, dataset, cfg.get('default_scope'))
        evaluators = cfg.get(f'{stage}_evaluator') or ()
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if missing(evaluator.get('ann_file')):
                raise ValueError(f'{stage}_evaluator.ann_file: there is no {evaluator.ann_file}')


def check_work_dir(work_dir):
    """The folder exists or can be made, and takes a file."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=work_dir).close()
    except OSError as error:
        raise ValueError(f'the work dir {work_dir} cannot be written: {error.strerror}') from error


def check_weights(cfg):
    """Checkpoints that the config names by a path."""
    backbone = cfg.model.get('backbone') or {}
    paths = {'load_from': cfg.get('load_from')}
    for key, init_cfg in (('model', cfg.model.get('init_cfg')), ('model.backbone', backbone.get('init_cfg'))):
        if isinstance(init_cfg, dict):
            paths[f'{key}.init_cfg.checkpoint'] = init_cfg.get('checkpoint')
    for key, path in paths.items():
        if path == '':
            raise ValueError(f"{key} is '': give a checkpoint, or leave it out (None)")
        if missing(path):
            raise ValueError(f'{key}: there is no checkpoint {path}')


def check_channels(cfg):
    """The data preprocessor fits the channels of the images that the backbone takes."""
    backbone = cfg.model.get('backbone') or {}
    channels = backbone.get('in_channels', backbone.get('in_chans', RGB))
    key = 'model.data_preprocessor' if cfg.model.get('data_preprocessor') else 'data_preprocessor'
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    for name in ('mean', 'std'):
        values = given.get(name)
        if isinstance(values, (list, tuple)) and len(values) > 1 and len(values) != channels:
            raise ValueError(f'{key}.{name} has {len(values)} values, and the backbone takes images with in_channels='
                             f'{channels}: give as many, or one for all')
        if isinstance(values, (list, tuple)) and len(values) not in (1, RGB) and of_mmengine(given, cfg):
            raise ValueError(f'{key}.{name} has {len(values)} values, and {given.type} takes three or one: give one '
                             'for all channels, or scale the images in the pipeline')
    # the stock preprocessors would take the first three channels and drop the others, or find no third
    turned = [name for name in ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb') if given.get(name)]
    if turned and channels != RGB:
        raise ValueError(f'{key}.{turned[0]}=True turns the channels of RGB around, and the backbone takes images '
                         f'of {channels}: set it to False')


def of_mmengine(preprocessor, cfg):
    """Whether a preprocessor, as mmdet's, is mmengine's own, which knows RGB and grey images only."""
    with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        kind = registry.get(preprocessor.type) if isinstance(preprocessor.type, str) else preprocessor.type
    return isinstance(kind, type) and issubclass(kind, ImgDataPreprocessor)


def datasets(cfg, key):
    """(dotted name, dict) of each dataset that reads files, wrappers opened."""
    if isinstance(cfg, (list, tuple)):
        for index, item in enumerate(cfg):
            yield from datasets(item, f'{key}.{index}')
    elif isinstance(cfg, dict):
        if any(cfg.get(name) for name in ('data_root', 'ann_file', 'data_prefix')):
            yield key, cfg
        for name in ('dataset', 'datasets'):
            yield from datasets(cfg.get(name), f'{key}.{name}')


def check_dataset(key, dataset, scope):
    """The folder, the annotation and the image folders of one dataset, joined as mmengine's BaseDataset does."""
    if (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return
    root, prefixes = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    named = dict(data_root=root, ann_file=dataset.get('ann_file'))
    if isinstance(prefixes, dict):
        named.update({f'data_prefix.{name}': prefix for name, prefix in prefixes.items()})
    else:
        named['data_prefix'] = prefixes
    for name, path in named.items():
        if name != 'data_root' and isinstance(path, str) and path and isinstance(root, str):
            path = os.path.join(os.path.expanduser(root), path)
        if missing(path) and not downloads(dataset, scope):
            raise ValueError(f'{key}.{name}: there is no {path}; set it by --cfg-options {key}.{name}=PATH '
                             'or in a child config')


def missing(path):
    """Whether a local path is given and nothing is there; other places (URLs, s3) are left to their readers."""
    return bool(path) and isinstance(path, str) and ':' not in path and not os.path.exists(os.path.expanduser(path))


def downloads(dataset, scope):
    """Whether a dataset fetches its files by itself (CIFAR, MNIST)."""
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    option = inspect.signature(kind).parameters.get('download') if kind else None
    return option is not None and bool(dataset.get('download', option.default))

"""A config of one of the three libraries for found data: the files that the libraries read, and the model's numbers.

The models are those of configs/demo and configs/bench, on a plain ViT of timm: ATSS for boxes, Cascade Mask R-CNN for
instances, UPerNet for maps, a linear classifier.
"""
import hashlib
import inspect
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from whole import whole

from e3va.command.config import load_config, nodes

from .found import IGNORED, mask_of

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = 2               # a number for how `prepare_data` writes: what was written otherwise is not read
READ = {'sweep', 'default_scope', 'custom_imports'}                     # of a config, beside what a Runner takes
BASES = dict(detection='demo/atss_vit-s.py', instance='bench/instances.py', semantic='demo/nuclei.py',
             classification='demo/crops_vit-s.py')
SCORES = dict(detection=('coco/bbox_mAP', 100), instance=('coco/segm_mAP', 100), semantic=('mIoU', 1),
              classification=('accuracy/top1', 1))
EPOCHS = dict(detection=24, instance=24, semantic=40, classification=40)    # at most, however much time there is
CHOICE = dict(train_choice=(1, 2, 3, 4), val_choice=(0, ))               # which fifths of train, where val is the test
TRUNK = dict(name='vit_small_patch14_dinov2', width=384, depth=12, patch=14)     # of the base configs


def prepare_data(found, cache):
    """Files under `cache` that the libraries read; a folder that a change of the data changes, whole or not there."""
    mark = hashlib.sha256(repr([
        (str(item.image), item.split, item.size, item.boxes,
         str(item.mask and hashlib.sha256(item.mask.read_bytes()).hexdigest()), item.label) for item in found.items]
        + [found.task, found.classes, found.values, CHOICE, FILES]).encode()).hexdigest()[:12]
    place = Path(cache) / f'{found.folder.name}_{mark}'
    if not place.is_dir():
        with whole(place) as part:
            part.mkdir(parents=True)
            if found.task == 'semantic':
                lines = maps(found, part)
            elif found.task == 'classification':
                broken = next((item.image for item in found.items if len(str(item.image).splitlines()) > 1), None)
                if broken:
                    raise ValueError(f'{str(broken)!r}: this name has the end of a line in it, and in the list of '
                                     'images an image is a line; rename it')
                lines = {item.image: f'{item.image} {item.label}' for item in found.items}
            for name, items in lists(found).items():
                if found.task in ('detection', 'instance'):
                    (part / f'{name}.json').write_text(json.dumps(coco(items, found.classes, found.task)))
                else:
                    (part / f'{name}.txt').write_text('\n'.join(lines[item.image] for item in items))
    return place


def lists(found):
    """{name: items} of the splits. Without a test split val stands for it, so that a choice needs a part of train."""
    made = {split: found.split(split) for split in ('train', 'val', 'test')}
    if not made['test']:
        for name, fifths in CHOICE.items():
            made[name] = [item for i, item in enumerate(made['train']) if i % 5 in fifths]
    return made


def can_choose(found):
    """Whether a sweep can choose rates: by val beside a test split, or else by a part of train."""
    made = lists(found)
    return bool(made['test']) or all(made[name] for name in CHOICE)


def coco(items, classes, task):
    """A COCO dict; paths are whole, so that it may stand anywhere. An instance without outline has its box as one.

    Objects are numbered from 1: pycocotools takes a match with number 0 for none.
    """
    out = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(classes)])
    for i, item in enumerate(items):
        out['images'].append(dict(id=i, file_name=str(item.image), width=item.size[0], height=item.size[1]))
        for given in item.boxes:
            left, top, width, height = given['box']
            entry = dict(id=len(out['annotations']) + 1, image_id=i, category_id=given['label'], bbox=given['box'],
                         area=width * height, iscrowd=int(given['crowd']))
            if task == 'instance':
                entry['segmentation'] = given.get('outline') or [[
                    left, top, left + width, top, left + width, top + height, left, top + height]]
            out['annotations'].append(entry)
    return out


def maps(found, place):
    """Links to the images, and PNGs of classes, as mmseg names them: images/17.jpg, maps/17.jpg.png; {image: name}."""
    (place / 'images').mkdir()
    (place / 'maps').mkdir()
    label = np.full(65536, IGNORED, np.uint8)
    label[found.values] = range(len(found.values))
    names = {}
    for i, item in enumerate(found.items):
        name = names[item.image] = f'{i}{item.image.suffix}'
        os.symlink(item.image, place / 'images' / name)
        Image.fromarray(label[mask_of(item.mask, {}).astype(np.int64)]).save(place / 'maps' / f'{name}.png')
    return names


def config(found, place, size, batch, epochs, trunk):
    """The config, without a method.

    Args:
        place (Path): of `prepare_data`.
        size (int): px of the longest side (of the crop for maps, of both sides for a classifier).
        trunk (dict): `name` of timm, `weights`, a file, `width` and `depth` of its blocks, px of a `patch`.
    """
    from mmengine.runner import Runner
    cfg = load_config(CONFIGS / BASES[found.task])
    score, times = SCORES[found.task]
    cfg.sweep.pop('data', None)                                         # how the base's own data is made
    cfg.sweep.update(score=score, times=times)
    classes = tuple(found.classes)
    backbone = cfg.model.backbone
    backbone.update(
        name=trunk['name'], init_cfg=dict(type='Pretrained', checkpoint=str(trunk['weights'])),
        out_indices=tuple((i + 1) * trunk['depth'] // TRUNK['depth'] - 1 for i in backbone.out_indices))
    for node in nodes(cfg.model):
        if isinstance(node.get('num_classes'), int):
            node.num_classes = len(classes)
        for key in ('embed_dim', 'in_channels'):
            node.update({key: swapped(node[key], {TRUNK['width']: trunk['width']}) for key in [key] if key in node})
        pixels = {n: n * trunk['patch'] // TRUNK['patch'] for n in (7, 14, 28)}
        for key in ('strides', 'featmap_strides', 'pad_size_divisor', 'size_divisor', 'finest_scale'):
            node.update({key: swapped(node[key], pixels) for key in [key] if key in node})
    if found.task == 'classification':
        cfg.data_preprocessor.num_classes = len(classes)
        fewest = min(len(items) for name, items in lists(found).items() if name.startswith('train'))
        cfg.train_dataloader.drop_last = fewest >= batch                # else no step would be left
    if found.task == 'semantic':
        cfg.model.data_preprocessor.size = (size, size)
    for split in ('train', 'val', 'test'):
        data(cfg, found, place, split, size)
    if can_choose(found) and not found.split('test'):
        cfg.sweep.choose = choice(cfg)
    cfg.train_dataloader.batch_size = batch
    cfg.train_cfg.max_epochs = epochs
    cfg.train_cfg.val_interval = max(1, epochs // 8)
    for scheduler in cfg.param_scheduler[1:]:
        scheduler.end = scheduler.T_max = epochs
    for name in set(cfg) - READ - set(inspect.signature(Runner.__init__).parameters):
        cfg.pop(name)                                                   # in the file an edit of it would change nothing
    return cfg


def choice(cfg):
    """`sweep.choose` where val is the test split: the runs by which a sweep chooses have two parts of train."""
    train, val = CHOICE
    nodes_of = (('train_dataloader.dataset', cfg.train_dataloader.dataset, train),
                ('val_dataloader.dataset', cfg.val_dataloader.dataset, val), ('val_evaluator', cfg.val_evaluator, val))
    return {f'{key}.ann_file': str(Path(node.ann_file).with_stem(name)) for key, node, name in nodes_of
            if 'ann_file' in node}


def swapped(value, numbers):
    """A number, or those of a list, by {old: new}."""
    if isinstance(value, (list, tuple)):
        return [numbers.get(each, each) for each in value]
    return numbers.get(value, value)


def describe(name):
    """A `trunk` of `config` but for its weights, of a plain ViT of timm.

    Raises:
        ValueError: no model of timm, or one of another kind.
    """
    import timm
    if not timm.is_model(name):
        raise ValueError(f'--trunk {name} is no model of timm')
    model = timm.create_model(name, pretrained=False, num_classes=0)
    if not isinstance(model, timm.models.VisionTransformer):
        raise ValueError(f'--trunk {name} is no plain ViT; for others write a config, as configs/dinov3 does')
    return dict(name=name, width=model.embed_dim, depth=len(model.blocks), patch=model.patch_embed.patch_size[0])


def data(cfg, found, place, split, size):
    """One split's dataset and evaluator, in place; test is val where there is no test split."""
    name = split if split != 'test' or found.split('test') else 'val'
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.pop('indices', None)
    dataset.metainfo = dict(classes=tuple(found.classes))
    if found.task == 'semantic':
        dataset.metainfo['palette'] = palette(len(found.classes))
        dataset.update(data_root=str(place), ann_file=f'{name}.txt', img_suffix='', seg_map_suffix='.png',
                       data_prefix=dict(img_path='images', seg_map_path='maps'))
    elif found.task == 'classification':
        dataset.update(data_root='', data_prefix='', ann_file=str(place / f'{name}.txt'))
    else:
        dataset.update(data_root='', data_prefix=dict(img=''), ann_file=str(place / f'{name}.json'))
    if split != 'train':
        evaluator = dict(
            semantic=dict(type='IoUMetric', iou_metrics=['mIoU']), classification=dict(type='Accuracy', topk=(1, )),
            detection=dict(type='CocoMetric', metric='bbox', ann_file=str(place / f'{name}.json')),
            instance=dict(type='CocoMetric', metric=['bbox', 'segm'], ann_file=str(place / f'{name}.json')))[found.task]
        cfg[f'{split}_evaluator'] = evaluator
    for step in dataset.pipeline:
        if step.type == 'Resize':
            step.pop('scale_factor', None)
            step.update(scale=(size, size))
            if found.task != 'classification':
                step.keep_ratio = True
        elif step.type == 'RandomCrop':
            step.crop_size = (size, size)


def palette(count):
    """As many colours that are told apart, the first one black."""
    from matplotlib import colormaps
    colours = [[round(255 * value) for value in colour] for colour in colormaps['tab20'].colors]
    return [[0, 0, 0], *(colours[i % len(colours)] for i in range(count - 1))]

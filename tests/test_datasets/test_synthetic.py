"""Generated data sets are read by the stock configs, evaluators' libraries and pipelines that they are made for."""
import hashlib
import importlib
import json
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope, init_default_scope
from pycocotools.coco import COCO
from torch import nn

from e3va.datasets import layouts, shapes
from e3va.datasets.cifar import SyntheticCIFAR100
from e3va.datasets.synthetic import LAYOUTS, make, make_ade20k, make_coco, make_imagenet, make_voc

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/make_synthetic.py'
STOCK_CONFIGS = dict(
    coco='mmdet/coco_instance.py', voc='mmdet/voc0712.py', ade20k='mmseg/ade20k.py',
    imagenet='mmpretrain/imagenet_bs64_swin_224.py', cifar100='mmpretrain/cifar100_bs16.py')

SIZES = dict(vtab=(32, 32), fgvc=(32, 32))     # suites of many tasks


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """One data set of every layout: 6 images a split, so that each of 5 categories appears in classification."""
    return {layout: make(layout, tmp_path_factory.mktemp('data') / layout, images=6, size=SIZES.get(layout))
            for layout in LAYOUTS}


@pytest.fixture(autouse=True)
def keep_default_scope():
    before = DefaultScope.get_current_instance()
    yield
    init_default_scope(before.scope_name if before else 'mmengine')


def stock_dataset(layout, root, split):
    """Build the train or val data set of the library's own config on `root`."""
    library, _, name = STOCK_CONFIGS[layout].partition('/')
    package = Path(importlib.import_module(f'{library}.datasets').__file__).parents[1]
    config = Config.fromfile(package / '.mim/configs/_base_/datasets' / name)
    dataset = config[f'{split}_dataloader'].dataset
    for part in getattr(getattr(dataset, 'dataset', None), 'datasets', [dataset]):
        part.data_root = str(root)
        if layout == 'cifar100':
            part.type = 'e3va.datasets.cifar.SyntheticCIFAR100'
    init_default_scope(library)
    return DATASETS.build(dataset)


def digest(root):
    """Relative path -> hash of the bytes, for every file below `root`."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob('*')) if path.is_file()}


def bright(path):
    """Where a picture has a bright colour, which only shapes have."""
    return cv2.imread(str(path)).max(axis=2) > 185


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('layout', ['coco', 'voc'])
def test_stock_detection_configs_read_it(made, layout, split):
    dataset = stock_dataset(layout, made[layout], split)
    repeated = 3 * 2 if (layout, split) == ('voc', 'train') else 1  # three times 2007 and 2012
    assert len(dataset) == 6 * repeated
    for i in range(6):
        sample = dataset[i]
        truth = sample['data_samples'].gt_instances
        assert 1 <= len(truth) <= layouts.MAX_SHAPES
        assert sample['inputs'].shape[1:] == sample['data_samples'].img_shape[:2]
        assert set(truth.labels.tolist()) <= set(range(5))
        assert (truth.bboxes.areas > 0).all()
        if layout == 'coco':
            assert len(truth.masks) == len(truth)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_stock_segmentation_config_reads_it(made, split):
    dataset = stock_dataset('ade20k', made['ade20k'], split)
    assert len(dataset) == 6
    seen = set()
    for i in range(6):
        sample = dataset[i]
        seen |= set(sample['data_samples'].gt_sem_seg.data.unique().tolist())
    assert seen == {0, 1, 2, 3, 4, 255}  # reduce_zero_label has made 'other' 255


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('layout', ['imagenet', 'cifar100'])
def test_stock_classification_configs_read_it(made, layout, split):
    dataset = stock_dataset(layout, made[layout], split)
    assert [int(dataset[i]['data_samples'].gt_label) for i in range(6)] == [0, 1, 2, 3, 4, 0]
    assert dataset[0]['inputs'].shape == ((3, 224, 224) if layout == 'imagenet' else (3, 32, 32))


def test_custom_dataset_finds_the_class_folders(made):
    from mmpretrain.datasets import CustomDataset
    dataset = CustomDataset(data_root=str(made['imagenet']), data_prefix='train', pipeline=[])
    assert sorted(dataset.get_gt_labels()) == [0, 0, 1, 2, 3, 4]


def test_imagenet_with_its_thousand_folders_needs_no_lists(tmp_path):
    from mmpretrain.datasets import ImageNet
    root = make_imagenet(tmp_path / 'imagenet', images=3, size=(32, 32), classes=1000)
    (root / 'meta/train.txt').unlink()
    assert ImageNet(data_root=str(root), split='train', pipeline=[]).get_gt_labels().tolist() == [0, 1, 2]


def test_original_cifar_class_refuses_the_files_and_ours_shows_the_pictures(made):
    from mmpretrain.datasets import CIFAR100
    with pytest.raises(RuntimeError, match='Cannot find CIFAR100'):
        CIFAR100(data_root=str(made['cifar100']), split='train', pipeline=[], download=False)
    dataset = SyntheticCIFAR100(data_root=str(made['cifar100']), split='train', pipeline=[])
    picture, _ = shapes.scene(np.random.default_rng([0, 0, 1]), (32, 32), [0])
    assert np.array_equal(dataset[0]['img'], picture[..., ::-1])  # CIFAR holds RGB


def test_coco_masks_and_boxes_lie_on_the_shapes(made):
    root = made['coco']
    coco = COCO(str(root / 'annotations/instances_val2017.json'))
    assert len(coco.getCatIds()) == 80
    for info in coco.loadImgs(coco.getImgIds()):
        masks = np.zeros((info['height'], info['width']), bool)
        for annotation in coco.loadAnns(coco.getAnnIds(info['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            assert not (mask & masks).any()
            masks |= mask
            assert mask.sum() == pytest.approx(annotation['area'], rel=0.05)
            x, y, width, height = annotation['bbox']
            rows, columns = np.nonzero(mask)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array([x, y, x + width, y + height]) - found).max() <= 1
        drawn = bright(root / 'val2017' / info['file_name'])
        assert (drawn & masks).sum() / (drawn | masks).sum() > 0.9


def test_voc_boxes_enclose_the_shapes_tightly(made):
    for page in sorted((made['voc'] / 'VOC2012/Annotations').glob('*.xml')):
        drawn = bright(made['voc'] / 'VOC2012/JPEGImages' / f'{page.stem}.jpg')
        for box in ElementTree.parse(page).iter('bndbox'):
            left, top, right, bottom = (int(box.find(side).text) - 1 for side in ('xmin', 'ymin', 'xmax', 'ymax'))
            rows, columns = np.nonzero(drawn[top:bottom + 1, left:right + 1])
            assert rows.min() <= 2 and rows.max() >= bottom - top - 2
            assert columns.min() <= 2 and columns.max() >= right - left - 2
            drawn[top - 2:bottom + 3, left - 2:right + 3] = False
        assert drawn.mean() < 0.001


def test_ade20k_labels_lie_on_the_shapes(made):
    for path in sorted((made['ade20k'] / 'annotations/training').iterdir()):
        annotation = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert annotation.ndim == 2 and {0, 1} < set(np.unique(annotation)) <= set(range(6))
        drawn = bright(made['ade20k'] / 'images/training' / f'{path.stem}.jpg')
        assert drawn[annotation > 1].mean() > 0.95 and drawn[annotation == 1].mean() < 0.01


def test_a_few_dozen_steps_learn_it(tmp_path):
    """Twelve pictures a class and thirty steps of a two-layer network: the loss on other pictures halves."""
    root = make_imagenet(tmp_path / 'imagenet', images=60, size=(32, 32))
    torch.manual_seed(0)

    def split(name):
        lines = [line.split() for line in (root / f'meta/{name}.txt').read_text().splitlines()]
        pictures = np.stack([cv2.imread(str(root / name / path)) for path, _ in lines])
        return torch.tensor(pictures).permute(0, 3, 1, 2) / 128.0 - 1, torch.tensor([int(label) for _, label in lines])

    network = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(),
                            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    loss = nn.CrossEntropyLoss()
    images, labels = split('train')
    start = loss(network(split('val')[0]), split('val')[1]).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    assert loss(network(split('val')[0]), split('val')[1]).item() < 0.5 * start


@pytest.mark.parametrize('layout', LAYOUTS)
def test_same_options_give_the_same_bytes(made, tmp_path, layout):
    again = make(layout, tmp_path / 'again', images=6, size=SIZES.get(layout))
    other = make(layout, tmp_path / 'other', images=6, size=SIZES.get(layout), seed=1)
    assert digest(again) == digest(made[layout])
    assert digest(other) != digest(again)


def test_a_larger_set_starts_with_the_smaller_ones_pictures(made, tmp_path):
    smaller = digest(make_coco(tmp_path / 'coco', images=2))
    larger = digest(made['coco'])
    pictures = [name for name in smaller if name.endswith('.jpg')]
    assert len(pictures) == 4 and all(smaller[name] == larger[name] for name in pictures)


def test_size_and_categories_are_as_asked(tmp_path):
    root = make_coco(tmp_path / 'coco', images=2, size=(97, 203), classes=80, seed=3)
    contents = json.loads((root / 'annotations/instances_train2017.json').read_text())
    assert all((info['height'], info['width']) == (97, 203) for info in contents['images'])
    assert cv2.imread(str(next((root / 'train2017').iterdir()))).shape == (97, 203, 3)
    assert max(annotation['category_id'] for annotation in contents['annotations']) > 5
    boxes = np.array([annotation['bbox'] for annotation in contents['annotations']])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] < 203).all()
    assert (boxes[:, 1] + boxes[:, 3] < 97).all() and (boxes[:, 2:] > 0).all()


def test_a_second_call_finds_the_first_ones_work(tmp_path):
    root = make_voc(tmp_path / 'voc', images=1)
    times = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert make_voc(tmp_path / 'voc', images=1) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == times
    with pytest.raises(ValueError, match='was not generated with these options'):
        make_voc(root, images=2)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == times


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco/photo.jpg').write_text('mine')
    with pytest.raises(ValueError, match='remove it or name another folder'):
        make_coco(tmp_path / 'coco')
    (tmp_path / '.other.unfinished').mkdir()
    (tmp_path / '.other.unfinished/photo.jpg').write_text('mine')
    with pytest.raises(ValueError, match='in the way'):
        make_coco(tmp_path / 'other')
    assert [path.read_text() for path in tmp_path.rglob('*.jpg')] == ['mine', 'mine']


def test_an_interrupted_call_leaves_nothing_half_made(made, tmp_path, monkeypatch):
    root, write, calls = tmp_path / 'data/ade', layouts._write_image, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(layouts, '_write_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_ade20k(root, images=6)
    assert not root.exists()
    root.mkdir()  # an empty folder is no obstacle
    assert digest(make_ade20k(root, images=6)) == digest(made['ade20k'])
    assert list(root.parent.iterdir()) == [root]


@pytest.mark.parametrize('options, message', [
    (dict(layout='cocoa'), 'unknown layout'),
    (dict(images=0), 'images'),
    (dict(images=2.5), 'images'),
    (dict(size=(0, 320)), 'size'),
    (dict(size=(240, 320, 3)), 'a height and a width'),
    (dict(size=240), 'a height and a width'),
    (dict(classes=81), 'from 1 to 80'),
    (dict(layout='ade20k', classes=1), 'from 2 to 150'),
    (dict(layout='cifar100', size=(64, 64)), 'as CIFAR always is'),
    (dict(seed=-1), 'seed'),
])
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{'layout': 'coco', 'root': tmp_path / 'data', **options})
    assert not (tmp_path / 'data').exists()


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_makes_what_the_function_makes(made, tmp_path, monkeypatch, capsys):
    run_tool(monkeypatch, '--layout', 'coco', '--out', tmp_path / 'coco', '--images', 6, '--size', 240, 320)
    assert digest(tmp_path / 'coco') == digest(made['coco'])
    assert capsys.readouterr().out.startswith(str(tmp_path / 'coco'))


@pytest.mark.parametrize('arguments', [
    ('--layout', 'cocoa'), ('--layout', 'coco', '--size', '8', '8'), ('--layout', 'coco', '--images', 'many'), ()])
def test_tool_names_bad_input_in_one_line(tmp_path, monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run_tool(monkeypatch, '--out', tmp_path / 'data', *arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert not (tmp_path / 'data').exists()

"""Kvasir-SEG: its layout, masks that are JPEG files, the metric beside mmseg's, the division into lists."""
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from mmseg.evaluation import IoUMetric

from e3va.datasets.polyp import KvasirSEG
from e3va.datasets.synthetic import make_kvasir
from tests.conftest import tool

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='e3va.LoadMask'),
            dict(type='Resize', scale=(64, 64), keep_ratio=False), dict(type='PackSegInputs')]


@pytest.fixture
def root(tmp_path):
    return make_kvasir(tmp_path / 'kvasir', images=3, size=(48, 80), classes=2)


def test_reads_the_layout(root):
    with DATASETS.switch_scope_and_registry('mmseg') as registry:
        dataset = registry.build(dict(type='e3va.KvasirSEG', data_root=str(root), split='val', pipeline=PIPELINE))
    assert len(dataset) == 3 and dataset.metainfo['classes'] == ('background', 'polyp')
    seen = set()
    for sample in (dataset[i] for i in range(3)):
        truth = sample['data_samples'].gt_sem_seg.data
        assert sample['inputs'].shape == (3, 64, 64) and truth.shape == (1, 64, 64)
        assert sample['data_samples'].ori_shape == (48, 80)
        seen |= set(truth.unique().tolist())
    assert seen == {0, 1}


def test_masks_are_cut_at_the_middle(tmp_path):
    """JPEG leaves a rim of other values around what was 0 and 255."""
    mask = np.zeros((32, 32), np.uint8)
    mask[5:20, 9:25] = 255
    file = tmp_path / 'mask.jpg'
    cv2.imwrite(str(file), cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR))
    assert len(np.unique(cv2.imread(str(file)))) > 2
    load = TRANSFORMS.build(dict(type='e3va.LoadMask'))
    found = load(dict(seg_map_path=str(file), ori_shape=(32, 32), seg_fields=[]))
    assert np.array_equal(found['gt_seg_map'], mask // 255) and found['seg_fields'] == ['gt_seg_map']
    with pytest.raises(ValueError, match='has 32x32 px, and its image has 32x33'):
        load(dict(seg_map_path=str(file), ori_shape=(32, 33), seg_fields=[]))


def test_names_with_and_without_suffix(root):
    (root / 'some.txt').write_text('val00001.jpg\n\ntrain00002\n')
    dataset = KvasirSEG('some', str(root), pipeline=[])
    paths = [Path(dataset.get_data_info(i)['img_path']) for i in range(2)]
    assert [path.name for path in paths] == ['val00001.jpg', 'train00002.jpg']


@pytest.mark.parametrize('split, line, message', [
    ('test', None, 'there is no .*test.txt'), ('few', '', 'few.txt is empty'),
    ('few', 'val00009', 'there is no .*val00009.jpg')])
def test_bad_lists(root, split, line, message):
    if line is not None:
        (root / f'{split}.txt').write_text(f'{line}\n')
    with pytest.raises(ValueError, match=message):
        KvasirSEG(split, str(root), pipeline=[])


def test_an_image_without_its_mask(root):
    next((root / 'masks').glob('val*')).unlink()
    with pytest.raises(ValueError, match='there is no .*masks'):
        KvasirSEG('val', str(root), pipeline=[])


# ---- the metric

def sample(found, truth):
    return dict(pred_sem_seg=dict(data=torch.tensor(found)[None]), gt_sem_seg=dict(data=torch.tensor(truth)[None]))


def measure(*samples):
    metric = METRICS.build(dict(type='e3va.PolypMetric'))
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_mean_over_images():
    """2 of 3 and 4 pixels in common; 1 of 1 and 1; the mean is over images, not over pixels."""
    large = sample([[1, 1, 1], [0, 0, 0]], [[1, 1, 0], [1, 1, 0]])
    small = sample([[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 1]])
    assert measure(large, small) == pytest.approx(dict(mDice=50 * (4 / 7 + 1), mIoU=50 * (2 / 5 + 1)))


def test_one_image_is_what_mmseg_says_of_the_polyp():
    generator = torch.Generator().manual_seed(0)
    found, truth = torch.randint(0, 2, (2, 1, 20, 30), generator=generator)
    both = dict(pred_sem_seg=dict(data=found), gt_sem_seg=dict(data=truth))
    stock = IoUMetric(iou_metrics=['mDice', 'mIoU'])
    stock.dataset_meta = KvasirSEG.METAINFO
    stock.process({}, [both])
    areas = [sum(area) for area in zip(*stock.results)]
    found = stock.total_area_to_metrics(*areas, ['mDice', 'mIoU'])
    assert measure(both) == pytest.approx(dict(mDice=100 * found['Dice'][1], mIoU=100 * found['IoU'][1]), abs=1e-4)


def test_nothing_found_where_nothing_is():
    assert measure(sample([[0, 0]], [[0, 0]])) == dict(mDice=100, mIoU=100)
    assert measure(sample([[0, 1]], [[0, 0]])) == dict(mDice=0, mIoU=0)
    assert measure(sample([[1, 1]], [[1, 255]])) == dict(mDice=100, mIoU=100)       # 255 does not count


# ---- the tool

split = tool('dataset_converters/split_images.py')


def lines(root, name):
    return (root / f'{name}.txt').read_text().split()


def test_lists_are_disjoint_and_seeded(root, tmp_path, capsys):
    split.main([str(root), '--parts', 'fit=4', 'judge=2'])
    assert 'fit.txt (4), judge.txt (2)' in capsys.readouterr().out
    fit, judge = lines(root, 'fit'), lines(root, 'judge')
    assert sorted(fit + judge) == sorted(path.stem for path in (root / 'images').iterdir())
    split.main([str(root), '--parts', 'again=4', '--seed', '0'])
    split.main([str(root), '--parts', 'other=4', '--seed', '1'])
    assert lines(root, 'again') == fit != lines(root, 'other')
    split.main([str(root), '--of', 'fit', '--parts', 'choose=1', 'rest=3'])
    assert sorted(lines(root, 'choose') + lines(root, 'rest')) == sorted(fit)


@pytest.mark.parametrize('arguments, message', [
    (['--parts', 'train=2'], 'train.txt exists'), (['--parts', 'fit=9'], 'has 6 images, and the parts ask for 9'),
    (['--of', 'nothing', '--parts', 'fit=1'], 'there is no .*nothing.txt'), (['--parts', 'fit'], 'is not NAME=COUNT')])
def test_bad_division(root, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        split.main([str(root), *arguments])
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)

"""FGVC: VPT's splits and the official files, written by hand, and what is wrong with them."""
import json

import numpy as np
import pytest
import scipy.io
from mmengine.registry import DATASETS as ROOT

from e3va.datasets.fgvc import FGVC, TASKS, NABirds, StanfordDogs
from e3va.datasets.synthetic import make_fgvc

BIRDS = {'train': {'0817/a.jpg': 817, '0002/b.jpg': 2}, 'val': {'0817/c.jpg': 817}, 'test': {'1010/d.jpg': 1010}}


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'nabirds').mkdir()
    for name, content in BIRDS.items():
        (tmp_path / f'nabirds/{name}.json').write_text(json.dumps(content))
    return tmp_path


def entries(dataset):
    return [(entry['img_path'], entry['gt_label']) for entry in map(dataset.get_data_info, range(len(dataset)))]


@pytest.mark.parametrize('split, expected', [
    ('train', [('0817/a.jpg', 1), ('0002/b.jpg', 0)]),
    ('val', [('0817/c.jpg', 1)]),
    ('train+val', [('0817/a.jpg', 1), ('0002/b.jpg', 0), ('0817/c.jpg', 1)]),
    ('test', [('1010/d.jpg', 2)]),
])
def test_classes_are_ranks_over_all_three_files(root, split, expected):
    dataset = ROOT.build(dict(type='e3va.FGVC', task='nabirds', split=split, data_root=str(root), pipeline=[]))
    assert entries(dataset) == [(str(root / 'nabirds/images' / path), label) for path, label in expected]


@pytest.mark.parametrize('options, says', [
    (dict(task='birds'), "no task 'birds'; near: nabirds"),
    (dict(split='trainval'), "no split 'trainval'; there are: train, val, train.val, test"),
    (dict(task='cub'), 'there is no .*/CUB_200_2011; set data_root'),
    (dict(data_root='/nowhere'), 'there is no /nowhere/nabirds; set data_root'),
])
def test_what_is_missing_is_one_error(root, options, says):
    with pytest.raises(ValueError, match=says):
        FGVC(**{'task': 'nabirds', 'data_root': str(root), **options})


@pytest.mark.parametrize('name', ['train', 'val', 'test'])
def test_each_split_needs_all_files(root, name):
    (root / f'nabirds/{name}.json').unlink()
    with pytest.raises(ValueError, match=f'there is no .*/nabirds/{name}.json'):
        FGVC('nabirds', 'train', str(root))


@pytest.mark.parametrize('text', ['{"a.jpg": 1', '["a.jpg"]', '{"a.jpg": "sparrow"}', '{"a.jpg": null}'])
def test_another_form_is_named(root, text):
    (root / 'nabirds/val.json').write_text(text)
    with pytest.raises(ValueError, match='val.json is not of the form'):
        FGVC('nabirds', 'train', str(root))


def test_more_classes_than_the_task_has_are_named(root):
    (root / 'stanfordcars').mkdir()
    for name in BIRDS:
        (root / f'stanfordcars/{name}.json').write_text(json.dumps({f'{i}.jpg': i for i in range(197)}))
    with pytest.raises(ValueError, match='cars has 196 classes, and train.json, val.json and test.json name 197'):
        FGVC('cars', 'test', str(root))


def test_generated_tasks_are_read(tmp_path):
    root = make_fgvc(tmp_path / 'fgvc', images=3, size=(32, 32), classes=3)
    pipeline = [dict(type='mmpretrain.LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]
    for task in TASKS:
        dataset = FGVC(task, data_root=str(root), pipeline=pipeline)
        assert dataset.get_gt_labels().tolist() == [0, 1, 2, 0, 1, 2]
        assert dataset[5]['inputs'].shape == (3, 32, 32)


def test_sizes_add_up_to_the_official_ones():
    """Official training and test images: CUB's and the cars' are in mmpretrain's docstrings, so are the flowers'."""
    official = {name: (task.train_images + task.val_images, task.test_images) for name, task in TASKS.items()}
    assert official == dict(cub=(5994, 5794), nabirds=(23929, 24633), flowers=(2040, 6149), dogs=(12000, 8580),
                            cars=(8144, 8041))


def test_official_birds(tmp_path):
    (tmp_path / 'images.txt').write_text('0a-1 0817/0a1.jpg\n0b-2 0002/0b2.jpg\n0c-3 0817/0c3.jpg\n')
    (tmp_path / 'image_class_labels.txt').write_text('0a-1 817\n0b-2 2\n0c-3 817\n')
    (tmp_path / 'train_test_split.txt').write_text('0a-1 1\n0b-2 1\n0c-3 0\n')
    found = {split: entries(NABirds(str(tmp_path), split)) for split in ('train', 'test')}
    images = str(tmp_path / 'images')
    assert found == dict(train=[(f'{images}/0817/0a1.jpg', 1), (f'{images}/0002/0b2.jpg', 0)],
                         test=[(f'{images}/0817/0c3.jpg', 1)])
    (tmp_path / 'images.txt').unlink()
    with pytest.raises(FileNotFoundError, match='images.txt'):
        NABirds(str(tmp_path))


def test_official_dogs(tmp_path):
    images = [f'n02085620-Chihuahua/n02085620_{i}.jpg' for i in range(2)] + ['n02116738-African/n02116738_1.jpg']
    column = np.empty((3, 1), dtype=object)                     # as in the real file: a cell array of strings
    column[:, 0] = [np.array([image]) for image in images]
    scipy.io.savemat(tmp_path / 'test_list.mat', dict(file_list=column, labels=np.array([[1], [1], [120]], np.uint8)))
    dataset = StanfordDogs(str(tmp_path), 'test')
    assert entries(dataset) == [(str(tmp_path / 'Images' / image), label) for image, label in zip(images, (0, 0, 119))]
    with pytest.raises(ValueError, match='there is no .*/train_list.mat'):
        StanfordDogs(str(tmp_path))
    with pytest.raises(ValueError, match="no split 'val'"):
        StanfordDogs(str(tmp_path), 'val')

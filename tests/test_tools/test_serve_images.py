"""tools/serve_images.py: what is written for three libraries, what is left out, and that it goes on where it ended."""
import json

import cv2
import numpy as np
import pytest

from e3va.serve.images import check
from tests.conftest import tool
from tests.test_serve.models import CLASSES, base, make, picture


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(folder of images, {task: delta})."""
    folder = tmp_path_factory.mktemp('images')
    file = base(folder)
    deltas = {library: make(folder, library, 'e3va', file)[0] for library in ('mmdet', 'mmseg', 'mmpretrain')}
    images = folder / 'images'
    (images / 'deep').mkdir(parents=True)
    cv2.imwrite(str(images / 'a.png'), picture(0))
    cv2.imwrite(str(images / 'deep' / 'b.jpg'), picture(1))
    cv2.imwrite(str(images / 'grey.png'), picture(2)[..., 0])
    cv2.imwrite(str(images / 'deep' / 'sixteen.png'), picture(3).astype(np.uint16) * 256)
    cv2.imwrite(str(images / 'alpha.png'), np.dstack([picture(4), picture(4)[..., :1]]))
    (images / 'torn.jpg').write_bytes(b'no image')
    (images / 'empty.png').write_bytes(b'')
    return images, deltas


def line(made, out, *more):
    images, deltas = made
    return [str(images), '--tasks', *(f'{name}={path}' for name, path in deltas.items()), '--out', str(out), *more]


def test_a_folder(made, tmp_path, capsys):
    """Grey, 16 bits and alpha are read as in training; what is no image is named; a second run has nothing to do."""
    serve = tool('serve_images.py')
    serve.main(line(made, tmp_path, '--score', '0'))
    said = capsys.readouterr()
    assert '5 images, 3 tasks' in said.out
    assert [row.rpartition('/')[2] for row in said.err.splitlines() if 'left out' in row] == ['empty.png', 'torn.jpg']
    found = json.loads((tmp_path / 'mmdet' / 'results.json').read_text())
    assert [image['file_name'] for image in found['images']] == ['a.png', 'alpha.png', 'deep/b.jpg',
                                                                 'deep/sixteen.png', 'grey.png']
    assert [category['name'] for category in found['categories']] == list(CLASSES)
    from pycocotools.coco import COCO
    coco = COCO()
    coco.dataset = found
    coco.createIndex()
    assert len(coco.anns) == 25 and coco.annToMask(coco.anns[1]).shape == (70, 90)
    assert {entry['image_id'] for entry in found['annotations']} == {1, 2, 3, 4, 5}
    labels = cv2.imread(str(tmp_path / 'mmseg' / 'maps' / 'deep' / 'b.jpg.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (70, 90) and labels.max() < 3
    named = json.loads((tmp_path / 'mmpretrain' / 'results.json').read_text())['results']
    assert len(named) == 5 and all(row['name'] == CLASSES[row['label']] for row in named)
    assert len(list(tmp_path.rglob('overlays/**/*.jpg'))) == 15
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('rows/**/*.json')}
    serve.main(line(made, tmp_path, '--score', '0'))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_it_goes_on(made, tmp_path, monkeypatch):
    """Interrupted in the middle of an image, the rest is the same as in one go."""
    serve = tool('serve_images.py')
    serve.main(line(made, tmp_path / 'whole', '--no-overlays'))
    told, calls = serve.told, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        told(*args)

    monkeypatch.setattr(serve, 'told', interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve.main(line(made, tmp_path / 'parts', '--no-overlays'))
    monkeypatch.setattr(serve, 'told', told)
    serve.main(line(made, tmp_path / 'parts', '--no-overlays'))
    for file in (tmp_path / 'whole').rglob('*.*'):
        if file.is_file() and 'lock' not in file.name:
            assert (tmp_path / 'parts' / file.relative_to(tmp_path / 'whole')).read_bytes() == file.read_bytes()


@pytest.mark.parametrize('change, said', [
    (['--tasks', 'a'], 'write NAME=DELTA'), (['--tasks', 'a=x', 'a=y'], "two tasks have the name 'a'"),
    (['--tasks', '../a=x'], 'the name as that of a folder'), (['--tasks', 'a=none.safetensors'], 'no delta file'),
    (['nowhere'], 'there is no folder nowhere')])
def test_bad_input(made, tmp_path, capsys, change, said):
    args = line(made, tmp_path)
    args = change + args[1:] if change[0] == 'nowhere' else [args[0], *change, '--out', str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        tool('serve_images.py').main(args)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_folder_of_other_tasks(made, tmp_path, capsys):
    (tmp_path / 'tasks.json').write_text('{}')
    with pytest.raises(SystemExit):
        tool('serve_images.py').main(line(made, tmp_path))
    assert 'results of other tasks or images' in capsys.readouterr().err


def test_paths_are_images_too(made):
    assert check(made[0] / 'grey.png') == str(made[0] / 'grey.png')

"""tools/tune.py: what folders hold, what is chosen, a run of each task to its page; tools/predict.py on its delta."""
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import e3va
from tests.conftest import tool

tune, predict, delta = tool('tune.py'), tool('predict.py'), tool('misc/delta.py')
publish = tool('model_converters/publish_delta.py')

from tuning import choice, found, task  # noqa: E402  tune.py has put tools/ on the path


def picture(path, i, size=(80, 60)):
    """A file of its own content for each number: a coloured square on another colour. Its box: x, y, width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((size[1], size[0], 3), (40 + i % 50, 200 - i % 90, 90), np.uint8)
    left, top = 4 + i % 20, 6 + i % 15
    image[top:top + 24, left:left + 30] = (230, 30 + 90 * (i % 2), 20)
    Image.fromarray(image).save(path)
    return left, top, 30, 24


# ---- the formats

def as_coco(folder, count=20, outlines=True):
    content = dict(images=[], annotations=[], categories=[dict(id=7, name='red'), dict(id=9, name='orange')])
    for i in range(count):
        x, y, w, h = picture(folder / f'pictures/{i}.png', i)
        content['images'].append(dict(id=i, file_name=f'{i}.png', width=80, height=60))
        entry = dict(id=i, image_id=i, category_id=(7, 9)[i % 2], bbox=[x, y, w, h], area=w * h, iscrowd=0)
        if outlines:
            entry['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        content['annotations'].append(entry)
    (folder / 'boxes.json').write_text(json.dumps(content))


XML = '''<annotation><filename>{name}</filename><object><name>{kind}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>'''


def as_voc(folder, count=20):
    (folder / 'Annotations').mkdir(parents=True)
    for i in range(count):
        x, y, w, h = picture(folder / f'JPEGImages/{i}.png', i)
        (folder / f'Annotations/{i}.xml').write_text(XML.format(
            name=f'{i}.png', kind=('red', 'orange')[i % 2], difficult=int(i == 3), left=x + 1, top=y + 1,
            right=x + w + 1, bottom=y + h + 1))


def as_yolo(folder, count=20, split='train/'):
    for i in range(count):
        x, y, w, h = picture(folder / f'{split}images/{i}.png', i)
        label = folder / f'{split}labels/{i}.txt'
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f'{i % 2} {(x + w / 2) / 80} {(y + h / 2) / 60} {w / 80} {h / 60}\n')
    (folder / 'data.yaml').write_text('names: [red, orange]\n')


def as_masks(folder, count=20, values=(0, 255)):
    for i in range(count):
        x, y, w, h = picture(folder / f'images/{i}.png', i)
        mask = np.full((60, 80), values[0], np.uint8)
        mask[y:y + h, x:x + w] = values[1 + i % (len(values) - 1)]
        (folder / 'masks').mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / f'masks/{i}.png')


def as_folders(folder, count=20, split=''):
    for i in range(count):
        picture(folder / f'{split}{("red", "orange")[i % 2]}/{i}.png', i)


@pytest.mark.parametrize('write, kind, classes', [
    (as_coco, 'COCO', ['red', 'orange']), (as_voc, 'Pascal VOC', ['orange', 'red']),
    (as_yolo, 'YOLO', ['red', 'orange'])])
def test_boxes(tmp_path, write, kind, classes):
    """The same pictures in three formats: the same boxes, in px from 0."""
    write(tmp_path / 'data')
    got = found.find(tmp_path / 'data')
    assert (got.format, got.task, got.classes, got.wrong) == (kind, 'detection', classes, {})
    assert len(got.items) == 20 and {item.size for item in got.items} == {(80, 60)}
    for item in got.items:
        i = int(item.image.stem)
        box, = item.boxes
        assert box['box'] == pytest.approx([4 + i % 20, 6 + i % 15, 30, 24], abs=1e-3)
        assert classes[box['label']] == ('red', 'orange')[i % 2]
        assert box['crowd'] == (write is as_voc and i == 3)


def test_masks_and_classes(tmp_path):
    as_masks(tmp_path / 'two')
    got = found.find(tmp_path / 'two')
    assert (got.task, got.values, len(got.classes), len(got.items)) == ('semantic', [0, 255], 2, 20)
    as_masks(tmp_path / 'three', values=(0, 1, 2))
    (tmp_path / 'three/classes.txt').write_text('ground\nred\norange\n')
    got = found.find(tmp_path / 'three')
    assert (got.values, got.classes) == ([0, 1, 2], ['ground', 'red', 'orange'])
    as_folders(tmp_path / 'kinds')
    got = found.find(tmp_path / 'kinds')
    assert (got.task, got.classes) == ('classification', ['orange', 'red'])
    assert all(item.image.parent.name == got.classes[item.label] for item in got.items)


def test_splits_that_are_there(tmp_path):
    for split, count in (('train/', 12), ('valid/', 5), ('test/', 3)):
        as_yolo(tmp_path / 'yolo', count, split)
        as_folders(tmp_path / 'kinds', count, split)
    as_voc(tmp_path / 'voc')
    lists = tmp_path / 'voc/ImageSets/Main'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('\n'.join(f'{i} 1' for i in range(12)))
    (lists / 'val.txt').write_text('\n'.join(map(str, range(12, 17))))
    for name, counts in (('yolo', [12, 5, 3]), ('kinds', [12, 5, 3]), ('voc', [12, 5, 0])):
        got = found.find(tmp_path / name)
        assert [len(got.split(split)) for split in ('train', 'val', 'test')] == counts and not got.made


def test_splits_that_are_made(tmp_path):
    """By content: a second look finds the same ones, and two files of one picture are in one split."""
    as_folders(tmp_path / 'kinds', 60)
    for i in range(60):
        picture(tmp_path / f'kinds/red/again_{i}.png', i)
    got = found.find(tmp_path / 'kinds')
    assert got.made and all(len(got.split(split)) > 3 for split in ('train', 'val', 'test'))
    splits = {}
    for item in got.items:
        splits.setdefault(item.image.read_bytes(), set()).add(item.split)
    assert all(len(names) == 1 for names in splits.values())
    again = {item.image: item.split for item in found.find(tmp_path / 'kinds').items}
    assert again == {item.image: item.split for item in got.items}


def test_broken_files_are_counted_and_left_out(tmp_path):
    as_coco(tmp_path / 'data', 30)
    pictures = tmp_path / 'data/pictures'
    (pictures / '0.png').write_bytes((pictures / '0.png').read_bytes()[:60])
    (pictures / '1.png').unlink()
    content = json.loads((tmp_path / 'data/boxes.json').read_text())
    content['annotations'][2]['bbox'] = [70, 50, 30, 30]                # leaves the image
    content['annotations'][3]['bbox'] = [90, 10, 5, 5]                  # is outside
    content['annotations'][4]['category_id'] = 100
    content['annotations'][5]['bbox'] = [float('nan'), 1, 2, 3]
    (tmp_path / 'data/boxes.json').write_text(json.dumps(content))
    got = found.find(tmp_path / 'data')
    assert {what: len(places) for what, places in got.wrong.items()} == {
        'image not there': 1, 'box without a class or corners': 1, 'unreadable image': 1,
        'box that left its image, clipped': 1, 'box without area inside its image': 2}
    assert len(got.items) == 28
    boxes = {int(item.image.stem): item.boxes for item in got.items}
    assert boxes[2][0]['box'] == [70, 50, 10, 10] and boxes[3] == boxes[4] == boxes[5] == []


def test_names_as_they_come(tmp_path):
    """Dots and accents in names, upper-case suffixes, marks at the start of files, \\r\\n, no line end at the end."""
    as_yolo(tmp_path / 'yolo', 12, '')
    for path in [*tmp_path.glob('yolo/images/*'), *tmp_path.glob('yolo/labels/*')]:
        path.rename(path.with_name(f'e\u0301te test_jpg.rf.{path.stem}{path.suffix.upper()}'))
    for path in tmp_path.glob('yolo/labels/*'):
        path.rename(path.with_name(path.name.replace('e\u0301', '\u00e9')))
    label = next(tmp_path.glob('yolo/labels/*'))
    label.write_bytes(b'\xef\xbb\xbf' + label.read_bytes().replace(b'\n', b'\r\n') + b'\r\n')
    (tmp_path / 'yolo/data.yaml').unlink()
    (tmp_path / 'yolo/classes.txt').write_bytes(b'red\r\norange')
    got = found.find(tmp_path / 'yolo')
    assert (got.classes, got.wrong, got.made) == (['red', 'orange'], {}, True) and len(got.items) == 12
    assert all(len(item.boxes) == 1 for item in got.items)
    as_coco(tmp_path / 'coco')
    content = (tmp_path / 'coco/boxes.json').read_bytes()
    (tmp_path / 'coco/boxes.json').unlink()
    (tmp_path / 'coco/boxes.JSON').write_bytes(b'\xef\xbb\xbf' + content)
    assert found.find(tmp_path / 'coco').format == 'COCO'
    as_voc(tmp_path / 'voc')
    for path in tmp_path.glob('voc/Annotations/*'):
        path.rename(path.with_suffix('.XML'))
    assert len(found.find(tmp_path / 'voc').items) == 20


def test_links_and_hidden_files(tmp_path):
    as_coco(tmp_path / 'real')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'real/boxes.json').rename(tmp_path / 'data/boxes.json')
    (tmp_path / 'data/images').symlink_to(tmp_path / 'real/pictures')
    (tmp_path / 'data/again').symlink_to(tmp_path / 'data')
    (tmp_path / 'data/._0.png').write_bytes(b'x')
    (tmp_path / 'data/Thumbs.db').write_bytes(b'x')
    got = found.find(tmp_path / 'data')
    assert len(got.items) == 20 and got.wrong == {}


def test_one_name_in_two_folders(tmp_path):
    """The split of the annotations decides; where nothing does the image is left out."""
    for split in ('train', 'val'):
        as_coco(tmp_path / split, 6)
        (tmp_path / 'sets/annotations').mkdir(parents=True, exist_ok=True)
        (tmp_path / split / 'boxes.json').rename(tmp_path / f'sets/annotations/instances_{split}.json')
        (tmp_path / split / 'pictures').rename(tmp_path / f'sets/{split}')
    got = found.find(tmp_path / 'sets')
    assert got.wrong == {} and all(item.image.parent.name == item.split for item in got.items)
    (tmp_path / 'sets/annotations/instances_val.json').unlink()
    (tmp_path / 'sets/annotations/instances_train.json').rename(tmp_path / 'sets/annotations/all.json')
    with pytest.raises(ValueError, match=r'no usable image for train; several images of one name: 6 \(e.g. 0.png'):
        found.find(tmp_path / 'sets')


def test_unreadable_annotations_are_no_images_without_objects(tmp_path):
    as_yolo(tmp_path / 'data', 20, '')
    (tmp_path / 'data/labels/3.txt').write_text('0 0.5 half 0.1 0.1\n')
    (tmp_path / 'data/labels/4.txt').write_text('-1 0.5 0.5 0.1 0.1\n')
    (tmp_path / 'data/labels/5.txt').unlink()
    (tmp_path / 'data/a.yaml').write_text('names: [')
    got = found.find(tmp_path / 'data')
    assert {what: len(places) for what, places in got.wrong.items()} == {
        "line that is not YOLO's": 2, 'image left out, nothing says what is on it': 2,
        'image without a .txt, taken as one without objects': 1, 'unreadable YAML': 1}
    assert len(got.items) == 18 and got.classes == ['red', 'orange']
    as_coco(tmp_path / 'coco')
    (tmp_path / 'coco/boxes.json').write_text('{')
    with pytest.raises(ValueError, match='nothing that says what is on them: .*; unreadable JSON: 1'):
        found.find(tmp_path / 'coco')


def test_turned_by_exif_or_of_another_size(tmp_path):
    """Sizes are those that training reads, turned as EXIF says; boxes of another size than that are not used."""
    as_coco(tmp_path / 'data', 30)
    turn = Image.Exif()
    turn[0x112] = 6
    for i in (1, 2):
        Image.open(tmp_path / f'data/pictures/{i}.png').rotate(90, expand=True).save(
            tmp_path / f'data/pictures/{i}.jpg', exif=turn)
        (tmp_path / f'data/pictures/{i}.png').unlink()
    content = json.loads((tmp_path / 'data/boxes.json').read_text())
    content['images'][2].update(width=60, height=80)                    # as it is stored
    content['images'][3].update(width=160, height=120)
    content['annotations'][4]['bbox'] = [None] * 4
    (tmp_path / 'data/boxes.json').write_text(json.dumps(content))
    picture(tmp_path / 'data/more.png', 99)
    Image.fromarray(np.full((60, 80), 400, np.uint16)).save(tmp_path / 'data/pictures/5.png')
    got = found.find(tmp_path / 'data')
    assert {what: len(places) for what, places in got.wrong.items()} == {
        'box without a class or corners': 1, 'image left out, nothing says what is on it': 1,
        'image of another size than its annotation says, left out': 2,
        'image nearly black as it is read (of one of 16 bits the upper 8 are)': 1}
    assert {item.image.stem: item.size for item in got.items}['1'] == (80, 60) and len(got.items) == 28


def test_files_that_are_not_as_their_format_has_it(tmp_path):
    """One line, or a note: never an error from inside, never objects that are lost without a word."""
    def coco(name, change):
        as_coco(tmp_path / name)
        content = json.loads((tmp_path / name / 'boxes.json').read_text())
        change(content)
        (tmp_path / name / 'boxes.json').write_text(json.dumps(content))

    for i, key in enumerate(('images', 'annotations', 'categories')):
        coco(f'broken_{i}', lambda content, key=key: content[key].append(None))
        with pytest.raises(ValueError, match='what is on them: .*; JSON that is not as COCO has it: 1'):
            found.find(tmp_path / f'broken_{i}')
    coco('texts', lambda content: [entry.update(id=str(entry['id'])) for entry in content['images']])
    with pytest.raises(ValueError, match='no usable object for train; box of an image that is not listed: 20'):
        found.find(tmp_path / 'texts')
    coco('sizes', lambda content: content['images'][0].update(width='80', height=None))
    assert found.find(tmp_path / 'sizes').wrong == {}
    for name, text, classes in (('keys', "names: {'0': red, '1': orange}", ['red', 'orange']),
                                ('word', 'names: red', ['0', '1']), ('number', 'names: 2', ['0', '1'])):
        as_yolo(tmp_path / name, 20, '')
        (tmp_path / name / 'data.yaml').write_text(text)
        assert found.find(tmp_path / name).classes == classes
    (tmp_path / 'keys/labels/0.txt').write_text('0.0 0.5 0.5 0.1 0.1')
    assert len(found.find(tmp_path / 'keys').items) == 20
    as_folders(tmp_path / 'kinds')
    (tmp_path / 'kinds/red/0.xml').write_text('<places><place/></places>')
    assert found.find(tmp_path / 'kinds').task == 'classification'
    as_masks(tmp_path / 'lossy')
    for path in (tmp_path / 'lossy/masks').iterdir():
        path.rename(path.with_suffix('.jpg'))
    with pytest.raises(ValueError, match='has nothing for semantic: .*; mask that is no PNG: 20'):
        found.find(tmp_path / 'lossy', 'semantic')


def test_outlines_that_cannot_be_drawn(tmp_path):
    as_coco(tmp_path / 'data', 30)
    content = json.loads((tmp_path / 'data/boxes.json').read_text())
    bare, = content['annotations'][0]['segmentation']
    outlines = [bare, [[4, 5]], [], dict(size=[60, 80], counts=[0, 4800]), dict(size=[6, 8], counts=[0, 48]),
                dict(size=[60, 80], counts=[5]), dict(size=[60, 80], counts=[None]), [['x'] * 6], [None]]
    for i, outline in enumerate(outlines):
        content['annotations'][i]['segmentation'] = outline
    (tmp_path / 'data/boxes.json').write_text(json.dumps(content))
    got = found.find(tmp_path / 'data', 'instance')
    given = {int(item.image.stem): item.boxes[0]['outline'] for item in got.items}
    assert [given[i] for i in range(9)] == [[bare], None, None, outlines[3], *[None] * 5]
    assert {what: len(places) for what, places in got.wrong.items()} == {
        'object without an outline that can be drawn, its box is taken': 7}


@pytest.mark.parametrize('values, names, want', [
    ((0, 255), 'ground\nred', {0: 'ground', 255: 'red'}), ((0, 255), 'red', {0: 'background', 255: 'red'}),
    ((0, 3), 'ground\nred\norange\nblue\n', {0: 'ground', 3: 'blue'}),
    ((1, 2), 'red\norange', {1: 'red', 2: 'orange'}),
    ((0, 128, 255), 'ground\nred\norange', {0: 'ground', 128: 'red', 255: 'orange'}),
    ((0, 1, 255), 'ground\nred\norange', {0: 'ground', 1: 'red'}),
    ((0, 7, 9), 'a\nb', {0: 'background', 7: 'a', 9: 'b'}),
    ((0, 7), 'a\nb\nc\nd', {0: 'value 0', 7: 'value 7'})])
def test_names_of_values(tmp_path, values, names, want):
    as_masks(tmp_path / 'data', 20, values)
    (tmp_path / 'data/classes.txt').write_text(names)
    got = found.find(tmp_path / 'data')
    assert dict(zip(got.values, got.classes)) == want
    said = 'value 255 in the masks: taken as "nothing is said here"'
    assert (said in got.wrong) == (255 in values and 255 not in want)


def test_values_are_those_of_masks_that_are_used(tmp_path):
    """A mask of another size, a coloured one and one of 1 bit add none; each is told of once."""
    as_masks(tmp_path / 'data', 20)
    masks = tmp_path / 'data/masks'
    Image.fromarray(np.arange(200, dtype=np.uint8)[None]).save(masks / '0.png')
    Image.open(masks / '1.png').convert('RGB').save(masks / '1.png')
    Image.open(masks / '2.png').convert('1').save(masks / '2.png')
    got = found.find(tmp_path / 'data')
    assert got.values == [0, 255] and len(got.items) == 18 and {what: len(places) for what, places in got.wrong.items()
                                                                } == {'mask of another size than its image': 1,
                                                                      'mask of mode RGB, not of one value a pixel': 1}
    as_masks(tmp_path / 'soft', 20, values=range(100))
    assert 'more values (21) than masks: are their edges smoothed?' in found.find(tmp_path / 'soft').wrong


def test_a_mask_that_is_drawn_again_is_other_data(tmp_path):
    as_masks(tmp_path / 'data')
    place = task.prepare_data(found.find(tmp_path / 'data'), tmp_path / 'cache')
    mask = np.asarray(Image.open(tmp_path / 'data/masks/3.png')).copy()
    mask[:9] = 255
    Image.fromarray(mask).save(tmp_path / 'data/masks/3.png')
    assert task.prepare_data(found.find(tmp_path / 'data'), tmp_path / 'cache') != place


def test_what_is_said_of_classes(tmp_path, capsys):
    """Names with brackets as they are; classes that nothing trains; images beside the classes' folders; one twice."""
    as_folders(tmp_path / 'data', 20, 'train/')
    as_folders(tmp_path / 'data', 8, 'val/')
    picture(tmp_path / 'data/val/blue [old]/1.png', 90)
    picture(tmp_path / 'data/val/2.png', 91)
    picture(tmp_path / 'data/more/red/3.png', 92)
    tune.main([str(tmp_path / 'data'), '--look'])
    said = capsys.readouterr().out
    assert 'nothing to train with of blue [old]: the model will not find them' in said
    assert '1 x image left out, nothing says what is on it: ' in said
    assert '1 x class with folders in several places, taken as one: red' in said


@pytest.mark.parametrize('write, options, says', [
    (None, ['gone'], 'there is no folder'), (lambda folder: folder.mkdir(), [], 'holds no image'),
    (lambda folder: picture(folder / 'one.png', 0), [], 'holds 1 images and nothing that says what is on them'),
    (as_voc, ['--task', 'semantic'], 'has nothing for semantic: it is Pascal VOC, for detection'),
    (lambda folder: as_coco(folder, outlines=False), ['--task', 'instance'], 'it is COCO, for detection'),
    (lambda file: file.write_bytes(b'PK'), [], 'is a file: give the folder that it lies in, or unpack it'),
    (as_folders, ['--hours', '0'], '--hours takes a number above 0'), (as_folders, ['--trunk', 'vit'], 'go together')])
def test_wrong_input_is_one_line(tmp_path, capsys, write, options, says):
    data = tmp_path / 'data'
    if write:
        write(data)
    with pytest.raises(SystemExit) as end:
        tune.main([str(data), '--look', *[option for option in options if option != 'gone']])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


# ---- from data to a page

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A checkpoint of timm's smallest plain ViT: 6 blocks of 64 channels, patches of 16 px."""
    path = tmp_path_factory.mktemp('weights') / 'test_vit.pth'
    torch.manual_seed(0)
    torch.save(timm.create_model('test_vit', num_classes=0).state_dict(), path)
    return path


@pytest.mark.parametrize('write, task', [(as_yolo, 'detection'), (as_coco, 'instance'), (as_masks, 'semantic'),
                                         (as_folders, 'classification')])
@pytest.mark.filterwarnings('ignore')
def test_a_run(tmp_path, monkeypatch, capsys, weights, write, task):
    """Chosen, trained, scored; a page; a delta that predicts; a second start that trains nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('E3VA_CACHE', str(tmp_path / 'cache'))
    write(Path('data'), *([12, ''] if write is as_yolo else [12]))
    command = ['data', '--task', task, '--trunk', 'test_vit', '--weights', str(weights), '--epochs', '1',
               '--size', '64', '--batch', '4', '--out', 'out']
    tune.main(command)
    out = capsys.readouterr().out
    assert '64 px, 4 images a step, lora: ' in out and 'val: ' in out and 'use it: python tools/predict.py' in out
    page = Path('out/page.html').read_text()
    assert page.count('<img src="data:image/jpeg;base64,') >= 4 and '<svg' in page and 'a step takes' in page
    assert 'src="http' not in page and Path('out/now_0.jpg').is_file()
    config = Path('out/config.py').read_text()
    assert "type='e3va.Tuned'" in config and 'python tools/train.py out/config.py' in config
    steps = len(Path('out/log.txt').read_text())
    tune.main(command)                                                  # all is there: scored again, not trained
    assert 'goes on with out/config.py' in capsys.readouterr().out and 'Epoch(train)' not in Path(
        'out/log.txt').read_text()[steps:]
    monkeypatch.setattr('sys.argv', ['tune.py', 'data', '--epochs', '9'])
    tune.main(command)
    assert 'the command that wrote it was another one, and its choices stand' in capsys.readouterr().out
    image, other = next(Path('data').rglob('0.png')), Path('other/0.png')
    picture(other, 70)
    predict.main(['out/delta.safetensors', str(image), 'other', '--out', 'found'])
    results = json.loads(Path('found/results.json').read_text())
    assert list(results) == [str(image), str(other)]
    for name in ('picture', *['map'] * (task == 'semantic')):           # two files of one name have each their own
        places = {told[name] for told in results.values()}
        assert len(places) == 2 and all(Path('found', place).is_file() for place in places)
    publish.main(['out/delta.safetensors', 'hub'])
    predict.main(['hub/delta.safetensors', str(image), '--out', 'again', '--config', 'hub/config.py'])
    assert json.loads(Path('again/results.json').read_text())[str(image)] == results[str(image)]
    with e3va.serve.Server() as server:                                 # by the delta alone
        server.add('mine', 'out/delta.safetensors')
        sample = server(str(image), 'mine')
    told = results[str(image)]
    if task in ('detection', 'instance'):
        assert told['names'] == [('red', 'orange')[label] for label in told['labels']]
    if task == 'semantic':
        share = (sample.pred_sem_seg.data == 0).float().mean()
        assert float(share) == pytest.approx(next(iter(told['shares'].values())) if share else 0, abs=1e-3)
    else:
        scores = [float(sample.pred_score.max())] if task == 'classification' else sample.pred_instances.scores.tolist()
        assert scores == pytest.approx([told['score']] if task == 'classification' else told['scores'], abs=1e-5)
    delta.main(['show', 'out/delta.safetensors'])
    assert 'e3va.TimmTrunk at backbone.' in capsys.readouterr().out
    with pytest.raises(SystemExit):                                     # other data in the folder of this run
        write(Path('more'), *([24, ''] if write is as_yolo else [24]))
        tune.main(['more', *command[1:]])
    assert 'is of other data' in capsys.readouterr().err


@pytest.mark.parametrize('splits, count, chosen', [
    (('train/', 'val/', 'test/'), 8, ' --tune'), (('train/', 'val/'), 8, ' --tune'), (('train/', 'val/'), 1, '')])
def test_a_task_says_how_to_compare(tmp_path, monkeypatch, weights, splits, count, chosen):
    """Without a test split val is test, and rates are chosen by a part of train; one image of train has no part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('E3VA_CACHE', str(tmp_path / 'cache'))
    for split in splits:
        as_folders(Path('data'), count if split == 'train/' else 8, split)
    tune.main(['data', '--plan', '--trunk', 'test_vit', '--weights', str(weights), '--epochs', '1', '--size', '64',
               '--batch', '4', '--method', 'fixed', '--out', 'out'])
    assert Path('out/task_data.py').read_text().splitlines()[1].endswith(f'--methods fixed,lora,e3va{chosen}')


@pytest.mark.parametrize('write', [as_coco, lambda folder: as_coco(folder, outlines=False), as_masks, as_folders])
def test_rates_are_chosen_by_a_part_of_train(tmp_path, write):
    """Where val is the test split: the runs that choose learn from four fifths of train and are scored on the fifth."""
    write(tmp_path / 'data')
    got = found.find(tmp_path / 'data')
    for item in got.items:
        item.split = 'val' if item.split == 'test' else item.split
    place, trunk = task.prepare_data(got, tmp_path / 'cache'), dict(task.describe('test_vit'), weights='none.pth')

    def images(split):
        from mmengine.registry import DATASETS, init_default_scope
        init_default_scope(cfg.get('default_scope'))
        data = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        return {str(Path(data.get_data_info(i)['img_path']).resolve()) for i in range(len(data))}

    cfg = task.config(got, place, 112, 4, 2, trunk)
    train, val = images('train'), images('val')
    assert val == images('test') and not train & val
    cfg.merge_from_dict(cfg.sweep.choose)
    learned, scored = images('train'), images('val')
    assert learned | scored == train and not learned & scored and len(scored) == -(-len(train) // 5)
    assert images('test') == val and cfg.val_evaluator.get('ann_file') in (None, str(place / 'val_choice.json'))


def test_predict_leaves_out_what_cannot_be_read(tmp_path, capsys):
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / 'gone.safetensors'), 'x.jpg'])
    assert 'there is no file' in capsys.readouterr().err


def test_a_task_has_rates_for_full(tmp_path, monkeypatch):
    """Those of the base config: LoRA's are no choice for a whole trunk."""
    as_masks(tmp_path / 'data')
    got = found.find(tmp_path / 'data')
    trunk = dict(task.describe('test_vit'), weights=tmp_path / 'none.pth')
    cfg = task.config(got, task.prepare_data(got, tmp_path / 'cache'), 112, 4, 2, trunk)
    sweep = cfg.sweep
    assert not {'epochs', 'batch', 'data_root', 'load', 'train_pipeline', 'rate'} & set(cfg)     # no effect if edited
    assert set(sweep) == {'score', 'times', 'rates', 'weight_decays', 'backbone_rate', 'choose'}
    for base in task.BASES.values():
        given = task.load_config(task.CONFIGS / base).sweep
        assert given.backbone_rate.full < 1 if 'backbone_rate' in given else max(given.rates_of.full) < max(given.rates)


def test_the_ladder(tmp_path, monkeypatch):
    """Less memory: LoRA that keeps 8 bits, then its blocks run again, then the highway, then what to give."""
    as_yolo(tmp_path / 'data', 40, '')
    got = found.find(tmp_path / 'data')
    place = task.prepare_data(got, tmp_path / 'cache')
    trunk = dict(task.describe('test_vit'), weights=tmp_path / 'none.pth')
    given = tune.parse(['data', '--batch', '4'])
    peaks = {}
    for method in ('lora', 'lora:recompute=block', 'e3va:mode=stream'):
        given.method = method
        peaks[method] = choice.fit(got, place, trunk, 128, 2 ** 40, given)[2]
    given.method = 'auto'
    assert peaks['e3va:mode=stream'] < peaks['lora']
    assert choice.fit(got, place, trunk, 128, peaks['lora'], given)[0] == 'lora'
    assert choice.fit(got, place, trunk, 128, peaks['lora'] - 1, given)[0] == 'lora:gelu=int8,inputs=int8'
    assert choice.fit(got, place, trunk, 128, min(peaks.values()) - 1, given) is None


def as_published(folder, count=8):
    """COCO's own layout: instances and keypoints of the same images."""
    as_coco(folder, count)
    content = json.loads((folder / 'boxes.json').read_text())
    (folder / 'boxes.json').rename(folder / 'instances_train2017.json')
    (folder / 'person_keypoints_train2017.json').write_text(json.dumps(dict(
        content, annotations=content['annotations'][::2])))


def test_images_in_two_json_files(tmp_path):
    """An image is taken once: instances before keypoints, splits before all of them; else it is said."""
    as_published(tmp_path / 'published')
    got = found.find(tmp_path / 'published')
    assert len(got.items) == len({item.image for item in got.items}) == 8
    assert all(len(item.boxes) == 1 for item in got.items)
    assert any('JSON left out, as another one is of the same images' in what for what in got.wrong)
    place = tmp_path / 'split'
    as_coco(place, 12)
    content = json.loads((place / 'boxes.json').read_text())
    for name, part in (('train', range(8)), ('val', range(8, 12))):
        (place / f'{name}.json').write_text(json.dumps(dict(
            content, **{key: [content[key][i] for i in part] for key in ('images', 'annotations')})))
    got = found.find(place)
    assert [len(got.split(name)) for name in ('train', 'val', 'test')] == [8, 4, 0]
    (place / 'more_train.json').write_text((place / 'train.json').read_text())
    with pytest.raises(ValueError, match=r'both say what is on 8 images, e.g. .*: keep one'):
        found.find(place)


def test_a_perfect_model_has_an_ap_of_one(tmp_path):
    """By pycocotools, on the file that the libraries read: an object with number 0 would never be found."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    as_coco(tmp_path / 'data', 12)
    got = found.find(tmp_path / 'data')
    truth = COCO(str(task.prepare_data(got, tmp_path / 'cache') / 'train.json'))
    scored = COCOeval(truth, truth.loadRes([dict(entry, score=0.9) for entry in truth.dataset['annotations']]), 'bbox')
    scored.evaluate(), scored.accumulate(), scored.summarize()
    assert scored.stats[0] == pytest.approx(1)


def test_what_a_model_found_is_no_data(tmp_path):
    """The folder of an earlier run within the data, by the first line of its config."""
    as_folders(tmp_path, 12)
    before = found.find(tmp_path)
    picture(tmp_path / 'out/now_0.jpg', 3), picture(tmp_path / 'out/run/a/0.jpg', 4)
    assert found.find(tmp_path).classes != before.classes
    (tmp_path / 'out/config.py').write_text(f'# detection of 2 classes, {found.WRITTEN}. Edit it\n')
    got = found.find(tmp_path)
    assert got.classes == before.classes and len(got.items) == len(before.items)


def test_masks_beside_the_images_of_a_class(tmp_path):
    as_folders(tmp_path, 8)
    before = found.find(tmp_path)
    for item in before.items[:5]:
        picture(item.image.with_name(f'{item.image.stem}_mask.png'), 9)
    got = found.find(tmp_path)
    assert {item.image for item in got.items} == {item.image for item in before.items}
    assert sum(len(places) for what, places in got.wrong.items() if what.startswith('mask beside its image')) == 5


def test_class_folders_with_a_mask_s_letters(tmp_path):
    """`length` has `gt` in it."""
    for kind in ('length', 'width'):
        for i in range(8):
            picture(tmp_path / kind / f'{i}.png', i + 10 * (kind == 'width'))
    assert found.find(tmp_path).task == 'classification'


def test_files_that_are_not_read(tmp_path):
    as_folders(tmp_path, 8)
    one = next(tmp_path.rglob('*.png')).parent
    (one / 'a.gif').write_bytes(b'GIF89a')
    (one / 'b.png').symlink_to(tmp_path / 'gone.png')
    wrong = found.find(tmp_path).wrong
    assert [len(wrong[what]) for what in ('image of a kind that is not read, convert it to PNG',
                                          'link to an image that is not there')] == [1, 1]


def test_two_years_of_voc(tmp_path):
    """Their lists of one name are one; trainval is train but for val."""
    for year, first in (('2007', 0), ('2012', 20)):
        as_voc(tmp_path / f'VOC{year}', 12)
        for path in [*(tmp_path / f'VOC{year}').rglob('*.xml'), *(tmp_path / f'VOC{year}').rglob('*.png')]:
            path.rename(path.with_name(f'{year}_{path.name}'))
        main = tmp_path / f'VOC{year}/ImageSets/Main'
        main.mkdir(parents=True)
        (main / 'trainval.txt').write_text('\n'.join(f'{year}_{i}' for i in range(10)))
        (main / 'val.txt').write_text('\n'.join(f'{year}_{i}' for i in range(6, 10)))
        (main / 'test.txt').write_text('\n'.join(f'{year}_{i}' for i in range(10, 12)))
    for path in tmp_path.rglob('*.xml'):
        path.write_text(path.read_text().replace('<filename>', f'<filename>{path.name[:5]}'))
    got = found.find(tmp_path)
    assert [len(got.split(name)) for name in ('train', 'val', 'test')] == [12, 8, 4]


def test_poses_and_pixels_of_yolo(tmp_path):
    """A line of keypoints is no outline, and pixels are no shares."""
    as_yolo(tmp_path / 'poses', 12)
    for path in (tmp_path / 'poses').rglob('labels/*.txt'):
        path.write_text(''.join(f'{line} 0.5 0.5 0.1 0.1\n' for line in path.read_text().splitlines() if line))
    boxes = found.find(tmp_path / 'poses').items[0].boxes
    (tmp_path / 'poses/data.yaml').write_text('names: [red, orange]\nkpt_shape: [2, 2]\n')
    got = found.find(tmp_path / 'poses')
    assert got.items[0].boxes != boxes and not any(box.get('outline') for item in got.items for box in item.boxes)
    assert 'poses, of which the boxes are taken' in got.wrong
    as_yolo(tmp_path / 'pixels', 12)
    for path in (tmp_path / 'pixels').rglob('labels/*.txt'):
        path.write_text('0 10 10 30 30\n')
    with pytest.raises(ValueError, match="line that is not YOLO's"):
        found.find(tmp_path / 'pixels')


@pytest.mark.parametrize('size', [(7, 5), (48, 64), (1, 300)])
def test_packed_run_lengths(size):
    """Against pycocotools' own encoding; what is none of an image of this size is no outline."""
    from pycocotools import mask as rle
    for seed in range(20):
        drawn = np.random.default_rng(seed).random(size) < (seed + 1) / 22
        packed = rle.encode(np.asfortranarray(drawn.astype(np.uint8)))
        text = packed['counts'].decode()
        outline = dict(counts=text, size=list(size))
        assert found.runs(text) == size[0] * size[1] and found.drawable(outline, size[::-1]) == outline
        assert found.drawable(dict(outline, counts=text[:-1]), size[::-1]) is None
    for counts in ('garbage!!', '0', '', [-5, size[0] * size[1] + 5], ['a'], None, [1.5]):
        assert found.drawable(dict(counts=counts, size=list(size)), size[::-1]) is None


@pytest.mark.parametrize('odd', [dict(image_id=[1]), dict(id=dict(a=1)), dict(category_id=[7])])
def test_json_with_lists_for_names(tmp_path, odd):
    as_coco(tmp_path / 'data')
    content = json.loads((tmp_path / 'data/boxes.json').read_text())
    content['annotations' if 'id' not in odd else 'images'][0].update(odd)
    (tmp_path / 'data/boxes.json').write_text(json.dumps(content))
    try:
        found.find(tmp_path / 'data')
    except ValueError as error:
        assert 'JSON that is not as COCO has it' in str(error)


def test_predict_keeps_what_is_there(tmp_path, monkeypatch):
    """Not into the folder of the images; pictures of former predictions are no images; each has a name of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ('a/1.png', 'b/1.png', 'c/1_2.png', 'out/1.png'):
        picture(Path(name), 3)
    with pytest.raises(ValueError, match='lies there, and a picture of its name would take its place'):
        predict.images_of(['out/1.png'], Path('out'))
    with pytest.raises(ValueError, match='lies there'):
        predict.images_of(['a'], Path('b/../a'))
    files, names = predict.images_of(['.'], Path('out')), set()
    assert [str(path) for path in files] == ['a/1.png', 'b/1.png', 'c/1_2.png']
    assert [predict.fresh(path.stem, names) for path in files] == ['1', '1_2', '1_2_2']


EVIL = "x\nopen('made', 'w')#{{$NO:', open('made', 'w'), '}}"


def test_names_run_nothing(tmp_path, monkeypatch, weights):
    """Those of the folder and of a class, in what is written and read again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('E3VA_CACHE', str(tmp_path / 'cache'))
    place = tmp_path / EVIL.replace('/', '')
    for split, count in (('train/', 8), ('val/', 4)):
        as_coco(place / split, count)
        for path in (place / split).rglob('*.json'):
            path.write_text(path.read_text().replace('"red"', json.dumps(EVIL)))
    tune.main([str(place), '--plan', '--trunk', 'test_vit', '--weights', str(weights), '--epochs', '1', '--size', '64',
               '--batch', '4', '--method', 'fixed', '--out', 'out'])
    from e3va.command.config import load_config
    for path in Path('out').glob('*.py'):
        assert EVIL in load_config(path).train_dataloader.dataset.metainfo.classes
    tune.main([str(place), '--plan', '--out', 'out'])                   # as it is
    assert not Path('made').exists()


def test_predict_runs_no_config_beside_a_delta(tmp_path, capsys):
    from e3va.delta import file as delta_file
    (tmp_path / 'config.py').write_text(f"open({str(tmp_path / 'made')!r}, 'w')\n")
    delta_file.write(tmp_path / 'delta.safetensors', dict(a=torch.zeros(1)), dict(config=None))
    picture(tmp_path / 'images/0.png', 0)
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / 'delta.safetensors'), str(tmp_path / 'images'), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'made').exists() and 'error: ' in capsys.readouterr().err

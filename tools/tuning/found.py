"""What a folder of somebody's data holds: images and what is true of them, whatever format it is in.

COCO JSON, Pascal VOC XML, YOLO txt, masks beside images, and a folder per class are read; splits are those of the
files and folders (`train2017`, `valid/`, `ImageSets/Main/val.txt`), and where there are none a hash of each image's
bytes decides, so that the same image never is in two of them and a second start finds the same ones.
"""
import dataclasses
import hashlib
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
SPLITS = dict(train=('train', 'training'), val=('val', 'valid', 'validation', 'dev'), test=('test', 'testing'))
TASKS = ('detection', 'instance', 'semantic', 'classification')
SHARES = dict(train=0.7, val=0.85, test=1.)             # up to which of 0 to 1 a hash belongs to a split
IGNORED = 255                                           # a mask's value where nothing is said


@dataclasses.dataclass
class Item:
    """An image and what is true of it.

    Attributes:
        image: its file.
        split: 'train', 'val', 'test', or None where nothing says.
        boxes: of a detection set: dicts of `label`, `box` (x, y, width, height in px), `crowd`, and `outline` (COCO's
            segmentation) where there is one.
        mask: of a semantic set: the file of the mask.
        label: of a classification set: the class's index.
        size: (width, height) in px; None until it was looked at, and where the image cannot be read.
    """

    image: Path
    split: str = None
    boxes: list = None
    mask: Path = None
    label: int = None
    size: tuple = None


@dataclasses.dataclass
class Found:
    """A data set: its format and task, the classes, the items that can be used, and what was wrong with others."""

    folder: Path
    format: str
    task: str
    classes: list
    items: list
    wrong: dict                                          # {what: [where, ...]}
    values: list = None                                  # of masks: the value of each class
    made: bool = False                                   # the splits were made here

    def split(self, name):
        return [item for item in self.items if item.split == name]


def find(folder, task=None):
    """The data set in `folder`.

    Args:
        task (str): one of `TASKS`; by default what the format is for.

    Raises:
        ValueError: no folder, no known format, a task that the format has no truth for, a split without images.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f'there is no folder {folder}')
    paths = sorted(path for path in folder.rglob('*') if path.is_file() and not any(
        part.startswith('.') for part in path.relative_to(folder).parts))
    images = [path for path in paths if path.suffix.lower() in IMAGES]
    if not images:
        raise ValueError(f'{folder} holds no image ({", ".join(IMAGES)})')
    others = {}                                                         # formats that are there and for other tasks
    for read in (coco, voc, yolo, masks, folders):
        wrong = {}
        read_as = read(folder, paths, images, wrong)
        if read_as and task in (None, *read_as[1]):
            kind, can, classes, items, *values = read_as
            break
        if read_as:
            others[read_as[0]] = ' and '.join(read_as[1])
    else:
        if others:
            raise ValueError(f'{folder} has nothing for {task}: it is '
                             + ', '.join(f'{kind}, for {tasks}' for kind, tasks in others.items()))
        raise ValueError(f'{folder} holds {len(images)} images and nothing that says what is on them: no COCO .json, '
                         'no VOC .xml, no YOLO .txt, no folder of masks (masks/, labels/, annotations/), no folder per '
                         'class')
    found = Found(folder, kind, task or can[0], classes, items, wrong, *values)
    look(found)
    make_splits(found)
    for name in ('train', 'val'):
        if not found.split(name):
            raise ValueError(f'{folder}: no usable image for {name}; {complaints(found) or "give more images"}'
                             )
    return found


def note(wrong, what, where):
    wrong.setdefault(what, []).append(str(where))


def complaints(found):
    return '; '.join(f'{what}: {len(places)} (e.g. {places[0]})' for what, places in found.wrong.items())


def split_of(path, folder):
    """The split that a path's folders or its name say, the innermost first."""
    for part in reversed(Path(path).relative_to(folder).parts):
        for word in re.split(r'[^a-z]+', Path(part).stem.lower()):
            for split, words in SPLITS.items():
                if word in words:
                    return split
    return None


class Index:
    """Images by what annotations call them: a path's end, else the stem, where that is one image's alone."""

    def __init__(self, images):
        self.names, self.stems = {}, {}
        for path in images:
            self.names.setdefault(path.name, []).append(path)
            self.stems.setdefault(path.stem, []).append(path)

    def find(self, name, near=None):
        """The image of a name like `train2017/1.jpg`; of several the one whose path has most in common with `near`."""
        parts = Path(str(name).replace('\\', '/')).parts
        found = self.names.get(parts[-1], []) if parts else []
        ends = [path for path in found if path.parts[-len(parts):] == parts]
        found = ends or found or (self.stems.get(Path(parts[-1]).stem, []) if parts else [])
        if len(found) > 1 and near:
            found = [max(found, key=lambda path: len(set(path.parts) & set(Path(near).parts)))]
        return found[0] if len(found) == 1 else None


# ---- the formats: each gives (name, tasks, classes, items) and of masks their values, or None

def coco(folder, paths, images, wrong):
    """JSON files with `images`, `annotations` and `categories`; one a split, or one for all."""
    contents = {}
    for path in paths:
        if path.suffix == '.json':
            try:
                content = json.loads(path.read_text())
            except ValueError:
                note(wrong, 'unreadable JSON', path)
                continue
            if isinstance(content, dict) and {'images', 'annotations', 'categories'} <= set(content):
                if any('bbox' in item for item in content['annotations'] if isinstance(item, dict)):
                    contents[path] = content
    if not contents:
        return None
    index, items, classes = Index(images), [], []
    for content in contents.values():
        classes += [str(item['name']) for item in content['categories'] if str(item['name']) not in classes]
    outlines = False
    for path, content in contents.items():
        names = {item['id']: str(item['name']) for item in content['categories']}
        of = {}
        for item in content['annotations']:
            of.setdefault(item.get('image_id'), []).append(item)
        for entry in content['images']:
            image = index.find(entry.get('file_name', ''), path)
            if image is None:
                note(wrong, 'image not there', entry.get('file_name'))
                continue
            item = Item(image, split_of(path, folder), boxes=[])
            for given in of.get(entry.get('id'), []):
                if given.get('category_id') not in names or len(given.get('bbox') or ()) != 4:
                    note(wrong, 'box without a class or corners', image)
                    continue
                outlines |= bool(given.get('segmentation'))
                item.boxes.append(dict(
                    label=classes.index(names[given['category_id']]), box=[float(value) for value in given['bbox']],
                    crowd=bool(given.get('iscrowd')), outline=given.get('segmentation')))
            items.append(item)
    return 'COCO', ('detection', 'instance') if outlines else ('detection', ), classes, items


def voc(folder, paths, images, wrong):
    """An XML file an image; `ImageSets/Main/*.txt` say the splits, else folders."""
    files = [path for path in paths if path.suffix == '.xml']
    lists = {path.stem: set(line.split()[0] for line in path.read_text().splitlines() if line.strip())
             for path in paths if path.suffix == '.txt' and path.parent.name == 'Main' and path.stem in SPLITS}
    index, items, names = Index(images), [], []
    for path in files:
        try:
            root = ElementTree.parse(path).getroot()
            objects = [(item.findtext('name').strip(), item.findtext('difficult', '0').strip() == '1',
                        [float(item.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')])
                       for item in root.iter('object')]
        except (ElementTree.ParseError, TypeError, ValueError, AttributeError):
            note(wrong, 'unreadable XML', path)
            continue
        image = index.find(path.stem, path) or index.find(root.findtext('filename', '').strip(), path)
        if image is None:
            note(wrong, 'image not there', path)
            continue
        split = next((split for split, stems in lists.items() if path.stem in stems), None)
        if lists and split is None:
            continue
        item = Item(image, split or split_of(path, folder), boxes=[])
        for name, difficult, (left, top, right, bottom) in objects:
            names.append(name)
            item.boxes.append(dict(label=name, box=[left - 1, top - 1, right - left, bottom - top], crowd=difficult))
        items.append(item)
    if not items:
        return None
    classes = sorted(set(names))
    for item in items:
        for box in item.boxes:
            box['label'] = classes.index(box['label'])
    return 'Pascal VOC', ('detection', ), classes, items


def yolo(folder, paths, images, wrong):
    """A txt file an image: `class x y width height` as shares of the image, or a class and an outline."""
    index, items, most, outlines = Index(images), [], -1, False
    stems = {path.stem for path in images}
    files = [path for path in paths if path.suffix == '.txt' and path.stem in stems]
    for path in files:
        image, item = index.find(path.stem, path), Item(None, split_of(path, folder), boxes=[])
        if image is None:
            note(wrong, 'several images of one name', path)
            continue
        item.image = image
        try:
            for line in path.read_text().splitlines():
                label, *numbers = line.split()
                numbers = [float(number) for number in numbers]
                if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
                    raise ValueError(line)
                most = max(most, int(label))
                outlines |= len(numbers) > 4
                item.boxes.append(dict(label=int(label), shares=numbers, crowd=False))
        except ValueError:
            note(wrong, 'unreadable line', path)
            continue
        items.append(item)
    if not any(item.boxes for item in items):
        return None
    labelled = {item.image for item in items}
    items += [Item(path, split_of(path, folder), boxes=[]) for path in images if path not in labelled]
    names = yolo_names(paths)
    classes = [str(names.get(i, i)) for i in range(max(most + 1, len(names)))]
    return 'YOLO', ('detection', 'instance') if outlines else ('detection', ), classes, items


def yolo_names(paths):
    """{number: name} of data.yaml, or of classes.txt or obj.names, a line a class."""
    for path in paths:
        if path.suffix in ('.yaml', '.yml'):
            content = yaml.safe_load(path.read_text())
            names = content.get('names') if isinstance(content, dict) else None
            if names:
                return dict(names) if isinstance(names, dict) else dict(enumerate(names))
        elif path.name in ('classes.txt', 'obj.names'):
            return dict(enumerate(path.read_text().split('\n')[:-1] or [path.read_text()]))
    return {}


MASKS = re.compile('mask|label|annotation|semantic|seg|gt')


def masks(folder, paths, images, wrong):
    """Images, and under a folder called masks, labels or the like a PNG for each, whose values are the classes."""
    drawn = [path for path in images if path.suffix.lower() == '.png'
             and MASKS.search('/'.join(path.relative_to(folder).parts[:-1]).lower())]
    index = Index([path for path in images if path not in set(drawn)])
    items = []
    for path in drawn:
        image = index.find(path.stem, path) or index.find(re.sub(r'[_-](mask|label|seg|gt)s?$', '', path.stem), path)
        if image is None:
            note(wrong, 'mask without an image', path)
        else:
            items.append(Item(image, split_of(image, folder), mask=path))
    if not items:
        wrong.pop('mask without an image', None)
        return None
    values = sorted({int(value) for item in items if (value_map := mask_of(item.mask, wrong)) is not None
                     for value in np.unique(value_map)} - {IGNORED})
    names = next((path.read_text().split('\n') for path in paths if path.name in ('classes.txt', 'labels.txt')), [])
    if values == [0] and not names:                     # 0 and 255 alone: a mask as pictures have it
        values = [0, IGNORED]
    classes = [names[i] if i < len(names) and names[i] else f'value {value}' for i, value in enumerate(values)]
    return 'images with masks', ('semantic', ), classes, items, values


def mask_of(path, wrong):
    """A mask's values, (H, W); None and a note where it cannot be read or is coloured."""
    try:
        with Image.open(path) as image:
            if image.mode not in ('L', 'P', '1', 'I', 'I;16'):
                note(wrong, f'mask of mode {image.mode}, not of one value a pixel', path)
                return None
            return np.asarray(image)
    except OSError:
        note(wrong, 'unreadable mask', path)
        return None


def folders(folder, paths, images, wrong):
    """A folder per class, below folders of splits or not."""
    names = sorted({path.parent.name for path in images if path.parent != folder
                    and not any(path.parent.name.lower() in words for words in SPLITS.values())})
    if len(names) < 2:
        return None
    items = [Item(path, split_of(path.parent.parent, folder) if path.parent.parent != folder else None,
                  label=names.index(path.parent.name)) for path in images if path.parent.name in names]
    return 'a folder per class', ('classification', ), names, items


# ---- a look at every image

def look(found):
    """Read every image: those that cannot be are left out, boxes are clipped to the others; all of it is noted."""
    with ThreadPoolExecutor() as threads:
        sizes = list(threads.map(size_of, [item.image for item in found.items]))
    kept = []
    for item, size in zip(found.items, sizes):
        if size is None:
            note(found.wrong, 'unreadable image', item.image)
            continue
        item.size = size
        if item.boxes is not None:
            item.boxes = [box for box in map(lambda box: inside(box, item, found.wrong), item.boxes) if box]
        if item.mask is not None:
            drawn = mask_of(item.mask, found.wrong)
            if drawn is None:
                continue
            if drawn.shape[:2] != size[::-1]:
                note(found.wrong, 'mask of another size than its image', item.mask)
                continue
        kept.append(item)
    found.items = kept


def size_of(path):
    """(width, height) of an image that can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def inside(box, item, wrong):
    """A box within its image, in px; None where nothing of it is there."""
    width, height = item.size
    shares = box.pop('shares', None)
    if shares and len(shares) == 4:
        x, y, w, h = shares
        box['box'] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    elif shares:
        outline = [value * (width, height)[i % 2] for i, value in enumerate(shares)]
        box['outline'] = [outline]
        left, top = min(outline[::2]), min(outline[1::2])
        box['box'] = [left, top, max(outline[::2]) - left, max(outline[1::2]) - top]
    x, y, w, h = box['box']
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if not (right - left >= 1 and bottom - top >= 1):                   # NaN too
        note(wrong, 'box without area inside its image', item.image)
        return None
    if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        note(wrong, 'box that left its image, clipped', item.image)
    return dict(box, box=[left, top, right - left, bottom - top])


# ---- splits

def make_splits(found):
    """Give a split to the items that have none: all of them where nothing says any, else val (and no test) of train."""
    given = Counter(item.split for item in found.items)
    if set(given) == {None}:
        for item in found.items:
            share = share_of(item.image)
            item.split = next(name for name, most in SHARES.items() if share < most)
        found.made = True
    else:
        for item in found.items:
            item.split = item.split or 'train'
        if not given.get('val') and found.split('train'):
            for item in found.split('train'):
                item.split = 'val' if share_of(item.image) >= SHARES['val'] else 'train'
            found.made = True
    if found.made and not found.split('val') and len(found.split('train')) > 1:     # a handful of images
        max(found.split('train'), key=lambda item: share_of(item.image)).split = 'val'


def share_of(path):
    """0 to 1 from an image's bytes."""
    return int(hashlib.sha256(path.read_bytes()).hexdigest()[:8], 16) / 2 ** 32

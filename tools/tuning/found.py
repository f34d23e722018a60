"""What a folder of somebody's data holds: images and what is true of them, whatever format it is in.

COCO JSON, Pascal VOC XML, YOLO txt, masks beside images, and a folder per class are read; splits are those of the
files and folders (`train2017`, `valid/`, `ImageSets/Main/val.txt`), and where there are none a hash of each image's
bytes decides, so that the same image never is in two of them and a second start finds the same ones.
"""
import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import cv2
import mmcv
import numpy as np
import yaml
from PIL import Image

IMAGES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.tif', '.tiff', '.webp')
OTHERS = ('.gif', '.heic', '.heif', '.avif', '.jp2', '.jxl', '.dng', '.cr2', '.nef', '.arw', '.dcm', '.svg')
SPLITS = dict(train=('train', 'training'), val=('val', 'valid', 'validation', 'dev'), test=('test', 'testing'))
TASKS = ('detection', 'instance', 'semantic', 'classification')
SHARES = dict(train=0.7, val=0.85, test=1.)             # up to which of 0 to 1 a hash belongs to a split
CLASSES = 10000                                         # YOLO numbers its classes: one of more is none
PIXELS = 0.5                                            # YOLO's shares beyond the image by more are none
IGNORED = 255                                           # a mask's value where nothing is said
WRITTEN = 'written by tools/tune.py'                    # in the first line of a config of its own
DARK = 32                                               # an image of no brighter pixel shows nothing to a model


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
        told: (width, height) that the annotation says, or None.
        size: (width, height) in px, turned as EXIF says; None until it was looked at, and where it cannot be read.
    """

    image: Path
    split: str = None
    boxes: list = None
    mask: Path = None
    label: int = None
    told: tuple = None
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
    if folder.is_file():
        raise ValueError(f'{folder} is a file: give the folder that it lies in, or unpack it')
    if not folder.is_dir():
        raise ValueError(f'there is no folder {folder}')
    every = files_below(folder)
    paths = [path for path in every if path.is_file()]
    images = [path for path in paths if path.suffix.lower() in IMAGES]
    unread = {}                                                         # what keeps files from being read
    for path in every:
        if path.suffix.lower() in OTHERS and path.is_file():
            note(unread, 'image of a kind that is not read, convert it to PNG', path)
        elif path.suffix.lower() in IMAGES and not path.is_file():
            note(unread, 'link to an image that is not there', path)
    if not images:
        raise ValueError(f'{folder} holds no image ({", ".join(IMAGES)}){"; " * bool(unread)}{complaints(unread)}')
    others = {}                                                         # formats that are there and for other tasks
    for read in (coco, voc, yolo, masks, folders):
        wrong = dict(unread)
        read_as = read(folder, paths, images, wrong)
        if read_as and task in (None, *read_as[1]):
            kind, can, classes, items = read_as
            break
        if read_as:
            others[read_as[0]] = ' and '.join(read_as[1])
        else:
            unread = wrong
    else:
        if others:
            raise ValueError(f'{folder} has nothing for {task}: it is '
                             + ', '.join(f'{kind}, for {tasks}' for kind, tasks in others.items())
                             + f'{"; " * bool(unread)}{complaints(unread)}')
        raise ValueError(f'{folder} holds {len(images)} images and nothing that says what is on them: no COCO .json, '
                         'no VOC .xml, no YOLO .txt, no folder of masks (masks/, labels/, annotations/), no folder per '
                         f'class{"; " * bool(unread)}{complaints(unread)}')
    found = Found(folder, kind, task or can[0], classes, items, wrong)
    named = {str(path) for item in items for path in (item.image, item.mask)}.union(*wrong.values())
    for path in images:
        if str(path) not in named:
            note(wrong, 'image left out, nothing says what is on it', path)
    look(found)
    make_splits(found)
    for name in ('train', 'val'):
        if not found.split(name):
            raise ValueError(f'{folder}: no usable image for {name}; {complaints(found.wrong) or "give more images"}')
    if found.task in ('detection', 'instance') and not any(item.boxes for item in found.split('train')):
        raise ValueError(f'{folder}: no usable object for train; {complaints(found.wrong) or "label more images"}')
    return found


def files_below(folder):
    """All files below a folder, links to nothing too, but hidden ones and what tune.py has written itself.

    Links to folders are followed, but for those that lead in a circle.
    """
    out = []
    for place, folders, names in os.walk(folder, followlinks=True):
        above = {os.path.realpath(each) for each in (place, *Path(place).parents)}
        folders[:] = [name for name in folders
                      if not name.startswith('.') and os.path.realpath(os.path.join(place, name)) not in above]
        if 'config.py' in names and written_here(Path(place, 'config.py')):
            folders.clear()
            continue
        out += [Path(place, name) for name in names if not name.startswith('.')]
    return sorted(out)


def written_here(path):
    """Whether tune.py wrote a file: pictures beside it are what a model found."""
    try:
        with open(path, 'rb') as file:
            return WRITTEN.encode() in file.readline(4096)
    except OSError:
        return False


def note(wrong, what, where):
    wrong.setdefault(what, []).append(str(where))


def complaints(wrong):
    return '; '.join(f'{what}: {len(places)} (e.g. {places[0]})' for what, places in wrong.items())


def lines_of(path):
    """The lines of a text file, of UTF-8 with or without a mark or else of Latin-1, empty ones at its end left out."""
    content = path.read_bytes()
    try:
        text = content.decode('utf-8-sig')
    except UnicodeDecodeError:
        text = content.decode('latin-1')
    return [line.strip() for line in text.rstrip().splitlines()]


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

    def __init__(self, folder, images):
        self.folder, self.names, self.stems = folder, {}, {}
        for path in images:
            self.names.setdefault(composed(path.name), []).append(path)
            self.stems.setdefault(composed(path.stem), []).append(path)

    def find(self, names, near, wrong, lacking='image not there'):
        """The image of the first of `names` that is there, like `train2017/1.jpg`.

        Of several it is the one of the split of the file `near`, then the one whose path has most in common with that;
        None, and a note, where several are as near, or none is there (`lacking`).
        """
        found = next(filter(None, map(self.called, names)), [])
        nearness = [(split_of(path.parent, self.folder) == split_of(near, self.folder),
                     len(set(path.parts) & set(near.parts))) for path in found]
        nearest = [path for path, value in zip(found, nearness) if value == max(nearness)]
        if len(nearest) == 1:
            return nearest[0]
        note(wrong, 'several images of one name' if found else lacking, f'{names[0]} ({near})')
        return None

    def called(self, name):
        parts = Path(composed(str(name).replace('\\', '/'))).parts
        if not parts:
            return []
        found = self.names.get(parts[-1], [])
        ends = [path for path in found if Path(composed(path)).parts[-len(parts):] == parts]
        known = Path(parts[-1]).suffix.lower() in IMAGES                # `scan.01` is a whole stem
        return ends or found or self.stems.get(Path(parts[-1]).stem if known else parts[-1], [])


def composed(name):
    """A letter and its accent as one character: macOS writes them as two into file names."""
    return unicodedata.normalize('NFC', str(name))


# ---- the formats: each gives (name, tasks, classes, items), or None

def coco(folder, paths, images, wrong):
    """JSON files with `images`, `annotations` and `categories`; one a split, or one for all."""
    contents = {}
    for path in paths:
        if path.suffix.lower() == '.json':
            try:
                content = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                note(wrong, 'unreadable JSON', path)
                continue
            if isinstance(content, dict) and {'images', 'annotations', 'categories'} <= set(content):
                if not is_coco(content):
                    note(wrong, 'JSON that is not as COCO has it', path)
                elif any('bbox' in item for item in content['annotations']):
                    contents[path] = content
    if not contents:
        return None
    index, items, classes = Index(folder, images), {}, []
    for content in contents.values():
        classes += [str(item['name']) for item in content['categories'] if str(item['name']) not in classes]
    outlines = False
    for path, content in contents.items():
        names = {item['id']: str(item['name']) for item in content['categories']}
        of = {entry.get('id'): [] for entry in content['images']}
        for item in content['annotations']:
            if item.get('image_id') in of:
                of[item['image_id']].append(item)
            else:
                note(wrong, 'box of an image that is not listed', f'{item.get("image_id")} ({path})')
        for entry in content['images']:
            image = index.find([entry.get('file_name', '')], path, wrong)
            if image is None:
                continue
            here = items.setdefault(path, {})
            item = here.setdefault(image, Item(image, split_of(path, folder), boxes=[],
                                               told=(entry.get('width'), entry.get('height'))))
            for given in of[entry.get('id')]:
                try:
                    left, top, width, height = map(float, given.get('bbox') or ())
                    label = classes.index(names[given.get('category_id')])
                except (KeyError, TypeError, ValueError):
                    note(wrong, 'box without a class or corners', image)
                    continue
                outlines |= bool(given.get('segmentation'))
                item.boxes.append(dict(label=label, box=[left, top, width, height], crowd=bool(given.get('iscrowd')),
                                       outline=given.get('segmentation')))
    kept = once_each(items, folder, wrong)
    return ('COCO', ('detection', 'instance') if outlines else ('detection', ), classes,
            [item for path in kept for item in items[path].values()])


def once_each(items, folder, wrong):
    """The JSON files to take, so that each image is in one: of COCO's own `instances`, and splits before all of them.

    Args:
        items (dict): {file: {image: item}}.

    Raises:
        ValueError: two other files that say what is on the same images.
    """
    kept = []
    for path in sorted(items, key=lambda path: (not path.stem.startswith('instances'),
                                                split_of(path, folder) is None, path)):
        other, same = next(((other, same) for other in kept if (same := set(items[path]) & set(items[other]))),
                           (None, ()))
        if not same:
            kept.append(path)
        elif (other.stem.startswith('instances') > path.stem.startswith('instances')
              or split_of(path, folder) is None and split_of(other, folder)):
            note(wrong, f'JSON left out, as another one is of the same images ({other.name})', path)
        else:
            raise ValueError(f'{other} and {path} both say what is on {len(same)} images, e.g. {min(same)}: keep one')
    return kept


def is_coco(content):
    """Whether what a JSON file has under COCO's three keys are lists of dicts, and the categories have names."""
    lists = [content[key] for key in ('images', 'annotations', 'categories')]
    if not all(isinstance(each, list) and all(isinstance(item, dict) for item in each) for each in lists):
        return False
    named = [item.get(key) for each, key in zip(lists, ('id', 'image_id', 'id')) for item in each]
    return (all(isinstance(name, (int, float, str, type(None))) for name in named)
            and all({'id', 'name'} <= set(item) for item in content['categories']))


def voc(folder, paths, images, wrong):
    """An XML file an image; `ImageSets/Main/*.txt` say the splits, else folders."""
    files = [path for path in paths if path.suffix.lower() == '.xml']
    lists = {name: set() for name in (*SPLITS, 'trainval')}             # of several years together
    for path in paths:
        if path.suffix == '.txt' and path.parent.name == 'Main' and path.stem in lists:
            lists[path.stem] |= {line.split()[0] for line in lines_of(path) if line}
    lists['train'] |= lists.pop('trainval') - lists['val']
    index, items, names = Index(folder, images), [], []
    for path in files:
        try:
            root = ElementTree.parse(path).getroot()
            objects = [(item.findtext('name').strip(), item.findtext('difficult', '0').strip() == '1',
                        [float(item.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')])
                       for item in root.iter('object')]
            told = [float(root.findtext(f'size/{side}') or 0) for side in ('width', 'height')]
        except (ElementTree.ParseError, TypeError, ValueError, AttributeError):
            note(wrong, 'unreadable XML', path)
            continue
        image = index.find([path.stem, root.findtext('filename', '').strip()], path, wrong)
        if image is None:
            continue
        split = next((split for split, stems in lists.items() if path.stem in stems), None)
        if any(lists.values()) and split is None:
            note(wrong, 'image in no list of ImageSets/Main', image)
            continue
        item = Item(image, split or split_of(path.parent, folder), boxes=[], told=told)
        for name, difficult, (left, top, right, bottom) in objects:
            names.append(name)
            item.boxes.append(dict(label=name, box=[left - 1, top - 1, right - left, bottom - top], crowd=difficult))
        items.append(item)
    if not names:
        return None
    classes = sorted(set(names))
    for item in items:
        for box in item.boxes:
            box['label'] = classes.index(box['label'])
    return 'Pascal VOC', ('detection', ), classes, items


def yolo(folder, paths, images, wrong):
    """A txt file an image: `class x y width height` as shares of the image, or a class and an outline."""
    index, items, most, outlines = Index(folder, images), [], -1, False
    names, points = yolo_says(paths, wrong)
    stems = {composed(path.stem) for path in images}
    files = [path for path in paths if path.suffix.lower() == '.txt' and composed(path.stem) in stems]
    for path in files:
        image = index.find([path.stem], path, wrong)
        if image is None:
            continue
        item = Item(image, split_of(path.parent, folder), boxes=[])
        try:
            for line in filter(None, lines_of(path)):
                label, *numbers = line.split()
                label, numbers = float(label), [float(number) for number in numbers]
                numbers = numbers[:4] if points else numbers
                if not 0 <= label < CLASSES or label % 1:
                    raise ValueError(line)
                if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
                    raise ValueError(line)
                if not all(-PIXELS <= number <= 1 + PIXELS for number in numbers):
                    raise ValueError(line)
                item.boxes.append(dict(label=int(label), shares=numbers, crowd=False))
        except ValueError:
            note(wrong, "line that is not YOLO's", path)
            continue
        most = max([most, *(box['label'] for box in item.boxes)])
        outlines |= any(len(box['shares']) > 4 for box in item.boxes)
        items.append(item)
    if not any(item.boxes for item in items):
        return None
    labelled = {composed(path.stem) for path in files}
    for path in images:
        if composed(path.stem) not in labelled:
            items.append(Item(path, split_of(path.parent, folder), boxes=[]))
            note(wrong, 'image without a .txt, taken as one without objects', path)
    if points:
        note(wrong, 'poses, of which the boxes are taken', points)
    classes = [str(names.get(i, i)) for i in range(max(most + 1, len(names)))]
    return 'YOLO', ('detection', 'instance') if outlines else ('detection', ), classes, items


def yolo_says(paths, wrong):
    """{number: name} of data.yaml, or of classes.txt or obj.names, a line a class; the file that says it is of poses.
    """
    points = None
    for path in paths:
        if path.suffix in ('.yaml', '.yml'):
            try:
                content = yaml.safe_load(path.read_bytes())
            except (yaml.YAMLError, UnicodeDecodeError):
                note(wrong, 'unreadable YAML', path)
                continue
            names = content.get('names') if isinstance(content, dict) else None
            points = path if isinstance(content, dict) and 'kpt_shape' in content else points
            if isinstance(names, dict):
                return {int(number): name for number, name in names.items() if str(number).isdecimal()}, points
            if isinstance(names, list):
                return dict(enumerate(names)), points
        elif path.name in ('classes.txt', 'obj.names'):
            return dict(enumerate(lines_of(path))), points
    return {}, points


# Of a folder of masks; not `length`, `segway`.
MASKS = re.compile(r'mask|label|annotation|semantic|segmentation|(?<![a-z])(seg|gt|gtfine|gtcoarse|anns?)(?![a-z])')
BESIDE = re.compile(r'(.+?)[_-](mask|label|seg|gt)s?([_-]?\d+)?')          # a mask's name beside its image's


def masks(folder, paths, images, wrong):
    """Images, and under a folder called masks, labels or the like a PNG for each, whose values are the classes."""
    drawn = [path for path in images if MASKS.search('/'.join(path.relative_to(folder).parts[:-1]).lower())]
    drawn_too = set(drawn)
    index, items, lacking = Index(folder, [path for path in images if path not in drawn_too]), [], {}
    for path in drawn:
        names = [path.stem, re.sub(r'[_-](mask|label|seg|gt)s?$', '', path.stem)]
        image = index.find(names, path, lacking, 'mask without an image')
        if image is not None and path.suffix.lower() != '.png':
            note(wrong, 'mask that is no PNG', path)
        elif image is not None:
            items.append(Item(image, split_of(image.parent, folder), mask=path))
    if not items:
        return None
    wrong.update(lacking)
    names = next((lines_of(path) for path in paths if path.name in ('classes.txt', 'labels.txt')), [])
    return 'images with masks', ('semantic', ), names, items


def name_values(found, seen):
    """The values of the masks that are used, and their classes: names by value, or in order where there are as many."""
    names, values = found.classes, sorted(seen - {IGNORED})
    by_value = bool(values) and values[-1] < len(names)
    if IGNORED in seen:
        # 0 and 255 alone: a mask as pictures have it
        if values == [0] or not by_value and len(names) == len(values) + 1:
            values, by_value = [*values, IGNORED], False
        else:
            note(found.wrong, f'value {IGNORED} in the masks: taken as "nothing is said here"', found.items[0].mask)
    if seen and not values:
        raise ValueError(f'{found.folder}: the masks hold nothing but {IGNORED}, which says nothing')
    if len(values) > 255:
        raise ValueError(f'{found.folder}: the masks have {len(values)} values, and at most 255 are classes')
    if len(values) > max(len(found.items), 2 * len(names)):
        note(found.wrong, f'more values ({len(values)}) than masks: are their edges smoothed?', found.items[0].mask)
    if len(names) == len(values) - 1 and values[0] == 0:
        names = ['background', *names]
    if by_value:
        names = [names[value] for value in values]
    elif len(names) != len(values):
        if names:
            note(found.wrong, f'{len(names)} names for other values', values)
        names = [''] * len(values)
    found.values, found.classes = values, [name or f'value {value}' for name, value in zip(names, values)]


def mask_of(path, wrong):
    """A mask's values, (H, W); None and a note where it cannot be read or is coloured."""
    try:
        with Image.open(path) as image:
            if image.mode not in ('L', 'P', '1', 'I', 'I;16'):
                note(wrong, f'mask of mode {image.mode}, not of one value a pixel', path)
                return None
            return np.asarray(image.convert('L') if image.mode == '1' else image)
    except OSError:
        note(wrong, 'unreadable mask', path)
        return None


def folders(folder, paths, images, wrong):
    """A folder per class, below folders of splits or not."""
    names = sorted({path.parent.name for path in images if path.parent != folder
                    and not any(path.parent.name.lower() in words for words in SPLITS.values())})
    if len(names) < 2:
        return None
    stems, drawn = {path.with_suffix('') for path in images}, set()
    for path in images:
        beside = BESIDE.fullmatch(path.stem)
        if beside and path.with_name(beside[1]) in stems:
            drawn.add(path)
            note(wrong, 'mask beside its image, left out (a folder masks/ makes them classes of pixels)', path)
    items = [Item(path, split_of(path.parent.parent, folder) if path.parent.parent != folder else None,
                  label=names.index(path.parent.name)) for path in images
             if path.parent.name in names and path not in drawn]
    places = {}                                                         # of each class, but for its splits
    for item in items:
        above = item.image.parent.relative_to(folder).parts[:-1]
        places.setdefault(item.label, set()).add(tuple(part for part in above if not split_of(folder / part, folder)))
    for label, above in places.items():
        if len(above) > 1:
            note(wrong, 'class with folders in several places, taken as one', names[label])
    return 'a folder per class', ('classification', ), names, items


# ---- a look at every image

def look(found):
    """Read every image: those that cannot be are left out, boxes are clipped to the others; all of it is noted."""
    with ThreadPoolExecutor() as threads:
        read = list(threads.map(size_and_light, [item.image for item in found.items]))
    kept, seen = [], set()
    for item, (size, light) in zip(found.items, read):
        if size is None:
            note(found.wrong, 'unreadable image', item.image)
            continue
        item.size = size
        if light < DARK:
            note(found.wrong, 'image nearly black as it is read (of one of 16 bits the upper 8 are)', item.image)
        if item.told and differ(item.told, size):
            note(found.wrong, 'image of another size than its annotation says, left out', item.image)
            continue
        if item.boxes is not None:
            item.boxes = [box for box in map(lambda box: inside(box, item, found.wrong), item.boxes) if box]
            for box in item.boxes if found.task == 'instance' else ():
                box['outline'] = drawable(box.get('outline'), size)
                if not box['outline']:
                    note(found.wrong, 'object without an outline that can be drawn, its box is taken', item.image)
        if item.mask is not None:
            drawn = mask_of(item.mask, found.wrong)
            if drawn is None:
                continue
            if drawn.shape[:2] != size[::-1]:
                note(found.wrong, 'mask of another size than its image', item.mask)
                continue
            seen.update(np.unique(drawn).tolist())
        kept.append(item)
    found.items = kept
    if found.task == 'semantic':
        name_values(found, seen)


def differ(told, size):
    """Whether the size that an annotation says is another one; many say nothing, or 0."""
    try:
        return any(float(a or 0) and abs(float(a) - b) > 1 for a, b in zip(told, size))
    except (TypeError, ValueError):
        return False


def size_and_light(path):
    """(width, height) and the largest value of an image as training reads it; None and 0 where that cannot."""
    try:
        image = mmcv.imread(path)
    except (OSError, cv2.error):
        image = None
    return (None, 0) if image is None else (image.shape[1::-1], int(image.max()))


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


def drawable(outline, size):
    """COCO's segmentation, where it is one for an image of this size: its polygons or its run lengths; else None."""
    width, height = size
    try:
        if isinstance(outline, dict):
            counts = outline.get('counts')
            if outline.get('size') != [height, width]:
                return None
            whole = (sum(counts) == width * height and all(isinstance(count, int) and count >= 0 for count in counts)
                     if isinstance(counts, list) else runs(counts) == width * height)
            return outline if whole else None
        parts = outline or []
        if parts and not isinstance(parts[0], list):                    # one polygon, bare
            parts = [parts]
        parts = [[float(value) for value in part] for part in parts]
    except (KeyError, TypeError, ValueError):
        return None
    return [part for part in parts if len(part) >= 6 and len(part) % 2 == 0 and np.isfinite(part).all()] or None


def runs(text):
    """The pixels that COCO's packed run lengths are of, None for a text that is none.

    pycocotools (`rleFrString`) takes some that are none, such as '0', and gives what lies in memory for their pixels.

    A number has five bits in each letter from '0' on, a sixth says that more come; from the third on it is what a run
    has more than the one before the last.
    """
    counts, number, shift = [], 0, 0
    for letter in str(text):
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            if counts[-1] < 0:
                return None
            number, shift = 0, 0
    return sum(counts) if counts and not shift else None


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
    for name, end in (('val', max), ('train', min)):                    # a handful of images
        most = max((found.split(each) for each in SPLITS), key=len)
        if found.made and not found.split(name) and len(most) > 1:
            end(most, key=lambda item: share_of(item.image)).split = name


def share_of(path):
    """0 to 1 from an image's bytes."""
    return int(hashlib.sha256(path.read_bytes()).hexdigest()[:8], 16) / 2 ** 32

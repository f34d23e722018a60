"""A user's own VOC or COCO folder as the data of the demo: find the splits, read the classes, check that they exist.

Both are described by the same dict: `classes`, and for each of `train`, `val` and (where there is one) `test` a pair
(COCO json, image folder).
"""
import hashlib
import json
import re
from pathlib import Path

from voc import coco, read_xml, write_json

SPLITS = ('train', 'val', 'test')
COCO = dict(                             # what mmdet and pycocotools read of an entry
    images=('id', 'file_name', 'width', 'height'), categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd'))


def read_folder(folder, cache):
    """Describe the data in `folder`; a VOC folder is converted into `cache`. ValueError names what is missing."""
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f'there is no folder {folder}; give a Pascal VOC or a COCO folder')
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (place / 'Annotations').is_dir():
            return read_voc(place, Path(cache))
    if (folder / 'annotations').is_dir():
        return read_coco(folder)
    raise ValueError(f'{folder} holds neither Annotations/ (Pascal VOC) nor annotations/ (COCO)')


def read_voc(folder, cache):
    """Annotations/*.xml, ImageSets/Main/{train,val,test}.txt and JPEGImages/, one level down too (VOC2007/)."""
    lists = {path.stem: path for path in (folder / 'ImageSets' / 'Main').glob('*.txt') if path.stem in SPLITS}
    splits = {}
    for split, path in lists.items():
        # a line may carry a flag after the name (`000005 -1`)
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        if not names:
            raise ValueError(f'{path} names no image')
        images = [voc_image(folder, name) for name in names]
        if any(not difficult for image in images for _, _, difficult in image[3]):
            splits[split] = images
    check_splits(splits, f'{folder}/ImageSets/Main/*.txt')
    classes = sorted({kind for images in splits.values() for image in images for kind, _, _ in image[3]})
    # the path tells two folders apart, the content an edited one
    text = json.dumps([str(folder), splits])
    cache = cache / f'voc_{hashlib.sha256(text.encode()).hexdigest()[:12]}'
    found = dict(classes=classes)
    for split, images in splits.items():
        found[split] = str(cache / f'{split}.json'), f'{folder}/JPEGImages/'
        if not (cache / f'{split}.json').exists():
            write_json(cache / f'{split}.json', coco(images, classes))
    return found


def voc_image(folder, name):
    path = folder / 'Annotations' / f'{name}.xml'
    if not path.is_file():
        raise ValueError(f'there is no annotation {path}, but the list of images names it')
    file_name, *rest = read_xml(path, offset=1)
    for candidate in (f'{name}.jpg', f'{name}.png', file_name):
        if (folder / 'JPEGImages' / candidate).is_file():
            return (candidate, *rest)
    raise ValueError(f'there is no image {folder}/JPEGImages/{name}.jpg (or .png), but the list of images names it')


def read_coco(folder):
    """annotations/*.json by the split in their names; classes in the file's order, by which mmdet numbers labels."""
    found = {}
    for split in SPLITS:
        path, content = box_file(folder / 'annotations', split)
        if path is None:
            continue
        same = [other for other in SPLITS if found.get(other, ('', ))[0] == str(path)]
        if same:
            raise ValueError(f'{path} would be {same[0]} and {split} at once; give each split a file of its own')
        names = [item['name'] for item in content['categories']]
        if found.setdefault('classes', names) != names:
            raise ValueError(f'{path} has the classes {names}, another split has {found["classes"]}: the same ones '
                             'are needed in the same order')
        found[split] = str(path), image_folder(folder, path, split, content['images'])
    check_splits(found, f'{folder}/annotations/*.json')
    return found


def box_file(place, split):
    """(path, content) of the one file with boxes whose name holds the split (`instances_` first), or (None, None)."""
    # as a word: train2017 and instances_train are train, trainval is not
    files = [path for path in sorted(place.glob('*.json'))
             if re.search(rf'(?<![a-z]){split}(?![a-z])', path.stem, re.IGNORECASE)]
    for first in (True, False):
        boxed = {path: content for path in files
                 if path.stem.startswith('instances') is first and (content := load_coco(path))}
        if len(boxed) > 1:
            raise ValueError(f'{place} holds several files for {split}: {", ".join(path.name for path in boxed)}; '
                             'leave one there')
        if boxed:
            return next(iter(boxed.items()))
    return None, None


def load_coco(path):
    """The content of a COCO json; None where there is no box in it: captions, a test list, crowds alone."""
    try:
        content = json.loads(path.read_text())
        parts = {part: content.get(part) or [] for part in COCO}
        for part, items in parts.items():
            if not isinstance(items, list):
                raise ValueError(f'its {part} are no list')
        if not parts['categories'] or 'bbox' not in (parts['annotations'] or [()])[0]:
            return None
        for part, keys in COCO.items():
            for lacking in (key for item in parts[part] for key in keys if key not in item):
                raise ValueError(f'an entry of {part} has no {lacking}')
        images = {item['id'] for item in parts['images']}
        boxed = any(item['image_id'] in images and not item['iscrowd'] for item in parts['annotations'])
        return content if boxed else None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is not a readable COCO annotation ({error})') from None


def image_folder(folder, path, split, images):
    """COCO does not say where its images lie: try the usual places with the first one."""
    year = path.stem.rpartition('_')[2]                                  # instances_train2017 -> train2017
    tried = [folder / 'images' / split, folder / 'images' / year, folder / year, folder / split,
             folder / 'images', folder]
    for place in tried:
        if images and (place / images[0]['file_name']).is_file():
            return f'{place}/'
    raise ValueError(f'{path}: its first image was looked for in {", ".join(map(str, tried))} and not found')


def check_splits(found, where):
    missing = [split for split in ('train', 'val') if split not in found]
    if missing:
        raise ValueError(f'{where}: found no split {" and no ".join(missing)} with a box; the demo '
                         'trains on train, scores val, and test too where there is one')

"""A user's own VOC or COCO folder as the data of the demo: find the splits, read the classes, check that they exist.

Both are described by the same dict: `classes`, and for each of `train`, `val` and (where there is one) `test` a pair
(COCO json, image folder).
"""
import hashlib
import json
from pathlib import Path

from voc import coco, read_xml, write_json

SPLITS = ('train', 'val', 'test')


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
    check_splits(lists, f'{folder}/ImageSets/Main/*.txt')
    splits = {}
    for split, path in lists.items():
        # a line may carry a flag after the name (`000005 -1`)
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        if not names:
            raise ValueError(f'{path} names no image')
        splits[split] = [voc_image(folder, name) for name in names]
    classes = sorted({kind for images in splits.values() for image in images for kind, _, _ in image[3]})
    if not classes:
        raise ValueError(f'{folder}/Annotations holds no box in the images of {", ".join(splits)}')
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
    """annotations/*{train,val,test}*.json (`instances_` first) and the folder in which their images lie."""
    found = {}
    for split in SPLITS:
        files = sorted((folder / 'annotations').glob(f'*{split}*.json'),
                       key=lambda path: (not path.stem.startswith('instances'), path.stem))
        for path in files:
            content = load_coco(path)
            if content is None:                        # COCO's captions, key points or a test list without boxes
                continue
            names = [item['name'] for item in sorted(content['categories'], key=lambda item: item['id'])]
            if found.setdefault('classes', names) != names:
                raise ValueError(f'{path} has the classes {names}, another split has {found["classes"]}')
            found[split] = str(path), image_folder(folder, path, split, content['images'])
            break
    check_splits(found, f'{folder}/annotations/*.json')
    return found


def load_coco(path):
    try:
        content = json.loads(path.read_text())
        boxed = all('bbox' in item for item in content.get('annotations', [])[:1])
        return content if content.get('annotations') and content.get('categories') and boxed else None
    except (OSError, ValueError, AttributeError) as error:
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
        raise ValueError(f'{where}: found no split {" and no ".join(missing)}; the demo trains on train, '
                         'scores val, and test too where there is one')

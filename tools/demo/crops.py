"""The boxes of a detection set as images to classify: a square around each box, lists of files and labels."""
import hashlib
import json
import random
from pathlib import Path

from picture import read
from PIL import Image
from whole import whole

MARGIN = 1.2                             # side of a crop over the longest side of its box
BALANCED = dict(train=300, val=200)      # crops at most, as many of each class; all boxes of test


def make_crops(found, cache):
    """Write PNGs and {train,val,test}.txt (`RBC/17.png 1`) into the cache, once; give the data as `read_folder` does.

    Crops of a few px up to the whole image are cut at their own size; where a square leaves the image, its edge is
    moved inside.
    """
    mark = hashlib.sha256(f'{MARGIN} {BALANCED}'.encode())
    splits = [split for split in ('train', 'val', 'test') if split in found]
    for split in splits:
        mark.update(Path(found[split][0]).read_bytes() + found[split][1].encode())
    place = Path(cache) / f'crops_{mark.hexdigest()[:12]}'
    if not place.is_dir():
        with whole(place) as part:
            for split in splits:
                write_split(split, *found[split], found['classes'], part)
    return dict(classes=found['classes'], **{split: (str(place / f'{split}.txt'), f'{place}/') for split in splits})


def write_split(split, file, images, classes, place):
    content = json.loads(Path(file).read_text())
    names = {image['id']: image['file_name'] for image in content['images']}
    label = {item['id']: classes.index(item['name']) for item in content['categories']}
    boxes = [item for item in content['annotations'] if not item['iscrowd']]
    if split in BALANCED:
        boxes = balanced(boxes, [label[item['category_id']] for item in boxes], BALANCED[split])
    lines, (opened, image) = [], (None, None)
    for item in sorted(boxes, key=lambda item: (item['image_id'], item['id'])):
        if item['image_id'] != opened:
            opened, image = item['image_id'], Image.fromarray(read(Path(images) / names[item['image_id']]))
        kind = classes[label[item['category_id']]]
        target = place / split / kind / f'{item["id"]}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        crop(image, item['bbox']).save(target)
        lines.append(f'{split}/{kind}/{item["id"]}.png {label[item["category_id"]]}')
    (place / f'{split}.txt').write_text('\n'.join(lines))


def balanced(boxes, labels, most):
    """As many boxes of each class, drawn at random, `most` in all."""
    kinds = {kind: [box for box, label in zip(boxes, labels) if label == kind] for kind in sorted(set(labels))}
    count = min(most // len(kinds), *map(len, kinds.values()))
    draw = random.Random(0)
    return [box for group in kinds.values() for box in draw.sample(group, count)]


def crop(image, box):
    """The square around `box` (x, y, width, height in px)."""
    x, y, width, height = box
    side = max(1, round(min(MARGIN * max(width, height), *image.size)))
    left, top = (round(min(max(low + size / 2 - side / 2, 0), limit - side))
                 for low, size, limit in zip((x, y), (width, height), image.size))
    return image.crop((left, top, left + side, top + side))

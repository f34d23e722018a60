"""The boxes of a detection set as images to classify: `python tools/demo/crops.py FOLDER OUT`.

FOLDER is what tools/tune.py reads (COCO, Pascal VOC, YOLO). A square is cut around each box, with a fifth of margin; of
the training and validation images as many of each class, drawn once, all boxes of the test images. OUT gets PNGs, a
folder a split and class, and train.txt, val.txt, test.txt (`train/RBC/17.png 1`), for configs/demo/crops_vit-s.py.
"""
import argparse
import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / 'tuning')]

MARGIN = 1.2                             # side of a crop over the longest side of its box
BALANCED = dict(train=300, val=200)      # crops at most, as many of each class; all boxes of test


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='FOLDER')
    parser.add_argument('out', metavar='OUT')
    args = parser.parse_args(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        from found import find
        if Path(args.out).exists():
            raise ValueError(f'{args.out} is there already: name another folder, or remove it')
        found = find(args.folder, 'detection')
        make_crops(found, args.out)
        print(f'{args.out}: ' + ', '.join(
            f'{len((Path(args.out) / f"{split}.txt").read_text().splitlines())} {split}' for split in splits(found))
              + f'; classes = {tuple(found.classes)}')


def splits(found):
    return [split for split in ('train', 'val', 'test') if found.split(split)]


def make_crops(found, folder):
    """Cut the boxes of found data into `folder`, whole or not at all.

    Crops of a few px up to the whole image are cut at their own size; where a square leaves the image, its edge is
    moved inside.
    """
    from whole import whole
    with whole(folder) as part:
        for split in splits(found):
            write_split(split, found.split(split), found.classes, part)


def write_split(split, items, classes, place):
    from PIL import Image, ImageOps
    boxes = list(enumerate((item, box) for item in items for box in item.boxes if not box['crowd']))
    if split in BALANCED:
        boxes = balanced(boxes, BALANCED[split])
    lines, (opened, image) = [], (None, None)
    for number, (item, box) in boxes:
        if item.image != opened:                                        # turned as its EXIF says, as mmcv reads it
            opened, image = item.image, ImageOps.exif_transpose(Image.open(item.image)).convert('RGB')
        name = f'{split}/{classes[box["label"]]}/{number}.png'
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        crop(image, box['box']).save(place / name)
        lines.append(f'{name} {box["label"]}')
    (place / f'{split}.txt').write_text('\n'.join(lines))


def balanced(boxes, most):
    """As many boxes of each class, drawn at random, `most` in all; in their order."""
    kinds = {}
    for number, (item, box) in boxes:
        kinds.setdefault(box['label'], []).append((number, (item, box)))
    count = min(most // len(kinds), *map(len, kinds.values()))
    draw = random.Random(0)
    drawn = [each for kind in sorted(kinds) for each in draw.sample(kinds[kind], count)]
    return sorted(drawn, key=lambda each: each[0])


def crop(image, box):
    """The square around `box` (x, y, width, height in px)."""
    x, y, width, height = box
    side = max(1, round(min(MARGIN * max(width, height), *image.size)))
    left, top = (round(min(max(low + size / 2 - side / 2, 0), limit - side))
                 for low, size, limit in zip((x, y), (width, height), image.size))
    return image.crop((left, top, left + side, top + side))


if __name__ == '__main__':
    main()

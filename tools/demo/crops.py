"""The boxes of a detection set as images to classify: `python tools/demo/crops.py FOLDER OUT`.

FOLDER is what tools/tune.py reads (COCO, Pascal VOC, YOLO). A square is cut around each box, with a fifth of margin; of
the training and validation images as many of each class, drawn once, all boxes of the test images. OUT gets PNGs, a
folder a split and class, and train.txt, val.txt, test.txt (`train/RBC/17.png 1`), for configs/demo/crops_vit-s.py.
"""
import argparse
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))               # tools/, behind all packages

MARGIN = 1.2                             # side of a crop over the longest side of its box
BALANCED = dict(train=300, val=200)      # crops at most, as many of each class; all boxes of test


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='FOLDER')
    parser.add_argument('out', metavar='OUT')
    args = parser.parse_args(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        from tuning.found import find
        if Path(args.out).exists():
            raise ValueError(f'{args.out} is there already: name another folder, or remove it')
        found = find(args.folder, 'detection')
        counts = make_crops(found, args.out)
        print(f'{args.out}: {", ".join(f"{count} {split}" for split, count in counts.items())}; '
              f'classes = {tuple(found.classes)}')


def make_crops(found, folder):
    """Cut the boxes of found data into `folder`, whole or not at all; {split: how many}.

    Crops of a few px up to the whole image are cut at their own size; where a square leaves the image, its edge is
    moved inside.
    """
    from whole import whole
    boxes = {split: list(enumerate((item.image, box) for item in found.split(split) for box in item.boxes
                                   if not box['crowd'])) for split in ('train', 'val', 'test')}
    boxes = {split: balanced(those, BALANCED[split]) if split in BALANCED else those
             for split, those in boxes.items() if those}
    missing = [split for split in BALANCED if split not in boxes]
    if missing:
        raise ValueError(f'{found.folder}: there is no box in the images of {" and ".join(missing)}')
    with whole(folder) as part:
        for split, those in boxes.items():
            write_split(split, those, found.classes, part)
    return {split: len(those) for split, those in boxes.items()}


def write_split(split, boxes, classes, place):
    """Boxes, (number, (image, box)), as files and a list."""
    from PIL import Image, ImageOps
    lines, (opened, image) = [], (None, None)
    for number, (file, box) in boxes:
        if file != opened:                                              # turned as its EXIF says, as mmcv reads it
            opened, image = file, ImageOps.exif_transpose(Image.open(file)).convert('RGB')
        name = f'{split}/{classes[box["label"]]}/{number}.png'
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        crop(image, box['box']).save(place / name)
        lines.append(f'{name} {box["label"]}')
    (place / f'{split}.txt').write_text('\n'.join(lines))


def balanced(boxes, most):
    """As many boxes of each class, drawn at random, `most` in all; in their order."""
    kinds = {}
    for each in boxes:
        kinds.setdefault(each[1][1]['label'], []).append(each)
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

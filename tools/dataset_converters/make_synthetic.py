"""Generate a small data set of coloured shapes in the folder layout that a stock config reads.

    python tools/dataset_converters/make_synthetic.py --layout coco --out data/coco --images 16 --size 800 1333
    python tools/dataset_converters/make_synthetic.py --layout vtab --out data/vtab-1k
"""
import argparse

from e3va.datasets.synthetic import LAYOUTS, make


class Parser(argparse.ArgumentParser):

    def error(self, message):
        self.exit(2, f'{self.prog}: {message}\n')


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--layout', required=True, help=', '.join(LAYOUTS))
    parser.add_argument('--out', required=True, help="folder to make, the config's data_root (for VOC: data/VOCdevkit)")
    parser.add_argument('--images', type=int, default=8, help='images in each split (default: 8)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help='of every image in pixels (default: 240 320; CIFAR: 32 32)')
    parser.add_argument('--classes', type=int, default=5, help="the layout's categories that appear (default: 5)")
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    args = parser.parse_args()
    try:
        root = make(args.layout, args.out, args.images, args.size, args.classes, args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f'{root}: {args.images} images a split in the layout of {args.layout}')


if __name__ == '__main__':
    main()

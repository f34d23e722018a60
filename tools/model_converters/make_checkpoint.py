"""Write a checkpoint of random values in a public format, for a trunk of any size.

    python tools/model_converters/make_checkpoint.py --arch swin_large_patch4_window12_384.ms_in22k --out swin_l.pth
"""
import argparse

from e3va.command.line import Options
from e3va.datasets.checkpoints import FORMATS, make_checkpoint


class Parser(argparse.ArgumentParser):

    def error(self, message):
        self.exit(2, f'{self.prog}: {message}\n')


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', required=True,
                        help="timm's name of a Swin or ViT, whose tag decides the classes, or sam_vit_b")
    parser.add_argument('--out', required=True, help='file to write')
    parser.add_argument('--format', default=FORMATS[0], help=f'{", ".join(FORMATS)} (default: {FORMATS[0]})')
    parser.add_argument('--seed', type=int, default=0, help='default: 0')
    parser.add_argument('--shape', nargs='+', default={}, action=Options, metavar='KEY=VALUE',
                        help="changes in timm's names: embed_dim=24 depths=1,1,2,1 num_heads=1,2,4,8 num_classes=10")
    args = parser.parse_args()
    try:
        path = make_checkpoint(args.out, args.arch, args.format, args.seed, **args.shape)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f'{path}: {args.arch} in the {args.format} format, {path.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()

"""Put a delta and its base together into one ordinary checkpoint.

    python tools/model_converters/merge_delta.py DELTA OUT.pth [--base FILE] [--stock]

By default for the config that was trained; with --stock for the stock config, where the method can be merged (LoRA).
"""
import argparse

import torch

from e3va.command.line import one_line_errors, trust_option
from e3va.delta.scheme import whole_checkpoint
from e3va.files.checkpoint import trusting
from e3va.files.whole import replacing, spare


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('delta', help='a .safetensors file of DeltaHook, save_delta or publish_delta.py')
    parser.add_argument('out', help='the checkpoint to write')
    parser.add_argument('--base', help="file or URL of the trunk's weights (default: what the delta recorded)")
    parser.add_argument('--stock', action='store_true', help='fold the delta into the stock layers')
    args = trust_option(parser).parse_args(argv)
    with one_line_errors(), trusting(args.trust_checkpoint):
        spare(args.out, args.delta, args.base)
        checkpoint = whole_checkpoint(args.delta, args.base, merged=args.stock)
        with replacing(args.out) as file:
            torch.save(checkpoint, file)
        print(f'{args.out}: {len(checkpoint["state_dict"])} entries, for the '
              f'{"stock" if args.stock else "tuned"} config')


if __name__ == '__main__':
    main()

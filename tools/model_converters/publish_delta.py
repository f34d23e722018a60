r"""Turn a checkpoint of a tuned model into a delta, and a delta into a folder for a hub.

    python tools/model_converters/publish_delta.py CONFIG CHECKPOINT OUT.safetensors [--method NAME] [--base FILE]
    python tools/model_converters/publish_delta.py DELTA.safetensors OUT [--results ROWS.jsonl] [--name NAME]

A delta is what training changed, as safetensors. The folder has it, its config, a model card (README.md) and a
metafile; `e3va://OUT` loads it, and `e3va://hf:OWNER/NAME` once it is uploaded.
"""
import argparse
import os
import sys

import e3va
from e3va.command import rows
from e3va.command.line import config_parser, one_line_errors, read_config, trust_option
from e3va.delta.publish import publish
from e3va.files.checkpoint import trusting
from e3va.files.whole import spare
from e3va.loading import demand
from e3va.tuned import tuned_trunks


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv and str(argv[0]).endswith('.safetensors'):
        folder(argv)
        return
    parser = trust_option(config_parser(__doc__))
    parser.add_argument('checkpoint', help='a .pth file that tools/train.py wrote')
    parser.add_argument('out', help='the delta to write')
    parser.add_argument('--base', help="file or URL of the trunk's weights to record (default: the config's)")
    parser.add_argument('--dtype', choices=['bf16', 'fp16'], help='write floats in half precision')
    args = parser.parse_args(argv)
    with one_line_errors(), trusting(args.trust_checkpoint):
        from mmengine.registry import MODELS, init_default_scope
        from mmengine.runner import load_checkpoint
        spare(args.out, args.checkpoint, args.config)
        if not args.out.endswith('.safetensors'):
            raise ValueError(f'{args.out}: a delta is a .safetensors; name it so')
        cfg = read_config(args)
        if not os.path.isfile(args.checkpoint):
            raise ValueError(f'there is no checkpoint {args.checkpoint}')
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        model = MODELS.build(cfg.model)
        trunks = tuned_trunks(model)
        meta = load_checkpoint(model, args.checkpoint, map_location='cpu').get('meta', {})
        for _, trunk in trunks:
            demand(trunk, f'the checkpoint {args.checkpoint}')
        base = args.base or cfg.get('load_from') or (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint')
        e3va.save_delta(model, args.out, base=base, dataset_meta=meta.get('dataset_meta'), config=cfg, dtype=args.dtype)
        print(f'{args.out}: {os.path.getsize(args.out) / 2 ** 20:.2f} MiB '
              f'(checkpoint {os.path.getsize(args.checkpoint) / 2 ** 20:.2f} MiB); base: {base or "not recorded"}')


def folder(argv):
    """The second form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('delta', help='a .safetensors')
    parser.add_argument('out', help='the folder to write')
    parser.add_argument('--results', metavar='ROWS.jsonl', help='what was measured: rows with task, metric and value')
    parser.add_argument('--name', help="of the model (default: the folder's)")
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.results and not os.path.isfile(args.results):
            raise ValueError(f'there is no file {args.results}')
        measured = [row for _, row in rows.read([args.results], checked, 'task, metric and value')] \
            if args.results else []
        print(f'{args.out}: {", ".join(publish(args.delta, args.out, measured, args.name))}; '
              f'{len(measured)} measured results')


def checked(row):
    return dict(row, task=row['task'], metric=row['metric'], value=float(row['value']))


if __name__ == '__main__':
    main()

"""Turn a checkpoint of a tuned model into a delta: what training changed, as safetensors.

    python tools/model_converters/publish_delta.py CONFIG CHECKPOINT OUT.safetensors [--method NAME] [--base FILE]
"""
import os

import e3va
from e3va.command.line import config_parser, one_line_errors, read_config, trust_option
from e3va.files.checkpoint import trusting
from e3va.loading import demand
from e3va.tuned import tuned_trunks


def main(argv=None):
    parser = trust_option(config_parser(__doc__))
    parser.add_argument('checkpoint', help='a .pth file that tools/train.py wrote')
    parser.add_argument('out', help='the delta to write')
    parser.add_argument('--base', help="file or URL of the trunk's weights to record (default: the config's)")
    args = parser.parse_args(argv)
    with one_line_errors(), trusting(args.trust_checkpoint):
        from mmengine.registry import MODELS, init_default_scope
        from mmengine.runner import load_checkpoint
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
        e3va.save_delta(model, args.out, base=base, dataset_meta=meta.get('dataset_meta'))
        print(f'{args.out}: {os.path.getsize(args.out) / 2 ** 20:.2f} MiB '
              f'(checkpoint {os.path.getsize(args.checkpoint) / 2 ** 20:.2f} MiB); base: {base or "not recorded"}')


if __name__ == '__main__':
    main()

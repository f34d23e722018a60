"""Train any config of mmdet, mmseg or mmpretrain, tuned by a method or as it is.

    python tools/train.py mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py --method e3va
"""
from mmengine.device import get_device
from mmengine.logging import print_log

from e3va.command.checks import check
from e3va.command.config import prepare, use_amp
from e3va.command.line import one_line_errors, read_run_config, run_parser
from e3va.command.processes import alone, build_runner
from e3va.files.checkpoint import trusting
from e3va.train.resume import check_resumable, newest_checkpoint


def parser():
    parser = run_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='continue from this checkpoint, or from the newest whole one in the work dir')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate from the config\'s base_batch_size to the real batch size')
    return parser


def configure(args):
    """The final config of a training run."""
    cfg = read_run_config(args)
    if args.amp:
        if get_device() == 'cpu':
            raise ValueError('--amp needs a GPU, and torch finds none here')
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or ()):
            raise ValueError('--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    if args.resume:
        checkpoint = newest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if checkpoint is None:  # keeps the config's load_from, unlike mmengine: the trunk would be random
            print_log(f'nothing to resume in {cfg.work_dir}: starting anew')
        else:
            print_log(f'resuming from {checkpoint}')
            check_resumable(checkpoint, cfg)
            cfg.resume, cfg.load_from = True, checkpoint
    check(prepare(cfg), 'train')
    return cfg


def main(argv=None):
    args = parser().parse_args(argv)
    with one_line_errors(), trusting(args.trust_checkpoint):
        cfg = configure(args)
        with alone(cfg):
            build_runner(cfg).train()


if __name__ == '__main__':
    main()

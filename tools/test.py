"""Test a checkpoint, or a delta on its base, of any config of mmdet, mmseg or mmpretrain.

    python tools/test.py configs/e3va/retinanet_swin_l_voc.py work_dirs/retinanet_swin_l_voc/epoch_12.pth
    python tools/test.py configs/e3va/retinanet_swin_l_voc.py e3va://delta.safetensors
"""
import copy

from mmengine.config import ConfigDict
from mmengine.evaluator import DumpResults

from e3va.command.checks import check
from e3va.command.config import prepare
from e3va.command.line import one_line_errors, read_run_config, run_parser
from e3va.command.processes import build_runner
from e3va.files.checkpoint import trusting


def parser():
    parser = run_parser(__doc__)
    parser.add_argument('checkpoint', help='a checkpoint file or URL, or e3va:// and a delta')
    parser.add_argument('--out', help='where predictions go: a .pkl file (mmdet, mmpretrain), a folder of label maps '
                        '(mmseg)')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='paint the predictions into this folder')
    parser.add_argument('--wait-time', type=float, default=2, metavar='SECONDS', help='how long a window shows')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: the config\'s own, or flips')
    return parser


def configure(args):
    """The final config of a test run."""
    cfg = prepare(read_run_config(args))
    cfg.load_from, cfg.resume = args.checkpoint, False
    check(cfg, 'test')
    if args.show or args.show_dir:
        paint(cfg, args)
    if args.tta:
        augment(cfg)
    if args.out and cfg.get('default_scope') == 'mmseg':
        for metric in [cfg.test_evaluator] if isinstance(cfg.test_evaluator, dict) else cfg.test_evaluator:
            metric.update(output_dir=args.out, keep_results=True)
    elif args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {args.out}: predictions of {cfg.get("default_scope")} go to a .pkl file')
    return cfg


def paint(cfg, args):
    """Turn the library's visualization hook on, for every image; each has its own names for the same options."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need a visualization hook among the default_hooks of the config')
    scope = cfg.get('default_scope')
    hook.update({'enable' if scope == 'mmpretrain' else 'draw': True}, interval=1, show=args.show,
                wait_time=args.wait_time)
    if args.show_dir and scope == 'mmseg':
        cfg.visualizer.save_dir = args.show_dir
    elif args.show_dir:
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = args.show_dir


def augment(cfg):
    """Test under the config's augmentations; without any, under flips, as the libraries' own tools do."""
    data = cfg.test_dataloader.dataset
    while 'dataset' in data:
        data = data.dataset
    pack = copy.deepcopy(data.pipeline[-1])
    if cfg.get('default_scope') == 'mmdet':
        model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
        pack.meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    elif cfg.get('default_scope') == 'mmpretrain':
        model = dict(type='AverageClsScoreTTA')
    elif 'tta_model' in cfg and 'tta_pipeline' in cfg:
        model = cfg.tta_model
    else:
        raise ValueError('--tta needs tta_model and tta_pipeline in this config')
    flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
    default = [*data.pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**{**cfg.get('tta_model', model), 'module': cfg.model})
    data.pipeline = cfg.get('tta_pipeline', default)


def dump(cfg):
    """The metric that writes the predictions."""
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults
        return DumpDetResults
    return DumpResults


def main(argv=None):
    args = parser().parse_args(argv)
    with one_line_errors(), trusting(args.trust_checkpoint):
        cfg = configure(args)
        runner = build_runner(cfg)
        if args.out and cfg.get('default_scope') != 'mmseg':
            runner.test_evaluator.metrics.append(dump(cfg)(out_file_path=args.out))
        runner.test()


if __name__ == '__main__':
    main()

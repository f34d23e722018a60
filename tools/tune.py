"""Your images to a tuned model: look at the data, choose what fits, train, show.

    python tools/tune.py DATA                                   an hour, on the GPU or the CPU that is there
    python tools/tune.py DATA --task instance --hours 8 --gpu 11
    python tools/tune.py DATA --look                            only say what is there
    python tools/tune.py DATA --plan                            only choose and write config.py, to edit or to compare

DATA is a folder: COCO JSON, Pascal VOC, YOLO txt, images with masks, or a folder per class; splits are made where
there are none. What was chosen is one config (config.py in --out), to edit and to run with tools/train.py; methods are
compared on it by tools/sweep.py. It ends with a page (page.html), the delta (delta.safetensors) and the line that uses
it. Interrupted, the same command goes on.
"""
import argparse
import contextlib
import shlex
import statistics
import sys
import warnings
from collections import Counter
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS / 'demo'))
sys.path.append(str(TOOLS))                                             # behind all packages

TASKS = ('detection', 'instance', 'semantic', 'classification')
SHOWN = 3                                                               # best and worst images on the page


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA', help='a folder')
    parser.add_argument('--task', choices=TASKS, help='default: what the format is for')
    parser.add_argument('--look', action='store_true', help='say what is there, and stop')
    parser.add_argument('--plan', action='store_true', help='choose, write config.py, and stop')
    parser.add_argument('--out', metavar='FOLDER', help='default: work_dirs/tune/NAME_OF_DATA_TASK')
    parser.add_argument('--hours', type=float, default=1., metavar='H', help='of training (default: %(default)g)')
    parser.add_argument('--gpu', type=float, metavar='GIB', help='memory to train in (default: what is free)')
    parser.add_argument('--method', default='auto', metavar='NAME', help='of configs/methods (default: what fits)')
    parser.add_argument('--size', type=int, metavar='PX', help='of the longest side (default: what fits)')
    parser.add_argument('--batch', type=int, metavar='N', help='images a step (default: what fits)')
    parser.add_argument('--epochs', type=int, metavar='N', help='passes over the data (default: what --hours allow)')
    parser.add_argument('--trunk', metavar='NAME', help='another plain ViT of timm, with --weights (default: ViT-S/14)')
    parser.add_argument('--weights', metavar='FILE', help='a checkpoint of the trunk')
    args = parser.parse_args(argv)
    for name, least in (('hours', 0), ('gpu', 0), ('size', 27), ('batch', 0), ('epochs', 0)):
        value = getattr(args, name)
        if value is not None and not least < value < float('inf'):
            parser.error(f'--{name} takes a number above {least}, not {value:g}')
    if bool(args.trunk) != bool(args.weights):
        parser.error('--trunk and --weights go together: a name of timm, and a file with its weights')
    if args.weights and not Path(args.weights).is_file():
        parser.error(f'--weights: there is no file {args.weights}')
    return args


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    try:
        with one_line_errors():
            tune(args)
    except KeyboardInterrupt:
        sys.exit('interrupted; the same command goes on from here')


def tune(args):
    from rich.console import Console
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False, emoji=False)
    from tuning.found import find
    found = find(args.data, args.task)
    data = rows(found)
    show_data(console, found, data)
    if args.look:
        return
    from fetch import cache_folder
    from tuning.task import prepare_data

    from e3va.command.checks import check_work_dir
    from e3va.files.whole import alone
    out = Path(args.out or f'work_dirs/tune/{found.folder.name}_{found.task}')
    check_work_dir(str(out))
    with alone(str(out)):
        place = prepare_data(found, cache_folder() / 'tune')
        cfg, why = configure(args, found, place, out, console)
        if args.plan:
            console.print(f'train it: the same command without --plan, or {command("train.py", out / "config.py")}\n'
                          f'compare methods: {comparing(out, found)}')
            return
        console.print(f'log: {out / "log.txt"}; what the model says so far: {out}/now_*.jpg')
        with open(out / 'log.txt', 'a') as log:                          # loggers keep it: one file for all that comes
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                runner = train(cfg, out, found, console)
                finish(runner, cfg, out, found, data, why, console)


# ---- the data

def rows(found):
    """The data's table, the head first."""
    out = [('split', 'images', *(['objects'] if found.items[0].boxes is not None else []), 'sizes, px',
            'classes, most first')]
    for split in ('train', 'val', 'test'):
        items = found.split(split)
        if not items:
            continue
        widths, heights = zip(*(item.size for item in items))
        counts = labels(items)
        balance = ', '.join(f'{found.classes[label]} {count:,}' for label, count in counts.most_common(8))
        more = len(counts) - 8
        out.append((split, f'{len(items):,}', *([f'{sum(counts.values()):,}'] if items[0].boxes is not None else []),
                    f'{min(widths)}x{min(heights)} to {max(widths)}x{max(heights)}, median '
                    f'{statistics.median(widths):g}x{statistics.median(heights):g}',
                    (balance + (f', {more} more' if more > 0 else '')) or ', '.join(found.classes[:8])))
    return out


def labels(items):
    """{class's index: how many objects, or images}; objects to be ignored are not counted."""
    return Counter(box['label'] for item in items for box in item.boxes or () if not box['crowd']) + Counter(
        item.label for item in items if item.label is not None)


def show_data(console, found, data):
    from rich.table import Table
    table = Table(title=f'{found.folder.name}: {found.format}, {found.task}, {len(found.classes)} classes'
                  + (', splits made by hashes of the images' if found.made else ''), title_justify='left')
    for title in data[0]:
        table.add_column(title)
    for row in data[1:]:
        table.add_row(*row)
    console.print(table, soft_wrap=False)
    for what, places in found.wrong.items():
        console.print(f'{len(places)} x {what}: {places[0]}' + (', ...' if len(places) > 1 else ''))
    used = labels(found.split('train'))
    none = [name for label, name in enumerate(found.classes) if found.task != 'semantic' and not used[label]]
    if none:
        console.print(f'nothing to train with of {", ".join(none)}: the model will not find them')
    if found.task in ('detection', 'instance') and not labels(found.split('val')):
        console.print('no object in val: its score will say nothing')


# ---- what is chosen, once

def configure(args, found, place, out, console):
    """(config, reasons): those of an earlier start of the same command, else chosen now and written to config.py."""
    from mmengine.config import Config
    from prepare import prepare_weights
    from tuning.choice import choose
    from tuning.found import WRITTEN
    from tuning.task import TRUNK, config, describe

    from e3va.command.config import apply_method
    from e3va.cost.spec import parse as parse_method
    from e3va.files.whole import write
    file, mark = out / 'config.py', f'Data: {place.name}. Command: {shlex.join(["python", *sys.argv])}'
    if file.is_file():
        text = file.read_text()
        if one_line(place.name) not in text.partition('\n\n')[0]:
            raise ValueError(f'{file} is of other data; name another folder by --out, or remove that one')
        console.print(f'goes on with {file}, as it is')
        if not text.splitlines()[1].endswith(one_line(shlex.join(sys.argv[1:]))):
            console.print('the command that wrote it was another one, and its choices stand: edit it, or name another '
                          'folder by --out')
        return Config.fromfile(file), [line.removeprefix('# ') for line in text.partition('\n\n')[0].splitlines()[3:]]
    trunk = dict(TRUNK, weights=args.weights)
    if args.trunk:
        trunk.update(describe(args.trunk))
    else:
        from fetch import cache_folder
        trunk['weights'] = prepare_weights(cache_folder(), console.print)
    console.print('choosing by the memory plan and a timed step ...')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                                 # what the libraries deprecate in one another
        choice = choose(found, place, trunk, args, lambda text: console.print(f'  {text}'))
    spec, = parse_method(choice.method)
    stock = config(found, place, choice.size, choice.batch, choice.epochs, trunk)
    task = task_file(out, found)
    write(task, comment(f'{found.task} of {len(found.classes)} classes, as config.py here but for a method, '
                        f'{WRITTEN}. Compare methods:', comparing(out, found)) + '\n\n' + stock.pretty_text)
    cfg = apply_method(stock, spec.method)
    cfg.pop('sweep')
    cfg.work_dir = str(out / 'again')                                   # of a training by train.py
    head = comment(f'{found.task} of {len(found.classes)} classes, {WRITTEN}. Edit it and run: '
                   f'{command("train.py", file)}', mark, '', *choice.why)
    write(file, f'{head}\n\n{cfg.pretty_text}')
    console.print(f'config: {file}')
    return Config.fromfile(file), choice.why


def comment(*lines):
    """Lines of a config that are only read."""
    return '\n'.join(f'# {one_line(line)}'.rstrip() for line in lines)


def one_line(text):
    """A text for a comment: a folder's name may have the end of a line in it, or what mmengine puts variables for."""
    return ' '.join(text.splitlines()).replace('{{', '{ {')


def command(tool, *words):
    """A line for a shell, whatever a path's name has in it."""
    return shlex.join(['python', f'tools/{tool}', *map(str, words)])


def comparing(out, found):
    """The line that compares methods on the data."""
    from tuning.task import can_choose
    return f'{command("sweep.py", task_file(out, found))} --methods fixed,lora,e3va{" --tune" * can_choose(found)}'


def task_file(out, found):
    """The config without a method; its name is the task's in a sweep's rows."""
    return out / f'task_{found.folder.name}.py'


# ---- training, and what it ends with

def train(cfg, out, found, console):
    """The trained runner; an interrupted run goes on, a finished one is loaded."""
    from progress import ProgressHook
    from tuning.show import Peek

    from e3va.command.checks import check
    from e3va.command.config import prepare
    from e3va.command.processes import build_runner
    from e3va.train.resume import newest_checkpoint
    cfg = prepare(cfg)
    cfg.work_dir, cfg.experiment_name = str(out / 'run'), out.name      # there mmengine writes a config.py of its own
    checkpoint = newest_checkpoint(out / 'run')
    if checkpoint:
        cfg.resume, cfg.load_from = True, checkpoint
    check(cfg, 'train')
    runner = build_runner(cfg)
    progress = ProgressHook(console, found.task)
    runner.register_hook(progress)
    runner.register_hook(Peek(out, found.classes))
    try:
        runner.train()
    finally:
        progress.bar.stop()
    return runner


def finish(runner, cfg, out, found, data, why, console):
    from tuning import page, show
    from tuning.task import SCORES

    import e3va
    from e3va.command.processes import scores_of
    score, times = SCORES[found.task]
    scores = {split: percent(scores_of(runner, split), score, times)
              for split in ('val', 'test') if split == 'val' or found.split('test')}
    delta = out / 'delta.safetensors'
    dataset = runner.val_dataloader.dataset
    e3va.save_delta(runner.model, delta, dataset_meta=dataset.metainfo, config=runner.cfg)
    runner.model.eval()
    samples = [show.predict(runner.model, dataset, i) for i in range(min(len(dataset), 200))]
    goods = [show.good(sample, show.truth_of(dataset, i)) for i, sample in enumerate(samples)]
    order = sorted(range(len(samples)), key=lambda i: goods[i])
    pictures = {}
    count = min(SHOWN, (len(order) + 1) // 2)                           # of few images each is shown once
    worst, best = order[:count], order[count:][-count:][::-1]
    for i in (*worst, *best):
        pictures[i] = out / f'image_{i}.jpg'
        show.paint_beside(runner.visualizer, samples[i], show.truth_of(dataset, i), pictures[i], found.classes)
    line = command('predict.py', delta, 'IMAGES', '--out', 'FOLDER')
    use = [('On images, from a shell:', line),
           ('In Python:', PYTHON[cfg.default_scope].format(config=out / 'config.py', delta=delta)),
           ('Train it again, after an edit:', command('train.py', out / 'config.py'))]
    sides = '' if found.task == 'classification' else 'truth and prediction, '
    texts = {i: f'{Path(samples[i].img_path).name}: {sides}{goods[i]:.2f}' for i in pictures}
    title, drawn = f'{found.folder.name}: {found.task}', page.curves(out / 'run', score, times)
    page.make(out / 'page.html', title, scores, drawn, data, why,
              [(pictures[i], texts[i]) for i in best], [(pictures[i], texts[i]) for i in worst], use)
    for split, values in scores.items():
        console.print(f'{split}: ' + ', '.join(f'{name} {value:.1f}' for name, value in list(values.items())[:3]))
    console.print(f'page: {out / "page.html"}\ndelta: {delta} ({delta.stat().st_size / 2 ** 20:.1f} MiB)')
    console.print(f'use it: {line}')


def percent(values, score, times):
    """{name: number}, that of `score` first; a detector that finds nothing at all has none there: that is 0."""
    found = {score: 0., **{name: value for name, value in values.items() if value >= 0}}
    return {name.rpartition('/')[2]: times * value for name, value in found.items()}


PYTHON = dict(
    mmdet="from mmdet.apis import DetInferencer\nimport e3va\n\n"
          "DetInferencer('{config}', 'e3va://{delta}')('IMAGE.jpg')",
    mmseg="from mmseg.apis import MMSegInferencer\nimport e3va\n\n"
          "MMSegInferencer('{config}', 'e3va://{delta}')('IMAGE.jpg')",
    mmpretrain="from mmpretrain import ImageClassificationInferencer\nimport e3va\n\n"
               "ImageClassificationInferencer('{config}', pretrained='e3va://{delta}')('IMAGE.jpg')")

if __name__ == '__main__':
    main()

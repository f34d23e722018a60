"""Train methods on tasks by one protocol: each method's rate chosen on val, then fresh seeds, test looked at once.

    python tools/sweep.py FOLDER_OF_TASKS --methods fixed,lora,e3va --tune
    python tools/sweep.py TASK.py --methods lora,lora:backward=0.25 --seeds 1 2
    sbatch --array=0-15 --gres=gpu:1 --wrap 'python tools/sweep.py configs/_base_/tasks/vtab_*.py --methods lora,gps'

Methods are names or files as of `--method`, with options behind a colon. With --tune each of the config's rates is
tried with its first weight decay, then the best rate with its other ones, all with seed 0 and scored on val alone; what
was best serves those of --seeds, scored on val and test. Where the best rate is the smallest or largest of them it says
so, as a further one may be better. Without --tune rate and weight decay are those of the config, or of the method's
settings for the task; what else these say holds in both cases (as of train.py).
A task is any config that has a `sweep = dict(score='coco/bbox_mAP', rates=[1e-3, 2e-3], weight_decays=[0.01])`: by what
it is scored, and what is tried (`rates_of=dict(full=[1e-5, 1e-4])` are other rates for a method, whatever its options,
`backbone_rate=dict(full=0.1)` the share of its rate at which the backbone trains, neck and heads at the whole);
`times=100` makes percent of fractions; `choose` are settings for the runs that choose alone, where a config's own val
split is its test split. What was finished before is not run again, an interrupted run goes on; a run that fails is
named at the end, the others are made. The jobs of a SLURM array share out the pairs of task and method; behind them the
same command collects the rows and shows the tables. Your own images become a task by `tools/tune.py FOLDER --plan`.
"""
import argparse
import contextlib
import copy
import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

sys.path.append(str(Path(__file__).resolve().parent))                   # tools/, behind all packages
SPLITS = 'train', 'val', 'test'
RESULT = 'score', 'times', 'choose'                                     # what of a `sweep` changes results
SHOWN = 'pipeline', 'metainfo', 'test_mode', 'lazy_init', 'serialize_data', 'max_refetch', 'backend_args', 'filter_cfg'
CHOICE = 0                                                              # the seed by which rates are chosen
WAIT = 2                                                                # s between looks at another sweep's run
STEP = re.compile(r'(?:Epoch|Iter)\(train\)\s*\[.*?(?=  |$)')          # where a run is, in mmengine's log
LEFT = re.compile(r'eta: (\S+)')


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: where it runs and what of."""

    config: str
    task: str
    method: str                                                         # as it was written
    rate: float                                                         # None: the config's own
    decay: float
    seed: int
    splits: tuple
    folder: Path
    pictures: int = 0                                                   # validation images to draw
    backbone: float = 1                                                 # the share of the rate at which it trains

    @property
    def says(self):
        rate = '' if self.rate is None else f' rate {self.rate:g} decay {self.decay:g}'
        return f'{self.task} {self.method}{rate} seed {self.seed}'

    @property
    def result(self):
        """The finished rows, those of val first."""
        return self.folder / f'{"_".join(self.splits)}.json'

    def told(self, command):
        """What a worker is told, for `heard`: the run, and the command that the user gave."""
        return json.dumps(dict(dataclasses.asdict(self), folder=str(self.folder), command=command))


def heard(text):
    """(the run, the user's command) out of what `Run.told` gave: equal to the one that was told."""
    run = json.loads(text)
    command = run.pop('command')
    return Run(**dict(run, splits=tuple(run['splits']), folder=Path(run['folder']))), command


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files, or folders of them')
    parser.add_argument('--methods', required=True, metavar='NAMES', help="e.g. 'fixed,lora,e3va:mode=bf16'")
    parser.add_argument('--seeds', nargs='+', type=int, default=[1, 2, 3], metavar='N', help='default: %(default)s')
    parser.add_argument('--tune', action='store_true', help="choose among the config's rates and weight decays on val")
    parser.add_argument('--out', default='work_dirs/sweep', metavar='FOLDER', help='default: %(default)s')
    parser.add_argument('--workers', type=int, metavar='N', help='runs at a time (default: one a GPU, or one a core)')
    parser.add_argument('--pictures', type=int, default=0, metavar='N',
                        help="draw what each method finds on N images of val, into its run's folder")
    parser.add_argument('--run', help=argparse.SUPPRESS)                # a worker's: the run, as JSON
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error(f'--workers takes a number of at least 1, not {args.workers}')
    if args.pictures < 0:
        parser.error(f'--pictures takes a number of at least 0, not {args.pictures}')
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds takes different numbers of at least 0, not {args.seeds}')
    if args.tune and CHOICE in args.seeds:
        parser.error(f'--seeds: with --tune seed {CHOICE} is that of the choice; leave it out, so that all are fresh')
    return args


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        if args.run:
            end_with_the_sweep()
            train(*heard(args.run))
        else:
            sys.exit(sweep(args))


# ---- the plan

def sweep(args):
    """All runs of the arguments; 1 where one failed, else 0."""
    tasks = [load_task(path) for path in config_files(args.configs)]
    check_data(tasks)
    methods = labels(args.methods)                                      # a wrong name stops before the first minute
    failed, pool = {}, Pool(args.workers)
    settings = {}                                                       # (task, method): (rate, weight decay)
    pairs = mine([(task, method) for task in tasks for method in methods])
    if args.tune:
        same = [task.config for task in tasks if not task.chooses]
        if same:
            raise ValueError(f'--tune: {", ".join(same)}: val is the test split, by which nothing may be chosen; say '
                             'by sweep.choose what other images a run that chooses is scored by, or leave --tune out')
        rates = {(task, method): {(rate, task.decays[0]) for rate in task.tried(method)} for task, method in pairs}
        failed |= choose(pool, rates, settings, args.out, 'choosing rates')
        collect(args.out, tasks, methods)                               # what one looks at meanwhile
        decays = {pair: {(settings[key][0], decay) for decay in pair[0].decays}
                  for pair in pairs if (key := (pair[0].name, pair[1])) in settings}
        failed |= choose(pool, decays, settings, args.out, 'choosing weight decays')
        collect(args.out, tasks, methods)
    else:
        settings = {(task.name, method): (None, None) for task, method in pairs}
    final = [run_of(task, method, *settings[task.name, method], seed, ('val', 'test')[task.same:], args.out,
                    args.pictures)
             for seed in args.seeds for task, method in pairs if (task.name, method) in settings]
    failed |= pool.finish(final, 'seeds')
    rows = collect(args.out, tasks, methods)
    show(tasks, methods, final, rows)
    for line in at_the_end(pairs, settings) if args.tune else ():
        print(line)
    unseen = [run.folder for run in final if run.pictures and run.result.is_file()
                 and not (run.folder / 'pictures').is_dir()]
    if unseen:                                                       # a finished run keeps no weights
        print('--pictures: these were finished before without pictures; remove the folders to train them again: '
              f'{", ".join(map(str, unseen))}')
    for run in failed:
        print(f'failed: {run.says}: {last_line(run.folder)}')
    for task, method in pairs:
        if (task.name, method) not in settings:
            print(f'{task.name} {method}: nothing is chosen, so no seed was run')
    return int(bool(failed))


def labels(methods):
    """The names of a list of methods as rows have them."""
    from e3va.cost.spec import parse as parse_methods
    return [spec.label for spec in parse_methods(methods)]


def mine(pairs):
    """All of them; in a job of a SLURM array its share."""
    if 'SLURM_ARRAY_TASK_ID' not in os.environ:
        return pairs
    given = {name: os.environ.get(f'SLURM_ARRAY_TASK_{name}', '1') for name in ('ID', 'MIN', 'MAX', 'COUNT', 'STEP')}
    index, first, last, count, step = map(int, given.values())
    if (last - first) // step + 1 != count:
        raise ValueError(f'an array of {count} jobs from {first} to {last} by steps of {step}: give a range, such as '
                         f'--array=0-{count - 1}, so that each job knows its share')
    return pairs[(index - first) // step::count]


def choose(pool, tried, settings, out, title):
    """Score each pair's tried (rate, weight decay) on val, put the best into `settings`; the runs that failed.

    A choice does without what cannot be trained, as it diverges; where a run was killed it waits for the next call.

    Args:
        tried (dict): {(task, method): set of (rate, weight decay)}.
    """
    runs = {(task.name, method): [run_of(task, method, *given, CHOICE, ('val', ), out) for given in sorted(given_all)]
            for (task, method), given_all in tried.items()}
    failed = pool.finish([run for made in runs.values() for run in made], title)
    for key, made in runs.items():
        scored = {run: value(run) for run in made if run.result.is_file()}
        if any(failed.get(run, 0) < 0 for run in made):
            settings.pop(key, None)
        elif scored:                                                    # the first, so the smallest rate, on a tie
            best = max(scored, key=scored.get)
            settings[key] = best.rate, best.decay
    return failed


def at_the_end(pairs, settings):
    """A line for each task and end of its rates where the best one of a method lies: a further one may be better."""
    for task in dict.fromkeys(task for task, _ in pairs):
        for end, pick in (('smallest', min), ('largest', max)):
            found = [method for other, method in pairs if other is task and (task.name, method) in settings
                     and len(task.tried(method)) > 1 and settings[task.name, method][0] == pick(task.tried(method))]
            if found:
                yield (f'{task.name}: the best rate is the {end} one tried for {", ".join(found)}; add others to '
                       'sweep.rates of the config, what was run is kept')


@dataclasses.dataclass(frozen=True)
class Task:
    """What a config says of itself."""

    name: str
    config: str
    mark: str                                                           # of the config, but for what is tried
    rates: tuple
    decays: tuple
    same: bool                                                          # val has the images of test
    chooses: bool                                                       # those that choose are scored by others
    rates_of: tuple = ()                                                # (method, its rates) where they are others
    backbone_rate: tuple = ()                                           # (method, share of the rate)
    places: tuple = ()                                                  # its folders and lists of data
    data: str = ''                                                      # how these are had
    marks: dict = dataclasses.field(default_factory=dict, compare=False)        # {method: its mark}, see `mark_of`

    def tried(self, method):
        """The rates of a method."""
        return dict(self.rates_of).get(bare(method), self.rates)

    def backbone(self, method):
        """The share of the rate at which a method trains the backbone."""
        return dict(self.backbone_rate).get(bare(method), 1)

    def mark_of(self, method):
        """The mark of the task under a method, with the method's file and its settings for the task."""
        if method not in self.marks:
            with contextlib.redirect_stdout(None):                      # the settings are said in the log of each run
                self.marks[method] = digest(configured(self.config, method)[0].to_dict())
        return self.marks[method]


def bare(method):
    """The name of a method without options, checkpointing and folder."""
    return Path(method.partition(':')[0].removesuffix('-cp')).name.removesuffix('.py')


def digest(content):
    """A mark: other content has another one."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:6]


def configured(config, method):
    """(the config under a method, its paper's settings for the task set as train.py does; its `sweep`)."""
    from e3va.command.config import apply_settings, load_config
    from e3va.cost.spec import parse as parse_methods
    from e3va.cost.spec import tuned
    cfg = load_config(config)
    task = cfg.pop('sweep')
    spec, = parse_methods(method)
    return apply_settings(tuned(cfg, spec), spec.method), task


def config_files(given):
    files = [file for path in map(Path, given)
             for file in (sorted(path.glob('*.py')) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f'{", ".join(given)}: there is no config')
    names = [file.stem for file in files]
    twice = [str(file) for file in files if names.count(file.stem) > 1]
    if twice:
        raise ValueError(f'{", ".join(twice)}: a name is a task in the rows; give each once, or rename one')
    return files


def load_task(path):
    from e3va.command.config import load_config, nodes
    cfg = load_config(path)
    missing = [f'{split}_dataloader' for split in SPLITS if not (cfg.get(f'{split}_dataloader') or {}).get('dataset')]
    if missing:
        raise ValueError(f'{path} has no {", ".join(missing)} with a dataset: a task trains on train, and is scored on '
                         'val and test (test_dataloader = val_dataloader where they are the same)')
    if not {'score', 'rates', 'weight_decays'} <= set(cfg.get('sweep') or {}):
        raise ValueError(f"{path} says no sweep = dict(score='coco/bbox_mAP', rates=[1e-3], weight_decays=[0.01])")
    run = cfg.to_dict()
    run['sweep'] = {key: value for key, value in run['sweep'].items() if key in RESULT}   # of what is tried none
    choosing = copy.deepcopy(cfg)
    choosing.merge_from_dict(cfg.sweep.get('choose', {}))
    val, test = (images(each.dataset) for each in (cfg.val_dataloader, cfg.test_dataloader))
    datasets = nodes([cfg[f'{split}_dataloader'].dataset for split in SPLITS])
    places = tuple(dict.fromkeys(place for node in datasets for place in places_of(node)))
    return Task(path.stem, str(path), digest(run), tuple(cfg.sweep.rates), tuple(cfg.sweep.weight_decays),
                val == test, images(choosing.val_dataloader.dataset) != test,
                tuple((method, tuple(rates)) for method, rates in cfg.sweep.get('rates_of', {}).items()),
                tuple(cfg.sweep.get('backbone_rate', {}).items()), places,
                cfg.sweep.get('data', 'put the data there'))


def images(dataset):
    """What of a dataset's config says which images it has: not how they are shown."""
    if isinstance(dataset, dict):
        return {key: images(value) for key, value in dataset.items() if key not in SHOWN}
    if isinstance(dataset, (list, tuple)):
        return [images(each) for each in dataset]
    return os.path.normpath(dataset) if isinstance(dataset, str) else dataset


def places_of(dataset):
    """The folders and files that a dataset reads, those first that hold the others."""
    root, ann, prefix = (dataset.get(key) or '' for key in ('data_root', 'ann_file', 'data_prefix'))
    parts = ['', ann, *(prefix.values() if isinstance(prefix, dict) else [prefix])]
    places = [os.path.join(root, part).rstrip('/') for part in parts if isinstance(part, str)]
    return [place for place in places if place and '://' not in place]


def check_data(tasks):
    """ValueError where data is missing: of all tasks at once, what to do about each said once."""
    missing = defaultdict(list)
    for task in tasks:
        lacks = [place for place in task.places if not os.path.exists(place)]
        if lacks:                                                       # of a missing folder not what would be in it
            inside = {place for place in lacks for other in lacks if place.startswith(os.path.join(other, ''))}
            missing[task.data].append((task.config, [place for place in lacks if place not in inside]))
    if missing:
        raise ValueError('\n'.join(
            f'{", ".join(config for config, _ in found)}: there is no file or folder '
            f'{", ".join(dict.fromkeys(root for _, lacks in found for root in lacks))}; {what}'
            for what, found in missing.items()))


def run_of(task, method, rate, decay, seed, splits, out, pictures=0):
    """A change of the config, of a method's options, file or settings is another folder."""
    stem = ''.join(letter if letter.isalnum() or letter in '-_.=' else '_' for letter in method)
    setting, share = 'own' if rate is None else f'rate{rate:g}_decay{decay:g}', task.backbone(method)
    if share != 1:
        setting += f'_backbone{share:g}'
    folder = Path(out) / f'{task.name}-{task.mark}' / f'{stem}-{task.mark_of(method)}' / f'{setting}_seed{seed}'
    return Run(task.config, task.name, method, rate, decay, seed, splits, folder, pictures, share)


def value(run):
    return json.loads(run.result.read_text())[0]['value']               # the first is val's, where there is one


# ---- the workers

class Pool:
    """Runs in processes of their own, each with a GPU or a core to itself."""

    def __init__(self, workers):
        import torch
        self.gpus = torch.cuda.device_count()
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [None] * os.cpu_count()
        self.workers = workers or self.gpus or len(self.cores)

    def finish(self, runs, title):
        """Make the runs that are not there yet; {run that failed: its exit status, below 0 where it was killed}."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        left, failed, places, stop = [run for run in runs if not run.result.is_file()], {}, SimpleQueue(), []
        for i in range(self.workers):
            places.put(i)
        columns = (TextColumn('{task.description}'), BarColumn(20), TimeRemainingColumn(compact=True),
                   TextColumn('{task.fields[said]}'))
        with Progress(*columns, speed_estimate_period=3600) as bar:
            progress = bar.add_task(title, total=len(left), said=f'of {len(left)} runs')

            def one(run):
                place = places.get()
                try:
                    if not stop and not run.result.is_file():
                        here = bar.add_task(f'  {run.says}', total=None, said='')

                        def say(text):
                            bar.update(here, said=text)

                        if status := self.start(run, place, say):
                            failed[run] = status
                        bar.remove_task(here)
                except BaseException:                                   # a full disk: the others need not try
                    stop.append(True)
                    raise
                finally:
                    places.put(place)
                bar.advance(progress)
                if run.result.is_file():
                    bar.console.print(f'{run.says}: {value(run):.2f}', highlight=False)

            with ThreadPoolExecutor(self.workers) as threads:
                try:
                    list(threads.map(one, left))
                except KeyboardInterrupt:
                    stop.append(True)
                    sys.exit('interrupted; the same command goes on from here')
        return failed

    def start(self, run, place, say):
        """A run's exit status; its output goes to log.txt in its folder, and `say` hears where it is."""
        run.folder.mkdir(parents=True, exist_ok=True)
        environment, threads = dict(os.environ), max(1, len(self.cores) // self.workers)
        if self.gpus:
            from e3va.command.processes import card
            environment['CUDA_VISIBLE_DEVICES'] = card(place, self.gpus)
        else:
            environment.setdefault('OMP_NUM_THREADS', str(threads))
        command = [sys.executable, __file__, run.config, '--methods', run.method, '--run',
                   run.told(shlex.join(['python', *sys.argv]))]
        log = run.folder / 'log.txt'
        log.write_bytes(b'')                                            # errors of before are over
        with log.open('a') as output:                                   # another sweep may wait for this run
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
            while process.poll() is None:
                say(where(log))
                time.sleep(0.5)
            status = process.returncode
            if status == 0 and not run.result.is_file():                # told to end by SIGTERM it saves, and ends well
                status = -signal.SIGTERM
            if status < 0:
                output.write(f'\nerror: killed by signal {-status}'
                             f'{", as for want of memory" * (status == -signal.SIGKILL)}\n')
        return status


def where(log):
    """How far a run is by the end of its log: epoch, step, time left."""
    with open(log, 'rb') as file:
        file.seek(max(0, log.stat().st_size - 4096))
        for line in reversed(file.read().decode(errors='replace').splitlines()):
            step = STEP.search(line)
            if step:
                left = LEFT.search(line)
                return ' '.join(step[0].split()) + (f', {left[1]} left' if left else '')
    return 'starting'


def last_line(folder):
    """The error that ended a run; without one the last of what it said."""
    lines = (folder / 'log.txt').read_text(errors='replace').strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith('error: ')), lines[-1] if lines else 'no output')


# ---- one run

def end_with_the_sweep():
    """End this worker when the sweep is no more, however that was killed: its end of the pipe closes then."""
    def wait():
        os.read(0, 1)                                                   # sys.stdin's lock would stop a usual end
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def train(run, command):
    """Make a run, unless another sweep into this folder makes it; that one is waited for."""
    from e3va.files.whole import alone
    while not run.result.is_file():
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(alone(str(run.folder)))
            except ValueError:
                time.sleep(WAIT)
                continue
            if not run.result.is_file():
                train_and_score(run, command)


def train_and_score(run, command):
    """The rows go to `run.result`, the val row first, with the command that the user gave."""
    import e3va
    from e3va.command.checks import check
    from e3va.command.config import prepare
    from e3va.command.processes import build_runner, scores_of
    from e3va.cost.saved import saved_mib
    from e3va.files.checkout import commit
    from e3va.files.whole import write
    from e3va.train.resume import newest_checkpoint
    cfg, task = configured(run.config, run.method)
    optimizer = cfg.optim_wrapper.optimizer
    if run.rate is not None:
        optimizer.update(lr=run.rate, weight_decay=run.decay)
    if run.backbone != 1:
        cfg.merge_from_dict({'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': run.backbone})
    if 'test' not in run.splits:
        cfg.merge_from_dict(task.get('choose', {}))
    cfg.work_dir, cfg.randomness = str(run.folder), dict(seed=run.seed)
    cfg.experiment_name = '-'.join(run.folder.parts[-3:])               # mmengine keeps what was logged by it
    cfg.train_cfg.val_begin = 10 ** 9                                   # scored below, once
    checkpoint = newest_checkpoint(run.folder)
    if checkpoint:                                                      # an interrupted run goes on
        cfg.resume, cfg.load_from = True, checkpoint
    check(prepare(cfg), 'train')
    runner = build_runner(cfg)
    if run.backbone != 1:
        check_share(runner.model, cfg.optim_wrapper.paramwise_cfg)
    runner.train()
    scores = {split: scores_of(runner, split) for split in run.splits}
    seconds, _ = runner.message_hub.get_scalar('train/time').data
    common = dict(
        task=run.task, method=run.method, seed=run.seed, rate=optimizer.lr,
        weight_decay=optimizer.get('weight_decay', 0.),
        **(dict(backbone_rate=run.backbone) if run.backbone != 1 else {}),
        trained=e3va.report(runner.model)['trained'], saved_mib=round(saved_mib(runner), 2),
        train_s=round(float(seconds.sum()), 1), steps=len(seconds), commit=commit(), device=device(),
        command=command)
    rows = [dict(common, split=split, metric=task.score,
                 value=round(score(found, task.score, split) * task.get('times', 1), 3))
            for split, found in scores.items()]
    write(run.result, json.dumps(rows))                                 # whatever becomes of the pictures
    if run.pictures:
        from tuning.show import draw_some
        draw_some(runner, run.pictures, run.folder / 'pictures', run.folder / 'truth')
    for path in run.folder.glob('*.pth'):                               # the rows are what is wanted
        path.unlink()


def check_share(model, paramwise):
    """ValueError where other settings of the backbone's parameters would win over its share, or lose by it."""
    names = [name for name, _ in model.named_parameters() if name.startswith('backbone.')]
    others = [key for key in paramwise.custom_keys if key != 'backbone' and any(key in name for name in names)]
    others += ['constructor'] if 'constructor' in paramwise else []
    if others:
        raise ValueError(f'sweep.backbone_rate beside {", ".join(others)} of paramwise_cfg, which set parameters of '
                         'the backbone too: leave out one of both')


def score(found, name, split):
    """One of the scores of a split. A detector that finds nothing at all has none there: that is 0."""
    if found and name not in found:
        raise ValueError(f"sweep.score is {name!r}, and the {split} evaluator gives {', '.join(sorted(found))}")
    value = float(found.get(name, 0))
    if value == -1:                                                     # pycocotools' word for it
        raise ValueError(f'the {split} split has no score {name}: there is no object in it')
    if not math.isfinite(value):
        raise ValueError(f'{name} of the {split} split is {value}: has the training diverged? Look at its loss')
    return value


def device():
    import torch
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f'{threads} thread{"s" * (threads > 1)} of a CPU'


# ---- what came out

def collect(out, tasks, methods):
    """All rows under a folder, which also go to its rows.jsonl, of one state of each task and method alone.

    Of these tasks and methods that is today's; of others, as no config of theirs is at hand, the one that ran last.
    """
    from e3va.command.rows import identity
    from e3va.files.whole import write

    def only(found, level, of, today):
        """Of the folders `level` above the results those of today's mark."""
        marks = {of(file, rows): mark(file, level) for file, rows in found} | today
        return [(file, rows) for file, rows in found if mark(file, level) == marks[of(file, rows)]]

    def mark(file, level):
        return file.parents[level].name.rpartition('-')[2]

    files = sorted(Path(out).glob('*/*/*/*.json'), key=lambda file: (file.stat().st_mtime, file))
    found = [(file, json.loads(file.read_text())) for file in files]
    found = only(found, 2, lambda _, rows: rows[0]['task'], {task.name: task.mark for task in tasks})
    found = only(found, 1, lambda _, rows: (rows[0]['task'], rows[0]['method']),
                 {(task.name, method): task.mark_of(method) for task in tasks for method in methods})
    rows = {}
    for _, made in sorted(found):                                       # a config's own setting may be one of the tried
        for row in made:
            rows.setdefault(identity(row), row)
    write(Path(out) / 'rows.jsonl', ''.join(json.dumps(row) + '\n' for row in rows.values()))
    return list(rows.values())


def show(tasks, methods, final, rows):
    from rich.console import Console
    from rich.table import Table
    console = Console(file=sys.stdout)
    for task in tasks:
        table = Table(title=task.name, title_justify='left')
        for title in ('method', 'rate', 'decay', 'val', 'test', 'trained', 'saved, MiB', 'steps, s'):
            table.add_column(title, justify='left' if title == 'method' else 'right', overflow='fold')
        for method in methods:
            runs = [run for run in final if (run.task, run.method) == (task.name, method) and run.result.is_file()]
            found = [json.loads(run.result.read_text()) for run in runs]
            if found:
                first = found[0][0]
                table.add_row(method, f'{first["rate"]:g}', f'{first["weight_decay"]:g}',
                              *(cell([row['value'] for run in found for row in run if row['split'] == split])
                                for split in ('val', 'test')), f'{first["trained"]:,}',
                              f'{first["saved_mib"]:.1f}', f'{statistics.mean(run[0]["train_s"] for run in found):.0f}')
        console.print(table)


def cell(values):
    if not values:
        return ''
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{spread}'


if __name__ == '__main__':
    main()

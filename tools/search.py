"""Search a supernet of NOAH for its best subnet within a budget of parameters.

    python tools/train.py CONFIG --method noah                                          # the supernet
    python tools/search.py CONFIG work_dirs/CONFIG_noah/epoch_500.pth --budget 640000 --score accuracy/top1
    python tools/train.py CONFIG --method work_dirs/search/subnet.py                    # the subnet, from the start

Subnets are scored on val, with the supernet's weights, by several processes. The file of the best one is
OUT/subnet.py. Every score is written down at once, so that an interrupted search goes on by the same command; with
other numbers of rounds or subnets, too, none is computed twice.
"""
import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

MODEL = None                                                            # of this process: (runner, trunk, arguments)


def parse(argv):
    from e3va.command.line import config_parser, trust_option
    parser = trust_option(config_parser(__doc__))
    parser.add_argument('checkpoint', help="the supernet's")
    parser.add_argument('--budget', type=int, required=True, metavar='N', help='parameters of a subnet, at most')
    parser.add_argument('--score', required=True, metavar='NAME', help='a metric of val, e.g. accuracy/top1')
    parser.add_argument('--out', default='work_dirs/search', metavar='FOLDER', help='default: %(default)s')
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one a GPU, or one a core)')
    for name, value, told in (('rounds', 15, 'rounds'), ('population', 50, 'subnets of a round'),
                              ('select', 10, 'parents'), ('mutations', 25, 'mutants of a round'),
                              ('crosses', 25, 'crosses of a round'), ('seed', 0, 'of what is drawn')):
        parser.add_argument(f'--{name}', type=int, default=value, metavar='N', help=f'{told} (default: %(default)s)')
    parser.set_defaults(method='noah')
    args = parser.parse_args(argv)
    for name in ('budget', 'workers', 'rounds', 'population', 'select'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f'--{name} takes a number of at least 1, not {getattr(args, name)}')
    return args


def main(argv=None):
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    args = parse(argv)
    with one_line_errors():
        try:
            run(args)
        except KeyboardInterrupt:
            sys.exit('interrupted; the same command goes on from here')


def run(args):
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from e3va.files.whole import alone, write
    from e3va.noah.method import count, space_of
    from e3va.noah.search import key, search
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with alone(str(out)), Progress(*columns, speed_estimate_period=3600) as bar:
        trunk, known = build(args), read_scores(out / 'scores.jsonl', identity(args))
        task = bar.add_task('round 1', total=0)
        with scorers(args) as values:
            def score(subnets):
                left = [subnet for subnet in subnets if key(subnet) not in known]
                bar.update(task, total=len(subnets), completed=len(subnets) - len(left))
                for subnet, value in values(left):
                    known[key(subnet)] = value
                    append(out / 'scores.jsonl', dict(subnet=key(subnet), value=value))
                    bar.advance(task)
                return [known[key(subnet)] for subnet in subnets]

            def tell(number, best):
                value, subnet = best[0]
                bar.console.print(f'round {number} of {args.rounds}: best {value:g} of {len(best)} subnets, '
                                  f'{count(trunk, subnet):,} parameters', highlight=False)
                bar.update(task, description=f'round {number + 1}')

            best = search(space_of(trunk, trunk.tuning.method), lambda subnet: count(trunk, subnet), args.budget, score,
                          args.seed, args.rounds, args.population, args.select, args.mutations, args.crosses, tell=tell)
        value, subnet = best[0]
        write(out / 'subnet.py', method_file(args, value, subnet, count(trunk, subnet), len(best)))
    print(f'{out / "subnet.py"}: {args.score} {value:g} on val, {count(trunk, subnet):,} parameters')


def method_file(args, value, subnet, parameters, number):
    """The best subnet as a method file."""
    lines = ',\n'.join(f'    {kind}={sizes}' for kind, sizes in subnet.items())
    return (f'# A subnet of NOAH (Zhang et al., TPAMI 2024, arXiv:2206.04673): {parameters:,} parameters, the best of '
            f'{number} of at most\n# {args.budget:,} for {args.config}, with the weights of the supernet\n'
            f'# {args.checkpoint}: {args.score} {value:g} on val.\n'
            f"method = dict(type='NOAH', subnet=dict(\n{lines}))\n")


# ---- what was scored

def identity(args):
    """What the scores depend on: the config, the supernet's weights, the metric."""
    from e3va.command.line import read_config
    with open(args.checkpoint, 'rb') as file:
        weights = hashlib.file_digest(file, 'sha256').hexdigest()
    config = hashlib.sha256(read_config(args).pretty_text.encode()).hexdigest()
    return dict(config=config[:16], weights=weights[:16], score=args.score)


def read_scores(path, own):
    """{key of a subnet: value} of an earlier search; the file begins with its identity.

    A last line that a kill has cut is taken away. ValueError where they are of another supernet.
    """
    from e3va.files.whole import write
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith('\n')]
    rows = [json.loads(line) for line in whole]
    if rows and rows[0] != own:
        differs = ', '.join(name for name in own if rows[0].get(name) != own[name])
        raise ValueError(f'{path} has the scores of another search ({differs} differ): name another --out')
    if len(whole) < len(lines) or not rows:
        write(path, ''.join(whole) or json.dumps(own) + '\n')
    return {tuple(map(tuple, row['subnet'])): row['value'] for row in rows[1:]}


def append(path, row):
    with open(path, 'a') as file:
        file.write(json.dumps(row) + '\n')
        file.flush()
        os.fsync(file.fileno())


# ---- the workers

@contextlib.contextmanager
def scorers(args):
    """values(subnets), which yields (subnet, value) as they come: from this process, or from several."""
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    workers = args.workers or torch.cuda.device_count() or cores
    if workers == 1:
        yield lambda subnets: ((subnet, value_of(subnet)) for subnet in subnets)
        return
    context = multiprocessing.get_context('spawn')
    places = context.Queue()
    for i in range(workers):
        places.put(i)
    pool = ProcessPoolExecutor(workers, context, start, (args, places, max(1, cores // workers)))

    def values(subnets):
        waiting = {pool.submit(value_of, subnet): subnet for subnet in subnets}
        for done in as_completed(waiting):
            try:
                yield waiting[done], done.result()
            except ValueError as error:                                 # a worker's, as one of our own
                raise ValueError(error.args[0]) from error

    try:
        yield values
    finally:
        pool.shutdown(cancel_futures=True)


def start(args, places, threads):
    """A worker's own supernet, on a GPU or some cores of its own; it ends with the process that it is for."""
    import torch

    from e3va.command.processes import card  # helps the stack import
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave, daemon=True).start()
    place = places.get()
    if torch.cuda.device_count():
        os.environ['CUDA_VISIBLE_DEVICES'] = card(place, torch.cuda.device_count())
    else:
        torch.set_num_threads(threads)
    build(args, place)


def leave():
    multiprocessing.parent_process().join()
    os._exit(1)


def build(args, place='first'):
    """The trunk of the supernet with its weights; MODEL becomes what scores it, and nothing else draws."""
    global MODEL
    from e3va.command.checks import check
    from e3va.command.config import prepare
    from e3va.command.line import read_config
    from e3va.command.processes import build_runner
    from e3va.noah.method import NOAH
    from e3va.tuned import find_tuned
    cfg = read_config(args)
    cfg.load_from, cfg.work_dir, cfg.log_level = args.checkpoint, str(Path(args.out) / 'work'), 'WARNING'
    cfg.experiment_name = f'search_{place}'
    check(prepare(cfg), 'test')
    for name in ('noah', 'delta'):                                      # nothing draws
        cfg.default_hooks.pop(name, None)
    cfg.default_hooks.checkpoint = None                                 # nothing is the best so far
    runner = build_runner(cfg)
    trunk = find_tuned(runner.model)[1]
    if not isinstance(trunk.tuning.method, NOAH) or trunk.tuning.method.subnet:
        raise ValueError('this searches a supernet of NOAH: give --method noah, or a file that names no subnet')
    MODEL = runner, trunk, args
    return trunk


def value_of(subnet):
    """The score of a subnet on val."""
    from e3va.files.checkpoint import trusting
    from e3va.noah.method import set_sizes
    runner, trunk, args = MODEL
    set_sizes(trunk, subnet)
    with trusting(args.trust_checkpoint):
        found = runner.val()                                            # the first time it loads the weights
    if args.score not in found:
        raise ValueError(f'--score {args.score}: val gives {", ".join(found)}')
    return float(found[args.score])


if __name__ == '__main__':
    main()

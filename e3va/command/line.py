"""What the tools share: arguments, the config they lead to, and one line instead of a traceback for bad input."""
import argparse
import contextlib
import inspect
import io
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from urllib.error import URLError

from mmengine.config import DictAction
from mmengine.logging import print_log
from rich.console import Console

from ..files.checkpoint import trusting
from ..files.whole import FULL
from ..surgery import near
from .config import apply_method, apply_settings, load_config, load_method

# What of a config a run or a tool reads beside a Runner's own arguments.
RUNNER = {'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters',
          'model_wrapper_cfg', 'runner_type', 'strategy', 'sweep', 'sync_bn', 'test_pipeline', 'tta_model',
          'tta_pipeline'}


class Options(DictAction):
    """mmengine's KEY=VALUE pairs; what is no pair is a usage error."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError):
            parser.error(f'{option_string} takes KEY=VALUE pairs, lists as key="[a,b]"; got {" ".join(values)}')


def config_parser(description):
    """A parser of the arguments that lead to a config."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config file, or mmdet::, mmseg::, mmpretrain:: or e3va:: and the name of one')
    parser.add_argument('--method', metavar='NAME_OR_FILE',
                        help='tune the backbone by this method: a file of configs/methods/, by name, or any path')
    parser.add_argument('--cfg-options', nargs='+', action=Options, default={}, metavar='KEY=VALUE',
                        help='override settings of the config, e.g. model.backbone.method.rank=16; a list is written '
                        'key="[a,b]", without white space')
    return parser


def trust_option(parser):
    """Let a user take a checkpoint that cannot be read as data alone."""
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='read checkpoints by plain pickle, which runs what they ask for: only those of people you '
                        'trust')
    return parser


def plot_parser(description, of, picture):
    """The arguments of a plot of a finished run: the run, `--out` and `--trust-checkpoint`.

    Args:
        of (str): the method that the run is of, for the help.
        picture (str): the default of `--out`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', help=f'a folder, a .pth checkpoint or a .safetensors delta of a run with {of}')
    parser.add_argument('--out', default=picture, help='the picture (default: %(default)s)')
    return trust_option(parser)


@contextlib.contextmanager
def plotting(args, formats):
    """Where a plot is read and drawn: bad input, such as an `--out` of none of the formats, is one line."""
    with one_line_errors(), trusting(args.trust_checkpoint):
        if Path(args.out).suffix not in formats:
            raise ValueError(f'--out {args.out}: the name must end in {", ".join(formats)}')
        yield


def run_parser(description):
    """The same with the arguments of a run: work dir and launcher."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: work_dirs/CONFIG[_METHOD])')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    trust_option(parser)
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    return parser


def read_config(args):
    """The config that the arguments of `config_parser` name."""
    cfg = load_config(args.config)
    if args.method:
        method = load_method(args.method)
        cfg = apply_settings(apply_method(cfg, method), method)
    return override(cfg, args.cfg_options)


def override(cfg, options):
    """`cfg` with the settings of --cfg-options.

    ValueError for a first key that nothing reads; one that is a variable of the config's file is said to change
    nothing.
    """
    if not options:
        return cfg
    from mmengine.runner import Runner  # takes its time, and most calls give no options
    read = RUNNER | set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    for first in dict.fromkeys(key.partition('.')[0] for key in options):
        if first not in read and first not in cfg:
            raise ValueError(f'--cfg-options {first}: a run reads no such key; {near(first, sorted(read))}. Options of '
                             'a method are model.backbone.method.NAME')
        if first not in read:
            print_log(f'--cfg-options {first} changes nothing: it is a variable of the file, read while that was. Set '
                      f'what it is for, e.g. one of {", ".join(sorted(read & set(cfg))[:4])}', 'current',
                      logging.WARNING)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options: {error.args[0]}') from error
    return cfg


def read_run_config(args):
    """The config of a run, with its launcher and its work dir: the argument's, else the config's, else by name."""
    cfg = read_config(args)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    name = Path(args.config).stem + (f'_{Path(args.method).stem}' if args.method else '')
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    return cfg


@contextlib.contextmanager
def one_line_errors():
    """Bad input ends the program by one message on stderr and exit code 2; a bug keeps its traceback."""
    try:
        yield
    except Exception as error:
        if not is_users(error):
            raise
        # each process says it: the launcher ends the others as soon as one has ended
        print(f'error: {message(error)}', file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def quiet():
    """Bad input as one line, the libraries' own words left out; yields `say`, which shows on stderr what is being done.
    """
    with one_line_errors(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        with Console(stderr=True).status('reading') as status:
            yield status.update


def message(error):
    """What to tell the user of an error."""
    if isinstance(error, URLError):
        return (f'a download failed: {error}. Give the file by its path, for weights '
                '--cfg-options model.backbone.init_cfg.checkpoint=PATH, or load_from=PATH where the config has that')
    if full_disk(error):
        where = f' for {error.filename}' if error.filename else ''
        return (f'the disk is full{where}: make room; files that were whole are as they were, and a training goes on '
                'with --resume')
    if empty_dataset(error):
        return (f'{empty_dataset(error)}.dataset is empty: no image of it is left; look at its ann_file, its folders, '
                'its filter_cfg and its classes (metainfo)')
    return error.args[0] if isinstance(error, KeyError) else error


def empty_dataset(error):
    """The loader ('train_dataloader') in whose data set mmengine finds nothing to keep; None for any other error."""
    calls = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    stages = [stage for stage in ('train', 'val', 'test') if f'build_{stage}_loop' in calls]
    return f'{stages[-1]}_dataloader' if '_serialize_data' in calls and stages else None


def full_disk(error):
    """Whether an error is about a full disk: logs and the dumped config are mmengine's own to write."""
    return isinstance(error, OSError) and error.errno in FULL


def is_users(error):
    """Whether an error is about the input.

    Raised by our own code; a file or page that is missing, or a folder in its place, or not to be read; a full disk; or
    a registry's: a type that it does not know, an argument that the type does not take.
    """
    places = FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, URLError
    if isinstance(error, places) or full_disk(error) or empty_dataset(error):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    file, package = Path(frame.filename).resolve(), Path(__file__).resolve().parents[1]
    if isinstance(error, (KeyError, TypeError)):
        return file.parts[-3:-1] == ('mmengine', 'registry')
    # the tools may be a checkout's, and the package installed elsewhere
    tools = any(folder.name == 'tools' and (folder.parent / 'e3va').is_dir() for folder in file.parents)
    return isinstance(error, ValueError) and (file.is_relative_to(package) or tools) and frame.line.startswith('raise ')

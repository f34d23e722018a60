"""What a tuned model finds on images: drawn, and as results.json.

    python tools/predict.py work_dirs/tune/cells_detection/delta.safetensors IMAGES --out FOLDER

The model is the one that the delta records; a config of yours, which is run as any Python file, is given by --config.
IMAGES are files and folders.
"""
import argparse
import contextlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

IMAGES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.tif', '.tiff', '.webp')


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('delta', metavar='DELTA', help='a .safetensors of e3va')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files and folders')
    parser.add_argument('--config', metavar='FILE', help='default: what DELTA records')
    parser.add_argument('--out', default='predictions', metavar='FOLDER', help='default: %(default)s')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        predict(args)


def predict(args):
    from e3va.command.checks import check_work_dir
    from e3va.files.whole import write
    config, out = config_of(args), Path(args.out)
    files, left, results, names = images_of(args.images, out), [], {}, set()
    check_work_dir(args.out)
    scope = config.default_scope
    with (open(out / 'log.txt', 'a') as log, contextlib.redirect_stdout(log),
          warnings.catch_warnings()):
        warnings.simplefilter('ignore')                                 # what the libraries deprecate in one another
        model = inferencer(scope, config, f'e3va://{args.delta}')
        for path in files:
            if not readable(path):
                left.append(path)
                continue
            with tempfile.TemporaryDirectory(dir=args.out) as part:
                results[str(path)] = one(scope, model, path, Path(part))
                results[str(path)].update(moved(Path(part), out, fresh(path.stem, names)))
    write(Path(args.out) / 'results.json', json.dumps(results, indent=1))
    print(f'{len(results)} images: {args.out}/results.json and pictures beside it')
    for path in left:
        print(f'cannot be read, left out: {path}', file=sys.stderr)


def config_of(args):
    """The config of --config, or what the delta records of its own, which is read as data."""
    from mmengine.config import Config

    from e3va.command.config import load_config
    from e3va.delta import file as delta_file
    from e3va.delta.config import heard, whole
    for path, option in ((args.delta, 'DELTA'), (args.config or args.delta, '--config')):
        if not Path(path).is_file():
            raise ValueError(f'{option}: there is no file {path}')
    if args.config:
        return load_config(args.config)
    _, recorded = delta_file.read(args.delta)
    if not recorded.get('config'):
        raise ValueError(f'{args.delta} does not record what model it is for: give the config of its training by '
                         '--config FILE, if you trust that: it is run as a program')
    return Config(whole(heard(recorded['config'])))


def images_of(given, out):
    """The images of some files and folders, but for what lies in the folder `out`, which they must not be themselves.
    """
    files = []
    for place in map(Path, given):
        found = [place]
        if place.is_dir():
            found = sorted(path for path in place.rglob('*') if path.suffix.lower() in IMAGES and (
                place.resolve() == out.resolve() or out.resolve() not in path.resolve().parents))
        if not found or not found[0].exists():
            raise ValueError(f'{place}: there is no image')
        files += found
    beside = [path for path in files if path.resolve().parent == out.resolve()]
    if beside:
        raise ValueError(f'--out {out}: {beside[0]} lies there, and a picture of its name would take its place; name '
                         'another folder')
    return files


def fresh(name, taken):
    """A name that is not taken yet, from now on it is: of one name in several folders 1, 1_2, 1_3."""
    free = next(each for each in (name, *(f'{name}_{i}' for i in range(2, len(taken) + 3))) if each not in taken)
    taken.add(free)
    return free


def readable(path):
    import cv2
    import mmcv
    with contextlib.suppress(OSError, cv2.error):
        return mmcv.imread(path) is not None
    return False


def moved(part, out, name):
    """What was written for one image goes to `out`, by its `name`; {'picture' or 'map': its place there}."""
    places = {}
    for file in [path for path in part.rglob('*') if path.is_file()]:
        place = (file.relative_to(part).parent / name).as_posix() + file.suffix
        (out / place).parent.mkdir(exist_ok=True)
        file.replace(out / place)
        places['map' if file.parent.name == 'pred' else 'picture'] = place
    return places


def inferencer(scope, config, weights):
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer
        return DetInferencer(config, weights, show_progress=False)
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer
        return MMSegInferencer(config, weights)
    from mmpretrain import ImageClassificationInferencer
    return ImageClassificationInferencer(config, pretrained=weights)


def one(scope, model, path, out):
    """What is found on one image, for JSON; its picture goes to `out`."""
    if scope == 'mmdet':
        found = model(str(path), out_dir=str(out), no_save_pred=True)['predictions'][0]
        return dict(names=[model.model.dataset_meta['classes'][label] for label in found['labels']], **found)
    if scope == 'mmseg':
        import numpy as np
        drawn = model(str(path), out_dir=str(out))['predictions']
        labels, counts = np.unique(drawn, return_counts=True)
        names = model.model.dataset_meta['classes']
        return dict(shares={names[label]: round(count / drawn.size, 4) for label, count in zip(labels, counts)})
    found = model(str(path), show_dir=str(out))[0]
    return dict(label=int(found['pred_label']), name=found.get('pred_class'), score=float(found['pred_score']))


if __name__ == '__main__':
    main()

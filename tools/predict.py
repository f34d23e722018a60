"""What a tuned model finds on images: drawn, and as results.json.

    python tools/predict.py work_dirs/tune/cells_detection/delta.safetensors IMAGES --out FOLDER

The config is the config.py beside the delta, or --config. IMAGES are files and folders.
"""
import argparse
import contextlib
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('delta', metavar='DELTA', help='a .safetensors of e3va')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files and folders')
    parser.add_argument('--config', metavar='FILE', help='default: config.py beside DELTA')
    parser.add_argument('--out', default='predictions', metavar='FOLDER', help='default: %(default)s')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        predict(args)


def predict(args):
    from e3va.command.checks import check_work_dir
    from e3va.command.config import load_config
    from e3va.files.whole import write
    delta = Path(args.delta)
    config = Path(args.config or delta.parent / 'config.py')
    for path, option in ((delta, 'DELTA'), (config, '--config')):
        if not path.is_file():
            raise ValueError(f'{option}: there is no file {path}')
    files, left, results, names = [], [], {}, Counter()
    for given in map(Path, args.images):
        found = [given]
        if given.is_dir():
            found = sorted(path for path in given.rglob('*') if path.suffix.lower() in IMAGES)
        if not found or not found[0].exists():
            raise ValueError(f'{given}: there is no image')
        files += found
    check_work_dir(args.out)
    scope = load_config(config).default_scope
    with (open(Path(args.out) / 'log.txt', 'w') as log, contextlib.redirect_stdout(log),
          warnings.catch_warnings()):
        warnings.simplefilter('ignore')                                 # what the libraries deprecate in one another
        model = inferencer(scope, str(config), f'e3va://{delta}')
        for path in files:
            if not readable(path):
                left.append(path)
                continue
            with tempfile.TemporaryDirectory(dir=args.out) as part:
                results[str(path)] = one(scope, model, path, Path(part))
                names[path.stem] += 1                                   # of one name in several folders: 1, 1_2, 1_3
                name = path.stem if names[path.stem] == 1 else f'{path.stem}_{names[path.stem]}'
                results[str(path)].update(moved(Path(part), Path(args.out), name))
    write(Path(args.out) / 'results.json', json.dumps(results, indent=1))
    print(f'{len(results)} images: {args.out}/results.json and pictures beside it')
    for path in left:
        print(f'cannot be read, left out: {path}', file=sys.stderr)


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

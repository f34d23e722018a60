r"""What several tasks on one trunk find on the images of a folder: COCO JSON, PNG maps, and pictures of it.

    python tools/serve_images.py FOLDER --tasks cells=cells.safetensors trees=trees.safetensors --out OUT
    python tools/serve_images.py FOLDER --base CONFIG_OR_CHECKPOINT --tasks cells=cells.safetensors --out OUT

Under OUT: TASK/results.json (boxes and masks as COCO's results, with the images and categories they name; labels of a
classifier), TASK/maps/IMAGE.png (labels of a segmenter), TASK/overlays/IMAGE.jpg. An image that cannot be read is named
and left out. Interrupted, it goes on at the images that are left; OUT belongs to these tasks.
"""
import argparse
import contextlib
import hashlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

IMAGES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.tif', '.tiff', '.webp')
AHEAD = 8                                                               # images that are read before their turn


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', metavar='FOLDER', help='images, at any depth')
    parser.add_argument('--base', metavar='CONFIG_OR_CHECKPOINT',
                        help="the trunk's weights, or a config for deltas that name none (default: what they record)")
    parser.add_argument('--tasks', nargs='+', required=True, metavar='NAME=DELTA',
                        help='a delta, its folder, an e3va:// address, or a .pth checkpoint')
    parser.add_argument('--out', required=True, metavar='OUT', help='folder')
    parser.add_argument('--score', type=float, default=0.3, help='of boxes that are drawn (default: %(default)s)')
    parser.add_argument('--no-overlays', action='store_true', help='draw nothing')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        serve(args)


def serve(args):
    from rich.console import Console
    from rich.progress import Progress

    from e3va.files.whole import alone
    from e3va.serve import Server
    files, tasks = images_in(args.folder), tasks_of(args.tasks)
    out, console = Path(args.out), Console(stderr=True)
    with alone(out), contextlib.redirect_stdout(io.StringIO()):
        note(out, args.folder, tasks)
        server = Server(**base_of(args.base), device=args.device)
        try:
            for name, source in tasks.items():
                server.add(name, source)
            done = finished(out, server.tasks)
            left, unread = [path for path in files if key(args.folder, path) not in done], []
            with Progress(console=console) as progress, ThreadPoolExecutor(2) as readers:
                bar = progress.add_task('images', total=len(files), completed=len(files) - len(left))
                ahead = [(path, readers.submit(read, path)) for path in left[:AHEAD]]
                for i in range(len(left)):
                    path, reading = ahead.pop(0)
                    if i + AHEAD < len(left):
                        ahead.append((left[i + AHEAD], readers.submit(read, left[i + AHEAD])))
                    image = reading.result()
                    if image is None:
                        unread.append(path)
                    else:
                        one(server, image, key(args.folder, path), out, args)
                    progress.advance(bar)
            for name, task in server.tasks.items():
                gather(out / name, task)
        finally:
            server.close()
    for path in unread:
        print(f'cannot be read, left out: {path}', file=sys.stderr)
    print(f'{len(files) - len(unread)} images, {len(tasks)} tasks: {out}')


def images_in(folder):
    """Files of the folder; ValueError where there are none."""
    if not Path(folder).is_dir():
        raise ValueError(f'there is no folder {folder}')
    files = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in IMAGES and path.is_file())
    if not files:
        raise ValueError(f'{folder} holds no images ({", ".join(IMAGES)})')
    return files


def tasks_of(given):
    """{name: source} of NAME=DELTA arguments; ValueError for what is none, and for a name that is there twice."""
    tasks = {}
    for text in given:
        name, equals, source = text.partition('=')
        if not equals or not source or not name or Path(name).name != name or name.startswith('.'):
            raise ValueError(f'--tasks {text}: write NAME=DELTA, the name as that of a folder')
        if name in tasks:
            raise ValueError(f'--tasks: two tasks have the name {name!r}')
        tasks[name] = source
    return tasks


def base_of(base):
    """What --base says, as arguments of the server: a config, or weights."""
    if base is None:
        return {}
    if not base.endswith('.py') and '::' not in base:
        return dict(base=base)
    from e3va.command.config import load_config
    cfg = load_config(base)
    backbone = cfg.get('model', {}).get('backbone', {})
    return dict(config=cfg, base=cfg.get('load_from') or (backbone.get('init_cfg') or {}).get('checkpoint'))


def note(out, folder, tasks):
    """Write down what OUT is of; ValueError where it is of something else."""
    from e3va.files.whole import write
    told = dict(folder=str(Path(folder).resolve()), tasks={
        name: digest(source) if Path(source).is_file() else source for name, source in tasks.items()})
    file = out / 'tasks.json'
    if file.is_file() and json.loads(file.read_text()) != told:
        raise ValueError(f'{out} has the results of other tasks or images ({file}): name another --out')
    write(file, json.dumps(told, indent=1))


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def key(folder, path):
    return path.relative_to(folder).as_posix()


def place(folder, name, image, ending):
    """The file of an image's result; no two images have one."""
    return folder / name / f'{image}{ending}'


def finished(out, tasks):
    """Images that every task has answered; the last of an image that is written is its row."""
    return set.intersection(*({json.loads(file.read_text())['image'] for file in (out / name / 'rows').rglob('*.json')}
                              for name in tasks))


def read(path):
    """An image as the libraries read it: three colours, 8 bits; None where it cannot be."""
    import mmcv
    try:
        image = mmcv.imread(str(path))
    except Exception:                                                   # whatever a decoder makes of it
        return None
    return image if image is not None and image.size else None


def one(server, image, name, out, args):
    """Write what all tasks find on an image."""
    for task, sample in server(image).items():
        if isinstance(sample, Exception):
            raise ValueError(f'the task {task} fails on {name}: {type(sample).__name__}: {sample}') from sample
        told(server.tasks[task], sample, image, name, out / task, args)


def told(task, sample, image, name, folder, args):
    """Write the result of a task on an image: overlay and map first, then its row."""
    import numpy as np

    from e3va.files.whole import write
    row = dict(image=name, height=image.shape[0], width=image.shape[1])
    if 'pred_instances' in sample:
        row['found'] = instances(sample.pred_instances.cpu())
    elif 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        write(place(folder, 'maps', name, '.png'), png(labels.astype(np.uint8 if labels.max() < 256 else np.uint16)))
        values, counts = np.unique(labels, return_counts=True)
        row['shares'] = {str(value): round(count / labels.size, 6) for value, count in zip(values.tolist(), counts)}
    else:
        scores = sample.pred_score.cpu()
        row.update(label=int(scores.argmax()), score=float(scores.max()))
    if not args.no_overlays:
        write(place(folder, 'overlays', name, '.jpg'), drawn(task, sample, image, args.score))
    write(place(folder, 'rows', name, '.json'), json.dumps(row))


def instances(found):
    """COCO's entries of what was found, without their image."""
    import numpy as np
    from pycocotools import mask
    entries = []
    for i, (box, score, label) in enumerate(zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist())):
        entry = dict(category_id=label + 1, score=score, bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]])
        if 'masks' in found:
            one = mask.encode(np.asfortranarray(np.asarray(found.masks[i]), np.uint8))
            entry['segmentation'] = dict(size=list(one['size']), counts=one['counts'].decode())
        entries.append(entry)
    return entries


def gather(folder, task):
    """Write results.json of a task from its rows."""
    from e3va.files.whole import write
    rows = [json.loads(file.read_text()) for file in sorted((folder / 'rows').rglob('*.json'))]
    number = {row['image']: i + 1 for i, row in enumerate(rows)}
    names = task.classes
    known = dict(images=[dict(id=number[row['image']], file_name=row['image'], height=row['height'],
                              width=row['width']) for row in rows],
                 categories=[dict(id=i + 1, name=str(name)) for i, name in enumerate(names)])
    if any('found' in row for row in rows):
        known['annotations'] = [dict(entry, id=i + 1, image_id=image) for i, (image, entry) in enumerate(
            (number[row['image']], entry) for row in rows for entry in row['found'])]
    else:
        known['results'] = [dict(image_id=number[row['image']], **{
            name: value for name, value in row.items() if name not in ('image', 'height', 'width')},
            **(dict(name=str(names[row['label']])) if row.get('label', len(names)) < len(names) else {}))
            for row in rows]
    write(folder / 'results.json', json.dumps(known))


def png(values):
    import cv2
    return cv2.imencode('.png', values)[1].tobytes()


def drawn(task, sample, image, score):
    """A JPEG of the image with what was found on it."""
    import cv2
    return cv2.imencode('.jpg', paint(task, sample, image, score))[1].tobytes()


def paint(task, sample, image, score):
    """The image, BGR, with boxes, masks, a map or a label on it."""
    import cv2
    import numpy as np
    picture, names = image.copy(), task.classes

    def name(label):
        return str(names[label]) if label < len(names) else str(label)

    if 'pred_instances' in sample:
        found = sample.pred_instances.cpu()
        for i in np.flatnonzero(found.scores.numpy() >= score)[::-1]:
            label, tone = int(found.labels[i]), colour(int(found.labels[i]))
            if 'masks' in found:
                inside = np.asarray(found.masks[i]).astype(bool)
                picture[inside] = (0.5 * picture[inside] + 0.5 * np.array(tone)).astype(np.uint8)
            left, top, right, bottom = found.bboxes[i].round().int().tolist()
            cv2.rectangle(picture, (left, top), (right, bottom), tone, 1)
            cv2.putText(picture, f'{name(label)} {found.scores[i]:.2f}', (left, max(top - 2, 8)),
                        cv2.FONT_HERSHEY_SIMPLEX, 0.35, tone, 1, cv2.LINE_AA)
    elif 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        tones = np.array([colour(label) for label in range(int(labels.max()) + 1)])
        picture = (0.5 * picture + 0.5 * tones[labels]).astype(np.uint8)
    else:
        scores = sample.pred_score.cpu()
        cv2.putText(picture, f'{name(int(scores.argmax()))} {scores.max():.2f}', (4, 14), cv2.FONT_HERSHEY_SIMPLEX,
                    0.45, (0, 0, 255), 1, cv2.LINE_AA)
    return picture


def colour(label):
    """BGR of a label, the same in every picture."""
    import colorsys
    return tuple(int(255 * one) for one in colorsys.hsv_to_rgb(label * 0.381966 % 1, 0.9, 1.))


if __name__ == '__main__':
    main()

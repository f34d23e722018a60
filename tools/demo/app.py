r"""A page to try deltas on one trunk: drop an image, tick the tasks, see what each finds, its time and its memory.

    pip install e3va[app]
    python tools/demo/app.py --tasks cells=cells.safetensors trees=trees.safetensors [--base FILE]

A delta that is dropped on the page is added as a task; it is read as data, as any delta.
"""
import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))            # tools/, for the pictures


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='*', default=[], metavar='NAME=DELTA', help='as of tools/serve_images.py')
    parser.add_argument('--base', metavar='FILE', help="the trunk's weights (default: what the first delta records)")
    parser.add_argument('--port', type=int, default=7860, help='default: %(default)s; on this machine alone')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    return parser.parse_args(argv)


def answer(server, image, names, score):
    """([(picture, text) of each task], a table of times and bytes) for an RGB image."""
    import numpy as np
    from serve_images import paint
    if image is None:
        raise ValueError('drop an image first')
    if not names:
        raise ValueError('tick a task')
    bgr = np.ascontiguousarray(image[..., :3][..., ::-1])
    start = time.perf_counter()
    found = server(bgr, list(names))
    seconds = time.perf_counter() - start
    pictures = []
    for name, sample in found.items():
        if isinstance(sample, Exception):
            pictures.append((image, f'{name}: {sample}'))
        else:
            pictures.append((paint(server.tasks[name], sample, bgr, score)[..., ::-1], name))
    memory = server.memory
    rows = [['trunk', f'{memory["trunk"] / 2 ** 20:.1f} MiB', '']]
    rows += [[name, f'{count / 2 ** 20:.1f} MiB', server.tasks[name].method] for name, count in memory['tasks'].items()]
    return pictures, [*rows, [f'{len(names)} tasks', f'{1e3 * seconds:.0f} ms', 'together']]


def page(server):
    """The page, a gradio app."""
    import gradio

    def run(image, names, score):
        try:
            return answer(server, image, names, score)
        except ValueError as error:
            raise gradio.Error(str(error)) from None

    def add(file):
        if file is None:
            return gradio.update()
        name = Path(file).stem
        try:
            (server.replace if name in server.tasks else server.add)(name, file)
        except ValueError as error:
            raise gradio.Error(str(error)) from None
        return gradio.update(choices=list(server.tasks), value=list(server.tasks))

    with gradio.Blocks(title='e3va: one trunk, many tasks') as app:
        gradio.Markdown('# One trunk, many tasks')
        with gradio.Row():
            with gradio.Column(scale=1):
                image = gradio.Image(type='numpy', label='Image')
                names = gradio.CheckboxGroup(list(server.tasks), value=list(server.tasks), label='Tasks')
                score = gradio.Slider(0, 1, 0.3, label='Score of boxes that are drawn')
                go = gradio.Button('Look', variant='primary')
                file = gradio.File(label='Add a delta', file_types=['.safetensors'], type='filepath')
            with gradio.Column(scale=2):
                pictures = gradio.Gallery(label='What each task finds', columns=2, object_fit='contain',
                                          height='auto')
                table = gradio.Dataframe(headers=['part', 'memory, time', 'method'], label='Memory and time',
                                         interactive=False)
        go.click(run, [image, names, score], [pictures, table])
        file.upload(add, file, names)
    return app


def main(argv=None):
    args = parse(argv)
    from e3va.command.line import one_line_errors  # first of all: it helps the stack import
    with one_line_errors():
        from serve_images import tasks_of

        from e3va.serve import Server
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ValueError(f'the page needs gradio, which cannot be imported ({error}): pip install e3va[app]'
                             ) from error
        with Server(base=args.base, device=args.device) as server:
            for name, source in tasks_of(args.tasks).items():
                server.add(name, source)
            page(server).launch(server_name='127.0.0.1', server_port=args.port)


if __name__ == '__main__':
    main()

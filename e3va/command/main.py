"""`e3va COMMAND ...`: runs a tool of the checkout, or of those that the wheel has brought along."""
import runpy
import sys

import e3va

# Command: (file of tools/, what it does)
TOOLS = dict(
    tune=('tune.py', 'your images to a tuned model, and a page of it'),
    predict=('predict.py', 'what a tuned model finds on images'),
    train=('train.py', 'train a config, by --method NAME'),
    test=('test.py', 'score a checkpoint or a delta'),
    plan=('analysis_tools/plan_memory.py', 'what training takes, and the batch that fits a card; no card needed'),
    cost=('analysis_tools/cost.py', 'measure memory, operations and time of methods on a config'),
    sweep=('sweep.py', 'many methods on many tasks by one protocol'),
    search=('search.py', "a NOAH supernet's best subnet"),
    compare=('analysis_tools/compare.py', 'tables of measured rows'),
    report=('analysis_tools/report.py', 'a page of measured rows'),
    serve=('serve_images.py', 'a folder of images by several deltas on one backbone'),
    delta=('misc/delta.py', 'what is inside a delta'),
    publish=('model_converters/publish_delta.py', 'a delta of a checkpoint, or a folder of one for a hub'))
DOCTOR = 'versions, devices, what works and what does not, and what to do'


def usage():
    lines = [f'  {name:8} {says}' for name, (_, says) in TOOLS.items()] + [f'  {"doctor":8} {DOCTOR}']
    return '\n'.join(['usage: e3va COMMAND ...   (e3va COMMAND --help says what it takes)', '', *lines])


def main(argv=None):
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ['--help']
    if command in ('-h', '--help'):
        print(usage())
    elif command == '--version':
        print(e3va.__version__)
    elif command == 'doctor':
        from .doctor import main as doctor
        sys.exit(doctor(arguments))
    elif command in TOOLS:
        from .config import configs_folder
        file = configs_folder('e3va').parent / 'tools' / TOOLS[command][0]
        sys.argv = [str(file), *arguments]
        sys.path.insert(0, str(file.parent))                            # as `python FILE` has it
        runpy.run_path(str(file), run_name='__main__')
    else:
        print(f'e3va: there is no command {command}; there are {", ".join([*TOOLS, "doctor"])}', file=sys.stderr)
        sys.exit(2)

"""A folder of a delta that a hub takes: the file, its config, a model card with what was measured, a metafile."""
import os
import pprint

import yaml

from ..files.checkout import commit
from ..files.whole import write
from . import file as delta_file
from .address import NAME
from .config import heard, whole

LIBRARIES = dict(mmdet=('object-detection', 'mmdetection'), mmseg=('image-segmentation', 'mmsegmentation'),
                 mmpretrain=('image-classification', 'mmpretrain'))
CONFIG = f'# The config that {NAME} belongs to, as the delta records it; it names no data.'     # its first line
CARD = '---\nlibrary_name: e3va\n'
USE = dict(
    mmdet="from mmdet.apis import DetInferencer\n\nDetInferencer('config.py', 'e3va://FOLDER')('IMAGE.jpg')",
    mmseg="from mmseg.apis import MMSegInferencer\n\nMMSegInferencer('config.py', 'e3va://FOLDER')('IMAGE.jpg')",
    mmpretrain="from mmpretrain import ImageClassificationInferencer\n\n"
               "ImageClassificationInferencer('config.py', pretrained='e3va://FOLDER')('IMAGE.jpg')")


def publish(path, out, results=(), name=None):
    """Write the folder; the list of its files.

    Args:
        path (str): the delta.
        results (sequence of dict): rows with `task, metric, value` and, where they are known, `commit, command,
            device`.
        name (str): of the model; default: that of the folder.

    Raises:
        ValueError: a file that is no delta; files that cannot be written.
    """
    tensors, meta = delta_file.read(path)
    name = name or os.path.basename(os.path.realpath(out))
    record = meta['trunks'][0]
    cfg = heard(meta['config']) if meta.get('config') else None
    counts = dict(trunk=0, heads=0)
    for key, value in tensors.items():
        counts['trunk' if key.startswith(tuple(trunk['prefix'] for trunk in meta['trunks'])) else 'heads'] += \
            value.numel()
    with open(path, 'rb') as file:
        files = {NAME: file.read()}
    if cfg is not None:
        files['config.py'] = f'{CONFIG}\n{text_of(whole(cfg))}'
    files['README.md'] = card(name, path, meta, record, cfg, counts, results)
    files['metafile.yml'] = yaml.safe_dump(dict(Models=[dict({
        'Name': name, 'Config': 'config.py' if cfg is not None else None, 'Weights': NAME,
        'Metadata': {'Method': record['method']['type'], 'Trunk': record['type'], 'Trained Parameters': counts['trunk'],
                     'Bytes': os.path.getsize(path)},
        'Results': [{'Task': row.get('task'), 'Metrics': {row['metric']: row['value']}} for row in results] or None})]),
        sort_keys=False)
    for file, first in (('README.md', CARD), ('config.py', CONFIG)):
        if not begins(os.path.join(out, file), first):
            raise ValueError(f'{os.path.join(out, file)} is there and of something else: name another folder')
    for file, content in files.items():
        write(os.path.join(out, file), content)
    return list(files)


def begins(path, text):
    """Whether a file begins with a text, if it is there."""
    try:
        with open(path, 'rb') as file:
            return file.read(len(text.encode())) == text.encode()
    except FileNotFoundError:
        return True


def text_of(values):
    """A config's text: every key and value as Python writes it, as they are a stranger's (see `compat`)."""
    return ''.join(f'{key} = {pprint.pformat(value, width=116, sort_dicts=False)}\n'.replace('{{', '{\\x7b')
                   for key, value in values.items())


def card(name, path, meta, record, cfg, counts, results):
    """The text of README.md."""
    task, library = LIBRARIES[cfg.scope] if cfg is not None else (None, None)
    head = dict(library_name='e3va', tags=['e3va', 'parameter-efficient', record['method']['type'].lower(),
                                           *([library] if library else [])])
    if task:
        head['pipeline_tag'] = task
    if results:
        head['model-index'] = [dict(name=name, results=[dict(
            task=dict(type=task or 'other'), dataset=dict(name=str(row.get('task', '')), type=str(row.get('task', ''))),
            metrics=[dict(type=row['metric'], value=row['value'])]) for row in results])]
    options = ', '.join(f'{key}={value!r}' for key, value in record['method'].items() if key != 'type')
    classes = ', '.join(map(str, meta['dataset_meta'].get('classes') or ())) or 'not recorded'
    kind = (record['config'] or {}).get('type', record['type'])
    lines = ['---', yaml.safe_dump(head, sort_keys=False).strip(), '---', '', f'# {name}', '',
             f'A delta of e3va: what training changed of a frozen {kind}.', '',
             '| | |', '|---|---|',
             f'| method | {record["method"]["type"]}({options}) |', f'| trunk | {kind} |',
             f'| base | {record["base"] or "not recorded"} |',
             f'| sha256 of the frozen weights | {record["sha256"]} |',
             f'| model | {f"{cfg.scope}, {cfg.model.type}" if cfg is not None else "not recorded"} |',
             f'| classes | {classes} |',
             f'| numbers in trunk and method | {counts["trunk"]:,} |', f'| numbers in neck and heads | '
             f'{counts["heads"]:,} |', f'| bytes of the file | {os.path.getsize(path):,} |',
             f'| averaged (EMA) | {"yes" if meta.get("averaged") else "no"} |',
             f'| trained at commit | {meta.get("commit") or "not recorded"} |',
             f'| published at commit | {commit() or "not recorded"} |', '', '## Results', '']
    if results:
        lines += ['| task | metric | value | device | commit | command |', '|---|---|---|---|---|---|']
        lines += ['| ' + ' | '.join(str(row.get(key, '')).replace('|', r'\|') for key in (
            'task', 'metric', 'value', 'device', 'commit', 'command')) + ' |' for row in results]
    else:
        lines += ['Not measured.']
    lines += ['', '## Use', '', f'`FOLDER` is this folder, or `hf:OWNER/{name}` of the hub. The base is looked for '
              'where the table says, or given: `e3va://FOLDER?base=FILE`.', '', '```python', 'import e3va']
    lines += [USE[cfg.scope] if cfg is not None else "e3va.load_delta(model, 'FOLDER')  # a model tuned the same way"]
    lines += ['```', '']
    if cfg is not None:
        lines += ['`config.py` is a program, as any config; tools/predict.py of e3va, its server and `e3va://` do '
                  'without it.', '']
    return '\n'.join(lines)

"""The page at the end of a run: scores, curves, the best and the worst images, what was chosen, how the result is used.

One file of HTML, its pictures inside, light or dark as the reader has it.
"""
import base64
import html
import io
import json
from pathlib import Path

from PIL import Image

from e3va.files.whole import write

WIDTH = 420                                                             # px of a picture
STYLE = '''
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #8888; } h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.score { font-size: 2.4rem; } .row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: min(100%, 26rem); } figcaption { font-size: .85rem; }
img { max-width: 100%; background: white; }
pre { background: #8882; padding: .8rem; overflow-x: auto; } code { font-family: ui-monospace, monospace; }
'''


def picture(path):
    """An image file as an address that holds it."""
    with Image.open(path) as image:
        image = image.convert('RGB')
        image.thumbnail((2 * WIDTH, 2 * WIDTH))
        data = io.BytesIO()
        image.save(data, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'


def curves(work_dir, score, times):
    """The losses of the steps and the scores of the validations of all starts of a run, drawn; None without a step."""
    losses, scores = {}, {}
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if 'loss' in row:
                losses[row['step']] = row['loss']
            if score in row:
                scores[row['step']] = times * row[score]
    if not losses:
        return None
    from e3va.cost.plot import clean, plt
    drawn = [(losses, 'loss')] + [(scores, f'{score} on val')] * bool(scores)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout='constrained')
    axes[1].set_visible(bool(scores))
    for each, (values, title) in zip(axes, drawn):
        each.plot(list(values), list(values.values()), marker='.' if len(values) < 40 else '')
        each.set(title=title, xlabel='step' if title == 'loss' else 'epoch')
        clean(each)
    data = io.BytesIO()
    figure.savefig(data, format='svg')
    plt.close(figure)
    return data.getvalue().decode()


def table(rows):
    (head, *body) = rows
    cells = ''.join(f'<tr>{"".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)}</tr>' for row in body)
    return f'<table><tr>{"".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)}</tr>{cells}</table>'


def figures(shown):
    return '<div class="row">' + ''.join(
        f'<figure><img src="{picture(path)}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        for path, text in ((path, html.escape(text)) for path, text in shown)) + '</div>'


def make(path, title, scores, drawn, data, why, best, worst, use):
    """Write the page.

    Args:
        scores (dict): {split: {name: number in percent}}, the first name the one that counts.
        drawn (str): SVG of the curves, or None.
        data (list): rows of the data's table, the head first.
        why (list of str): what was chosen.
        best, worst (list): pairs (picture file, text).
        use (list): pairs (text, commands).
    """
    first = next(iter(scores.values()))
    parts = [f'<h1>{html.escape(title)}</h1>',
             '<p>' + ' &nbsp; '.join(f'<span class="score">{next(iter(values.values())):.1f}</span> '
                                     f'{html.escape(next(iter(first)))} on {split}' for split, values in scores.items())
             + '</p>',
             table([('split', *first), *((split, *(f'{value:.1f}' for value in values.values()))
                                         for split, values in scores.items())])]
    parts += ['<h2>Curves</h2>', drawn[drawn.index('<svg'):]] if drawn else []
    parts += ['<h2>Best images</h2>', figures(best), '<h2>Worst images</h2>', figures(worst)]
    parts += ['<h2>Data</h2>', table(data), '<h2>What was chosen</h2><ul>']
    parts += [*(f'<li>{html.escape(line)}</li>' for line in why), '</ul><h2>Use it</h2>']
    parts += [f'<p>{html.escape(text)}</p><pre><code>{html.escape(code)}</code></pre>' for text, code in use]
    write(path, f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
          f'content="width=device-width"><title>{html.escape(title)}</title><style>{STYLE}</style>{"".join(parts)}</html>')

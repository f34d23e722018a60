"""The page: one file of HTML, with plotly, style, script and pictures inside."""
import html
import json
from pathlib import Path

HERE = Path(__file__).parent


def text(value):
    return html.escape(str(value))


class Document:
    """Sections with figures; what is drawn is in it as JSON, which page.js draws when it comes into sight."""

    def __init__(self, title):
        self.title, self.parts, self.drawn, self.sections = title, [], [], []

    def heading(self, words):
        key = f's{len(self.sections)}'
        self.sections.append((key, words))
        self.parts.append(f'<h2 id="{key}">{text(words)}</h2>')

    def paragraph(self, words):
        self.parts.append(f'<p>{text(words)}</p>')

    def table(self, head, rows, name='table'):
        """Cells are texts, or pairs (text, number to sort by), or triples, the last whether it is the best.

        Args:
            head (list of str): the first column is that of names.
            rows (list): pairs (the (colour, mark) of the row or None, its cells).
        """
        columns = ''.join(f'<th scope="col"><button>{text(cell)}</button></th>' for cell in head)
        lines = []
        for look, cells in rows:
            dot = f'<i style="color:{look[0]}" class="{look[1]}"></i>' if look else ''
            line = f'<th scope="row">{dot}{text(cells[0])}</th>'
            for cell in cells[1:]:
                words, number, best = (*cell, False)[:3] if isinstance(cell, tuple) else (cell, cell, False)
                line += (f'<td data-sort="{text("" if number is None else number)}"{" class=best" if best else ""}>'
                         f'{text(words)}</td>')
            lines.append(f'<tr>{line}</tr>')
        self.parts.append(f'<div class="wide"><table aria-label="{text(name)}"><thead><tr>{columns}</tr></thead>'
                          f'<tbody>{"".join(lines)}</tbody></table></div>')

    def figures(self, figures, one=False):
        """Side by side where there is room; `one` takes all of it."""
        self.parts.append(f'<div class="{"one" if one else "several"}">')
        for figure in figures:
            self.parts.append(f'<div class="plot" data-figure="{len(self.drawn)}"></div>')
            self.drawn.append(figure)
        self.parts.append('</div>')

    def pictures(self, shown):
        """Rows of pairs (address of a picture, caption)."""
        for row in shown:
            cells = ''.join(f'<figure><img src="{src}" alt="{text(words)}"><figcaption>{text(words)}</figcaption>'
                            '</figure>' for src, words in row)
            self.parts.append(f'<div class="pictures">{cells}</div>')

    def html(self):
        from plotly.offline import get_plotlyjs
        links = ''.join(f'<a href="#{key}">{text(words)}</a>' for key, words in self.sections)
        drawn = json.dumps(self.drawn, allow_nan=False).replace('<', '\\u003c')     # no text of a row ends the script
        return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
                '<meta name="viewport" content="width=device-width, initial-scale=1">'
                f'<title>{text(self.title)}</title><style>{(HERE / "page.css").read_text()}</style></head><body>'
                f'<header><h1>{text(self.title)}</h1><button id="theme" aria-label="light or dark">◐</button></header>'
                f'<nav>{links}</nav><main>{"".join(self.parts)}</main>'
                f'<script type="application/json" id="drawn">{drawn}</script>'
                f'<script>{get_plotlyjs()}</script><script>{(HERE / "page.js").read_text()}</script></body></html>')

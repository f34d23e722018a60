"""Hooks of mkdocs: pages from outside docs/, and links that hold in the repository as on the site.

The READMEs beside the configs, CONTRIBUTING.md and CHANGELOG.md are pages too, where the navigation of mkdocs.yml has
them. A link to a file that is no page (a config, a test) becomes its path, and one to README.md leads to the start.
"""
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r'(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)]*)?\)')


def paths(nav):
    """All pages of the navigation."""
    for item in nav:
        for value in item.values() if isinstance(item, dict) else [item]:
            yield from paths(value) if isinstance(value, list) else [value]


def on_files(files, config):
    for path in paths(config.nav):
        if files.get_file_from_path(path) is None and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
            for image in re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)', (ROOT / path).read_text()):
                add_picture(files, config, posixpath.normpath(posixpath.join(posixpath.dirname(path), image)))
    for page in list(files.documentation_pages()):
        if not (ROOT / page.src_uri).is_file():                         # of docs/, whose links start there
            for image in re.findall(r'!\[[^\]]*\]\((\.\./[^)\s]+)\)', Path(page.abs_src_path).read_text()):
                add_picture(files, config, posixpath.normpath(f'docs/{image}'))
    return files


def add_picture(files, config, path):
    if (ROOT / path).is_file() and files.get_file_from_path(path) is None:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown, page, config, files):
    """Links of a file in the repository as links of the site."""
    here = os.path.relpath(page.file.abs_src_path, ROOT)

    def link(match):
        image, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not (ROOT / path).exists():
            return match[0]                                             # mkdocs warns of it
        uri = 'index.md' if path == 'README.md' else path.removeprefix('docs/')
        if files.get_file_from_path(uri) is None:
            return text if path in text.replace('`', '') else f'{text} (`{path}`)'
        return f'{image}[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")}{anchor or ""})'

    parts = re.split(r'(```.*?\n```)', markdown, flags=re.S)
    return ''.join(part if part.startswith('```') else LINK.sub(link, part) for part in parts)

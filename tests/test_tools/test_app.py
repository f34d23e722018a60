"""tools/demo/app.py: what the page answers; the page itself where gradio is installed."""
import sys

import pytest

from e3va.serve import Server
from tests.conftest import ROOT, tool
from tests.test_serve.models import base, make, picture


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp('app')
    file = base(folder, 'vit_mmpretrain')
    with Server() as server:
        for i, name in enumerate(('first', 'second')):
            server.add(name, make(folder, 'mmpretrain', 'e3va', file, vit=True, seed=i + 1)[0])
        yield server


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'tools'), *sys.path])
    return tool('demo/app.py')


def test_what_is_answered(app, server):
    pictures, rows = app.answer(server, picture(), ['first', 'second'], 0.3)
    assert [name for _, name in pictures] == ['first', 'second'] and pictures[0][0].shape == (70, 90, 3)
    assert [row[0] for row in rows] == ['trunk', 'first', 'second', '2 tasks'] and rows[-1][1].endswith(' ms')


@pytest.mark.parametrize('image, names, said', [(None, ['first'], 'drop an image'), (picture(), [], 'tick a task')])
def test_what_is_missing(app, server, image, names, said):
    with pytest.raises(ValueError, match=said):
        app.answer(server, image, names, 0.3)


def test_without_gradio(app, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(SystemExit):
        app.main([])
    assert 'pip install e3va[app]' in capsys.readouterr().err


def test_the_page(app, server):
    pytest.importorskip('gradio')
    labels = [block.label for block in app.page(server).blocks.values() if getattr(block, 'label', None)]
    assert {'Image', 'Tasks', 'Add a delta', 'What each task finds', 'Memory and time'} <= set(labels)


@pytest.mark.slow
def test_in_a_browser(app, server, tmp_path):
    """A delta is added by its file, an image is looked at; in chromium, where playwright and gradio are installed."""
    import shutil

    import cv2
    pytest.importorskip('gradio')
    browser = pytest.importorskip('playwright.sync_api')
    if not shutil.which('chromium'):
        pytest.skip('no chromium')
    cv2.imwrite(str(tmp_path / 'image.png'), picture())
    more = make(tmp_path, 'mmpretrain', 'lora', base(tmp_path, 'vit_mmpretrain'), vit=True, seed=5)[0]
    shown = app.page(server)
    _, address, _ = shown.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True)
    try:
        with browser.sync_playwright() as opened:
            page = opened.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox']).new_page()
            page.goto(address, wait_until='domcontentloaded')
            page.locator('input[type=file][accept*="safetensors"]').set_input_files(str(more))
            page.wait_for_selector(f'label:has-text("{more.stem}")')
            page.locator('input[type=file][accept*="image"]').set_input_files(str(tmp_path / 'image.png'))
            page.wait_for_timeout(1000)
            page.click('button:has-text("Look")')
            page.wait_for_selector('text=3 tasks')
            assert page.locator('img').count() >= 4
    finally:
        shown.close()

"""Addresses of deltas: files, folders, the hub's cache, and what is none."""
import sys
import types

import pytest

from e3va.delta import address
from e3va.delta.address import place


@pytest.mark.parametrize('given, base, strength', [
    ('a.safetensors', None, 1.), ('e3va://a.safetensors', None, 1.), ('e3va://a.safetensors?base=b.pth', 'b.pth', 1.),
    ('e3va://a.safetensors?strength=0.8', None, 0.8), ('e3va://a.safetensors?strength=0.8&base=b.pth', 'b.pth', 0.8),
    ('e3va://a.safetensors?base=b.pth&strength=0', 'b.pth', 0.),
    ('e3va://a.safetensors?base=timm://x?file=y', 'timm://x?file=y', 1.),
    ('e3va://a.safetensors?base=e3va://c?base=d', 'e3va://c?base=d', 1.)])
def test_parts(given, base, strength):
    assert place(given) == ('a.safetensors', base, strength)


@pytest.mark.parametrize('given, said', [
    ('e3va://a?strength=much', 'strength=much is no number'), ('e3va://a?strength=-1', 'is no number from 0'),
    ('e3va://a?strength=nan', 'is no number from 0'), ('e3va://a?strength=9', 'is no number from 0'),
    ('e3va://a?weight=1', 'takes .base=FILE and .strength=NUMBER, not weight'),
    ('e3va://hf:one', 'no repository of the hub'), ('e3va://hf:../../etc/passwd', 'no repository of the hub'),
    ('e3va://hf:a/..', 'no repository of the hub')])
def test_none(given, said):
    with pytest.raises(ValueError, match=said):
        place(given)


def test_folders(tmp_path):
    with pytest.raises(ValueError, match='there is no delta file delta.safetensors in'):
        place(f'e3va://{tmp_path}')
    (tmp_path / 'one.safetensors').touch()
    assert place(str(tmp_path))[0] == str(tmp_path / 'one.safetensors')
    (tmp_path / 'two.safetensors').touch()
    with pytest.raises(ValueError, match='but one.safetensors, two.safetensors: name one'):
        place(f'e3va://{tmp_path}')
    (tmp_path / 'delta.safetensors').touch()
    assert place(f'e3va://{tmp_path}')[0] == str(tmp_path / 'delta.safetensors')


def test_the_hub(monkeypatch):
    """By huggingface_hub's own function, to which the cache and HF_HUB_OFFLINE are known; each failure is one line."""
    asked = []
    hub = types.ModuleType('huggingface_hub')
    hub.hf_hub_download = lambda *args, **options: asked.append((args, options)) or '/cache/delta.safetensors'
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    assert place('e3va://hf:me/cells@v1?strength=0.5') == ('/cache/delta.safetensors', None, 0.5)
    assert asked == [(('me/cells', address.NAME), dict(revision='v1'))]
    hub.hf_hub_download = lambda *args, **options: {}['gone\nmore']
    with pytest.raises(ValueError, match='hf:me/cells cannot be had, and is not in the cache: KeyError'):
        place('e3va://hf:me/cells')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ValueError, match='needs huggingface_hub'):
        place('e3va://hf:me/cells')


def test_the_cache_of_the_hub(tmp_path, monkeypatch):
    """What the cache has is found offline, and nothing is asked for otherwise."""
    pytest.importorskip('huggingface_hub')
    from huggingface_hub import constants
    repository = tmp_path / 'models--me--cells'
    for folder in ('refs', 'snapshots/abc'):
        (repository / folder).mkdir(parents=True)
    (repository / 'refs' / 'main').write_text('abc')
    (repository / 'snapshots' / 'abc' / address.NAME).write_bytes(b'x')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    assert place('e3va://hf:me/cells')[0] == str(repository / 'snapshots' / 'abc' / address.NAME)
    with pytest.raises(ValueError, match='hf:me/trees cannot be had'):
        place('e3va://hf:me/trees')

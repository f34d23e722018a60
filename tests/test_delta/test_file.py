"""Files from strangers: each hostile one is one clear error, soon and in little memory, and none is a wrong load."""
import json
import os
import pickle
import random
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file, save_file
from torch import nn

import e3va
from e3va.delta import file as delta_file
from e3va.delta.peft import export_peft, import_peft
from e3va.files.checkpoint import read_checkpoint
from tests.conftest import build, stir
from tests.test_files.test_checkpoint import Runs
from tests.test_files.test_foreign import put, sign

SECONDS, MEMORY = 1, 200 * 2 ** 20                                      # of a refusal, in its own thread
MUTATIONS = 2000
UP = 'backbone.layers.0.attn.qkv.pairs.0.up'
MISPLACED = 'not in the model'


class Whole(nn.Module):
    """A tuned backbone under a classifier."""

    def __init__(self, trunk='vit_mmpretrain', method='lora', classes=3):
        super().__init__()
        self.backbone = build(trunk, method, seed=7)                    # other values than a fresh one has
        self.head = nn.Linear(24, classes)


def parts(content):
    """(header as a dict, payload) of a safetensors file."""
    length = struct.unpack('<Q', content[:8])[0]
    return json.loads(content[8:8 + length]), content[8 + length:]


def join(header, payload=b''):
    """A file of a header, as a dict, a text or bytes, whatever it says."""
    header = json.dumps(header) if isinstance(header, dict) else header
    header = header.encode() if isinstance(header, str) else header
    return struct.pack('<Q', len(header)) + header + payload


def content(change):
    """A hostile file by a change of the bytes of a good one."""
    return lambda path, good: path.write_bytes(change(good))


def header(change):
    """The same by a change of its header in place."""
    def changed(good):
        found, payload = parts(good)
        change(found)
        return join(found, payload)
    return content(changed)


def entry(**values):
    """The same by other values in the header's entry of one tensor."""
    return header(lambda found: found[UP].update(values))


def entries(change):
    """A hostile file with a right checksum, as anybody can write it, by a change of its tensors."""
    def write(path, good):
        found, _ = parts(good)
        tensors, text = load_file(path), found['__metadata__']['e3va']
        change(tensors)
        save_file(tensors, path, metadata=dict(e3va=text, sha256=delta_file.fingerprint(tensors, text)))
    return write


def replaced(value):
    """The same by another tensor in the place of one."""
    return entries(lambda tensors: tensors.update({UP: value(tensors[UP])}))


def meta(place, value):
    """The same by other metadata at a dotted place."""
    return lambda path, good: sign(path, put(place, value))


def whole_meta(text):
    """The same by other metadata altogether."""
    return lambda path, good: sign(path, text)


def of(**options):
    """A good delta of another model."""
    return lambda path, good: e3va.save_delta(Whole(**options), path)


def link(target):
    def place(path, good):
        path.unlink()
        path.symlink_to(target(path) if callable(target) else target)
    return place


def folder(path, good):
    path.unlink()
    path.mkdir()


def twice(name):
    """A key of the header twice: readers do not agree which of them counts."""
    def changed(good):
        found, payload = parts(good)
        other = dict(found['__metadata__'], e3va='{}') if name == '__metadata__' else found[name]
        return join(f'{{{json.dumps(name)}: {json.dumps(other)}, {json.dumps(found)[1:]}', payload)
    return content(changed)


def cut(where):
    """The first bytes of a good file; `where` has its length, where the payload begins and where its last tensor does.
    """
    def changed(good):
        found, payload = parts(good)
        start = len(good) - len(payload)
        last = start + max(one['data_offsets'][0] for name, one in found.items() if name != '__metadata__')
        return good[:where(len(good), start, last)]
    return content(changed)


# What it is: (how it is made of a good delta, what the message says).
HOSTILE = {
    'nothing at all': (cut(lambda end, start, last: 0), 'not a readable delta'),
    'half a length': (cut(lambda end, start, last: 4), 'not a readable delta'),
    'a length alone': (cut(lambda end, start, last: 8), 'not a readable delta'),
    'half a header': (cut(lambda end, start, last: start // 2), 'not a readable delta'),
    'a header without its last byte': (cut(lambda end, start, last: start - 1), 'not a readable delta'),
    'a header alone': (cut(lambda end, start, last: start), 'not a readable delta'),
    'half a payload': (cut(lambda end, start, last: (start + end) // 2), 'not a readable delta'),
    'without its last tensor': (cut(lambda end, start, last: last), 'not a readable delta'),
    'without its last byte': (cut(lambda end, start, last: end - 1), 'not a readable delta'),
    'a byte too much': (content(lambda good: good + b'\0'), 'not a readable delta'),
    'a changed byte': (content(lambda good: good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]), 'checksum does not fit'),
    'a header of 8 EB': (content(lambda good: struct.pack('<Q', 2 ** 63) + good[8:]), 'not a readable delta'),
    'a header of 16 EB': (content(lambda good: struct.pack('<Q', 2 ** 64 - 1) + good[8:]), 'not a readable delta'),
    'a header of nothing': (content(lambda good: struct.pack('<Q', 0) + good[8:]), 'not a readable delta'),
    'a header of 90 MB': (content(lambda good: join(b'{"__metadata__":{"e3va":"' + b'[' * 90_000_000 + b'"}}')),
                          '90000028 bytes are its text'),
    'a header longer than the file': (content(lambda good: struct.pack('<Q', len(good)) + good[8:]),
                                      'not a readable delta'),
    'a header that is no JSON': (content(lambda good: join(pickle.dumps(Runs('made')))), 'not a readable delta'),
    'a header that is a list': (content(lambda good: join('[]')), 'not a readable delta'),
    'a header that is no text': (content(lambda good: join(b'{"\xff\xfe": 3}')), 'not a readable delta'),
    'a deep header': (content(lambda good: join('[' * 1_000_000)), 'not a readable delta'),
    'overlapping offsets': (entry(data_offsets=[0, 4]), 'not a readable delta'),
    'offsets outside': (entry(data_offsets=[2 ** 40, 2 ** 40 + 288]), 'not a readable delta'),
    'offsets beyond 64 bits': (entry(data_offsets=[0, 2 ** 70]), 'not a readable delta'),
    'offsets the wrong way around': (entry(data_offsets=[288, 0]), 'not a readable delta'),
    'negative offsets': (entry(data_offsets=[-288, 0]), 'not a readable delta'),
    'a shape that overflows': (entry(shape=[2 ** 62, 8]), 'not a readable delta'),
    'a shape of as many entries': (entry(shape=[12, 6]), 'its checksum does not fit'),
    'another type of as many bytes': (entry(dtype='I32'), 'its checksum does not fit'),
    'a type that is none': (entry(dtype='PYOBJ'), 'not a readable delta'),
    'an entry twice': (twice(UP), 'pairs.0.up is there twice'),
    'metadata twice': (twice('__metadata__'), '__metadata__ is there twice'),
    'no checksum': (header(lambda found: found['__metadata__'].pop('sha256')), 'its checksum does not fit'),
    'a checksum of something else': (header(lambda found: found['__metadata__'].update(sha256='0' * 64)),
                                     'its checksum does not fit'),
    'other words under the checksum': (header(lambda found: found['__metadata__'].update(e3va='{}')),
                                       'its checksum does not fit'),
    'no metadata': (header(lambda found: found.pop('__metadata__')), 'no delta of e3va'),
    'another type, signed': (replaced(lambda value: value.int()), 'torch.int32 instead of torch.float32'),
    'another shape, signed': (replaced(lambda value: value.flatten()), 'other shapes: .*pairs.0.up'),
    'NaN': (replaced(lambda value: value * torch.nan), 'NaN or infinite: .*pairs.0.up'),
    'infinity': (replaced(lambda value: value + torch.inf), 'NaN or infinite: .*pairs.0.up'),
    'of no length': (replaced(lambda value: torch.zeros(0)), r'other shapes: .*pairs.0.up \(0,\)'),
    'a number': (replaced(lambda value: torch.tensor(1.)), r'other shapes: .*pairs.0.up \(\)'),
    'no tensors': (entries(dict.clear), 'missing'),
    'one tensor less': (entries(lambda tensors: tensors.pop(UP)), r'missing .*pairs.0.up|lacks'),
    'a path for a name': (entries(lambda tensors: tensors.update({'../../etc/passwd': torch.ones(1)})), MISPLACED),
    'an absolute path for a name': (entries(lambda tensors: tensors.update({'/etc/passwd': torch.ones(1)})), MISPLACED),
    'a name with an end inside': (entries(lambda tensors: tensors.update({'head\0.weight': torch.ones(1)})), MISPLACED),
    'an attribute for a name': (entries(lambda tensors: tensors.update({'backbone.__class__': torch.ones(1)})),
                                MISPLACED),
    'no name': (entries(lambda tensors: tensors.update({'': torch.ones(1)})), MISPLACED),
    'a frozen entry': (entries(lambda tensors: tensors.update({'backbone.cls_token': torch.ones(1)})), MISPLACED),
    'a method by the name of a function': (meta('method.type', 'os.system'), "unknown method 'os.system'"),
    'a method by a file': (meta('method.type', 'made/method.py'), "unknown method 'made/method.py'"),
    'a method file': (meta('method', 'made/method.py'), 'method is made/method.py and not dict'),
    'custom_imports in a method': (meta('method.custom_imports', dict(imports=['made'])), "'custom_imports'"),
    '_base_ in a method': (meta('method._base_', ['made/method.py']), "'_base_'"),
    '_scope_ in a method': (meta('method._scope_', 'made'), "'_scope_'"),
    'a method of a rank that fills the memory': (meta('method.rank', 10 ** 9), 'no size in a file is larger'),
    'a pattern that takes for ever': (meta('method.targets', r'((\w+\.?)+)+!'), 'may take for ever'),
    'other words of metadata': (whole_meta('null'), 'no delta that this e3va can read'),
    'deep metadata': (whole_meta('[' * 100_000), 'no delta that this e3va can read'),
    'an older format': (meta('version', 0), 'it has format 0, this e3va reads 1 to 2'),
    'a newer format': (meta('version', 3), 'it has format 3, this e3va reads 1 to 2; update e3va'),
    'a format of another kind': (meta('version', '1'), 'version is 1 and not int'),
    'packed into more than memory': (meta('packed', {UP: [1, 2 ** 31, 2 ** 31]}), 'is recorded as packed, and is not'),
    'another trunk': (of(trunk='swin_mmdet'), 'does not fit this model|lacks|entries'),
    'another method': (of(method='e3va'), 'does not fit this model'),
    'another rank': (of(method=dict(type='LoRA', rank=4, alpha=6, roles=('q', 'v', 'proj', 'fc1', 'fc2'))),
                     'other shapes: .*pairs.0.'),
    'other classes': (of(classes=5), r'other shapes: head.weight \(5, 24\) instead of \(3, 24\)'),
    'a link to nothing': (link('nowhere'), 'there is no delta file'),
    'a link to itself': (link(lambda path: path), 'there is no delta file'),
    'a link to a device that never ends': (link('/dev/zero'), 'there is no delta file'),
    'a link to a folder': (link(lambda path: path.parent), 'there is no delta file'),
    'a folder': (folder, 'there is no delta file'),
    'a pipe': (lambda path, good: (path.unlink(), os.mkfifo(path)), 'there is no delta file'),
    'a checkpoint': (lambda path, good: torch.save(dict(state_dict={'a': torch.ones(1)}, more=Runs('made')), path),
                     'not a readable delta'),
    'a pickle': (content(lambda good: pickle.dumps(Runs('made'))), 'not a readable delta'),
    'a page': (content(lambda good: b'<!DOCTYPE html><html>not found</html>'), 'not a readable delta'),
    'a pointer': (content(lambda good: b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n'),
                  'not a readable delta'),
}
# The same for what a delta rebuilds by itself, as e3va://.
REBUILT = {
    'NaN': (HOSTILE['NaN'][0], 'NaN or infinite: .*pairs.0.up'),
    'another shape': (HOSTILE['another shape, signed'][0], 'other shapes: .*pairs.0.up'),
    'one tensor less': (HOSTILE['one tensor less'][0], 'missing'),
    'a trunk by the name of a function': (meta('trunk.config.type', 'os.mkdir'), "'os.mkdir', which is no registered"),
    'a trunk by a file': (meta('trunk.config.type', 'made/trunk.py'), 'which is no registered'),
    '_base_ in a trunk': (meta('trunk.config._base_', 'made/trunk.py'), 'a name that would be imported'),
    'custom_imports in a trunk': (meta('trunk.config.custom_imports', dict(imports=['made'])), "'custom_imports'"),
    'a function inside a trunk': (meta('trunk.config.norm_cfg', dict(type='os.mkdir', path='made')), "'os.mkdir'"),
    'a trunk that fills the memory': (meta('trunk.config.arch.embed_dims', 200_000), 'larger than'),
    'a trunk wider than its base': (meta('trunk.config.arch.embed_dims', 60_000), 'larger than the weights'),
    'a trunk deeper than its base': (meta('trunk.config.arch.num_layers', 60_000), 'larger than the weights'),
    'a trunk for larger images than its base': (meta('trunk.config.img_size', 60_000), 'larger than the weights'),
    'a trunk of windows that fill the memory': (
        lambda path, good: (of(trunk='swin_mmdet')(path, good), meta('base', 'evil.pth')(path, good),
                            meta('trunk.config.window_size', 150)(path, good)), 'larger than the weights'),
    'a method wider than its delta': (meta('method.rank', 60_000), 'rank must be an integer of at least 1 and at most'),
    'a trunk that is never built': (meta('trunk.config.arch.num_layers', 10 ** 9), 'larger than'),
    'a trunk of huge images': (meta('trunk.config.img_size', 10 ** 7), 'larger than'),
    'a method that fills the memory': (meta('method.rank', 10 ** 9), 'larger than'),
    'a rank that is no number': (meta('method.rank', float('nan')), 'rank must be an integer'),
    'a pattern that takes for ever': (meta('method.targets', r'((\w+\.?)+)+!'), 'may take for ever'),
    'a base that runs': (meta('base', 'evil.pth'), 'posix.mkdir would be executed'),
    'a base that is fetched': (meta('base', 'https://nowhere.invalid/vit.pth'), 'names is fetched unasked'),
    'a base in itself': (meta('base', 'e3va://delta.safetensors'), 'is its own base'),
    'no base': (meta('base', None), 'was not found'),
}


def peft_config(**values):
    def change(folder):
        path = folder / 'adapter_config.json'
        path.write_text(json.dumps(dict(json.loads(path.read_text()), **values)))
    return change


def peft_file(name, content):
    def change(folder):
        (folder / name).write_bytes(content)
    return change


def pickled(folder):
    (folder / 'adapter_model.safetensors').unlink()
    torch.save(Runs('made'), folder / 'adapter_model.bin')


# The same for a folder of PEFT.
PEFT = {
    'no folder': (lambda folder: shutil.rmtree(folder), 'is no adapter of PEFT'),
    'a pickle': (pickled, 'is no adapter of PEFT'),
    'a pickle by another name': (peft_file('adapter_model.safetensors', pickle.dumps(Runs('made'))),
                                 'is no adapter of PEFT'),
    'a config that is no text': (peft_file('adapter_config.json', b'\xff\xfe{}'), 'is no adapter of PEFT'),
    'a config that is no JSON': (peft_file('adapter_config.json', b'{'), 'is no adapter of PEFT'),
    'a config that is a list': (peft_file('adapter_config.json', b'[]'), 'holds a list'),
    'a deep config': (peft_file('adapter_config.json', b'[' * 100_000), 'is no adapter of PEFT'),
    'a config of 90 MB': (peft_file('adapter_config.json', b'[' + b'[],' * 30_000_000 + b'[]]'),
                          '90000004 bytes are its text'),
    'a config that never ends': (lambda folder: ((folder / 'adapter_config.json').unlink(),
                                                 (folder / 'adapter_config.json').symlink_to('/dev/zero')),
                                 'is no adapter of PEFT'),
    'a pipe': (lambda folder: ((folder / 'adapter_config.json').unlink(), os.mkfifo(folder / 'adapter_config.json')),
               'is no adapter of PEFT'),
    'another type': (peft_config(peft_type='os.system'), 'an adapter of the type os.system; e3va reads LORA'),
    'code of its own': (peft_config(auto_mapping=dict(parent_library='made', base_model_class='Made'),
                                    alpha_pattern={'((\\w+\\.?)+)+!': 3}), 'may take for ever'),
    'a scale that is no number': (peft_config(lora_alpha='__import__("os")'), 'lora_alpha must be a number'),
}


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """(model, its delta as bytes, path of its trunk's weights)"""
    model = Whole()
    stir(model)
    folder = tmp_path_factory.mktemp('good')
    torch.save({f'backbone.{name}': value for name, value in model.backbone.state_dict().items()
                if name in model.backbone.tuning.keys}, folder / 'base.pth')
    e3va.save_delta(model, folder / 'delta.safetensors', base=str(folder / 'base.pth'))
    assert CheckpointLoader.load_checkpoint(f'e3va://{folder}/delta.safetensors')['state_dict'].keys() == set(
        model.state_dict())
    e3va.load_delta(model, folder / 'delta.safetensors')
    return model, (folder / 'delta.safetensors').read_bytes(), folder


@pytest.fixture
def place(good, tmp_path, monkeypatch):
    """The path of a copy of the delta, in a folder where code of a stranger lies about."""
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'a': torch.ones(1)}, more=Runs('made')), 'evil.pth')
    path = tmp_path / 'delta.safetensors'
    path.write_bytes(good[1])
    return path


def refused(load, words, model):
    """One ValueError with some words, within SECONDS and MEMORY; nothing has run, and the model is as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Path('/proc/self/clear_refs').write_text('5')                       # the peak begins anew
    start, had = time.thread_time(), memory('VmRSS')
    with pytest.raises(ValueError, match=words) as raised:
        load()
    took, peak = time.thread_time() - start, memory('VmHWM') - had
    assert took < SECONDS and peak < MEMORY, f'{took:.2f} s, {peak / 2 ** 20:.0f} MiB'
    assert len(str(raised.value)) < 2000 and not Path('made').exists()
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def memory(name):
    """Bytes by Linux' own count of this process."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:'))


@pytest.mark.parametrize('name', REBUILT)
def test_rebuilt(good, place, name):
    """As a checkpoint, for which a trunk is built by what the delta says of it."""
    make, words = REBUILT[name]
    make(place, good[1])
    refused(lambda: CheckpointLoader.load_checkpoint(f'e3va://{place}'), words, good[0])


@pytest.mark.parametrize('name', PEFT)
def test_peft(good, place, name):
    make, words = PEFT[name]
    export_peft(good[0], place.parent / 'adapter')
    make(place.parent / 'adapter')
    refused(lambda: import_peft(good[0], place.parent / 'adapter'), words, good[0])


def test_a_delta_as_a_checkpoint(good, place):
    """It reads as one, and leaves no trunk at random values."""
    refused(lambda: build('vit_mmpretrain', 'lora').load_state_dict(read_checkpoint(place), strict=False),
            'e3va://FILE', good[0])


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile(good, place, name):
    make, words = HOSTILE[name]
    make(place, good[1])
    refused(lambda: e3va.load_delta(good[0], place), words, good[0])


def mutated(good, chance):
    """The bytes of a file with one change anywhere, every other time in its header."""
    place = chance.randrange(chance.choice((len(good), len(good) - len(parts(good)[1]))))
    length = chance.choice((1, 1, 2, 8, 100))
    return chance.choice((
        lambda: good[:place] + bytes([good[place] ^ 1 << chance.randrange(8)]) + good[place + 1:],
        lambda: good[:place] + chance.randbytes(length) + good[place + length:],
        lambda: good[:place] + chance.randbytes(length) + good[place:],
        lambda: good[:place] + good[place + length:],
        lambda: good[:place] + good[place:place + length] + good[place:],
        lambda: good[:place]))()


ODD = (None, True, 0, -1, 3, 2 ** 31, 2 ** 63, 10 ** 400, 0.5, float('nan'), float('-inf'), '', 'x', '../x', 'os.mkdir',
       'e3va.LoRA', '\0', [], [[]], {}, dict(type='os.mkdir', path='made'), dict(_base_='x'), 'x' * 1000)


def meddled(text, chance):
    """The metadata of a delta with a value somewhere in it replaced, taken out or put elsewhere."""
    root = json.loads(text)
    places = []

    def walk(node):
        for key, value in list(node.items()) if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, (dict, list)):
                walk(value)

    walk(root)
    node, key = chance.choice(places)
    other, name = chance.choice(places)
    chance.choice((lambda: node.update({key: chance.choice(ODD)}) if isinstance(node, dict) else
                   node.__setitem__(key, chance.choice(ODD)),
                   lambda: node.pop(key),
                   lambda: node.__setitem__(key, json.loads(json.dumps(other[name])))))()
    return json.dumps(root)


def test_mutated_files(good, place):
    """A change of any byte is refused, or is one that means nothing (a space in the header); no error but ValueError.
    """
    chance, whole = random.Random(0), delta_file.read(place)
    refusals = 0
    for _ in range(MUTATIONS - MUTATIONS // 25):
        place.write_bytes(mutated(good[1], chance))
        start = time.thread_time()
        try:
            tensors, meta = delta_file.read(place)
        except ValueError as error:
            assert len(str(error)) < 2000
            refusals += 1
        else:
            assert meta == whole[1] and tensors.keys() == whole[0].keys()
            assert all(torch.equal(value, whole[0][name]) for name, value in tensors.items())
        assert time.thread_time() - start < SECONDS
    assert refusals > 0.95 * MUTATIONS


def test_mutated_metadata(good, place):
    """Signed by whoever changed it: refused, or what is loaded is what was saved; nothing runs on any road."""
    model, content, _ = good
    chance, own = random.Random(1), e3va.delta(model)
    text, want = parts(content)[0]['__metadata__']['e3va'], model.state_dict()
    fresh = Whole()
    fresh.load_state_dict(want)
    loaded = 0
    for _ in range(MUTATIONS // 25):
        place.write_bytes(content)
        sign(place, meddled(text, chance))
        for load in (lambda: e3va.load_delta(fresh, place).state_dict(),
                     lambda: CheckpointLoader.load_checkpoint(f'e3va://{place}')['state_dict']):
            start = time.thread_time()
            try:
                got = load()
            except ValueError as error:
                assert len(str(error)) < 3000
            else:
                loaded += 1
                assert all(torch.equal(got[name], value) for name, value in own.items())
                assert got.keys() != want.keys() or all(torch.equal(got[name], want[name]) for name in want)
            assert time.thread_time() - start < SECONDS
    assert loaded and not Path('made').exists()

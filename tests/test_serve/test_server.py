"""A server against each model alone: the same bits, one trunk in memory, whatever the threads and whoever fails."""
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn

import e3va
from e3va.delta.file import fingerprint
from e3va.serve import Removed, Server
from tests.test_serve.models import CLASSES, alone, base, config, equal, make, picture

WRITTEN = dict(type='GPS', k=2, criterion='magnitude')
LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('serve')


@pytest.fixture(scope='module')
def swin(folder):
    return base(folder)


@pytest.fixture(scope='module')
def vit(folder):
    return base(folder, 'vit_mmpretrain', seed=4)


@pytest.fixture(scope='module')
def made(folder, vit):
    """Two classifiers each under E3VA, LoRA and GPS on one ViT: {name: (delta, model)}."""
    methods = dict(e3va='e3va', lora='lora', gps=WRITTEN)
    return {f'{name}{seed}': make(folder, 'mmpretrain', method, vit, vit=True, seed=seed)
            for name, method in methods.items() for seed in (1, 2)}


def serving(made, *names, **options):
    server = Server(**options)
    for name in names or made:
        server.add(name, made[name][0])
    return server


def passes(server, task):
    """A list that grows by one for each pass through a task's first block."""
    calls = []
    trunk = server.tasks[task].trunk
    block = trunk.tuning.parts.stages(trunk)[0][0]
    next(block.children()).register_forward_hook(lambda *args: calls.append(1))
    return calls


@pytest.mark.parametrize('trunk', ['swin', 'vit'])
def test_three_libraries_on_one_trunk(folder, swin, vit, trunk, request):
    """Instances, a map and a class: one pass, one trunk in memory, and the samples of each library alone."""
    file = dict(swin=swin, vit=vit)[trunk]
    made = {library: make(folder, library, 'e3va', file, vit=trunk == 'vit') for library in LIBRARIES}
    with serving(made) as server:
        assert server.memory['trunk'] < 1.1 * file.stat().st_size
        calls = [passes(server, library) for library in LIBRARIES]
        image = picture()
        found = server([image, picture(1)])
        assert sorted(map(len, calls)) == [0, 0, 2]                     # two images
        for library, (_, model) in made.items():
            for sample, one in zip(found[library], (image, picture(1))):
                assert equal(sample, alone(library, model, one))
        assert server.tasks['mmdet'].classes == CLASSES


METHODS = [WRITTEN, 'lora', 'lora_1bit', 'dmlora', 'ssf', 'fact_tt', 'fact_tk', 'bitfit', 'adaptformer', 'vpt_deep',
           'e3va_sum', 'e3va_stacked', 'fixed', 'norm_tuning', 'compacter', 'gps_net', 'fourierft',
           'repadapter', 'mona']


def test_every_kind_of_method(folder, vit):
    """All kinds of methods beside one trunk, which is what it was afterwards; each as its model alone."""
    made = {str(i): make(folder, 'mmpretrain', method, vit, vit=True, seed=i + 1) for i, method in enumerate(METHODS)}
    with Server() as server:
        server.add('0', made['0'][0])
        before = fingerprint({str(key): value for key, value in server.pool.tensors.items()})
        held = dict(server.pool.tensors)
        for name in list(made)[1:]:
            server.add(name, made[name][0])
        image = picture()
        for _ in range(2):
            for name, (_, model) in made.items():
                model = e3va.merge(model) if METHODS[int(name)] in (WRITTEN, 'gps_net') else model
                assert equal(server(image, name), alone('mmpretrain', model, image)), METHODS[int(name)]
        fp32 = sum(value.nbytes for (_, kind), value in server.pool.tensors.items() if kind is torch.float32)
        assert fp32 < 1.1 * vit.stat().st_size                          # one trunk, whoever came
    assert fingerprint({str(key): value for key, value in held.items()}) == before


QUICK = dict(stock={}, bf16=dict(trunk_weights='bf16'), int8=dict(trunk_weights='int8'))


@pytest.mark.parametrize('first', QUICK)
def test_trunks_of_fewer_bits(folder, vit, first, tmp_path, monkeypatch):
    """In whatever order they come: in memory once in each kind, a pass for each kind, and each as its model alone."""
    monkeypatch.setattr('e3va.serve.task.LEAST', 0)                     # as beside a trunk of a real size
    made = {}
    for name, options in QUICK.items():
        place = tmp_path / name
        place.mkdir()
        made.update((f'{name}{seed}', make(place, 'mmpretrain', dict(type='E3VA', rank=2, **options), vit, vit=True,
                                           seed=seed)) for seed in (1, 2))
    names = sorted(made, key=lambda name: not name.startswith(first))
    with Server() as server:
        for name in names:
            server.add(name, made[name][0])
        found = server(picture())
        for name, (_, model) in made.items():
            assert equal(found[name], alone('mmpretrain', model, picture())), name
        passes = {name: server.tasks[name].highway for name in names}
        assert len(set(passes.values())) == 3 and all(passes[f'{name}1'] == passes[f'{name}2'] for name in QUICK)
        assert server.memory['trunk'] < 1.75 * vit.stat().st_size       # whole, a half and a quarter, norms once
        other = make(tmp_path, 'mmpretrain', dict(type='E3VA', rank=2, **QUICK['int8' if first == 'stock' else first]),
                     base(tmp_path, 'vit_mmpretrain', seed=9), vit=True)[0]
        with pytest.raises(ValueError, match='is of another trunk than the one in memory'):
            server.add('other', other)


def test_a_second_task_needs_no_base(folder, vit, tmp_path):
    """The trunk in fewer bits that is in memory is that of the second delta, whose base is not at hand."""
    for name in ('bf16', 'int8'):
        file = tmp_path / f'{name}.pth'
        file.write_bytes(vit.read_bytes())
        deltas = [make(tmp_path, 'mmpretrain', dict(type='E3VA', rank=2, **QUICK[name]), file, vit=True, seed=seed)[0]
                  for seed in (1, 2)]
        with Server() as server:
            server.add('1', deltas[0])
            file.unlink()
            server.add('2', deltas[1])
            assert not any(isinstance(found, Exception) for found in server(picture()).values())


def test_compiled(folder, vit, tmp_path, monkeypatch):
    """`trunk_compile`, traced alone (compiling takes long): tasks go beside one pass, each as its model alone."""
    monkeypatch.setattr(nn.Module, 'compile', partialmethod(nn.Module.compile, backend='eager'))
    path, model = make(tmp_path, 'mmpretrain', dict(type='E3VA', rank=2, trunk_compile=True), vit, vit=True, seed=1)
    other = make(tmp_path, 'mmpretrain', dict(type='E3VA', rank=2, trunk_compile=True), vit, vit=True, seed=2)
    with Server() as server:
        server.add('1', path), server.add('2', other[0])
        found = server(picture())
        assert server.tasks['1'].highway == server.tasks['2'].highway
        assert equal(found['1'], alone('mmpretrain', model, picture()))
        assert equal(found['2'], alone('mmpretrain', other[1], picture()))


def test_a_compiled_model(folder, vit, tmp_path):
    """By wrapper or in place, it has the deltas of its own names; a wrapper inside is one error."""
    path, model = make(tmp_path, 'mmpretrain', 'e3va', vit, vit=True, seed=3)
    cfg = config('mmpretrain', vit, 'e3va', vit=True)
    wrapped = torch.compile(model, backend='eager')
    e3va.save_delta(wrapped, tmp_path / 'wrapped.safetensors', config=cfg)
    assert e3va.load_delta(wrapped, path) is wrapped
    trunk = model.backbone
    model.backbone = torch.compile(trunk, backend='eager')
    with pytest.raises(ValueError, match=r'wrapped the tuned backbone, .* in place, model.backbone.compile\(\)'):
        e3va.save_delta(model, tmp_path / 'inside.safetensors')
    model.backbone = trunk
    trunk.compile(backend='eager')
    e3va.save_delta(model, tmp_path / 'in_place.safetensors', config=cfg)
    with Server() as server:
        for name in ('wrapped', 'in_place'):
            server.add(name, tmp_path / f'{name}.safetensors')
            assert equal(server(picture(), name), alone('mmpretrain', model, picture()))


def test_weights_are_exchanged_once_for_all_that_wait(made):
    """Requests that come in turn for two tasks under GPS are grouped."""
    with serving(made, 'gps1', 'gps2', 'e3va1') as server:
        turns, turn = [], server.turn
        server.turn = lambda task: (turns.append(task and task.name) if task is not server.active else None, turn(task))
        with server.computing:                                          # so that all wait
            waiting = [server.submit(picture(i), ['gps1', 'gps2', 'e3va1'][i % 3]) for i in range(12)]
            time.sleep(0.05)
        for i, one in enumerate(waiting):
            name = ['gps1', 'gps2', 'e3va1'][i % 3]
            model = made[name][1]
            assert equal(one.result(), alone('mmpretrain', e3va.merge(model) if 'gps' in name else model, picture(i)))
        assert len(turns) <= 6                                          # the first request was alone


def test_threads(made):
    """Eight threads, each its own images and tasks, while others are added and removed: the results of one."""
    with serving(made) as server:
        names = list(made)
        expected = {(name, i): server(picture(i), name) for name in names for i in range(3)}
        stop, wrong = threading.Event(), []

        def change():
            while not stop.is_set():
                server.add('more', made['gps1'][0])
                server.replace('more', made['e3va2'][0])
                server.remove('more')
                stop.wait(0.2)

        def ask(seed):
            draw = np.random.default_rng(seed)
            for _ in range(5):
                chosen = list(draw.choice(names, 2, replace=False))
                i = int(draw.integers(3))
                found = server(picture(i), chosen)
                wrong.extend(name for name in chosen if isinstance(found[name], Exception)
                             or not equal(found[name], expected[name, i]))

        changing = threading.Thread(target=change)
        changing.start()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        stop.set()
        changing.join()
        assert not wrong


def soak(made, requests):
    """Small requests of eight threads: (answers, growth of memory in MiB over the second half)."""
    import psutil
    process, images = psutil.Process(), [picture(i, 24, 24) for i in range(4)]
    with serving(made) as server:
        names = list(made)

        def ask(i):
            found = server(images[i % 4], names[i % len(names)])
            return found.pred_score.numel()

        with ThreadPoolExecutor(8) as threads:
            first = sum(threads.map(ask, range(requests // 2)))
            gc.collect()
            middle = process.memory_info().rss
            second = sum(threads.map(ask, range(requests // 2)))
            gc.collect()
    return (first + second) // 3, (process.memory_info().rss - middle) / 2 ** 20


def test_soak_of_a_few(made):
    answers, growth = soak(made, 200)
    assert answers == 200 and growth < 20


@pytest.mark.slow
def test_soak(made):
    answers, growth = soak(made, 10000)
    assert answers == 10000 and growth < 5


# ---- What fails -----------------------------------------------------------------------------------------------------


def test_a_task_fails_alone(made):
    with serving(made, 'e3va1', 'e3va2', 'lora1') as server:
        server.tasks['e3va2'].model.head.forward = None                 # whatever goes wrong in a model
        found = server([picture(), picture(1)])
        assert isinstance(found['e3va2'], TypeError)
        assert len(found['e3va1']) == len(found['lora1']) == 2
        with pytest.raises(TypeError):
            server(picture(), 'e3va2')
        assert equal(server(picture(), 'e3va1'), found['e3va1'][0])


def test_removed_in_the_middle(made):
    """Of its request, before and while its entries are in the weights; others get theirs."""
    with serving(made, 'gps1', 'e3va1') as server:
        trunk = fingerprint({str(key): value for key, value in server.pool.tensors.items()})
        predict, seen = server.tasks['gps1'].model.forward, []

        def slow(*args, **options):
            seen.append(1)
            if len(seen) == 2:
                removing.start()
                time.sleep(0.05)
            return predict(*args, **options)

        server.tasks['gps1'].model.forward = slow
        removing = threading.Thread(target=server.remove, args=('gps1',))
        found = server([picture(i) for i in range(5)])
        removing.join()
        assert isinstance(found['gps1'], Removed) and "'gps1' was removed" in str(found['gps1']) and len(seen) < 5
        assert len(found['e3va1']) == 5
        assert fingerprint({str(key): value for key, value in server.pool.tensors.items()}) == trunk
        with pytest.raises(ValueError, match="no task 'gps1'; there are: e3va1"):
            server(picture(), 'gps1')


def test_replaced_answers_by_the_new(made):
    with serving(made, 'e3va1') as server:
        server.replace('e3va1', made['lora2'][0])
        assert equal(server(picture(), 'e3va1'), alone('mmpretrain', made['lora2'][1], picture()))
        with pytest.raises(ValueError, match="'none' .* there are: e3va1|no task 'none'"):
            server.replace('none', made['lora2'][0])
        with pytest.raises(ValueError, match='already: replace it'):
            server.add('e3va1', made['lora2'][0])


def test_closed(made):
    server = serving(made, 'e3va1')
    server.close()
    with pytest.raises(Removed, match='closed'):
        server(picture())


@pytest.mark.parametrize('image, said', [
    (np.zeros((0, 5, 3), np.uint8), 'has no pixels'), (np.zeros((5, 5), np.uint8), 'is grey'),
    (np.zeros((5, 5, 1), np.uint8), 'is grey'), (np.zeros((5, 5, 4), np.uint8), 'alpha channel'),
    (np.zeros((5, 5, 3), np.uint16), 'is of uint16.*8 bits'), (np.zeros((5, 5, 3)), 'is of float64'),
    (np.zeros((5, 5, 2), np.uint8), 'has the shape'), ('nothing.jpg', 'no image nothing.jpg'), (7, 'is a int')])
def test_bad_images(made, image, said):
    with serving(made, 'e3va1') as server, pytest.raises(ValueError, match=said):
        server([picture(), image], 'e3va1')


def test_bad_files(made, folder, vit, tmp_path):
    """Deltas of another trunk, another version, without a config; a file that is no image. Nothing changes by them."""
    from tests.test_files.test_foreign import put, sign
    other = make(tmp_path, 'mmpretrain', 'lora', base(tmp_path, 'vit_mmpretrain', seed=9), vit=True)[0]
    with serving(made, 'e3va1') as server:
        memory = server.memory
        with pytest.raises(ValueError, match='is of another trunk than the one in memory, which is that of the delta'):
            server.add('other', other)
        newer = tmp_path / 'newer.safetensors'
        newer.write_bytes(made['e3va2'][0].read_bytes())
        sign(newer, put('version', 9))
        with pytest.raises(ValueError, match='it has format 9, this e3va reads 1 to 2'):
            server.add('newer', newer)
        bare = tmp_path / 'bare.safetensors'
        e3va.save_delta(made['e3va2'][1], bare)
        with pytest.raises(ValueError, match='does not say which config it belongs to'):
            server.add('bare', bare)
        with pytest.raises(ValueError, match='there is no delta file'):
            server.add('none', tmp_path / 'none.safetensors')
        (tmp_path / 'torn.jpg').write_bytes(b'no image')
        found = server(tmp_path / 'torn.jpg')
        assert 'cannot be read as an image' in str(found['e3va1'])
        assert server.memory == memory and list(server.tasks) == ['e3va1']


def test_a_checkpoint(made, folder, vit, tmp_path):
    """A whole checkpoint of a tuned model, by its own config; one whose trunk has moved is refused."""
    cfg = config('mmpretrain', vit, 'lora', vit=True)
    model = made['lora1'][1]
    whole = dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES)))
    torch.save(whole, tmp_path / 'whole.pth')
    with serving(made, 'e3va1') as server:
        server.add('whole', tmp_path / 'whole.pth')
        assert equal(server(picture(), 'whole'), alone('mmpretrain', model, picture()))
        assert server.tasks['whole'].classes == CLASSES
        moved = {name: value + 1e-3 if 'ffn' in name and 'pairs' not in name else value
                 for name, value in model.state_dict().items()}
        torch.save(dict(whole, state_dict=moved), tmp_path / 'moved.pth')
        with pytest.raises(ValueError, match='another trunk'):
            server.add('moved', tmp_path / 'moved.pth')


def test_half_precision(made):
    """By autocast, as in training: shared and alone the same."""
    with serving(made, 'e3va1', 'e3va2', autocast='bf16') as server:
        found = server(picture())
        for name in ('e3va1', 'e3va2'):
            with torch.autocast('cpu', torch.bfloat16):
                assert equal(found[name], alone('mmpretrain', made[name][1], picture()))
    with pytest.raises(ValueError, match="autocast='half'"):
        Server(autocast='half')


def test_strength(made, vit):
    """The address's knob, in a server: 0 is the trunk with the task's head."""
    with Server() as server:
        server.add('whole', f'e3va://{made["lora1"][0]}?strength=1')
        server.add('half', f'e3va://{made["lora1"][0]}?strength=0.5')
        assert equal(server(picture(), 'whole'), alone('mmpretrain', made['lora1'][1], picture()))
        assert not equal(server(picture(), 'half'), server(picture(), 'whole'))
        with pytest.raises(ValueError, match='E3VA is not linear'):
            server.add('no', f'e3va://{made["e3va1"][0]}?strength=0.5')

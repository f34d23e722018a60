"""Frozen weights in parts on two processes: weights, checkpoints and deltas are those of one process."""
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner, Runner
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

import e3va
from e3va.delta import file as delta_file
from e3va.train.resume import newest_checkpoint
from e3va.train.shard import frozen, move
from tests.conftest import build, in_processes, in_two_processes
from tests.running import Classifier, runner_of, without_batch_norm

RECOMPUTE = dict(type='LoRA', rank=3, alpha=6, recompute='block')
METHODS = dict(
    fixed=dict(type='Fixed', train_out_norms=True), lora_recompute=RECOMPUTE, gps=dict(type='GPS', k=2),
    vpt=dict(type='VPT', tokens=2, deep=True),
    **{f'e3va_{mode}': dict(type='E3VA', rank=2, mode=mode) for mode in (
        'exact', 'bf16', 'int8', 'stream', 'stream_bf16')})
CASES = [('vit_mmpretrain', name) for name in METHODS] + [
    ('swin_mmdet', name) for name in ('fixed', 'lora_recompute', 'gps', 'e3va_exact', 'e3va_stream')] + [
    ('vit_timm', 'lora_recompute')]                                     # its blocks are read past their forward
BLOCK = r'backbone\.(layers|stages\.\d\.blocks|blocks)\.\d'
GATHERED = []                                                           # values, of each gathering of a process
LONG = 'vit_mmpretrain', 'lora_recompute'                               # two epochs, so that it can be resumed


class Model(Classifier):
    """Most trunks give out maps."""

    def __init__(self, method, trunk):
        super().__init__(method, trunk, drop_path_rate=0.)
        self.maps = trunk != 'vit_mmpretrain'
        width = 24 if trunk.startswith('vit') else 192
        self.norm, self.head = torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 3)

    def forward(self, inputs, labels, mode='tensor'):
        out = self.backbone(inputs)[-1]
        out = self.head(self.norm(out.flatten(2).mean(2) if self.maps else out))
        return dict(loss=torch.nn.functional.cross_entropy(out, labels)) if mode == 'loss' else list(out)


class Held(Hook):
    """What of the model a process holds after a step, and what it has gathered in it."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        GATHERED.clear()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        parameters = dict(runner.model.named_parameters())
        self.gathered = sum(GATHERED)
        self.blocks, self.rest = (sum(value.numel() for name, value in parameters.items()
                                      if isinstance(value, DTensor) and bool(re.search(BLOCK, name)) == inside)
                                  for inside in (True, False))
        self.own = sum(value.to_local().numel() if isinstance(value, DTensor) else value.numel()
                       for value in parameters.values())
        self.all = sum(value.numel() for value in parameters.values())
        self.trained_in_parts = [name for name, value in parameters.items()
                                 if value.requires_grad and isinstance(value, DTensor)]


def run_of(folder, trunk, name, watch, **options):
    found = newest_checkpoint(folder)
    hooks = dict(checkpoint=dict(type='e3va.CheckpointHook', interval=1), delta=dict(type='e3va.DeltaHook'))
    wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=dict(max_norm=1.))
    if name == 'gps':
        hooks['gps'] = dict(type='e3va.GPSHook', loss='task')
        wrapper['type'] = 'e3va.GPSOptimWrapper'
    runner = runner_of(folder, partial(Model, METHODS[name], trunk), hooks, watch, resume=bool(found), load_from=found,
                       epochs=2 if (trunk, name) == LONG else 1, wrapper=wrapper, schedule=False, **options)
    return without_batch_norm(runner)


def parts(rank, folder):
    """Run in each process: all cases; one of them is resumed from its middle too."""
    name = next(name for name in ('all_gather_single', 'all_gather_into_tensor') if hasattr(torch.distributed, name))

    def gather(output, *args, real=getattr(torch.distributed, name), **options):
        GATHERED.append(output.numel())
        return real(output, *args, **options)

    setattr(torch.distributed, name, gather)                            # of this process alone
    sharded = dict(batch=4 // get_world_size(), kind=partial(FlexibleRunner, launcher='pytorch',
                                         strategy=dict(type='e3va.ShardStrategy')))
    for trunk, name in CASES:
        watch = Held()
        runner = run_of(folder / f'{trunk}-{name}', trunk, name, watch, **sharded)
        runner.train()
        if is_main_process():
            alone = folder / f'{trunk}-{name}' / 'alone.safetensors'
            e3va.save_delta(runner.model, alone)                        # no other process takes part
        torch.save(vars(watch), folder / f'{trunk}-{name}-{rank}.pth')
    if is_main_process():
        begun(folder, folder / 'resumed')
    torch.distributed.barrier()
    run_of(folder / 'resumed', *LONG, Held(), **sharded).train()


def begun(folder, to):
    """A folder with the checkpoint in the middle of the long run."""
    to.mkdir()
    shutil.copy(folder / '-'.join(LONG) / 'epoch_1.pth', to)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    build('vit_mmpretrain')                                             # imports, once for all
    return in_two_processes(parts, tmp_path_factory.mktemp('parts'))


@pytest.mark.parametrize('trunk, name', CASES)
def test_as_one_process(folder, tmp_path, trunk, name):
    """Weights after four steps; a checkpoint and a delta that one process loads."""
    as_one_process(folder, tmp_path, trunk, name)


@pytest.mark.slow
def test_four_processes(tmp_path):
    """The same, and what is left of a part where entries do not go up in four."""
    build('vit_mmpretrain')
    folder = in_processes(4, parts, tmp_path)
    for i, (trunk, name) in enumerate(CASES):
        (own := tmp_path / str(i)).mkdir()
        as_one_process(folder, own, trunk, name)
        held = [torch.load(folder / f'{trunk}-{name}-{rank}.pth') for rank in range(4)]
        assert all(one['own'] < 0.5 * one['all'] for one in held)


def as_one_process(folder, tmp_path, trunk, name):
    place = folder / f'{trunk}-{name}'
    runner = run_of(tmp_path / 'one', trunk, name, Held(), batch=4, kind=Runner)
    start = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    last = f'epoch_{runner.max_epochs}'
    want, got = runner.model.state_dict(), torch.load(place / f'{last}.pth', weights_only=False)
    assert got['state_dict'].keys() == want.keys() and 'optimizer' in got
    moved = [key for key in want if want[key].is_floating_point() and start[key].shape == want[key].shape
             and not torch.equal(start[key], want[key])]
    assert moved
    assert not far(got['state_dict'], want)
    left = set(want) - set(e3va.delta(runner.model))                    # what is frozen has not moved by a bit
    assert all(torch.equal(got['state_dict'][key], want[key]) for key in left)
    for file in (f'delta_{last}', 'alone'):
        tensors, meta = delta_file.read(place / f'{file}.safetensors')
        assert tensors.keys() == e3va.delta(runner.model).keys()
        assert all(torch.equal(value, got['state_dict'][key]) for key, value in tensors.items())
        hashes = [found['trunks'][0]['sha256'] for found in (
            meta, delta_file.read(tmp_path / f'one/delta_{last}.safetensors')[1])]
        assert hashes[0] == hashes[1]


def far(one, other):
    """Names of entries that differ by more than the order of a sum."""
    return [key for key in other if not torch.allclose(one[key].float(), other[key].float(), rtol=0, atol=2e-6)]


def test_resumed_by_any_number_of_processes(folder, tmp_path):
    begun(folder, tmp_path / 'one')
    alone = run_of(tmp_path / 'one', *LONG, Held(), batch=4, kind=Runner)
    alone.train()
    whole, resumed = (torch.load(folder / place / 'epoch_2.pth', weights_only=False) for place in (
        '-'.join(LONG), 'resumed'))
    assert not far(alone.model.state_dict(), whole['state_dict'])
    assert all(torch.equal(value, resumed['state_dict'][key]) for key, value in whole['state_dict'].items())


@pytest.mark.parametrize('trunk, name', CASES)
def test_what_a_process_holds(folder, trunk, name):
    """Half of what is frozen, and all that trains."""
    for rank in range(2):
        held = torch.load(folder / f'{trunk}-{name}-{rank}.pth')
        assert not held['trained_in_parts'] and held['own'] < 0.75 * held['all']


@pytest.mark.parametrize('trunk, name', [case for case in CASES if case[1] != 'fixed'])
def test_how_often_a_block_is_gathered(folder, trunk, name):
    """As docs/sharding.md counts: the rest of the model once; a few values more fill up the last parts."""
    held = torch.load(folder / f'{trunk}-{name}-0.pth')
    times = 1 if name in ('e3va_exact', 'e3va_bf16', 'e3va_int8') else 2
    least = times * held['blocks'] + held['rest']
    assert least <= held['gathered'] < 1.05 * least


# ---- a trunk that stays in its file --------------------------------------------------------------------------------

WIDE = dict(name='vit_tiny_patch16_224', embed_dim=512, depth=8, num_heads=4)           # 97 MiB
IN_FILE = 'e3va_exact', 'lora_recompute'


@MODELS.register_module()
class FromConfig(BaseModel):
    """Its trunk is built when the strategy builds the model."""

    def __init__(self, method, file):
        super().__init__(BaseDataPreprocessor())
        self.backbone = MODELS.build(dict(type='e3va.Tuned', trunk='e3va.TimmTrunk', method=method, **WIDE,
                                          init_cfg=dict(type='Pretrained', checkpoint=str(file))))
        torch.manual_seed(1)                                            # a mapped trunk has drawn less
        for parameter in self.backbone.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        self.head = torch.nn.Linear(512, 3)

    def forward(self, inputs, labels, mode='tensor'):
        out = self.head(self.backbone(inputs)[-1].flatten(2).mean(2))
        return dict(loss=torch.nn.functional.cross_entropy(out, labels)) if mode == 'loss' else list(out)


class Pages(Hook):
    """When a process has its model: bytes of frozen weights that are pages of a file, and of those the written ones."""

    def before_train(self, runner):
        found = re.findall(r'^(\w+)-(\w+) \S+ \S+ \S+ \S+ +\S+trunk\.safetensors$(.*?)^VmFlags', Path(
            '/proc/self/smaps').read_text(), re.DOTALL | re.MULTILINE)
        places = [(int(start, 16), int(end, 16)) for start, end, _ in found]
        self.written = sum(1024 * int(re.search(r'Private_Dirty: +(\d+)', text)[1]) for *_, text in found)
        self.mapped = sum(one.nbytes for one in runner.model.parameters() if not one.requires_grad
                          and any(start <= one.data_ptr() < end for start, end in places))


def wide_run(folder, name, watch, **options):
    model = dict(type='FromConfig', method=METHODS[name], file=folder.parent / 'trunk.safetensors')
    return runner_of(folder, lambda: model, dict(delta=dict(type='e3va.DeltaHook')), watch, epochs=1, schedule=False,
                     wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), **options)


def from_one_file(rank, folder):
    for name in IN_FILE:
        watch = Pages()
        wide_run(folder / name, name, watch, batch=2, kind=partial(
            FlexibleRunner, launcher='pytorch', strategy=dict(type='e3va.ShardStrategy', mapped=True))).train()
        torch.save((watch.mapped, watch.written), folder / f'{name}-{rank}.pth')


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wide')
    trunk = timm.create_model(WIDE['name'], num_classes=0, embed_dim=512, depth=8, num_heads=4)
    save_file(trunk.state_dict(), folder / 'trunk.safetensors')
    return in_two_processes(from_one_file, folder)


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='Linux says which memory is pages of a file')
@pytest.mark.parametrize('name', IN_FILE)
def test_mapped(wide, tmp_path, name):
    """No process has the trunk for itself; the run is that of one process that has."""
    size = (wide / 'trunk.safetensors').stat().st_size
    (tmp_path / 'trunk.safetensors').symlink_to(wide / 'trunk.safetensors')
    watch = Pages()
    alone = wide_run(tmp_path / 'one', name, watch, batch=4, kind=FlexibleRunner)
    alone.train()
    for rank in range(2):
        mapped, written = torch.load(wide / f'{name}-{rank}.pth')
        assert mapped > 0.99 * size and written < 0.01 * size
    assert watch.mapped == 0
    whole = torch.load(wide / name / 'epoch_1.pth', weights_only=False)['state_dict']
    assert not far(whole, alone.model.state_dict())
    stock = load_file(wide / 'trunk.safetensors')
    assert all(torch.equal(whole[f'backbone.{key}'], value) for key, value in stock.items()
               if f'backbone.{key}' in whole)


def test_moved_but_for_the_trunk():
    """As to a GPU, where the trunk goes a block at a time: the strategy leaves what is frozen where it is."""
    model = build('vit_mmpretrain', RECOMPUTE)
    move(model, 'meta', kept=frozen(model))
    assert all(one.is_meta == one.requires_grad for one in model.parameters())


def test_not_for_gps():
    with pytest.raises(ValueError, match='mapped=True of ShardStrategy is not for GPS'):
        frozen(build('vit_mmpretrain', METHODS['gps']))

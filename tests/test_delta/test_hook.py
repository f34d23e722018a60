"""DeltaHook in mmengine's own runner: a delta beside each checkpoint, with what the checkpoint holds."""
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

import e3va
from e3va.delta import file as delta_file
from tests.conftest import build, image


class Model(BaseModel):
    """A tuned trunk and a head with a batch norm, whose statistics are part of the delta."""

    def __init__(self, checkpoint, method='e3va'):
        super().__init__()
        self.backbone = build('vit_mmpretrain', method, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
        self.head = nn.Sequential(nn.BatchNorm1d(24), nn.Linear(24, 1))

    def forward(self, inputs, mode='tensor'):
        out = self.head(self.backbone(inputs)[0])
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class Data(BaseDataset):
    def load_data_list(self):
        return [dict(number=i) for i in range(4)]

    def prepare_data(self, idx):
        return dict(inputs=image('vit_mmpretrain', batch=1, seed=idx)[0])


def make_runner(folder, trunk, loop, by_epoch, hooks=(), method='e3va', **options):
    return Runner(
        model=Model(trunk, method), work_dir=str(folder / 'run'), train_cfg=loop, experiment_name=f'{folder}{options}',
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=Data(), sampler=dict(
            type='DefaultSampler' if loop['by_epoch'] else 'InfiniteSampler', shuffle=True),
            collate_fn=dict(type='default_collate')),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)), custom_hooks=hooks, randomness=dict(seed=0),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 2),
                           delta=dict(type='e3va.DeltaHook'), rng_state=dict(type='e3va.RngStateHook')), **options)


@pytest.fixture
def trunk(tmp_path):
    torch.save(build('vit_mmpretrain', seed=4).state_dict(), tmp_path / 'trunk.pth')
    return tmp_path / 'trunk.pth'


@pytest.mark.parametrize('loop,hooks,names', [
    (dict(by_epoch=True, max_epochs=2), [], ['delta_epoch_1', 'delta_epoch_2']),
    (dict(by_epoch=True, max_epochs=2), [], ['delta_iter_2', 'delta_iter_4']),
    (dict(by_epoch=True, max_epochs=2), [dict(type='EMAHook')], ['delta_epoch_1', 'delta_epoch_2']),
    (dict(by_epoch=False, max_iters=4), [], ['delta_iter_2', 'delta_iter_4'])])
def test_beside_each_checkpoint(tmp_path, trunk, loop, hooks, names):
    make_runner(tmp_path, trunk, loop, 'epoch' in names[0], hooks).train()
    files = sorted(path.stem for path in (tmp_path / 'run').glob('*.safetensors'))
    assert files == names
    checkpoint = torch.load(tmp_path / 'run' / f'{names[-1][len("delta_"):]}.pth', weights_only=False)['state_dict']
    tensors, meta = delta_file.read(tmp_path / 'run' / f'{names[-1]}.safetensors')
    assert all(torch.equal(checkpoint[name], value) for name, value in tensors.items())
    assert {name for name in checkpoint if name.startswith('head.')} <= set(tensors)
    assert meta['base'] == str(trunk) and meta['trunk']['prefix'] == 'backbone.'
    assert meta['averaged'] == bool(hooks)
    # On a new model, whose trunk comes from the recorded base, it gives the checkpoint's model.
    model = e3va.load_delta(Model(trunk), tmp_path / 'run' / f'{names[-1]}.safetensors')
    assert all(torch.equal(checkpoint[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize('began_from', [None, 'whole.pth'])
@pytest.mark.parametrize('named', [True, False], ids=['checkpoint', 'auto'])
def test_a_resumed_run_keeps_its_base(tmp_path, trunk, began_from, named):
    if began_from:
        began_from = str(tmp_path / began_from)
        torch.save(dict(state_dict=Model(trunk).state_dict()), began_from)
    make_runner(tmp_path, trunk, dict(by_epoch=True, max_epochs=1), True, load_from=began_from).train()
    make_runner(tmp_path, trunk, dict(by_epoch=True, max_epochs=2), True, resume=True,
                load_from=str(tmp_path / 'run' / 'epoch_1.pth') if named else None).train()
    bases = [delta_file.read(tmp_path / 'run' / f'delta_epoch_{i}.safetensors')[1]['base'] for i in (1, 2)]
    assert bases == [began_from or str(trunk)] * 2


def test_quantised(tmp_path, trunk):
    """Trained on from a delta under EMA, interrupted and resumed: the checkpoint has the floats, the delta their bits.
    """
    method, ema = dict(type='LoRA', rank=6, bits=1), [dict(type='EMAHook')]
    folders = [tmp_path / name for name in ('first', 'whole', 'broken')]
    make_runner(folders[0], trunk, dict(by_epoch=True, max_epochs=1), True, method=method).train()
    start = dict(load_from=f'e3va://{folders[0]}/run/delta_epoch_1.safetensors', method=method)
    make_runner(folders[1], trunk, dict(by_epoch=True, max_epochs=2), True, ema, **start).train()
    make_runner(folders[2], trunk, dict(by_epoch=True, max_epochs=1), True, ema, **start).train()
    make_runner(folders[2], trunk, dict(by_epoch=True, max_epochs=2), True, ema, method=method, resume=True).train()
    whole, broken = (torch.load(folder / 'run' / 'epoch_2.pth', weights_only=False) for folder in folders[1:])
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, broken[part][name]) for name, value in whole[part].items())

    models = [Model(trunk, method), Model(trunk, method)]
    models[0].load_state_dict(whole['state_dict'])
    e3va.load_delta(models[1], folders[1] / 'run' / 'delta_epoch_2.safetensors')
    x = image('vit_mmpretrain')
    assert torch.equal(*(model.eval()(x) for model in models))
    name = 'backbone.layers.0.attn.qkv.pairs.0.down'
    assert not torch.equal(models[0].state_dict()[name], models[1].state_dict()[name])

"""A small run inside mmengine's own runner, for tests of hooks that change a model while it trains."""
import itertools

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from tests.conftest import build, in_two_processes

IMAGES, BATCH = 8, 4                                                    # an epoch has two iterations
NUMBERS = itertools.count()                                             # mmengine keeps what it has of a name


class Classifier(BaseModel):
    """A tuned ViT with a batch norm and a linear head."""

    def __init__(self, method, trunk='vit_mmpretrain', **options):
        super().__init__(BaseDataPreprocessor())
        self.backbone = build(trunk, method, **options)
        self.norm = nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 3)

    def forward(self, inputs, labels, mode='tensor'):
        out = self.head(self.norm(self.backbone(inputs)[-1]))
        return dict(loss=F.cross_entropy(out, labels)) if mode == 'loss' else list(out)


class Data(BaseDataset):
    METAINFO = dict(classes=('a', 'b', 'c'))

    def load_data_list(self):
        return [dict(number=i) for i in range(IMAGES)]

    def prepare_data(self, idx):
        return dict(inputs=torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(idx)), labels=idx % 3)


class Metric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample.sum()) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(score=sum(results))


def runner_of(folder, model, hooks, watch, resume=False, epochs=3, train_cfg=None, ema=False, seed=3, kind=Runner,
              batch=BATCH, wrapper=None, schedule=True, shuffle=False, **options):
    """A runner of `model`, made by a function, with the named default hooks `hooks` and the hook `watch`."""
    torch.manual_seed(0)                                                # the model is drawn before the runner seeds
    train_cfg = train_cfg or dict(by_epoch=True, max_epochs=epochs, val_interval=1)
    loader = dict(batch_size=batch, num_workers=0, dataset=Data(serialize_data=False),
                  collate_fn=dict(type='default_collate'))
    ema = [dict(type='EMAHook', momentum=0.1, **(ema if isinstance(ema, dict) else {}))] if ema else []
    return kind(
        model=model(), work_dir=str(folder), experiment_name=f'{folder.name}{next(NUMBERS)}',
        train_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=shuffle)), train_cfg=train_cfg,
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)), val_cfg={},
        val_evaluator=[Metric()], resume=resume,
        optim_wrapper=dict(dict(constructor='e3va.TunedOptimWrapperConstructor',
                                optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.1)), **(wrapper or {})),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
                         dict(type='CosineAnnealingLR', by_epoch=True)] if schedule else None,
        default_hooks=dict(
            rng_state=dict(type='e3va.RngStateHook'), logger=dict(type='LoggerHook', interval=1),
            **{'checkpoint': dict(type='CheckpointHook', interval=1, by_epoch=train_cfg['by_epoch']), **hooks}),
        custom_hooks=[watch, *ema], randomness=dict(seed=seed),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]), log_level='INFO', **options)


def finished(runner):
    """A run that is over, or None for an interrupted one."""
    try:
        runner.train()
    except KeyboardInterrupt:
        return None
    return runner


def state_of(runner):
    """All that a run leaves behind: weights, moments, their averages."""
    state = dict(runner.model.state_dict())
    for number, moments in runner.optim_wrapper.state_dict()['state'].items():
        state.update((f'{name} {number}', value) for name, value in moments.items())
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            state.update((f'ema {name}', value) for name, value in hook.ema_model.state_dict().items())
    return state


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Interrupt(Hook):
    """Stops a run in front of an iteration, as Ctrl-C does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise KeyboardInterrupt


class Weights(Hook):
    """Write the weights down after each step."""

    def __init__(self, file):
        self.file, self.rows = file, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        self.rows.append({name: value.clone() for name, value in model.state_dict().items()})
        torch.save(self.rows, self.file)


def without_batch_norm(runner):
    """Its statistics would be those of each process's images; no DropPath either."""
    model = getattr(runner.model, 'module', runner.model)
    for module in model.modules():
        if type(module).__name__ in ('DropPath', 'Dropout'):
            module.p = module.drop_prob = 0.
    model.norm.register_forward_pre_hook(keep_still)
    return runner


def keep_still(norm, inputs):
    norm.training = False


def assert_as_one_process(train, two, folder, step=0, **tolerances):
    """Two processes hold the same weights in the end, and after a step those of one: the losses are means over images.

    Args:
        train: train(folder, file) in one process, `Weights` into the file.
        two: two(rank, folder), the same in one of two, into {rank}.pth.
    """
    train(folder / 'one', folder / 'one.pth')
    in_two_processes(two, folder)
    one, *both = [torch.load(folder / f'{name}.pth') for name in ('one', 0, 1)]
    assert_equal(both[0][-1], both[1][-1])
    for name, value in one[step].items():                               # Adam makes much of rounding later on
        torch.testing.assert_close(both[0][step][name], value, **tolerances)

"""GPS selects what trains between the loading of the weights and the first step."""
import itertools
from functools import partial

from mmengine.dataset import Compose, DefaultSampler
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from ..methods.base import choice, integer, number
from ..registry import HOOKS
from ..train.change import change, common_seed, plain, rewrap
from ..train.rng_state import random_state, set_random_state
from ..tuned import find_tuned
from .contrast import features_of, has_pairs, labels_of, supcon
from .gradients import select
from .method import GPS, selected, sparse_layers
from .optim import Masks


@HOOKS.register_module()
class GPSHook(Hook):
    """One pass over the training data, and the entries with the largest gradients are selected; none on resume.

    Only `train_dataloader`'s data are read, in an order of their own: the training sees the batches and the random
    numbers that it would see without this. A last batch that is not full is left out, as in the public code. In full
    precision, as half floats lose small gradients; in training mode, as in the public code. A selection that a
    checkpoint brought is kept.

    Args:
        loss (str): 'supcon', of an image's features for a classifier, of pooled ones of boxes or regions for others;
            or 'task', the loss that is trained (for a classifier the ablation Head+CE; a head that starts at zero has
            random weights meanwhile, see `e3va.gps.gradients.select`). Default: 'supcon' for a classifier, 'task' for
            others, as the authors do for SAM.
        temperature (float): of 'supcon'.
        views (int): times that each image is loaded, augmented anew, into a batch. Default: 2 under 'supcon', as in
            the public code, else 1.
        pipeline (list of dict): transforms in place of the training pipeline's. The public code takes strong views
            (random resized crops, flips, colour jitter, grey), also where the training has none.
        batches (int): at most so many batches, drawn at random, in each process. Default: all of the data, once.
        batch_size (int): images in a batch, before `views`. Default: the loader's.
    """

    priority = 'ABOVE_NORMAL'                                           # before what reports on the model

    def __init__(self, loss=None, temperature=0.07, views=None, pipeline=None, batches=None, batch_size=None):
        self.loss = choice('loss', loss, (None, 'supcon', 'task'))
        self.temperature = number('temperature', temperature, low=1e-6)
        self.views, self.batches, self.batch_size = (
            value if value is None else integer(name, value)
            for name, value in (('views', views), ('batches', batches), ('batch_size', batch_size)))
        self.pipeline = pipeline

    def before_train(self, runner):
        model = plain(runner.model)
        _, trunk = find_tuned(model)
        method = trunk.tuning.method
        if not isinstance(method, GPS):
            raise ValueError(f'GPSHook selects for GPS, and this trunk is tuned by {type(method).__name__}: drop the '
                             "hook, or take method=dict(type='GPS')")
        if method.criterion != 'gradient' or selected(trunk):
            runner.logger.info(f'GPS: the selection by {method.criterion} is there')
        else:
            self.select(runner, model)
        trunk.tuning.hooked = True
        if method.mode == 'mask':
            if not isinstance(runner.optim_wrapper, Masks):
                raise ValueError("GPS(mode='mask') trains with optim_wrapper.type='e3va.GPSOptimWrapper' (or its twin "
                                 f'e3va.AmpGPSOptimWrapper), not {type(runner.optim_wrapper).__name__}')
            runner.optim_wrapper.mask(trunk)
        if method.level == 'net':
            self.follow(runner, model)

    def select(self, runner, model):
        stock, state, name = runner.train_dataloader, random_state(), type(find_tuned(model)[1].tuning.method).__name__
        if not len(stock.dataset):
            raise ValueError(f'{name} cannot select: the training set is empty; look at train_dataloader.dataset')
        model.train()
        try:
            item, seed = stock.dataset[0], common_seed(runner)
            samples = item.get('data_samples') if isinstance(item, dict) else None
            whole = hasattr(samples, 'gt_label')
            loss = self.loss or ('supcon' if whole else 'task')
            if loss == 'supcon' and samples is None:
                raise ValueError(f"{name} cannot select by loss='supcon': an item of the training set has no "
                                 "'data_samples' that say its classes; take loss='task'")
            views = self.views or (2 if loss == 'supcon' else 1)
            loader = loader_of(stock, views, self.pipeline, self.batch_size, seed)
            number = min(len(loader), self.batches or len(loader))
            runner.logger.info(f'{name}: selecting by {loss}, on {number} batches of training data')
            losses = task_loss if loss == 'task' else partial(contrastive_loss, whole, self.temperature)
            count = select(model, told(itertools.islice(loader, number), number, runner.logger, name),
                           partial(losses, model), seed)
        finally:
            set_random_state(state)
        runner.logger.info(
            f'{name}: selected {self.chosen(find_tuned(model)[1])} by {loss} on {count["used"]} batches of training '
            f'data; skipped, as no class had two samples: {count["skipped"]}')

    def chosen(self, trunk):
        """What was selected, in words."""
        layers = sparse_layers(trunk)
        return f'{sum(layer.index.numel() for layer in layers.values()):,} entries of {len(layers)} layers'

    def follow(self, runner, model):
        """What was made before the selection has its shapes: DDP's buckets, EMAHook's copy."""
        state = find_tuned(model)[1].state_dict()
        change(runner, partial(expect, state))
        rewrap(runner)


def expect(state, model):
    """Give a model the shapes of a trunk's selection."""
    _, trunk = find_tuned(model)
    trunk.tuning.method.expect(trunk, state)


def task_loss(model, batch):
    """The loss that the model is trained with."""
    data = model.data_preprocessor(batch, True)
    return model.parse_losses(model._run_forward(data, mode='loss'))[0]


def contrastive_loss(whole, temperature, model, batch):
    """`supcon` of a batch; None where no class has two samples. `whole`: images have classes, not parts of them."""
    data = model.data_preprocessor(batch, not whole)                    # in training it may mix images: of no class
    labels, places = labels_of(data['data_samples'])
    if not has_pairs(labels):
        return None
    features = features_of(model, data['inputs'], places)
    return supcon(features, labels.to(features.device), temperature)


class Views:
    """A data set in which each item is a list of `count` loads of an image, by a pipeline of its own where given."""

    def __init__(self, dataset, count, pipeline=None):
        self.dataset, self.count = dataset, count
        self.pipeline = None if pipeline is None else Compose(pipeline)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        if self.pipeline is None:
            return [self.dataset[i] for _ in range(self.count)]
        return [self.pipeline(self.dataset.get_data_info(i)) for _ in range(self.count)]


def loader_of(loader, views, pipeline, batch_size, seed):
    """A loader of the same data: once, shuffled, by a sampler of its own, as the loader's must not be advanced."""
    size = batch_size or loader.batch_sampler.batch_size
    sampler = DefaultSampler(loader.dataset, shuffle=True, seed=seed)
    return DataLoader(
        Views(loader.dataset, views, pipeline), batch_size=size, sampler=sampler, drop_last=len(sampler) >= size,
        num_workers=loader.num_workers, collate_fn=partial(collate, loader.collate_fn),
        worker_init_fn=loader.worker_init_fn)


def told(batches, number, logger, name):
    """The batches; every fiftieth is logged."""
    for i, batch in enumerate(batches, 1):
        yield batch
        if i % 50 == 0:
            logger.info(f'{name}: {i} of {number} batches')


def collate(stock, items):
    return stock([sample for views in items for sample in views])

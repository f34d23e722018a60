"""Linear probing: the features of the training images are computed before the first step, if nothing is drawn."""
import copy

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Subset

from ..registry import HOOKS
from ..trunks.cached import PLACE
from ..tuned import find_tuned
from .change import plain
from .rng_state import random_state, set_random_state


@HOOKS.register_module()
class CacheHook(Hook):
    """Fill the cache of `Fixed(cache=True)`, in the order of the data set, so that a resumed run has the same features.

    Each process computes its part, and all have all. Refused are data that are not the same in every epoch: a
    transform or a preprocessor that draws at random, or one that gives out images in training that were not here.
    """

    priority = 'ABOVE_NORMAL'                                           # before what reports on the model

    def before_train(self, runner):
        model = plain(runner.model)
        _, trunk = find_tuned(model)
        if not hasattr(trunk, PLACE):
            raise ValueError(f'CacheHook is for Fixed(cache=True), and this trunk is tuned by '
                             f'{trunk.tuning.method.config}: drop the hook, or take --method linear_probe')
        state, loader = random_state(), runner.train_dataloader
        model.train()
        try:
            refuse_draws(loader.dataset)
            fill(model, trunk, loader)
        finally:
            set_random_state(state)
        self.cache = getattr(trunk, PLACE)
        self.images = len(self.cache)
        runner.logger.info(f'the features of {self.images} training images are kept, {self.cache.bytes / 2 ** 20:.1f} '
                           'MiB: the trunk runs in validation alone')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if len(self.cache) > self.images:
            raise ValueError(
                f'cache=True: in iteration {runner.iter + 1} came an image that was not among the {self.images} of the '
                'training set, so something in the pipeline or the data set changes from epoch to epoch. Leave it '
                'out, or train without the cache (--method fixed)')


def fill(model, trunk, loader):
    """Run the trunk on all training images once, by the loader's batch size, workers and preprocessing."""
    dataset = loader.dataset
    own = Subset(dataset, range(get_rank(), len(dataset), get_world_size()))
    batches = DataLoader(own, loader.batch_sampler.batch_size, num_workers=loader.num_workers,
                         collate_fn=loader.collate_fn or pseudo_collate, worker_init_fn=loader.worker_init_fn)
    for batch in batches:
        before = random_state()
        data = model.data_preprocessor(batch, True)
        if not same(before, random_state()):
            raise ValueError(f'cache=True keeps the features of images as they are, and the '
                             f'{type(model.data_preprocessor).__name__} draws at random (batch_augments, such as Mixup '
                             'and CutMix): leave that out, or train without the cache (--method fixed)')
        trunk(data['inputs'])
    cache = getattr(trunk, PLACE)
    for kept in all_gather_object(cache.kept):
        cache.kept.update(kept)


def refuse_draws(dataset):
    """ValueError, naming the transform, where loading an image of a data set draws from a global random generator."""
    for inner in (getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())):
        if inner is not None:
            refuse_draws(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if not hasattr(pipeline, 'transforms') or not hasattr(dataset, 'get_data_info') or not len(dataset):
        return
    data = copy.deepcopy(dataset.get_data_info(0))
    for transform in pipeline.transforms:
        before = random_state()
        data = transform(data)
        if not same(before, random_state()):
            raise ValueError(f'cache=True keeps the features of images as they are, and the transform '
                             f'{type(transform).__name__} of the training pipeline draws at random: leave it out '
                             '(train_dataloader.dataset.pipeline), or train without the cache (--method fixed)')


def same(one, other):
    """Whether two random states are one."""
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
               for a, b in zip(tree_leaves(one), tree_leaves(other)))

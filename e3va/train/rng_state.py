"""Save and restore the random state, so that an interrupted run continues bit for bit."""
import itertools
import random

import numpy as np
import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from ..registry import HOOKS


@HOOKS.register_module()
class RngStateHook(Hook):
    """Keep the states of python, numpy and torch in the checkpoint and put them back on resume.

    mmengine saves none of them, and validation draws from the same generators between a save and the next training
    batch. So validation gets a state of its own to spend: what it draws is undone after it, in every run.

    A checkpoint from the middle of an epoch, which mmengine resumes at that epoch's start, goes on at the next batch of
    the same order. Exact on the CPU, with `num_workers=0`. Not covered: workers, which keep random states of their own
    (the samples and their order are the same); `fast_forward_on_resume=True`, which skips no data. With several
    processes the checkpoint holds the state of rank 0; every rank takes it, except under `diff_rank_seed=True`, where
    the others start from their own seeds again.
    """
    priority = 'HIGHEST'  # before any hook that draws at the same point
    key, start_key = 'e3va_rng', 'e3va_rng_epoch'

    def __init__(self):
        self.resumed = None    # the checkpoint's state, until the first resumed batch is drawn
        self.training = None   # the training stream's state while validation runs
        self.start = None      # the state at the epoch's start, by which a sampler may have drawn its order
        self.skips = False     # whether the next epoch is one that was begun

    def before_save_checkpoint(self, runner, checkpoint):
        # the best checkpoint is saved inside validation
        checkpoint[self.key] = random_state() if self.training is None else self.training
        if self.start is not None:
            checkpoint[self.start_key] = self.start

    def after_load_checkpoint(self, runner, checkpoint):
        if not runner._resume:  # load_from: weights alone
            return
        self.skips = True
        reseed(runner.train_dataloader, checkpoint['meta'].get('seed'))
        if self.key not in checkpoint:
            runner.logger.warning('the checkpoint holds no random state: the resumed run is not the interrupted one '
                                  'bit for bit')
        elif runner.rank == 0 or not randomness(runner).get('diff_rank_seed'):
            self.resumed, self.start = checkpoint[self.key], checkpoint.get(self.start_key)

    def before_train_epoch(self, runner):
        loop, state, skips, self.resumed, self.skips = runner.train_loop, self.resumed, self.skips, None, False
        if hasattr(loop, 'dataloader_iterator'):
            if state is not None:
                loop.dataloader_iterator = ResumedIterator(loop, state)
            return
        done = loop.iter - loop.epoch * len(loop.dataloader) if skips else 0
        begun = 0 < done <= len(loop.dataloader)                        # else of other data, or of more processes
        if state is not None:
            set_random_state(self.start if begun and self.start is not None else state)
        if begun:
            loop.dataloader = Rest(loop, done, state)
        self.start = random_state()

    def before_val(self, runner):
        self.training = random_state()

    def after_val(self, runner):
        set_random_state(self.training)
        self.training = None


class ResumedIterator:
    """The data iterator of a resumed iteration loop, up to the first new batch.

    mmengine skips the batches already trained after `before_train_epoch`, and skipping draws random numbers. So the
    state is set here, between the last skipped batch and the first new one; then the loop gets its iterator back.
    """

    def __init__(self, loop, state):
        self.loop, self.state, self.iterator = loop, state, loop.dataloader_iterator
        self.skips = 0 if getattr(loop, 'fast_forward_on_resume', False) else loop.iter

    def skip_iter(self, count):
        self.iterator.skip_iter(count)
        self.skips -= count

    def __next__(self):
        if self.skips > 0:  # mmengine before 0.10.8 skips by `next`
            self.skips -= 1
            return next(self.iterator)
        if hasattr(self.iterator, '_ensure_iterator'):  # a new torch iterator draws a seed, as at the run's start
            self.iterator._ensure_iterator()
        set_random_state(self.state)
        self.loop.dataloader_iterator = self.iterator
        return next(self.iterator)


class Rest:
    """The loader of an epoch that goes on in its middle: the batches that are left, in the order that they had.

    In all else it is the loop's own loader, which comes back at the end.
    """

    def __init__(self, loop, done, state):
        self.loop, self.done, self.state, self.loader = loop, done, state, loop.dataloader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader) - self.done

    def __iter__(self):
        try:
            rest = skipped(self.loader, self.done)
            if self.state is not None:
                set_random_state(self.state)
            yield from rest
        finally:
            self.loop.dataloader = self.loader


def skipped(loader, done):
    """An iterator of a loader behind its first batches, of which none is loaded; draws what the skipped ones drew."""
    if loader.batch_sampler is None:                                    # a stream: only reading it says what is next
        return itertools.islice(loader, done, None)
    if not loader.num_workers:
        iterator = iter(loader)
        for _ in range(done):
            iterator._next_index()
        return iterator
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)      # torch's loader draws a seed first
    return iter(DataLoader(
        loader.dataset, batch_sampler=list(loader.batch_sampler)[done:], num_workers=loader.num_workers,
        collate_fn=loader.collate_fn, pin_memory=loader.pin_memory, timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn, multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator, prefetch_factor=loader.prefetch_factor))


def randomness(runner):
    """The settings of the seed; FlexibleRunner's strategy has them."""
    return runner._randomness_cfg if hasattr(runner, '_randomness_cfg') else runner.strategy.randomness


def reseed(dataloader, seed):
    """Give the samplers the interrupted run's seed: mmengine restores it only after it has built them."""
    for sampler in (dataloader.sampler, getattr(dataloader.batch_sampler, 'sampler', None)):
        if seed is not None and hasattr(sampler, 'seed'):
            sampler.seed = seed


def random_state():
    """The states of the global generators of python, numpy and torch (CPU and current GPU): tensors and primitives."""
    version, words, gauss = random.getstate()
    name, key, *rest = np.random.get_state()
    state = dict(
        python=[version, torch.tensor(words), gauss],
        numpy=[name, torch.from_numpy(key.astype(np.int64)), *rest],
        torch=torch.get_rng_state())
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state):
    """Set the generators to what `random_state` gave; its tensors may lie on any device."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())

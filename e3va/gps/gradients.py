"""The gradients that a selection asks for: summed over batches of training data, on every process the same."""
import contextlib

import torch
from mmengine import dist
from mmengine.logging import print_log
from torch import nn

from ..loading import shorten
from ..trunks import head_entries
from ..trunks.sampled import drawing
from ..tuned import find_tuned

HEAD_STD = 0.02                                                         # of timm's heads, so of the public code's


def select(model, batches, loss, seed=0):
    """Let GPS, or SPT, select by gradients: |their sum over batches| (no mean, as in GPS's code), or of their squares.

    Everything but the weights that compete is frozen meanwhile. The buffers end as they were. A classifier's linear
    layer whose weight is zero, as OpenMMLab's heads of ViTs start, would let no gradient through: for the selection it
    has random weights, as in the public code, and afterwards its zeros again.

    Args:
        model (nn.Module): tuned by GPS or SPT, in the mode (train or eval) in which the losses are to be computed.
        batches (iterable): of training data; under DDP each process has its own.
        loss (callable): batch -> a scalar tensor, or None for a batch that has none: it is skipped.
        seed (int): of a head's random weights, which are the first process's everywhere.

    Returns:
        dict: `used` and `skipped`, batches of all processes.

    Raises:
        ValueError: no batch, none with a loss, a gradient that is not finite (the batch is named), a layer without any
            gradient, a weight that the trunk reads without calling its layer, so that selected entries of it would not
            train.
    """
    _, trunk = find_tuned(model)
    method = trunk.tuning.method
    scored = method.scored(trunk)
    weights = {name: weight for name, (_, weight) in scored.items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    count = torch.zeros(2)                                              # used, skipped
    called = set()
    watches = [layer.register_forward_pre_hook(lambda layer, _: called.add(layer)) for layer, _ in scored.values()]
    hooked = trunk.tuning.hooked
    model.requires_grad_(False)
    sums = {}
    for name, weight in weights.items():
        weight.requires_grad_(True)
        sums[name] = weight.grad = torch.zeros_like(weight)
        if method.squared:
            sums[name] = torch.zeros_like(weight)
    trunk.tuning.hooked = True
    started = contextlib.ExitStack()
    try:
        started.enter_context(random_start(model, seed))
        started.enter_context(drawing(lambda images, share: images))    # the selection is by all
        for number, batch in enumerate(batches):
            value = loss(batch)
            count[int(value is None)] += 1
            if value is not None:
                value.backward()
                check(method, weights, value, number, batch)
                check_calls(trunk, scored, called)
                for name, weight in weights.items() if method.squared else ():
                    sums[name].addcmul_(weight.grad, weight.grad)
                    weight.grad.zero_()
        dist.all_reduce(count)
        if not count[0]:
            raise ValueError(f'{type(method).__name__} cannot select: ' + (
                f'none of the {int(count[1])} batches has two samples of one class; give larger batches (batch_size), '
                "two views of each image (views=2), or loss='task'" if count[1] else 'there is no training data'))
        for value in sums.values():
            dist.all_reduce(value)
            dist.broadcast(value)                                       # and no rounding of one process's own
        for buffer, old in buffers:
            buffer.copy_(old)
    finally:
        started.close()
        trunk.tuning.hooked = hooked
        for watch in watches:
            watch.remove()
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        for weight in weights.values():
            weight.grad = None
    with torch.no_grad():
        method.choose(trunk, {name: value.abs_() for name, value in sums.items()})
    trunk.tuning.hooked = hooked or getattr(method, 'mode', 'sparse') == 'sparse'   # in 'mask' nothing masks as yet
    return dict(used=int(count[0]), skipped=int(count[1]))


@contextlib.contextmanager
def random_start(model, seed):
    """Random weights for the time of the context where a classifier's linear layer has zeros alone."""
    trunk = find_tuned(model)[1]
    layers = [trunk.get_submodule(name.rpartition('.')[0]) for name in sorted(head_entries(trunk))]
    layers += getattr(model, 'head', nn.Identity()).modules()
    zeros = dict.fromkeys(layer.weight for layer in layers if isinstance(layer, nn.Linear) and not layer.weight.any())
    if zeros:
        print_log('the classifier starts at zero, which lets no gradient through; for the selection it is random',
                  'current')
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in zeros:
            drawn = torch.empty(weight.shape)
            weight.copy_(nn.init.trunc_normal_(drawn, std=HEAD_STD, generator=generator))
            dist.broadcast(weight.data)                                 # seeds may differ (diff_rank_seed)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zeros:
                weight.zero_()


def check_calls(trunk, scored, called):
    """ValueError, naming the layer, where a weight has a gradient whose layer is not among those `called`."""
    method = trunk.tuning.method
    if getattr(method, 'mode', None) == 'mask':
        return
    for name, (layer, weight) in scored.items():
        place = next(place for place, module in trunk.named_modules() if module is layer)
        parent = trunk.get_submodule(place.rpartition('.')[0])
        if layer not in called and parent not in called and weight.grad.any():
            raise ValueError(
                f'{type(method).__name__} cannot train entries of {name}: {type(parent).__name__} reads its weight '
                'without calling the layer; take '
                + ("mode='mask', which trains in dense weights, or " if hasattr(method, 'mode') else '')
                + 'another trunk')


def check(method, weights, value, number, batch):
    """ValueError, naming the batch and its images, where a loss or a gradient is not finite."""
    finite = torch.stack([value.isfinite()] + [weight.grad.isfinite().all() for weight in weights.values()])
    if finite.all():
        return
    names = ['the loss', *(f'the gradient of {name}' for name in weights)]
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    images = [str(getattr(sample, 'img_path', '?')) for sample in samples]
    raise ValueError(f'{type(method).__name__} cannot select: in batch {number}'
                     f'{f" ({shorten(images)})" if images else ""} '
                     f'{shorten([name for name, good in zip(names, finite.tolist()) if not good], 2)} is not finite; '
                     'look at these images, their normalisation and the weights of the trunk')

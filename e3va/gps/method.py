"""GPS: gradient-based parameter selection (Zhang et al., CVPR 2024, arXiv 2312.10136; code FightingFighting/GPS).

For each neuron (row of a weight, filter of a convolution) the K inputs with the largest |dL/dw| are selected before
training, L being the supervised contrastive loss (Eq. 2), summed over batches of training data. Then only they train
(Eq. 5, 6). What else trains follows the public code, of which the paper says nothing: every bias of a linear layer or a
convolution, tables of relative positions and layer scales do, whole; norms, position embeddings and tokens do not.

Where we differ: the code keeps all weights in the optimizer and zeroes the gradients that it does not want, at the cost
of full fine-tuning (`mode='mask'` does that). Here a selected entry is a value of its own (`layers.sparse`), and the
optimizer, DDP and the delta hold these values alone. Weight decay then acts on them; the code needs it to be zero.

This file says what is selected, `gradients` sums the gradients, `GPSHook` says when.
"""
import logging

import torch
from mmengine.logging import print_log
from torch import nn

from ..layers import SparseAttention, SparseConv2d, SparseLinear, SparseWeight
from ..loading import shorten
from ..methods.base import Method, choice, idle_places, integer, is_norm
from ..methods.targets import check_layer, classifiers, named, target_names
from ..registry import METHODS
from ..surgery import replace
from ..trunks import head_entries

KINDS = ('bias', 'table', 'scale', 'norm', 'embedding')
SPARSE = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d, nn.MultiheadAttention: SparseAttention}
SCALES = ('LayerScale', 'GlobalResponseNorm', 'GRN')                    # classes that hold nothing but channel factors


@METHODS.register_module()
class GPS(Method):
    """The K entries of each neuron's weights with the largest gradients train, and all biases.

    ViT-B/16, K = 1: 83,712 entries and 83,712 biases, 167,424 in all.

    Args:
        k (int): K, 1 to 20 in the paper. A layer with fewer inputs trains whole, which is said.
        level (str): where entries compete: in a 'neuron', or, for as many entries in all, in a 'layer' or the whole
            'net'.
        criterion (str): 'gradient', 'magnitude' of the weight, or 'random'. The first needs data: `GPSHook`, or
            `e3va.gps.gradients.select`.
        train (sequence of str): what trains whole, of 'bias' (of linears and convolutions), 'table' (relative position
            biases), 'scale' (layer scales, response norms), 'norm', 'embedding' (positions and tokens).
        without (sequence of int): blocks in which nothing trains, counted from 0 through all stages.
        mode (str): 'sparse', or 'mask': the weights train densely and `GPSOptimWrapper` masks their gradients, as in
            the public code; delta, memory and optimizer are those of full fine-tuning.
        seed (int): of the 'random' criterion.
        targets (str or sequence of str): the linears and convolutions in which entries and biases train, alone; see
            `LoRA`. Default: all, and what `train` says.
        train_out_norms (bool): see `Method`.
    """

    mergeable = True
    linear = {'values': None}       # there it is the weight's own value (delta/mix.py)
    needs_family = False
    tunes_entries = True
    squared = False                                                     # `gradients.select` sums gradients
    adapted = tuple(SPARSE)

    def __init__(self, k=1, level='neuron', criterion='gradient', train=('bias', 'table', 'scale'), without=(),
                 mode='sparse', seed=0, train_out_norms=False, targets=None):
        super().__init__(train_out_norms)
        self.k = integer('k', k)
        self.level = choice('level', level, ('neuron', 'layer', 'net'))
        self.criterion = choice('criterion', criterion, ('gradient', 'magnitude', 'random'))
        train, without = ([train] if isinstance(train, str) else train or (),
                          [without] if isinstance(without, int) else without or ())
        self.train = tuple(choice('train', kind, KINDS) for kind in train)
        self.without = tuple(integer('without', block, low=0) for block in without)
        self.mode = choice('mode', mode, ('sparse', 'mask'))
        self.seed = integer('seed', seed, low=0)
        self.targets = target_names(targets)
        if criterion == 'gradient' or mode == 'mask':
            self.hook = 'e3va.GPSHook'

    def apply(self, trunk, parts):
        frozen = idle_places(trunk) + left_out(trunk, parts, self.without)
        whole = head_entries(trunk) | trunk.tuning.also
        found = weights(trunk) if self.targets is None else {
            name: layer for name, layer in named(trunk, self).items() if name in weights(trunk)}
        if parts is None and self.targets is None:
            left = classifiers(trunk, found)
            frozen += tuple(f'{name}.' for name in left)
            trunk.tuning.usual = found = {name: layer for name, layer in found.items() if name not in left}
        clipped = {}
        for name, layer in found.items():
            if f'{name}.weight' in whole or name in whole or f'{name}.'.startswith(frozen):
                continue
            check_layer(trunk, name, layer, self)
            new = next(make for kind, make in SPARSE.items() if isinstance(layer, kind))(layer)
            inputs = new.weight[0].numel()
            if inputs < self.k:
                clipped[name] = inputs
            new.sparse(len(new.weight), min(self.k, inputs), dense=self.mode == 'mask')
            new.weight.requires_grad_(self.mode == 'mask')
            replace(trunk, name, new)
        if not sparse_layers(trunk):
            raise ValueError(f'GPS finds no linear layer or convolution in {type(trunk).__name__}: give another trunk, '
                             'or leave out fewer blocks')
        if clipped:
            print_log(f'GPS: k={self.k} is more than {len(clipped)} layers have inputs, which train whole: '
                      + ', '.join(f'{name} ({inputs})' for name, inputs in clipped.items()), 'current',
                      logging.WARNING)
        for name, parameter in trunk.named_parameters():
            named_by_us = self.targets is None or name.rpartition('.')[0] in found
            if (name not in whole and named_by_us and not name.startswith(frozen)
                    and kind_of(trunk, name) in self.train):
                parameter.requires_grad_(True)
        self.choose_without_data(trunk)

    def choose_without_data(self, trunk):
        """The selection of the criteria that ask for no gradients."""
        if self.criterion == 'magnitude':
            self.choose(trunk, {name: layer.weight.detach().abs() for name, layer in sparse_layers(trunk).items()})
        elif self.criterion == 'random':
            generator = torch.Generator().manual_seed(self.seed)        # the same on every rank and device
            self.choose(trunk, {name: torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)
                                for name, layer in sparse_layers(trunk).items()})

    def scored(self, trunk):
        """{name of a sparse layer: (the layer, its weight)}: what `gradients.select` takes the gradients of."""
        return {name: (layer, layer.weight) for name, layer in sparse_layers(trunk).items()}

    def choose(self, trunk, scores):
        """Select the entries with the highest scores; of equal ones in a neuron or a layer the last.

        Args:
            scores (dict): {name of a sparse layer: tensor of its weight's shape}.

        Raises:
            ValueError: a layer whose gradients are all zero; at the level of the net, where it would get no entry, if
                all layers are such.
        """
        layers = sparse_layers(trunk)
        self.check_scores(scores)
        if self.level == 'net':
            sizes = [score.numel() for score in scores.values()]
            best = torch.cat([score.flatten() for score in scores.values()]).topk(
                sum(budget(layer, self.k) for layer in layers.values())).indices.sort().values
            starts = torch.tensor([0] + sizes).cumsum(0)
            chosen = {name: best[(best >= low) & (best < high)] - low for name, low, high in
                      zip(scores, starts[:-1].tolist(), starts[1:].tolist())}
            self.expect(trunk, {f'{name}.index': index[None] for name, index in chosen.items()})
        else:
            chosen = {name: highest(score.flatten(1), layers[name].index.shape[1]) if self.level == 'neuron' else
                      highest(score.flatten()[None], layers[name].index.numel()) for name, score in scores.items()}
        if self.level == 'neuron':
            for name, columns in chosen.items():
                rows = torch.arange(len(columns), device=columns.device)[:, None]
                chosen[name] = columns + rows * scores[name][0].numel()
        for name, index in chosen.items():
            layers[name].select(index)

    def check_scores(self, scores):
        """ValueError where nothing tells a layer's entries apart: sorting would select the last of each neuron."""
        equal = [name for name, score in scores.items() if not score.is_meta and not score.any()]
        if not equal or (self.level == 'net' and len(equal) < len(scores)):
            return
        if self.criterion == 'magnitude':                               # a checkpoint may be about to bring others
            print_log(f'GPS: all weights of {shorten(equal)} are zero, so that their last entries are selected',
                      'current', logging.WARNING)
            return
        if len(equal) == len(scores):
            raise ValueError(f'GPS cannot select: no gradient reaches the trunk, in none of its {len(scores)} layers. '
                             'Does the loss depend on its output, and is there a layer of zeros between them, such as '
                             "a head that starts at zero? criterion='magnitude' needs no gradients")
        raise ValueError(f'GPS cannot select in {shorten(equal)}: no gradient reaches these layers. If the loss does '
                         'not use what they compute, leave their blocks out (without=, counted from 0) or take '
                         "level='net', which selects nothing there; if DropPath left them out of a few batches, give "
                         'more batches')

    def expect(self, trunk, given):
        """A selection over the net leaves each layer another number of entries: have as many as the state dict."""
        for name, layer in sparse_layers(trunk).items():
            index = given.get(f'{name}.index')
            if index is None:
                continue
            if self.mode == 'mask' and f'{name}.values' in given:
                raise ValueError("values of a run with mode='sparse' are given, and this model has mode='mask', which "
                                 "would lose them: take mode='sparse', or the run's merged checkpoint")
            if self.level == 'net':
                layer.reshape(index.shape)
            elif index.shape != layer.index.shape:
                raise ValueError(f'a selection of {tuple(index.shape)} entries is given for {name}, which has '
                                 f'{tuple(layer.index.shape)}: it was made with another k or level, or for another '
                                 'architecture')

    def loaded(self, trunk, missing):
        layers = sparse_layers(trunk)
        brought = {name: layer for name, layer in layers.items() if f'{name}.index' not in missing}
        for name, layer in brought.items():
            self.check(name, layer)
        for name, layer in layers.items():
            if name not in brought:
                layer.index.zero_()
            if f'{name}.values' in missing:
                layer.refresh()
            layer.arrange()
        if not brought:
            self.choose_without_data(trunk)
        trunk.tuning.hooked = self.mode == 'sparse' and selected(trunk)  # what GPSHook is for has been done

    def check(self, name, layer):
        """ValueError for places that the layer has not."""
        index = layer.index.long()
        wrong = index.numel() > 0 and not 0 <= index.min() <= index.max() < layer.weight.numel()
        if self.level == 'neuron' and layer.index.any():
            rows = torch.arange(len(index), device=index.device)[:, None]
            wrong = wrong or (index // layer.weight[0].numel() != rows).any()
        if wrong:
            raise ValueError(f'the selection given for {name} belongs to another architecture, or was made at another '
                             f'level than {self.level!r}: it names entries that a weight of '
                             f'{tuple(layer.weight.shape)} has not, or not there')


def weights(trunk):
    """{name: layer} of the linears, the convolutions, and torch's attentions with one weight for q, k and v."""
    return {name: module for name, module in trunk.named_modules() if isinstance(module, tuple(SPARSE))
            and getattr(module, '_qkv_same_embed_dim', True)}


def sparse_layers(trunk):
    """{name: layer} of the layers of which entries can be selected."""
    return {name: module for name, module in trunk.named_modules() if isinstance(module, SparseWeight)}


def selected(trunk):
    """Whether a selection has been made, or loaded."""
    return all(layer.selected for layer in sparse_layers(trunk).values())


def budget(layer, k):
    """Entries of a layer at the level of neurons."""
    return len(layer.weight) * min(k, layer.weight[0].numel())


def highest(scores, count):
    """Places of the `count` highest of each row, ascending; of equal scores the last, on every device alike.

    A stable sort says which, and takes six times as long for few: it is for the rows where scores are equal.
    """
    among = scores >= scores.topk(count, dim=1).values[:, -1:]
    tied = (among.sum(dim=1) != count).nonzero().flatten()
    among[tied] = False
    among[tied, :count] = True                                          # so that every row has as many
    found = among.nonzero()[:, 1].view(-1, count)
    found[tied] = scores[tied].sort(dim=1, stable=True).indices[:, scores.shape[1] - count:].sort(dim=1).values
    return found


def left_out(trunk, parts, blocks):
    """Name prefixes of some blocks, counted through all stages."""
    if not blocks:
        return ()
    if parts is None:
        raise ValueError(f'without={blocks}: e3va does not know the blocks of {type(trunk).__name__}; drop the option')
    every = [block for stage in parts.stages(trunk) for block in stage]
    chosen = [every[integer('without', block, low=0, high=len(every) - 1)] for block in blocks]
    return tuple(f'{name}.' for name, module in trunk.named_modules() if any(module is block for block in chosen))


def kind_of(trunk, name):
    """What a parameter is, of KINDS, or None: a weight, or something that no rule names.

    By classes where the public code goes by names, as ViTs of OpenMMLab call norms `ln1`; in its order.
    """
    parent, _, leaf = name.rpartition('.')
    module = trunk.get_submodule(parent)
    if is_norm(module):                                                 # SAM's neck names none, so its biases train
        return 'bias' if leaf == 'bias' and parent.startswith('channel_reduction.') else 'norm'
    if 'table' in leaf:
        return 'table'
    if 'pos' in leaf or 'token' in leaf:
        return 'embedding'
    if 'gamma' in leaf or type(module).__name__ in SCALES:
        return 'scale'
    return 'bias' if 'bias' in leaf else None

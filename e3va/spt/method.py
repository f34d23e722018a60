"""SPT: sensitivity-aware visual parameter-efficient tuning (He et al., ICCV 2023, arXiv 2303.08566; code ziplab/SPT).

The sensitivity of a weight is its squared gradient, summed over batches of training data. The top tau of all weights
are to train. A matrix that has many of them gets a LoRA (SPT-LoRA) or an adapter (SPT-Adapter) instead; elsewhere they
train as they are, entry by entry. tau is what spends a budget of parameters.

What the paper does not say follows the public code: a matrix has many where alpha times as many would be its module's
parameters; a norm or a bias of which 1 / beta are selected trains whole; tau goes up in steps of 20,000, and what comes
nearest to the budget is taken; a class token trains whole, patches, positions and the head are left out. Its ViTs have
q, k and v apart, so here the equal slices of a fused layer are matrices (and biases) of their own.

This file says what is selected, `gps.gradients` sums the gradients, `SPTHook` says when.
"""
import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..gps.method import selected, sparse_layers
from ..layers import Bottleneck, SparseLinear
from ..layers.entries import CHILD, give_entries, with_entries
from ..methods.base import Method, choice, idle_places, integer, is_norm, linears, number
from ..methods.lora import rank_for
from ..registry import METHODS
from ..surgery import replace
from ..trunks import used

ROLES = ('q', 'k', 'v', 'proj', 'fc1', 'fc2')


class AllottedLinear(SparseLinear):
    """A linear layer of whose weight some entries train, with a module on some of the `of` equal slices of its outputs.

    LoRA: h_i = W_i x + drop(U_i D_i x); an adapter, behind the slice: h_i = y_i + drop(U_i gelu(D_i y_i + a_i) + b_i),
    y_i = W_i x. U is zero, so training starts at the trunk. Dropout is on what goes into a module; drop, DropPath, on
    what comes out (the first axis: images, or the windows of a Swin).

    Shapes: `pairs` {slice: unit}; without entries `index` is (1, 0) and there are no `values`; x (..., in).
    """

    def __init__(self, old, module, rank, slices, of, dropout, drop_path):
        super().__init__(old)
        self.of, self.module, self.dropout, self.drop_path = of, module, dropout, drop_path
        width = self.out_features // of
        self.pairs = nn.ModuleDict({str(i): (
            Bottleneck(self.in_features, rank, None, 0., False, 'lora_kaiming', out=width) if module == 'lora' else
            Bottleneck(width, rank, 'gelu', 0., True, 'lora_kaiming')) for i in slices}).to(self.weight)
        self.sparse(1, 2)                                               # twice the first entry: nothing is selected

    def forward(self, x):
        if self.weight.requires_grad:
            return F.linear(x, self.weight, self.bias)
        out = F.linear(x, self.weight, self.bias) if self.values is None else self.product(x)
        if not len(self.pairs):
            return out
        given = F.dropout(x, self.dropout, self.training) if self.module == 'lora' else None
        return torch.cat([self.beside(self.pairs[str(i)], given, y) if str(i) in self.pairs else y
                          for i, y in enumerate(out.chunk(self.of, dim=-1))], dim=-1)

    def beside(self, unit, given, y):
        added = unit(F.dropout(y, self.dropout, self.training) if given is None else given)
        if self.training and self.drop_path:
            added = added * F.dropout(added.new_ones(len(added), *[1] * (added.dim() - 1)), self.drop_path)
        return y + added

    def reshape(self, shape):
        """As of a `SparseWeight`; (1, 0): no values."""
        if math.prod(shape):
            super().reshape(shape)
        else:
            self.values, self.index.data, self.columns = None, self.index.new_zeros(shape), None

    def merged(self):
        """Of LoRA: a layer of the old class with the whole weight."""
        layer = super().merged()
        width = self.out_features // self.of
        added = torch.zeros_like(layer.weight)
        for i, unit in self.pairs.items():
            added[int(i) * width:(int(i) + 1) * width] = unit.up @ unit.down
        layer.weight = nn.Parameter((layer.weight + added).detach(), requires_grad=layer.weight.requires_grad)
        return layer


@dataclasses.dataclass(frozen=True)
class Part:
    """A matrix, or a vector, of the weights among which SPT selects: the flat entries `low` to `high` of a parameter.

    Attributes:
        name: of the parameter in the trunk.
        low, high: range of its entries.
        size: parameters that train in it once it is tuned as a whole: of its module, or all of a vector.
        least: selected entries from which on it is tuned as a whole.
    """

    name: str
    low: int
    high: int
    size: int
    least: float = math.inf


def allot(parts, scores, budget, step, fixed=0):
    """Spend a budget: the top tau scores, tau in steps, so that the parameters that train are nearest to it.

    In a part with `least` of the top tau or more its `size` trains, in any other what is selected. That number grows
    with tau; of two as near the larger is taken.

    Args:
        parts (list of Part).
        scores (dict): {name: tensor of the parameter's shape}.
        budget (int): parameters.
        step (int): entries.
        fixed (int): parameters that train anyway.

    Returns:
        (whole, chosen, count): for each part whether it is tuned as a whole; for each its selected places, flat in the
        parameter and ascending; the parameters that train.

    Raises:
        ValueError: all that there is does not come near to the budget, or what trains anyway is beyond it.
    """
    flat = torch.cat([scores[part.name].flatten()[part.low:part.high] for part in parts])
    starts = torch.tensor([0] + [part.high - part.low for part in parts]).cumsum(0)
    sizes, least = (torch.tensor([getattr(part, name) for part in parts], dtype=torch.double)
                    for name in ('size', 'least'))
    top = flat.topk(min(len(flat), 4 * budget + step)).indices.cpu()
    owners = torch.bucketize(top, starts[1:], right=True)

    def spent(tau):
        counts = owners[:tau].bincount(minlength=len(parts)).double()
        return counts >= least, int(torch.where(counts >= least, sizes, counts).sum()) + fixed

    tau, (whole, count) = 0, spent(0)
    while count < budget and tau < len(top):
        more, total = spent(tau + step)
        if abs(total - budget) > abs(count - budget):
            break
        tau, whole, count = tau + step, more, total
    if tau >= len(top) and count < budget - step or not tau:
        raise ValueError(f'budget={budget:,} parameters cannot be spent here: '
                         + (f'the most that trains is {count:,}' if tau else f'the least that trains is '
                            f'{spent(step)[1]:,}') + '. Give another one, or another rank')
    best = top[:tau].sort().values
    chosen = [best[(best >= low) & (best < high)] - low + part.low
              for part, low, high in zip(parts, starts[:-1].tolist(), starts[1:].tolist())]
    return whole.tolist(), chosen, count


@METHODS.register_module()
class SPT(Method):
    """The most sensitive weights train, as LoRAs or adapters where a matrix has many of them, within a budget.

    They are among the linears of the roles q, k, v, proj, fc1 and fc2, which may get modules, all other linears,
    convolutions and norms in the blocks and between the stages, with their biases, and the norms behind. Tables of
    positions and layer scales stay frozen. Refused where torch's own attention reads its weights past any layer.

    Args:
        module (str): 'lora' (SPT-LoRA) or 'adapter' (SPT-Adapter).
        budget (int): parameters that train. The paper's tables take the best of 200,000 to 1,000,000 for each task.
        rank (int): of the modules.
        alpha (float): a matrix gets its module where at least 1 / alpha of the module's parameters are selected in it.
        beta (float): a vector trains whole where at least 1 / beta of it is selected.
        dropout, drop_path (float): of the modules.
        step (int): of tau, in entries. Default: 20,000, at most a tenth of the budget.
        criterion (str): 'gradient', or 'random' scores, the null row. The first needs data: `SPTHook`, or
            `e3va.gps.gradients.select`.
        seed (int): of the 'random' criterion.
        train_out_norms (bool): see `Method`.
    """

    tunes_entries = True
    squared = True                                                      # what `gps.gradients.select` sums

    def __init__(self, module='lora', budget=400_000, rank=8, alpha=10., beta=5., dropout=0.1, drop_path=0.1,
                 step=None, criterion='gradient', seed=0, train_out_norms=False):
        super().__init__(train_out_norms)
        self.module = choice('module', module, ('lora', 'adapter'))
        self.budget = integer('budget', budget)
        self.rank = integer('rank', rank)
        self.alpha, self.beta = number('alpha', alpha, low=1e-9), number('beta', beta, low=1e-9)
        self.dropout, self.drop_path = number('dropout', dropout, 0, 1), number('drop_path', drop_path, 0, 1)
        self.step = integer('step', step) if step is not None else min(20_000, -(-budget // 10))
        self.criterion = choice('criterion', criterion, ('gradient', 'random'))
        self.seed = integer('seed', seed, low=0)
        self.mergeable = module == 'lora'
        if criterion == 'gradient':
            self.hook = 'e3va.SPTHook'

    def apply(self, trunk, parts):
        for name, old, slices, of in linears(trunk, parts, [role for role in ROLES if role in parts.ROLES]):
            replace(trunk, name, AllottedLinear(old, self.module, rank_for(self, trunk, name, old, of), slices, of,
                                                self.dropout, self.drop_path))
        for name, module in competing(trunk, parts).items():
            leaves = [leaf for leaf, value in module.named_parameters(recurse=False)
                      if f'{name}.{leaf}' not in trunk.tuning.also
                      and not (isinstance(module, AllottedLinear) and leaf in ('weight', 'values'))]
            if leaves:
                give_entries(module, leaves)
        for name in tokens(trunk):
            trunk.get_parameter(name).requires_grad_(True)
        if self.criterion == 'random':
            generator = torch.Generator().manual_seed(self.seed)        # the same on every rank and device
            self.choose(trunk, {name: torch.rand(parameter.shape, generator=generator)
                                for name, (_, parameter) in self.scored(trunk).items()})

    def is_entry(self, name):
        """LoRAs and adapters are none."""
        return '.pairs.' not in name

    def scored(self, trunk):
        """{name: (module, parameter)} of the parameters whose entries compete."""
        found = {f'{name}.weight': (layer, layer.weight) for name, layer in sparse_layers(trunk).items()}
        found.update((f'{name}.{leaf}', (module, module._parameters[leaf]))
                     for name, module in with_entries(trunk).items() for leaf in getattr(module, CHILD).leaves)
        return found

    def parts(self, trunk):
        """[(Part, where)] in the order of `scored`; `where` is the slice of a matrix of a role, else None."""
        found = []
        for name, (module, parameter) in self.scored(trunk).items():
            size = parameter.numel()
            if isinstance(module, AllottedLinear):
                each = size // module.of
                for i in range(module.of):
                    unit = module.pairs[str(i)] if str(i) in module.pairs else None
                    if name.endswith('.weight') and unit is not None:
                        own = sum(value.numel() for value in unit.parameters())
                        found.append((Part(name, i * each, (i + 1) * each, own, own / self.alpha), str(i)))
                    elif name.endswith('.bias'):
                        found.append((Part(name, i * each, (i + 1) * each, each, each / self.beta), None))
            else:
                vector = parameter.dim() == 1
                found.append((Part(name, 0, size, size, size / self.beta if vector else math.inf), None))
        return found

    def planned(self, trunk):
        """Parameters that will train, where what they are is not decided yet; else None."""
        weightless = any(layer.index.is_meta for layer in sparse_layers(trunk).values())
        return self.budget if weightless or not selected(trunk) else None

    def choose(self, trunk, scores):
        """Spend the budget by scores: modules are taken away, entries selected.

        Args:
            scores (dict): {name of a parameter of `scored`: tensor of its shape}.

        Raises:
            ValueError: no gradient reaches any of them; see also `allot`.
        """
        if not any(bool(score.any()) for score in scores.values()):
            raise ValueError(f'SPT cannot select: no gradient reaches any of {len(scores)} parameters of the trunk. '
                             'Does the loss depend on its output, and is there a layer of zeros between them, such as '
                             'a head that starts at zero?')
        parts = self.parts(trunk)
        fixed = sum(trunk.get_parameter(name).numel() for name in tokens(trunk))
        whole, chosen, _ = allot([part for part, _ in parts], scores, self.budget, self.step, fixed)
        entries = {}
        for (part, where), as_one, places in zip(parts, whole, chosen):
            layer = trunk.get_submodule(part.name.rpartition('.')[0])
            if where is not None and not as_one:
                del layer.pairs[where]
            if as_one:
                places = torch.arange(part.low, part.high if where is None else part.low)
            entries.setdefault(part.name, []).append(places)
        for name, places in entries.items():
            put_at(trunk, name, torch.cat(places))

    def expect(self, trunk, given):
        """A selection leaves each layer other entries and modules: have those that the state dict has."""
        layers, owners = sparse_layers(trunk), with_entries(trunk)
        if not any(f'{name}.index' in given for name in layers):
            return
        fresh = not selected(trunk)
        for name, layer in layers.items():
            index = given.get(f'{name}.index')
            if index is not None and index.shape != layer.index.shape:
                self.refuse(fresh, name)
                layer.reshape(tuple(index.shape))
            for i in list(layer.pairs):
                if f'{name}.pairs.{i}.down' not in given:
                    self.refuse(fresh, name)
                    del layer.pairs[i]
        for name, module in owners.items():
            entries = getattr(module, CHILD)
            for leaf in entries.leaves:
                index = given.get(f'{name}.{CHILD}.{leaf}_index')
                if index is not None and index.shape != entries.index(leaf).shape:
                    self.refuse(fresh, f'{name}.{leaf}')
                    entries.reshape(leaf, index.numel())

    @staticmethod
    def refuse(fresh, name):
        if not fresh:
            raise ValueError(f'the weights have another selection than this trunk, first in {name}: load them into one '
                             'that is built anew')

    def loaded(self, trunk, missing):
        for name, layer in sparse_layers(trunk).items():
            if not layer.index.is_meta and layer.index.numel() and layer.index.max() >= layer.weight.numel():
                raise ValueError(f'the selection given for {name} belongs to another architecture: it names entries '
                                 f'that a weight of {tuple(layer.weight.shape)} has not')
            if f'{name}.values' in missing:
                layer.refresh()
            layer.arrange()
        for name, module in with_entries(trunk).items():
            entries = getattr(module, CHILD)
            for leaf in entries.leaves:
                if f'{name}.{CHILD}.{leaf}' in missing:
                    entries.refresh(module, leaf)
        trunk.tuning.hooked = selected(trunk)                           # what SPTHook is for has been done


def competing(trunk, parts):
    """{name: module} of the linears, convolutions and norms in the blocks, between the stages and behind them."""
    places = [block for blocks in used(trunk) for block in blocks] + [
        merge for merge in parts.merges(trunk).values() if merge is not None]
    places += [trunk.get_submodule(name) for name in parts.out_norms(trunk)]
    inside, idle = {module for place in places for module in place.modules()}, idle_places(trunk)
    return {name: module for name, module in trunk.named_modules()
            if module in inside and not f'{name}.'.startswith(idle)
            and (isinstance(module, (nn.Linear, nn.Conv2d)) or is_norm(module))}


def tokens(trunk):
    """Names of the class token, if there is one: it trains whole."""
    return [name for name, _ in trunk.named_parameters() if name == 'cls_token']


def put_at(trunk, name, places):
    """Let the entries of a parameter at flat places, and no others, train."""
    parent, _, leaf = name.rpartition('.')
    module = trunk.get_submodule(parent)
    if isinstance(module, AllottedLinear) and leaf == 'weight':
        module.reshape((1, len(places)))
        if len(places):
            module.select(places[None])
    else:
        getattr(module, CHILD).select(module, leaf, places)

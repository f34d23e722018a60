"""Pear (Zhong and Zhou, arXiv 2409.19733): prune the units of a method that contribute least, share the best ones.

A unit is a module whose parameters are its factors, such as the pair (A, B) of LoRA. It is scored as a whole, taken out
as a whole, and its position is served by another unit of the same shapes: one parameter, at several places.
"""
import dataclasses
import math

import torch

from ..highway import E3VA
from ..layers.quantised import Quantised
from ..methods.routing import route, routing_of

# How a unit is scored from its factors: (w, mean gradient, mean squared gradient) of each, summed over their entries.
CRITERIA = dict(
    taylor=lambda w, g, square: (w * g).abs().sum(),                    # first-order Taylor, the paper's
    taylor_sum=lambda w, g, square: (w * g).sum(),                      # its absolute value, once it is summed
    fisher=lambda w, g, square: (w.square() * square).sum(),            # second order, by the empirical Fisher
    gradient=lambda w, g, square: g.abs().sum(),
    magnitude=lambda w, g, square: w.abs().sum())
WITHOUT_DATA = ('magnitude', 'random')


def score(units, criterion, moments=None, seed=0):
    """The contribution of each unit.

    Args:
        units (list of nn.Module): none of them pruned.
        criterion (str): of CRITERIA, or 'random'.
        moments (dict): {parameter: (mean gradient, mean squared gradient)}, over the steps that are looked at; of every
            parameter, but for 'magnitude' and 'random'.
        seed (int): of 'random'.

    Returns:
        Tensor: (n,), float64, on the CPU.
    """
    if criterion == 'random':
        return torch.rand(len(units), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    without = [one for unit in units for one in unit.parameters() if one not in (moments or {})]
    if without and criterion != 'magnitude':
        raise ValueError(f'{len(without)} parameters of the units have no moments, and {criterion!r} is made of them: '
                         "give (mean gradient, mean squared gradient) of each, or take 'magnitude'")
    sums = []
    for unit in units:
        factors = [(one.detach().double(), *(value.double() for value in (moments or {}).get(one, ())))
                   for one in unit.parameters()]
        if criterion == 'magnitude':
            factors = [(w, None, None) for w, *_ in factors]
        sums.append(sum(CRITERIA[criterion](*factor) for factor in factors).abs().cpu())
    return torch.stack(sums)


@dataclasses.dataclass
class Plan:
    """Who is taken out and who serves.

    Attributes:
        served_by (list of int): for each position the one whose unit serves it, itself or another; -1: none.
        scores (Tensor): (n,), what was compared: the contributions, per entry where units differ in size.
        wanted (int): floor(ratio n); fewer go where a group would lose its last unit.
    """

    served_by: list
    scores: torch.Tensor
    wanted: int

    @property
    def pruned(self):
        """Positions that lose their unit, the least contribution first."""
        return sorted((i for i, k in enumerate(self.served_by) if k != i), key=lambda i: (float(self.scores[i]), i))

    @property
    def serves(self):
        """{position whose unit serves elsewhere too: [those positions]}."""
        found = {}
        for i in self.pruned:
            if self.served_by[i] >= 0:
                found.setdefault(self.served_by[i], []).append(i)
        return found


def plan(scores, groups, sizes, ratio, scope='global', share=True):
    """Prune floor(ratio n) units and give their positions to the best of those that stay (section II-A2).

    The m weakest go. Of those that stay, the m strongest are shared, rank to rank: the strongest pruned position gets
    the strongest. Where fewer than m stay, the j-th of m pruned positions gets the floor(j K / m)-th of K units.

    Args:
        scores (Tensor): (n,).
        groups (list): for each unit what it is alike in with those that may take its place; one of each stays.
        sizes (list of int): entries of each unit: units of different sizes are compared by their score per entry.
        ratio (float): of the units that go, in [0, 1).
        scope (str): 'global': the weakest of all go; 'group': floor(ratio n) of each group.
        share (bool): False: nothing takes their place (vanilla pruning).

    Returns:
        Plan.
    """
    n = len(scores)
    if len(set(sizes)) > 1:
        scores = scores / torch.tensor(sizes)
    weight = scores.tolist()
    members = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    left = {group: len(of) for group, of in members.items()}
    quota = {group: floor(ratio, len(of) if scope == 'group' else n) for group, of in members.items()}
    wanted = sum(quota.values()) if scope == 'group' else floor(ratio, n)
    gone = set()
    for i in sorted(range(n), key=lambda i: (weight[i], i)):
        if len(gone) < wanted and left[groups[i]] > 1 and quota[groups[i]] > 0:
            gone.add(i)
            left[groups[i]] -= 1
            quota[groups[i]] -= 1
    served_by = [-1 if i in gone else i for i in range(n)]
    for of in members.values() if share else ():
        best = sorted(of, key=lambda i: (-weight[i], i))
        pruned, stay = [i for i in best if i in gone], [i for i in best if i not in gone]
        count = min(len(pruned), len(stay))
        for j, i in enumerate(pruned):
            served_by[i] = stay[j * count // len(pruned)]
    return Plan(served_by, scores, wanted)


def floor(ratio, n):
    """floor(ratio n) in decimals: 0.29 of 100 are 29, which floats make 28.999..."""
    return math.floor(round(ratio * n, 9))


def default_share_scope(trunk):
    """'same_role' in a trunk of several stages; 'global' in others, and for E3VA, by stage alone."""
    parts = trunk.tuning.parts
    staged = parts is not None and len(parts.stages(trunk)) > 1
    return 'same_role' if staged and not isinstance(trunk.tuning.method, E3VA) else 'global'


def alike(trunk, share_scope=None):
    """(groups, sizes) of a trunk's units for `plan`: groups have factors of the same shapes, by 'same_role' one role.

    Args:
        share_scope (str): 'global' or 'same_role'. Default: see `default_share_scope`.
    """
    units = trunk.tuning.method.units(trunk)
    groups = [tuple((name, tuple(one.shape)) for name, one in unit.named_parameters()) for unit in units.values()]
    if (share_scope or default_share_scope(trunk)) == 'same_role':
        groups = [(group, trunk.tuning.method.place(trunk, name)[1]) for group, name in zip(groups, units)]
    return groups, [entries(unit) for unit in units.values()]


def entries(unit):
    """Of all factors of a unit; 0 for a position that was emptied."""
    return sum(one.numel() for one in unit.parameters())


@torch.no_grad()
def prune(trunk, chosen, checkpoint=None, coefficients=(0.5, 0.5)):
    """Carry out a plan on a trunk.

    The knowledge checkpoint adds the pruned units to those that take their place, factor by factor, (A, B) pruned and
    (A_, B_) shared; one that serves several positions is combined with each as it was:
    'da': A_ + sum of A (equation 2); 'sba': the mean of C_1 A_ + C_2 A (equation 3).

    Args:
        chosen (Plan): of this trunk, or of the one that this is a copy of.
        checkpoint (str): 'da', 'sba' or None.
        coefficients (tuple or str): C_1 and C_2, or 'scores': each unit's share of the two contributions.

    Returns:
        list of Parameter: those that are gone.
    """
    units = list(trunk.tuning.method.units(trunk).values())
    for server, positions in chosen.serves.items() if checkpoint else ():
        for factors in zip(*(units[i].parameters() for i in (server, *positions))):
            own, *others = factors
            if checkpoint == 'da':
                own.copy_(sum(others, own))
                continue
            pairs = [contributions(chosen.scores, server, i) if coefficients == 'scores' else coefficients
                     for i in positions]
            own.copy_(sum(c1 * own + c2 * other for (c1, c2), other in zip(pairs, others)) / len(others))
        for module in units[server].modules():
            if isinstance(module, Quantised):
                module.forget()
    return route(trunk, torch.tensor(chosen.served_by), chosen.scores)


def contributions(scores, shared, pruned):
    """C_1 and C_2 of a shared and a pruned unit: their scores as shares of both, so that the weights keep their size.
    """
    a, b = float(scores[shared]), float(scores[pruned])
    return (a / (a + b), b / (a + b)) if a + b else (0.5, 0.5)


def rows(trunk):
    """What a picture or a table of a pruned trunk shows, a dict a position.

    Keys: `name` (the position), `block`, `role` (see `Method.place`), `score`, `per_entry` (the score is, as units
    differ in size), `served_by` (name, or None), `pruned`.
    """
    table, units, found = routing_of(trunk), trunk.tuning.method.units(trunk), []
    names, sizes = list(units), set(map(entries, units.values())) - {0}
    for i, (name, k, value) in enumerate(zip(names, table.served_by.tolist(), table.scores.tolist())):
        block, role = trunk.tuning.method.place(trunk, name)
        found.append(dict(name=name, block=block, role=role, score=value, per_entry=len(sizes) > 1,
                          served_by=None if k < 0 else names[k], pruned=k != i))
    return found

"""The search: against a short one of our own, within the budget, from anywhere; its tool on a small classifier."""
import random

import pytest

from e3va.noah.method import KINDS, Space
from e3va.noah.search import crossed, key, mutated, search

SPACE = Space(4, (1, 5, 10), (1, 2, 4))


def size(subnet):
    return sum(subnet['prompt']) + 4 * sum(subnet['lora']) + 2 * sum(subnet['adapter'])


def value(subnet):
    """More is better, and prompts most; many are alike."""
    return sum(subnet['prompt']) * 2 // 3 + sum(subnet['adapter']) // 2


def by_hand(budget, rounds, population, select, mutations, crosses, seed):
    """The public code's order with lists of tuples: select, mutate, cross, fill up; returns all, best first."""
    rng, seen, parents, new = random.Random(seed), [], [], []

    def some(make, number, tries):
        made = 0
        while made < number and tries:
            tries -= 1
            one = make()
            if one not in seen + new and size(dict(zip(KINDS, one))) <= budget:
                new.append(one)
                made += 1

    def row(depth, old=()):
        old = list(old[:depth])
        old += [rng.choice((1, 5, 10)) for _ in range(depth - len(old))]
        return tuple(old + [0] * (4 - depth))

    def drawn():
        return tuple(row(rng.choice((1, 2, 4))) for _ in KINDS)

    def mutant():
        child = []
        for old in rng.choice(parents):
            if rng.random() < 0.2 and rng.random() < 0.4:
                old = row(rng.choice((1, 2, 4)), old[:4 - old.count(0)])
            child.append(old)
        return tuple(child)

    def cross():
        one, other = rng.choice(parents), rng.choice(parents)
        return tuple(rng.choice(pair) for pair in zip(one, other))

    some(drawn, population, 10 ** 6)
    for _ in range(rounds):
        seen += new
        ranked = sorted(seen, key=lambda one: -value(dict(zip(KINDS, one))))        # stable: the earlier first
        parents, new = ranked[:select], []
        some(mutant, mutations, 10 * mutations)
        some(cross, crosses, 10 * crosses)
        some(drawn, population - len(new), 10 ** 6)
    return ranked


@pytest.mark.parametrize('seed', [0, 1])
def test_the_rule(seed):
    told, batches = [], []

    def score(subnets):
        batches.append(subnets)
        return list(map(value, subnets))
    best = search(SPACE, size, 120, score, seed, 5, 12, 4, 5, 4, tell=lambda number, best: told.append(best[0][0]))
    assert [key(subnet) for _, subnet in best] == by_hand(120, 5, 12, 4, 5, 4, seed)
    assert len(batches) == 5 and all(size(subnet) <= 120 for subnets in batches for subnet in subnets)
    assert told == sorted(told) and told[-1] == best[0][0] == max(one for one, _ in best)


def test_mutants_and_crosses():
    rng, parent = random.Random(0), dict(prompt=[5, 1, 0, 0], lora=[10, 10, 10, 10], adapter=[1, 0, 0, 0])
    for _ in range(50):
        child = mutated(parent, SPACE, rng, 1, 1)
        for kind in KINDS:
            depth = sum(map(bool, parent[kind]))
            both = min(depth, sum(map(bool, child[kind])))
            assert child[kind][:both] == parent[kind][:both] and sum(map(bool, child[kind])) in SPACE.depths
        assert mutated(parent, SPACE, rng, 0, 1) == parent
        assert all(row in (parent[kind], child[kind]) for kind, row in crossed(parent, child, rng).items())


def test_budgets():
    def score(subnets):
        return list(map(value, subnets))
    with pytest.raises(ValueError, match='no subnet has at most budget=6 parameters: the smallest has 7. Give a'):
        search(SPACE, size, 6, score)
    best = search(SPACE, size, 7, score, population=3, rounds=3, mutations=1, crosses=1)
    assert len(best) == 1                                               # all that there is

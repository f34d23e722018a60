"""The search of NOAH: evolution among the subnets of a supernet, under a budget of parameters.

As in the public code: of the subnets so far the `select` best are parents. A round's new ones are first mutants of a
parent, then crosses of two, and drawn ones up to `population`; each is within the budget and none was there before.
There a mutation changes depths alone, and the last round's subnets are scored and never ranked: here they are.
"""
import random

from .method import KINDS

TRIES = 1000                                                            # for one more drawn subnet


def key(subnet):
    return tuple(tuple(subnet[kind]) for kind in KINDS)


def mutated(parent, space, rng, mutate, deepen):
    """A parent of which each kind, with the probabilities mutate * deepen, has a new depth, larger or smaller.

    Blocks that it had keep their sizes, those that come get drawn ones.
    """
    child = {}
    for kind in KINDS:
        sizes, depth = parent[kind], sum(map(bool, parent[kind]))
        if rng.random() < mutate and rng.random() < deepen:
            sizes = space.sized(rng.choice, rng.choice(space.depths), sizes[:depth])
        child[kind] = list(sizes)
    return child


def crossed(one, other, rng):
    """Each kind of one of two parents."""
    return {kind: list(rng.choice((one, other))[kind]) for kind in KINDS}


def search(space, count, budget, score, seed=0, rounds=15, population=50, select=10, mutations=25, crosses=25,
           mutate=0.2, deepen=0.4, tell=None):
    """The best subnets that were found, as [(value, subnet)], best first.

    A function of its arguments and of the values alone: with the same values it goes the same way, so that who keeps
    these can go on from anywhere.

    Args:
        space (Space): what there is.
        count (callable): subnet -> its parameters.
        budget (int): at most so many parameters.
        score (callable): list of subnets -> their values, the larger the better.
        tell (callable): tell(round, best) after each round; `best` as what is returned.

    Raises:
        ValueError: no subnet meets the budget.
    """
    rng, values, order = random.Random(seed), {}, {}
    least = count(smallest(space))
    if least > budget:
        raise ValueError(f'no subnet has at most budget={budget:,} parameters: the smallest has {least:,}. Give a '
                         'larger budget, or smaller sizes or depths to the supernet')

    def fresh(make, number, tries):
        found = []
        while len(found) < number and tries > 0:
            tries -= 1
            subnet = make()
            if key(subnet) not in order and count(subnet) <= budget:
                order[key(subnet)] = len(order)
                found.append(subnet)
        return found

    def draw():
        return space.draw(rng.choice)

    def parent():
        return rng.choice(best[:select])[1]

    new, best = fresh(draw, population, TRIES * population), []
    for number in range(rounds):
        if not new:                                                     # all that there is was there
            break
        values.update(zip(map(key, new), score(new), strict=True))
        ranked = sorted(values, key=lambda one: (-values[one], order[one]))
        best = [(values[one], {kind: list(sizes) for kind, sizes in zip(KINDS, one)}) for one in ranked]
        if tell:
            tell(number + 1, best)
        if number + 1 < rounds:
            new = fresh(lambda: mutated(parent(), space, rng, mutate, deepen), mutations, 10 * mutations)
            new += fresh(lambda: crossed(parent(), parent(), rng), crosses, 10 * crosses)
            new += fresh(draw, population - len(new), TRIES * population)
    if not best:
        raise ValueError(f'no subnet of at most budget={budget:,} parameters was drawn in {TRIES * population:,} '
                         f'tries; the smallest has {least:,}: give a larger budget')
    return best


def smallest(space):
    depth, size = min(space.depths), min(space.sizes)
    return dict.fromkeys(KINDS, [size] * depth + [0] * (space.blocks - depth))

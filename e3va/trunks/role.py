"""What the families share: roles, stock classes by name, and a branch around its DropPath."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Role:
    """A linear layer by the part it plays: `part` of the `of` equal slices of the outputs of those that match."""

    pattern: str
    part: int = 0
    of: int = 1


def stock(trunk, names, method='forward'):
    """Whether the trunk's class, or a base of it, is one of `names` ('module:Class') and its `method` not overridden.

    With the method None: by the class alone.

    Asked by name, so that no library is imported that the user does not use.
    """
    for base in type(trunk).__mro__:
        if any(base.__module__.startswith(module) and base.__name__ == name
               for module, name in (entry.split(':') for entry in names)):
            return method is None or getattr(type(trunk), method) is getattr(base, method)
    return False


def branch(run, drop, tap):
    """Output of a branch whose last module `drop` (a DropPath) is called inside `run`: (tapped, as the trunk has it).

    DropPath draws anew at each call, so the branch runs without it and it is called once, outside.
    """
    if tap != 'before' or drop is None or not drop.training:
        out = run()
        return out, out
    drop.training = False
    try:
        out = run()
    finally:
        drop.training = True
    return out, drop(out)

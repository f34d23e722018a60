"""Let go of parameters in the middle of a training."""
import torch


def retire(optimizer, gone):
    """Forget parameters and their moments; all others keep theirs.

    Args:
        gone (list of (Parameter, Parameter)): the second is what has become the mean of both, and takes the mean of
            their moments; None: the first one is dropped.
    """
    state = optimizer.state
    for parameter, kept in gone:
        other = state.pop(parameter, None)
        if kept is not None and other:
            own = state.get(kept) or other
            state[kept] = {name: (value + other[name]) / 2 if isinstance(value, torch.Tensor) else value
                           for name, value in own.items()}
    left = {parameter for parameter, _ in gone}
    for group in optimizer.param_groups:
        group['params'] = [parameter for parameter in group['params'] if parameter not in left]

"""Blocks whose weights lie in parts on several processes (`train/shard.py`)."""
import contextlib


@contextlib.contextmanager
def gathered(block):
    """Have the weights of a block whole in here, for who reads its layers past its `forward`, which gathers them.

    Nothing is kept for a backward: it would find the weights gone.
    """
    if not hasattr(block, 'unshard'):
        yield
        return
    block.unshard()
    try:
        yield
    finally:
        block.reshard()


def called(block, function, *args):
    """function(*args) in the place of a block's forward, with all that hooks do around that, in its backward too."""
    if not hasattr(block, 'unshard'):
        return function(*args)
    before = vars(block).get('forward')

    def restore():
        vars(block).pop('forward', None)
        if before is not None:
            vars(block)['forward'] = before

    def instead(*args):
        restore()                                                       # the function may call the block itself
        return function(*args)

    vars(block)['forward'] = instead
    try:
        return block(*args)
    finally:
        restore()

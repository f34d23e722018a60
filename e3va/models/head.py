"""Bi-head: a classifier's last linear layer in a few bits (Jie et al., ICCV 2023, see `layers.quantised`)."""
from mmengine.registry import MODELS as ROOT
from torch import nn

from ..layers import QuantisedLinear
from ..layers.quantised import BITS
from ..methods.base import choice, integer
from ..registry import MODELS
from ..surgery import replace


@MODELS.register_module()
def QuantisedHead(head, bits=1, **options):
    """Build a stock classification head and put a quantised layer in the place of its last linear one.

    Args:
        head (str): type of the stock head; without a prefix, as 'mmpretrain.LinearClsHead' has one, it is looked up in
            the config's own library.
        bits (int): of each entry of the weight.
        **options: the stock head's own arguments.

    Returns:
        nn.Module: the stock head itself. Its classifier has no bias, and starts as torch draws a linear layer, whatever
            the head's `init_cfg` says: the codes of zeros, with which some heads start, would never move.
    """
    return quantise_head(ROOT.build(dict(type=head, **options)), bits)


def quantise_head(module, bits=1):
    """The same for a head, or a whole timm classifier, that is there already; before `e3va.tune`. Returns `module`.

    Raises ValueError where there is no linear layer.
    """
    choice('bits', integer('bits', bits), BITS[:-1])
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and name]
    if not names:
        raise ValueError(f'{type(module).__name__} has no linear layer inside: give a classification head, or a model '
                         'that ends in one')
    replace(module, names[-1], QuantisedLinear(module.get_submodule(names[-1]), bits))
    return module

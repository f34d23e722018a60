"""Adapters inside the branches of a block, in front of the residual addition: x + U act(D x).

`Adapter`, behind attention and MLP: Houlsby et al., ICML 2019, arXiv 1902.00751 (section 2.1). `AdapterPfeiffer`,
behind the MLP alone: Pfeiffer et al., EACL 2021, arXiv 2005.00247. Both papers tune language models with the norm
behind the residual addition; as in all vision code, x is here the output of the branch's last linear, in front of
LayerScale and DropPath.
"""
from ..layers import Bottleneck
from ..layers.bottleneck import ACTIVATIONS, INITS, starts_at_zero
from ..registry import METHODS
from .base import Method, choice, follow, integer, number, role_names


class AdapterLayer(Bottleneck):
    """x + U dropout(act(D x + b_D)) + b_U, for x (..., C)."""

    def forward(self, x):
        return x + super().forward(x)


@METHODS.register_module()
class Adapter(Method):
    """Houlsby's adapters, two a block.

    Refused for want of linears: ConvNeXts whose MLPs are convolutions of 1x1; 'proj' on mmsegmentation's ViT, whose
    attention torch computes past any layer in its place.

    Args:
        rank (int): width of the bottleneck. 8 for ViT in NOAH; 64 in E3VA's tables (Swin-B: 3,107,328 parameters).
        activation (str): 'gelu', 'relu', or 'quick_gelu' (NOAH).
        dropout (float): inside the bottleneck. 0.1 in the code behind E3VA's tables.
        init (str): of down and up. 'lora_xavier' or 'lora_kaiming': up is zero, so training starts at the trunk (the
            paper wants nearly that); 'xavier' with biases N(0, 1e-6) (NOAH); 'trunc_normal' of 0.02 with zero biases
            (E3VA's tables); 'vpt_zero': all is zero (see `AdapterPfeiffer`).
        bias (bool): of both projections.
        roles (sequence of str): 'proj': behind the attention; 'fc2': behind the MLP. On ConvNeXt both are the block's
            last linear, which gets one adapter.
        train_out_norms (bool): see `Method`.
    """

    unit = AdapterLayer

    def __init__(self, rank=8, activation='gelu', dropout=0., init='lora_xavier', bias=True, roles=('proj', 'fc2'),
                 train_out_norms=False):
        super().__init__(train_out_norms)
        self.rank = integer('rank', rank)
        self.activation = choice('activation', activation, tuple(ACTIVATIONS))
        self.dropout = number('dropout', dropout, 0, 1)
        self.init = choice('init', init, tuple(INITS))
        self.bias = bias
        self.roles = role_names(roles)
        self.starts_at_trunk = starts_at_zero(init)

    def apply(self, trunk, parts):
        follow(trunk, parts, self.roles, self.make)

    def make(self, width):
        return AdapterLayer(width, integer('rank', self.rank, high=width), self.activation, self.dropout, self.bias,
                            self.init)


@METHODS.register_module()
class AdapterPfeiffer(Adapter):
    """Pfeiffer's adapters, one a block, behind the MLP; the options are those of `Adapter`, which refuses the same
    ConvNeXts.

    Rank 8 without bias is Pear's row 'Adapter-P' (ViT-B: 147,456 parameters). With `init='vpt_zero'` it is the adapter
    of VPT's code and of the tables that took it over (GPS: 55.8 on VTAB): down and up are both zero, so the gradient
    reaches neither of them, and only the up bias ever learns. That init is for this row alone.
    """

    def __init__(self, rank=8, activation='relu', dropout=0., init='lora_xavier', bias=True, train_out_norms=False):
        super().__init__(rank, activation, dropout, init, bias, ('fc2',), train_out_norms)

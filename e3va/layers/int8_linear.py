"""A frozen linear layer in 8 bits, for trunks that need no gradient."""
import torch
from torch import nn
from torch.nn import functional as F


class Int8Linear(nn.Linear):
    """Weight-only quantisation by torchao: whole numbers of 8 bits, with a scale for each output.

    A quarter of the bytes, an error of at most half a step of 1/127 of a row's largest weight. The state_dict gives and
    takes the weight under its stock name and in floating point, so that checkpoints load as they do elsewhere.

    Buffers: `levels` (out, in) int8, `scale` (out, 1).
    """

    def __init__(self, old):
        nn.Module.__init__(self)
        self.in_features, self.out_features = old.in_features, old.out_features
        self.bias, self.kind = old.bias, old.weight.dtype
        self.register_parameter('weight', None)                         # but between `to_floats` and `to_levels`
        self.register_buffer('levels', None, persistent=False)
        self.register_buffer('scale', None, persistent=False)
        self.quantise(old.weight)
        self.train(old.training)

    def quantise(self, weight):
        packed = rounded(weight)
        self.levels, self.scale = packed.qdata, packed.scale

    def packed(self, kind):
        return int8_tensor()(self.levels, self.scale, [1, self.in_features], kind)

    def to_floats(self):
        """Have the weight as a parameter, into which stock code may draw values, until `to_levels`."""
        self.weight = nn.Parameter(self.packed(self.kind).dequantize(), False)

    def to_levels(self):
        self.quantise(self.weight)
        self.weight = None

    def forward(self, x):
        return F.linear(x, self.packed(x.dtype), self.bias)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + 'weight'] = self.packed(self.kind).dequantize()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        if self.weight is not None:                                     # rounded by `to_levels`
            super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
            return
        state = dict(state)
        weight = state.pop(prefix + 'weight', None)
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        if weight is None:
            missing.append(prefix + 'weight')
        elif weight.shape != self.levels.shape:
            errors.append(f'size mismatch for {prefix}weight: {tuple(weight.shape)} in the checkpoint, '
                          f'{tuple(self.levels.shape)} in the model')
        else:
            self.quantise(weight.to(self.levels.device))


def rounded(weight):
    """A weight (out, in) as torchao's tensor: `qdata` and `scale` are a layer's buffers."""
    weight = weight.detach().float()
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float).eps)
    # Rounded up to 16 bits every level times the scale is exact in fp32: saved and loaded again, nothing moves.
    scale = ((scale.view(torch.int32) + 0xff) & ~0xff).view(torch.float)
    return int8_tensor().from_hp(weight, per_row(), scale=scale)


def int8_tensor():
    """torchao's tensor; ValueError where torchao is not installed."""
    try:
        from torchao.quantization import Int8Tensor
    except ImportError as error:
        raise ValueError(f"trunk_weights='int8' needs torchao, which cannot be imported ({error}): "
                         'pip install torchao') from error
    return Int8Tensor


def per_row():
    from torchao.quantization import PerRow
    return PerRow()

"""Matrices in a few bits, as in Bi-LoRA and Bi-AdaptFormer.

Jie et al., "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy", ICCV 2023,
arXiv 2307.16867; the codebook is the one that the authors' code computes.

    w_q = codebook((w - mean) / (std + 1e-5)) * std + mean,   mean and unbiased std over the whole matrix

In backward the codebook counts as the identity (the straight-through estimator); mean and std are differentiated.
Saved are a code for each entry and the two numbers: numel * bits / 8 + 8 bytes.
"""
import functools
from statistics import NormalDist

import torch
from torch import nn

BITS = 1, 2, 4, 32
LIVE = -1.                                                              # no std is negative: nothing is recorded


@functools.cache
def codebook(bits):
    """(codes, thresholds): the 2 ** bits levels for entries of N(0, 1), and what divides them, ascending.

    A code is the median of its bin, a threshold the middle of two codes; 500 rounds from all codes at zero. One bit:
    +-0.6745, divided at 0.
    """
    normal, codes = NormalDist(), [0.] * 2 ** bits
    for _ in range(500):
        thresholds = [(a + b) / 2 for a, b in zip(codes, codes[1:])]
        edges = [0., *map(normal.cdf, thresholds), 1.]
        codes = [normal.inv_cdf((a + b) / 2) for a, b in zip(edges, edges[1:])]
    return codes, thresholds


def statistics(w, recorded):
    """(2,): mean and unbiased standard deviation of w; what is recorded, where something is."""
    return torch.where(recorded[1] < 0, torch.stack([w.mean(), w.std()]), recorded)


def normalise(w, mean, std):
    return (w - mean) / (std + 1e-5)


class Quantised(nn.Module):
    """A module that computes with some of its parameters in `bits` bits. What trains are the floats behind them.

    A load of a saved delta brings the codes, mean and std, from which the floats do not come back. It brings floats of
    these codes, and records mean and std in the buffers NAME_statistics (2,), so that the values have the same bits.
    The first forward in training mode with gradients drops the record: from there on it is the formula of these floats.
    """

    bits, quantised = 32, ()

    def quantise(self, bits, *names):
        """Use the parameters `names` in so many bits; 32: as they are."""
        if bits == 32:
            return
        self.bits, self.quantised = bits, names
        for name, values in zip(('codes', 'thresholds'), codebook(bits)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        for name in names:
            self.register_buffer(f'{name}_statistics', torch.full((2,), LIVE))

    def value(self, name):
        """What stands for the parameter `name` in the forward."""
        w = getattr(self, name)
        if name not in self.quantised:
            return w
        recorded = getattr(self, f'{name}_statistics')
        if self.training and torch.is_grad_enabled():
            recorded.fill_(LIVE)
        mean, std = statistics(w, recorded)
        z = normalise(w, mean, std)
        code = self.codes[torch.bucketize(z.detach(), self.thresholds)]
        return (code + (z - z.detach())) * std + mean                   # the difference is zero: the code's own bits

    def forget(self):
        """Drop what a load has recorded, as the floats become others."""
        for name in self.quantised:
            getattr(self, f'{name}_statistics').fill_(LIVE)


def quantised_entries(model):
    """{name in the model's state_dict: bits} of the quantised parameters of a model."""
    return {f'{place}.{name}'.lstrip('.'): module.bits for place, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, Quantised) for name in module.quantised}


def packed_bytes(numel, bits):
    """Bytes of a matrix of `numel` entries: a code for each, rounded up, and two float32."""
    return -(-numel * bits // 8) + 8


@torch.no_grad()
def pack(w, recorded, bits):
    """A matrix as bytes, uint8: the codes, lowest bits first, then mean and std.

    Args:
        w (Tensor): the floats.
        recorded (Tensor): their `statistics` buffer, (2,).
        bits (int): 1, 2 or 4.
    """
    w, recorded = w.detach(), recorded.to(w)
    mean, std = statistics(w, recorded)
    code = torch.bucketize(normalise(w, mean, std), w.new_tensor(codebook(bits)[1])).flatten()
    code = torch.cat([code, code.new_zeros(-len(code) % (8 // bits))]).view(-1, 8 // bits)
    code = (code << torch.arange(0, 8, bits, device=w.device)).sum(1).to(torch.uint8)
    return torch.cat([code, torch.stack([mean, std]).float().view(torch.uint8)])


def unpack(data, bits, shape):
    """(floats, statistics) that `pack` gives the same bytes for, and whose own mean and std are nearly the same.

    The floats are the codes, moved and stretched to the recorded mean and std, so that training goes on at the scale at
    which it stopped; codes that would change by that stay where they are (which one bit never needs).
    """
    numel = torch.Size(shape).numel()
    if data.numel() != packed_bytes(numel, bits):
        raise ValueError(f'{data.numel()} bytes for {tuple(shape)} in {bits} bits, which take '
                         f'{packed_bytes(numel, bits)}')
    recorded = data[-8:].clone().view(torch.float32)
    mean, std = recorded
    codes, thresholds = map(torch.tensor, codebook(bits))
    places = (data[:-8, None] >> torch.arange(0, 8, bits, dtype=torch.uint8)) & 2 ** bits - 1
    places = places.flatten()[:numel].long()
    code = codes[places]
    w = mean + std * (code - code.mean()) / code.std()
    if not torch.equal(torch.bucketize(normalise(w, mean, std), thresholds), places):
        w = mean + (std + 1e-5) * code
    return w.view(shape), recorded

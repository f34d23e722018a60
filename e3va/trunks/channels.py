"""Images that are not RGB: the first layer of a trunk, and its published weights for another number of channels."""
import torch
from mmengine.logging import print_log
from torch import nn

RGB = 3


def first_layer(trunk):
    """(name, layer) of the convolution that reads the images, the first one of a trunk; None where there is none."""
    return next(((name, module) for name, module in trunk.named_modules() if isinstance(module, nn.Conv2d)), None)


def other_images(trunk, family, config):
    """(name, first layer) where it reads images of another number of channels than three, else None.

    The trunk's config says so, or in a known family the layer. Of other modules it is a guess: no layer of 1x1 reads
    images, and 12 or 48 channels are those of RGB folded, as of YOLOX's Focus (2x2 pixels are one) or TResNet.
    """
    name, layer = first_layer(trunk) or (None, None)
    if layer is None or layer.groups > 1:
        return None
    said = next((config[key] for key in ('in_channels', 'in_chans') if isinstance((config or {}).get(key), int)), None)
    if said is None and family is None and (layer.kernel_size == (1, 1) or layer.in_channels % (4 * RGB) == 0):
        return None
    return (name, layer) if (said or layer.in_channels) != RGB else None


def adapted(weight, channels):
    """A kernel (C, 3, k, k) for images of other channels, as timm does it (`timm.models.adapt_input_conv`).

    One channel: the sum over red, green and blue, so that a grey image gives what it gave. More: these again and again,
    scaled by 3 / channels, so that the outputs keep their size.
    """
    weight, kind = weight.detach().float(), weight.dtype
    if channels == 1:
        return weight.sum(dim=1, keepdim=True).to(kind)
    repeats = -(-channels // RGB)
    return (torch.cat([weight] * repeats, dim=1)[:, :channels] * (RGB / channels)).to(kind)


def adapt_input(trunk, state, prefix, *_):
    """Before a load: in the state dict, weights for RGB become what the first layer needs for its channels."""
    name, layer = first_layer(trunk)
    key = f'{prefix}{name}.weight'
    if key in state and state[key].shape == (len(layer.weight), RGB, *layer.kernel_size):
        state[key] = adapted(state[key], layer.in_channels)
        print_log(f'weights for {type(trunk).__name__}: {name}, for RGB, is adapted to images of {layer.in_channels} '
                  'channels', logger='current')

"""E3VAMix (ours): LoRA that learns from a share of each batch, the trunk's other images being E3VA's case.

    h = W x + (alpha / r) B A x for every image;   dA and dB: 1/s times those of the share s of a batch that is drawn

For the images that are not drawn nothing is kept in the trunk and nothing is backpropagated through it; neck and heads
learn from all. What is kept and the time of backward shrink to a share of LoRA's; the gradient is right in the mean
(`trunks.sampled`). For those that are drawn the trunk's GELUs keep 8 bits an entry (`layers.gelu`).
`configs/e3va/README.md` says what it was measured to be worth, and what else was tried.
"""
from ..registry import METHODS
from .lora import LoRA


@METHODS.register_module()
class E3VAMix(LoRA):
    """LoRA (which see for the arguments) under `backward=0.25` and `gelu='int8'`; these are options as of `tune`."""

    backward, gelu = 0.25, 'int8'

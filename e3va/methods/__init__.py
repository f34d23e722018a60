"""One file a method: the paper, its equation, its layer, its class."""
from .base import Method, build_method
from .fixed import Fixed
from .full import Full
from .lora import LoRA

__all__ = ['Fixed', 'Full', 'LoRA', 'Method', 'build_method']

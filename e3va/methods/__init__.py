"""One file a method: the paper, its equation, its layer, its class."""
from .adapter import Adapter, AdapterPfeiffer
from .adaptformer import AdaptFormer
from .base import Method, build_method
from .bitfit import BitFit
from .compacter import Compacter
from .dmlora import DMLoRA
from .evp import EVP
from .fact import FacT
from .fixed import Fixed
from .fourierft import FourierFT
from .full import Full
from .gps import GPS
from .lora import LoRA
from .lorand import LoRand
from .mona import Mona
from .mora import MoRA
from .norm_tuning import NormTuning
from .partial import Partial
from .repadapter import RepAdapter
from .ssf import SSF
from .vpt import VPT

__all__ = ['AdaptFormer', 'Adapter', 'AdapterPfeiffer', 'BitFit', 'Compacter', 'DMLoRA', 'EVP', 'FacT', 'Fixed',
           'FourierFT', 'Full', 'GPS', 'LoRA', 'LoRand', 'Method', 'MoRA', 'Mona', 'NormTuning', 'Partial',
           'RepAdapter', 'SSF', 'VPT', 'build_method']

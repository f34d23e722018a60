"""From a stock trunk to a tuned one: `Tuned` for configs, `tune` for everybody else."""
import dataclasses
import inspect
import logging
import re
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import compat, loading
from .layers.adopted import AdoptedLinear
from .layers.gelu import keep_8_bits
from .layers.read import call_through, expect_calls
from .layers.sparse import SparseAttention
from .methods import Fixed, Full, Method, build_method
from .methods.base import with_options
from .methods.targets import ALL, find_also, matches, named, say
from .registry import METHODS, MODELS
from .surgery import near, rebind
from .trunks import FAMILIES, family_of, head_entries
from .trunks.channels import adapt_input, other_images
from .trunks.mapped import build, wanted
from .trunks.recompute import recompute_blocks
from .trunks.sampled import sample_backward
from .trunks.walk import let_stock_checkpoint


@dataclasses.dataclass
class Tuning:
    """What e3va knows of a trunk that it has edited; the trunk carries it as `trunk.tuning`.

    Attributes:
        method: the method that was applied.
        family: name of the trunk's family in `trunks.FAMILIES`, or None.
        keys: names in the stock trunk's state_dict.
        modules: names of the stock trunk's modules.
        config: the trunk's config where it was built from one, else None.
        fresh: names of frozen parameters of a trunk built from a config that no checkpoint has brought yet.
        loads: reports of the loads so far, latest last.
        hooked: the method's hook is at work (see `Method.hook`).
        prefix: of the trunk's names in the module that `tune` was given, by which `targets` and `also` name layers.
        also: names of the stock modules and entries that train beside the method: those that the user names, and
            the first layer where it reads other images than RGB.
        rest: entries of a whole model outside its backbone, which train as a head does; none where a trunk is tuned.
        described: what a delta records of the trunk, where its frozen weights lie in parts (`train/shard.py`).
        usual: what a method took by itself in a trunk of no known family, {name: stock layer}, until it is said.
    """

    method: Method
    family: str
    keys: tuple
    modules: frozenset
    config: dict = None
    fresh: set = dataclasses.field(default_factory=set)
    loads: list = dataclasses.field(default_factory=list)
    hooked: bool = False
    prefix: str = ''
    also: frozenset = frozenset()
    rest: frozenset = frozenset()
    usual: dict = None
    described: dict = None

    @property
    def parts(self):
        return FAMILIES.get(self.family)


@MODELS.register_module()
def Tuned(trunk: str, method: str | dict, also: Sequence[str] = (), recompute: str | None = None,
          backward: float | None = None, gelu: str | None = None, **options) -> nn.Module:
    """Build a stock trunk and edit it in place for a method.

    Args:
        trunk (str): type of the stock trunk; without a prefix it is looked up in the config's own library.
        method (str or dict): `dict(type='E3VA', rank=8)`.
        also (sequence of str): what of the trunk trains beside the method, see `tune`.
        recompute (str): the trunk's blocks are run again in backward, see `tune`.
        backward (float): the share of a batch's images whose gradient goes through the trunk, see `tune`.
        gelu (str): what the trunk's GELUs keep for backward, see `tune`.
        **options: the stock trunk's own arguments, `init_cfg` included.

    Returns:
        nn.Module: the stock trunk itself; no entry of its state_dict has changed its name.

    Raises:
        ValueError: a trunk or method that is not known, an option out of range, a trunk the method cannot edit.
    """
    compat.patch_mmpretrain()
    compat.patch_mmcv()
    config = dict(type=scoped(trunk), **options)
    check_out_indices(trunk, options)
    module = build(config)
    tune(module, method, config=config, also=also, recompute=recompute, backward=backward, gelu=gelu)
    if wanted():
        loading.brought(module)
    return module


def scoped(trunk):
    """The type of a trunk with its library in front, e.g. 'mmdet.SwinTransformer'; ValueError if there is none."""
    if not isinstance(trunk, str):
        raise ValueError(f"trunk must be the type of the stock backbone, e.g. trunk='SwinTransformer', not {trunk!r}")
    if '.' in trunk:
        if ROOT.get(trunk) is None:
            raise ValueError(f'there is no backbone {trunk!r}: is the library installed and the name right?')
        return trunk
    current = DefaultScope.get_current_instance()
    scopes = [current.scope_name] if current else [name for name in ROOT.children if name != 'e3va']
    found = [scope for scope in scopes if scope in ROOT.children and trunk in ROOT.children[scope]]
    if len(found) == 1:
        return f'{found[0]}.{trunk}'
    if found:
        raise ValueError(f"trunk {trunk!r} is in {' and '.join(found)}: write e.g. trunk='{found[0]}.{trunk}'")
    if ROOT.get(trunk) is not None:
        return trunk
    names = [name for scope in scopes if scope in ROOT.children for name in ROOT.children[scope].module_dict]
    raise ValueError(f'unknown trunk {trunk!r} in {", ".join(scopes) or "no library"}; {near(trunk, names)}. A trunk '
                     f"of another library takes its prefix, e.g. 'mmpretrain.ConvNeXt', timm's is 'e3va.TimmTrunk'")


def untuned(config):
    """Make of a config of `Tuned`, a ConfigDict, the stock trunk's, in place."""
    config.type = config.trunk
    for name in inspect.signature(Tuned).parameters:
        if name != 'options':
            config.pop(name, None)


def check_out_indices(trunk, options):
    """ValueError where a stock constructor would fail deep inside, or ignore an index, for an index out of range."""
    indices, depths = options.get('out_indices'), options.get('depths')
    if indices is None or depths is None or not str(trunk).endswith('SwinTransformer'):
        return
    wrong = [i for i in indices if not 0 <= i < len(depths)]
    if wrong:
        raise ValueError(f'out_indices={tuple(indices)} of {trunk}: there are {len(depths)} stages, '
                         f'give numbers from 0 to {len(depths) - 1}')


def tune(module: nn.Module, method: str | dict | Method, config: dict | None = None,
         also: Sequence[str] = (), recompute: str | None = None, backward: float | None = None,
         gelu: str | None = None) -> nn.Module:
    """Edit a trunk, the backbone of a whole model, or any module in place for a method.

    Of a whole OpenMMLab model the `backbone` is tuned; neck and heads train as they did. Where the method's `targets`
    name layers outside it (a DETR's encoder, a mask decoder), these are adapted too, and the rest of neck and heads
    trains on. Of any other module all is frozen but what the method trains, `also`, and a timm model's classifier, as
    HF PEFT does it.

    Args:
        module (nn.Module): a trunk, a timm classifier, an OpenMMLab model, or any module, for methods that act on
            layers: LoRA, DMLoRA, FourierFT, MoRA, SSF, BitFit, NormTuning, GPS.
        method (str, dict or Method): e.g. 'E3VA' or `dict(type='LoRA', rank=4)`.
        config (dict): the trunk's config, which lets a saved delta rebuild the stock trunk by itself.
        also (sequence of str): modules and parameters that train beside the method, whole (HF PEFT's
            `modules_to_save`): each the ending of a name or a regular expression over the full names of `module`, e.g.
            `['patch_embed', r'stages\\.4\\..*']`. The delta holds them, their buffers included; batch norms among them
            train. Also an option of every method: `dict(type='LoRA', also=['patch_embed'])`.
        recompute (str): 'block' keeps of every block of the trunk its input alone and runs it again in backward;
            'block_bf16' and 'block_int8' keep that in fewer bits, so that gradients are approximate. Under
            torch.compile the compiler decides what is kept. Also an option of every method.
        backward (float): the share of a batch's images whose gradient goes through the trunk, e.g. 0.25: one image of
            four in turn, drawn by chance where the batch is smaller. Activations and the time of backward shrink with
            it; gradients are right in the mean, and noisier. Also an option of every method.
        gelu (str): 'int8' keeps of the trunk's GELUs their derivative in 8 bits, so that gradients are approximate;
            'exact' their input, as torch does. Default: 'exact', of E3VAMix 'int8'. Also an option of every method.

    Returns:
        nn.Module: `module` itself.

    Raises:
        ValueError: a name that nothing has, a layer that the method cannot adapt, a method that does not know the
            blocks of the trunk, or finds nothing to train.
    """
    method = with_options(build_method(method), also, recompute, backward, gelu)
    if any(hasattr(child, 'tuning') for child in module.modules()):
        raise ValueError(f'a method given twice: {type(module).__name__} has one already; build the trunk anew, or '
                         'take its e3va.merge')
    if type(module).__name__ == 'LoRAModel':
        raise ValueError("mmpretrain's LoRAModel is a method around a trunk already, and renames its entries: give the "
                         "trunk that is its `module`, with method=dict(type='LoRA', ...)")
    trunk, family, prefix = part_to_tune(module, method)
    if family is None and method.needs_family:
        raise ValueError(unknown_family(trunk, method))
    if why := method.refusal(family):
        raise ValueError(f'{type(method).__name__} cannot tune a {type(trunk).__name__}: {why}. '
                         'Take another trunk or another method')
    parts = FAMILIES.get(family)
    beside_it = find_also(module, method.also)
    tuning = Tuning(method, family, tuple(trunk.state_dict()), frozenset(name for name, _ in trunk.named_modules()),
                    config, prefix=prefix,
                    also=frozenset(name[len(prefix):] for name in beside_it if name.startswith(prefix)))
    check_also(trunk, method, parts, tuning.also)
    tuning.also |= input_beside(trunk, method, config)
    if trunk is module and isinstance(getattr(module, 'backbone', None), nn.Module) and family is None:
        tuning.rest = frozenset(name for name in tuning.keys if not name.startswith('backbone.'))
    head = head_entries(trunk) if not tuning.rest else {
        name for name, parameter in trunk.named_parameters() if name in tuning.rest and parameter.requires_grad}
    trunk.tuning = tuning
    if not isinstance(method, Full):
        for part in (trunk, getattr(trunk, 'backbone', None)) if tuning.rest else (trunk,):
            if hasattr(part, 'frozen_stages'):
                part.frozen_stages = -1         # the method says what trains; the stock train() would freeze it again
        for name, parameter in trunk.named_parameters():
            parameter.requires_grad_(name in head)
    stock = [name for name, _ in trunk.named_parameters()]              # an edited layer may hold them otherwise
    if tuning.rest:                                                     # not the layers in it that are adapted
        adapted = tuple(f'{name}.' for name in named(trunk, method))
        tuning.rest = frozenset(name for name in tuning.rest if not name.startswith(adapted))
        for name, parameter in trunk.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not name.startswith(adapted))
    method.apply(trunk, parts)
    def edited(name, layer):
        return name in tuning.modules and (isinstance(layer, AdoptedLinear) or callable(getattr(layer, 'merged', None)))

    call_through(trunk, edited)
    if parts is None or method.targets is not None:
        read = {id(layer.out_proj) for layer in trunk.modules() if isinstance(layer, SparseAttention)}
        expect_calls(trunk, [layer for name, layer in trunk.named_modules()
                             if edited(name, layer) and id(layer) not in read])
    method.adapt_out_norms(trunk, parts)
    for name, parameter in module.named_parameters():
        if name in beside_it or (name.startswith(prefix) and name[len(prefix):] in tuning.also):
            parameter.requires_grad_(True)
    check_trained(trunk, method, head)
    if tuning.usual:
        say(trunk, tuning.usual, sum(parameter.numel() for name, parameter in trunk.named_parameters()
                                     if parameter.requires_grad and name not in head and name not in tuning.also))
        tuning.usual = None
    if config and not config.get('pretrained'):                         # a module that was given keeps what it has
        own = parts.out_norms(trunk) if parts else []
        trained = {name for name, parameter in trunk.named_parameters() if parameter.requires_grad}
        trunk.tuning.fresh = {name for name in stock if name not in trained and name.rpartition('.')[0] not in own
                              and not re.fullmatch(r'norm\d+\..*', name)}
    loading.watch(trunk)
    backbone = trunk.backbone if tuning.rest else trunk
    if method.recompute:
        recompute_blocks(backbone, FAMILIES.get(family_of(backbone)), method.recompute)
    if method.backward:
        sample_backward(backbone, FAMILIES.get(family_of(backbone)), method.backward)
    if method.gelu == 'int8':
        keep_8_bits(backbone, demanded=method.gelu != type(method).gelu)
    let_stock_checkpoint(trunk)
    rebind(trunk, 'train', train)
    if method.hook:
        trunk.register_forward_pre_hook(demand_hook)
    trunk.train(trunk.training)
    return module


def part_to_tune(module, method):
    """(trunk, family, prefix of its names): the module, or its backbone, unless `targets` name layers outside that."""
    family, backbone = family_of(module), getattr(module, 'backbone', None)
    if family is not None or not isinstance(backbone, nn.Module):
        return module, family, ''
    if method.targets not in (None, ALL) and any(
            matches(name, method.targets) and method.adapts(layer) for name, layer in module.named_modules()
            if not f'{name}.'.startswith('backbone.')):
        return module, None, ''
    return backbone, family_of(backbone), 'backbone.'


def input_beside(trunk, method, config):
    """What trains beside the method as the trunk reads images that are not RGB: names of its first layer and entries.

    Weights for RGB that are loaded are adapted to it.
    """
    found = other_images(trunk, family_of(getattr(trunk, 'backbone', trunk)), config)
    if not found:
        return frozenset()
    name, layer = found
    trunk.register_load_state_dict_pre_hook(adapt_input)
    if isinstance(method, Full) or not method.train_input:
        return frozenset()
    reads = f'{type(trunk).__name__} reads images of {layer.in_channels} channels'
    if not method.reaches_input:
        print_log(f'{reads}, and {type(method).__name__} trains nothing there: its first layer keeps what it is made '
                  'of the published weights; take another method to train it', logger='current', level=logging.WARNING)
        return frozenset()
    print_log(f'{reads}, so its first layer trains too (train_input=False of the method keeps it as it is)',
              logger='current')
    return frozenset((name, *(f'{name}.{entry}' for entry in layer.state_dict())))


def unknown_family(trunk, method):
    """Why a method of blocks cannot tune a trunk, and what can."""
    any_trunk = sorted(name for name, kind in METHODS.module_dict.items() if not kind.needs_family)
    return (f'{type(method).__name__} does not know the trunk {type(trunk).__module__}.{type(trunk).__name__}: it '
            f'goes by its blocks, and reads the stock classes of: {", ".join(FAMILIES)} (a subclass that changes the '
            "forward is not one of them; timm models enter a config as trunk='e3va.TimmTrunk'). "
            f'{features_only(trunk)}{", ".join(any_trunk)} take any trunk; single layers of it train whole by also=, '
            'e.g. under Fixed')


def check_also(trunk, method, parts, also):
    """ValueError for `also` inside a trunk through which nothing is backpropagated."""
    own = tuple(f'{name}.' for name in parts.out_norms(trunk)) if parts and also else ()
    inside = [name for name, _ in trunk.named_parameters() if name in also and not name.startswith(own)]
    if inside and not method.backpropagates:
        raise ValueError(f'also= names {loading.shorten(inside, 3)}, and {type(method).__name__} backpropagates '
                         'nothing through the trunk, so that they would get no gradient: take LoRA or another method')


def check_trained(trunk, method, head):
    """ValueError where a method would train nothing without a word."""
    idle = isinstance(method, Fixed) or type(method).apply is Method.apply
    if not idle and not any(
            parameter.requires_grad and name not in head for name, parameter in trunk.named_parameters()):
        raise ValueError(f'{type(method).__name__} finds nothing to train in {type(trunk).__name__}: it has no such '
                         'parameters. Take another method, e.g. LoRA with targets=, or Fixed with also=')


def features_only(trunk):
    """What to say to who gives timm's `features_only` form of a model, whose parts have other names."""
    if not hasattr(trunk, 'feature_info') or not type(trunk).__name__.startswith('Feature'):
        return ''
    return ("timm's features_only=True puts the model's parts under other names: give timm.create_model without it, "
            "or, for maps to a neck, e3va's TimmTrunk with out_indices. ")


@torch.no_grad()
def train(trunk, mode=True):
    """The trunk's own `train`, then: eval for what the method holds in eval, and for every frozen batch norm.

    A module gets into eval by its own `train(False)`: some make there what they read in eval (attention biases, in
    LeViT, TinyViT, EfficientFormer). Where such a parameter trains, the module stays in the trunk's mode.
    """
    trunk.__class__.train(trunk, mode)
    tuning, hold = trunk.tuning, mode and trunk.tuning.method.trunk_mode == 'eval'
    stays = []
    for name, module in trunk.named_modules():                          # parents in front of what is below them
        if name in tuning.also:
            module.training = mode
            continue
        own = loading.trains_its_own_way(module)
        if not name or name not in tuning.modules or (own and trains(module)):
            stays.append(module)
        elif hold and own:
            module.train(False)
        elif hold or (isinstance(module, _BatchNorm) and not trains(module)):
            module.training = False
    for module in stays if hold else ():
        module.training = mode
    return trunk


def trains(module):
    """Whether a parameter of a module's own trains."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def demand_hook(trunk, inputs):
    """Stop the first training step of a method whose hook is not at work."""
    if trunk.training and not trunk.tuning.hooked:
        kind = trunk.tuning.method.hook
        raise ValueError(f'{type(trunk.tuning.method).__name__} trains wrongly without its hook; add to the config: '
                         f"default_hooks = dict({kind.rpartition('.')[2].removesuffix('Hook').lower()}="
                         f"dict(type='{kind}'))")


def tuned_trunks(model):
    """[(prefix, trunk)] of the tuned trunks in a model, e.g. ('backbone.', trunk); ValueError if there is none."""
    found = [(f'{name}.' if name else '', module) for name, module in model.named_modules()
             if hasattr(module, 'tuning') and not hasattr(module, '_orig_mod')]         # torch.compile's wrapper
    if not found:
        raise ValueError(f"{type(model).__name__} has no tuned trunk: build it with type='e3va.Tuned' or call "
                         'e3va.tune')
    return found


def uncompiled(model):
    """The model inside what `torch.compile(model)` gives, whose entries have their own names; else the model itself.

    ValueError where a tuned trunk in it is wrapped so: a delta with such names would fit no other model.
    """
    model = getattr(model, '_orig_mod', model)
    for prefix, _ in tuned_trunks(model):
        if '_orig_mod.' in prefix:
            place = prefix.partition('._orig_mod')[0]
            raise ValueError(f'torch.compile has wrapped the tuned {place}, so that its entries have other names: '
                             f'compile it in place, model.{place}.compile()')
    return model


def find_tuned(model):
    """(prefix, trunk) of the one tuned trunk in a model, for what serves one; ValueError if there is none, or several.
    """
    found = tuned_trunks(model)
    if len(found) > 1:
        names = ', '.join(repr(prefix[:-1]) for prefix, _ in found)
        raise ValueError(f'{type(model).__name__} has {len(found)} tuned trunks, {names}, and this works on one: give '
                         'the trunk itself, or tune one of them')
    return found[0]

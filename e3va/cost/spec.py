"""From the words of a command line to the methods that are measured, and from any config to the one of each method."""
import ast
import copy
import dataclasses
import inspect
import re

from mmengine.config import Config
from mmengine.registry import MODELS

from ..command.config import apply_method, is_tuned, load_method
from ..methods import build_method
from ..tuned import untuned


@dataclasses.dataclass(frozen=True)
class Spec:
    """One method to measure: what the user wrote, its method file with the options set, and checkpointing or not."""

    label: str
    method: Config
    with_cp: bool = False


def parse(text):
    """Specs of e.g. 'full,full-cp,e3va:mode=stream,rank=16,lora:roles=("q", "v")'.

    A comma separates methods, and the options of a method that has a colon: NAME=VALUE there belongs to the last
    method. Values are Python literals, else strings. `-cp` behind a name: with the trunk's own `with_cp`.

    Raises:
        ValueError: an unknown method or option, an option without a method, a method given twice.
    """
    written = []
    for item in filter(None, map(str.strip, re.split(r',(?![^(\[]*[)\]])', text))):
        if not re.match(r'[A-Za-z_]\w*\s*=', item):
            name, _, option = item.partition(':')
            written.append((name, [option] if option else []))
        elif written and written[-1][1]:
            written[-1][1].append(item)
        else:
            raise ValueError(f'--methods: the option {item!r} belongs to no method; write METHOD:{item}')
    if not written:
        raise ValueError("--methods names no method: write e.g. 'full,fixed,e3va:rank=16,lora'")
    specs = [make(name, options) for name, options in written]
    for spec in specs:
        if [other.label for other in specs].count(spec.label) > 1:
            raise ValueError(f'--methods: {spec.label!r} is given twice')
    return specs


def make(name, options):
    """A spec, its method built once so that a wrong option is found before anything is measured."""
    stem, with_cp = re.fullmatch(r'(.*?)(-cp)?', name).groups()
    method = load_method(stem)
    for option in options:
        key, equals, value = (part.strip() for part in option.partition('='))
        if not equals or not value:
            raise ValueError(f'--methods: {name}:{option} is no option; write {name}:NAME=VALUE')
        method.method[key] = literal(value)
    build_method(method.method)
    return Spec(':'.join([name, ','.join(options)]) if options else name, method, bool(with_cp))


def literal(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def stock(cfg):
    """A copy of a config with the backbone as the library has it, and without the weights that it would load."""
    cfg = copy.deepcopy(cfg)
    backbone = (cfg.get('model') or {}).get('backbone')
    if isinstance(backbone, dict) and is_tuned(backbone):
        untuned(backbone)
    if cfg.get('model'):
        drop_weights(cfg.model)
        if cfg.get('data_preprocessor'):
            cfg.model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return cfg


def drop_weights(node):
    """Remove the checkpoints that a model's config names, in place; other initialisations stay."""
    for key, value in list(node.items()) if isinstance(node, dict) else enumerate(node):
        if key == 'pretrained':
            node.pop(key)
        elif key == 'init_cfg' and isinstance(value, dict) and 'Pretrained' in str(value.get('type')):
            node[key] = None
        elif isinstance(value, (dict, list, tuple)):
            drop_weights(value)


def tuned(cfg, spec):
    """The config of one method, from the stock one. ValueError where the trunk cannot do what the spec asks for."""
    cfg = apply_method(cfg, spec.method)
    if spec.with_cp:
        backbone = cfg.model.backbone
        with MODELS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            kind = registry.get(backbone.trunk)
        if kind is not None and 'with_cp' not in inspect.signature(kind).parameters:
            raise ValueError(f'{spec.label}: the trunk {backbone.trunk} has no option with_cp (activation '
                             'checkpointing); leave this method out')
        backbone.with_cp = True
    return cfg

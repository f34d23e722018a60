"""The weights that a delta was trained on: looked for, loaded and compared by their hash."""
import os
import re
import sys

from mmengine.config import ConfigDict

from ..files import checkpoint as trusted
from ..trunks import vit_sam
from .extract import frozen
from .file import fingerprint


def find_base(trunk, path, record, base=None):
    """See that the frozen trunk holds the weights that a delta was trained on; ValueError lists what was tried.

    Args:
        record (dict): what the delta records of this trunk, see `describe`.
        base (str): file or URL; None: the recorded file. That is a stranger's word: it is read as data and not fetched.
    """
    tried = []
    if base is None:
        if fingerprint(frozen(trunk)) == record['sha256']:
            return
        tried.append('the weights that the trunk has: they are others')
        if record['base'] is None:
            tried.append('the delta records no base')
    for source, role in ((base, 'argument'), (record['base'] if base is None else None, 'recorded')):
        if source is None:
            continue
        try:
            if role == 'recorded':
                with trusted.trusting(False):
                    load_base(trunk, at_hand(source), record['prefix'])
            else:
                load_base(trunk, source, record['prefix'])
        except Exception as error:                                      # whatever a library's loader raises
            kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
            tried.append(f'{source} ({role}): {kind}{error}')
            continue
        if fingerprint(frozen(trunk)) == record['sha256']:
            return
        tried.append(f'{source} ({role}): its values are others')
    raise not_found(path, tried)


def not_found(path, tried):
    return ValueError(f'the trunk that {path} was trained on was not found. Tried: {"; ".join(tried)}. Give its file: '
                      'load_delta(model, path, base=FILE), or e3va://DELTA?base=FILE')


def at_hand(source):
    """The local file of a recorded base, or what an earlier download has left of its URL; ValueError if there is none.
    """
    if os.path.isfile(local_file(source)):
        return trusted.cached(source) if re.match('https?://', source) else source
    raise ValueError('it is not at hand, and nothing that a delta names is fetched unasked: give it as the base')


def local_file(source):
    """Where the content of a source lies, or would lie after a download."""
    scheme = re.fullmatch(r'(?:timm://[^?]+\?file=|e3va://)([^?]+)', source)    # schemes that read a file
    return scheme[1] if scheme else trusted.cached(source) if re.match('https?://', source) else source


def size_of(path, record, base=None):
    """Bytes of the file of a delta's base; ValueError where the recorded one is not at hand.

    A base that the user gives and that is fetched first has no size yet: the user's word stands for it.
    """
    if base is None and record['base'] is None:
        raise not_found(path, ['the delta records no base'])
    try:
        return os.path.getsize(local_file(at_hand(record['base']) if base is None else base))
    except (OSError, ValueError) as error:
        if base is None:
            raise not_found(path, [f'{record["base"]} (recorded): {error}']) from error
        return sys.maxsize


def load_base(trunk, source, prefix=''):
    """Load weights into a trunk from a file or URL: by the trunk's own names, else the way its library converts.

    Args:
        prefix (str): of the trunk's names in its model, which may be a whole model's file.
    """
    from ..trunks.timm_trunk import load_timm
    if type(trunk).__module__.startswith('timm.'):
        load_timm(trunk, source)
        return
    from mmengine.runner import CheckpointLoader  # slow to import, and not for timm users
    found = CheckpointLoader.load_checkpoint(source, map_location='cpu')
    found = vit_sam.own_names(found.get('state_dict', found))
    for start in ('', prefix, 'backbone.', 'module.backbone.'):
        if all(start + name in found for name in frozen(trunk)):
            given = inside(found, start)
            trunk.load_state_dict({name: given[name] for name in trunk.tuning.keys if name in given}, strict=False)
            return
    old = trunk.init_cfg
    trunk.init_cfg = ConfigDict(old if isinstance(old, dict) else {}, type='Pretrained', checkpoint=source)
    trunk._is_init = False
    try:
        trunk.init_weights()
    finally:
        trunk.init_cfg = old


def inside(tensors, prefix):
    """The entries of a trunk, under its own names."""
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}

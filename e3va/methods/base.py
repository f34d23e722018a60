"""The contract of a method, how one is built from a config, and how it finds the layers that it edits."""
import inspect
import itertools
import math
import re

from torch import nn

from ..layers import Emptied, FollowedLinear
from ..layers import gelu as gelus
from ..registry import METHODS
from ..surgery import find, near, replace
from ..trunks import alternatives, family_of, unused, used
from ..trunks.recompute import WAYS
from .routing import follow_routing
from .targets import also_names, check_layer, named, target_names, usual

# Names of norm classes, those of timm (RmsNorm, SimpleNorm and their 2d forms) included; not GRN, which is no norm.
NORMS = r'(Layer|Group|_Batch|Rms|RMS|Simple)Norm'


def integer(name, value, low=1, high=None):
    """`value` if it is an integer in [low, high], else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f'{name} must be an integer of at least {low}{f" and at most {high}" if high else ""}, '
                         f'not {value!r}')
    return value


def number(name, value, low=None, below=None):
    """`value` if it is a finite number, of at least `low` and below `below` where they are given, else ValueError."""
    if (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
            or (low is not None and value < low) or (below is not None and value >= below)):
        least = '' if low is None else f' of at least {low}'
        raise ValueError(f'{name} must be a number{least}{"" if below is None else f" and below {below}"}, '
                         f'not {value!r}')
    return value


def length(name, value):
    """`value` if it is an integer of at least 1, or a share of the run, a number above 0 and below 1; else ValueError.
    """
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be an integer of at least 1, or a share of the run above 0 and below 1, e.g. '
                         f'0.1, not {value!r}')
    return value


def choice(name, value, options):
    """`value` if it is one of `options`, else ValueError."""
    if value not in options:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, options))}, not {value!r}')
    return value


def role_names(roles):
    """The option `roles` as a tuple; ValueError if it is empty."""
    roles = (roles,) if isinstance(roles, str) else tuple(roles)
    if not roles:
        raise ValueError("roles is empty: name at least one linear, e.g. roles=('q', 'v')")
    return roles


def places(roles, targets):
    """The options `roles` and `targets`, checked: roles are q and v where neither is given."""
    if roles is not None and targets is not None:
        raise ValueError(f'roles={roles!r} and targets={targets!r} are two spellings of which layers are adapted: give '
                         'one')
    return role_names(('q', 'v') if roles is None else roles), target_names(targets)


def layers(trunk, parts, method):
    """The layers that a method adapts: what `targets` names, else its roles in a known family, else the usual ones.

    Returns:
        list of (name, layer, slices, of): as of `linears`; without a role a layer is adapted as a whole, `(0,)` of 1.
    """
    if method.targets is None and parts:
        found = linears(trunk, parts, method.roles, method.adapted)
    else:
        chosen = named(trunk, method) if method.targets is not None else usual(trunk, method)
        found = [(name, layer, (0,), 1) for name, layer in chosen.items()]
        if method.targets is None:
            trunk.tuning.usual = chosen
    for name, layer, _, _ in found:
        check_layer(trunk, name, layer, method)
    return found


def linears(trunk, parts, roles, kinds=(nn.Linear,)):
    """The linear layers of some roles, in the trunk's order; none behind the last output, where nothing would train.

    Args:
        roles (sequence of str): of 'q', 'k', 'v', 'proj', 'fc1', 'fc2'.
        kinds (sequence of types): what counts as a linear; a convolution of 1x1 may stand for one.

    Returns:
        list of (name, layer, slices, of): the roles are the `slices` (sorted) of the layer's `of` equal slices of
        outputs, e.g. (0, 2) of 3 for q and v of a fused layer.

    Raises:
        ValueError: a role that the trunk has not.
    """
    layers = {name: module for name, module in trunk.named_modules() if isinstance(module, kinds)}
    known = {name: role for name, roles in parts.ROLES.items() for role in alternatives(roles)
             if any(re.fullmatch(role.pattern, layer) for layer in layers)}
    chosen = {}                                                         # (pattern, of) -> slices
    for name in roles:
        if name not in known:
            raise ValueError(no_such(trunk, name, known))
        chosen.setdefault((known[name].pattern, known[name].of), set()).add(known[name].part)
    idle = idle_places(trunk)
    return [(name, layer, sorted(slices), of) for name, layer in layers.items()
            if not name.startswith(idle) and f'{name}.weight' not in trunk.tuning.also
            for (pattern, of), slices in chosen.items() if re.fullmatch(pattern, name)]


def no_such(trunk, role, known):
    """What to say of a role that a trunk has not, `known` being those that it has."""
    text = (f'{type(trunk).__module__}.{type(trunk).__name__} has no linear layer of the role {role!r}; its roles are: '
            + (', '.join(known) or 'none, for its MLPs are convolutions of 1x1'))
    if any(isinstance(module, nn.MultiheadAttention) for module in trunk.modules()):
        text += ". Its attention is torch's own, which reads its weights past any layer: LoRA alone goes inside"
    return text if known else text + ('. Take a method that needs no linears, e.g. AdaptFormer, Mona, SSF, BitFit or '
                                      'NormTuning')


def idle_places(trunk):
    """Name prefixes of what lies behind the last output, where nothing would train; none in a trunk of no family."""
    return unused(trunk) if family_of(trunk) else ()


def last_blocks(trunk, count):
    """The last `count` blocks in front of the last output; ValueError where there are not so many."""
    found = [block for stage in used(trunk) for block in stage]
    return found[-integer('blocks', count, high=len(found)):]


def is_norm(module):
    """Whether a module is a norm that has parameters."""
    return (getattr(module, 'weight', None) is not None
            and any(re.match(NORMS, base.__name__) for base in type(module).__mro__))


def norms(trunk):
    """{name: layer} of the norms of a trunk that have parameters; none behind the last output."""
    idle = idle_places(trunk)
    return {name: module for name, module in trunk.named_modules()
            if is_norm(module) and not f'{name}.'.startswith(idle)}


def follow(trunk, parts, roles, make):
    """Put an adapter `make(width)` behind linears of some roles: 'proj' ends the attention, 'fc2' the MLP.

    There an adapter stands in front of LayerScale, DropPath and the residual addition.
    """
    for name, old, _, _ in linears(trunk, parts, [choice('roles', role, ('proj', 'fc2')) for role in roles]):
        replace(trunk, name, FollowedLinear(old, make(old.out_features)))


class Method:
    """What is trained on a frozen trunk. A subclass is one file: the paper, the layer, `apply`.

    `Tuned` freezes the trunk, calls `apply`, and then lets train what has `requires_grad`.

    Args:
        train_out_norms (bool): train the norms in front of the neck or head too. They are new in most detectors and
            segmenters (a classifier's checkpoint has none), so a frozen trunk leaves them at one and zero.
    """

    starts_at_trunk = True          # the output before the first step is the stock trunk's
    mergeable = False               # e3va.merge gives back a plain trunk
    # What it adds to the weights is linear in the entries of these endings, {ending: value where nothing was trained};
    # None: it is not.
    linear = None
    trunk_mode = 'config'           # 'eval': the trunk runs without dropout and DropPath, also in training
    needs_family = True             # the method reads the trunk's parts; False: any module will do
    backpropagates = True           # gradients go through the trunk; False: nothing inside it could train beside
    adapted = (nn.Linear,)          # classes of layers that `targets` may name
    targets = None                  # the option of that name, where the method has it
    train_input = True              # a first layer for other images than RGB trains beside, as its weights are made up
    reaches_input = True            # gradients reach that layer
    also = ()                       # modules and parameters of the stock model that train beside, as of `tune`
    recompute = None                # the trunk's blocks are run again in backward, as of `tune`
    backward = None                 # the share of a batch's images whose gradient goes through the trunk, as of `tune`
    gelu = None                     # what the trunk's GELUs keep for backward, as of `tune`
    refused = {}                    # family of trunks that the method cannot edit: why
    tunes_entries = False           # what it adds are entries of the trunk's own weights, at their rates
    unit = None                     # class of the equal modules that it is made of, which Pear prunes and shares
    hook = None                     # type of a hook without which training would be wrong, e.g. 'e3va.GPSHook'

    def __new__(cls, *args, **options):
        self = super().__new__(cls)
        names = [name for name in inspect.signature(cls.__init__).parameters if name != 'self']
        self.config = dict(zip(names, args), **options, type=cls.__name__)      # what a saved delta records
        return self

    def __init__(self, train_out_norms=False):
        self.train_out_norms = train_out_norms

    def adapts(self, module):
        """Whether `targets` may name this layer."""
        return isinstance(module, self.adapted)

    def refusal(self, family):
        """Why the method cannot edit trunks of a family; None where it can."""
        return self.refused.get(family)

    def apply(self, trunk, parts):
        """Edit the frozen trunk in place. Called once, at build, before DDP and the optimizer exist."""

    def is_entry(self, name):
        """Whether a parameter that the method adds is entries of the trunk's own weights, at whose rates it trains."""
        return self.tunes_entries

    def planned(self, trunk):
        """Parameters that will train, where data have yet to decide which; None where they are there."""

    def units(self, trunk):
        """{position: module} of the equal units, in the trunk's order; an `Emptied` where one was pruned."""
        return {name: module for name, module in trunk.named_modules()
                if self.unit and isinstance(module, (self.unit, Emptied))}

    def place(self, trunk, position):
        """(block, role) of a position, e.g. ('11', 'q'), or ('2.17', 'proj') in a trunk of stages."""
        parts = trunk.tuning.parts
        if parts is None:
            return place_by_name(position)
        stages = parts.stages(trunk)
        names = {block: f'{i}.{j}' if len(stages) > 1 else str(j)
                 for i, blocks in enumerate(stages) for j, block in enumerate(blocks)}
        above = list(itertools.accumulate(position.split('.'), '{}.{}'.format))
        block = next((names[module] for module in map(trunk.get_submodule, above) if module in names), None)
        if block is None:                                               # named by `targets`, outside the blocks
            return place_by_name(position)
        leaf = above[-1].rpartition('.')[2]
        roles = [name for name, found in parts.ROLES.items() for role in alternatives(found) for layer in above
                 if re.fullmatch(role.pattern, layer) and (role.of == 1 or str(role.part) == leaf)]
        return block, roles[0] if roles else leaf

    def expect(self, trunk, given):
        """Before every load of weights: where the method's entries differ from run to run, have those that come.

        Args:
            given (dict): {name in the trunk's state_dict: tensor}.
        """
        follow_routing(trunk, given)

    def loaded(self, trunk, missing):
        """After every load of weights: refresh what derives from trunk values.

        Args:
            missing (frozenset of str): names of the method's own entries that the load did not bring.
        """

    def adapt_out_norms(self, trunk, parts):
        """Let the norms in front of the neck train, where the option says so."""
        if self.train_out_norms:
            names = parts.out_norms(trunk) if parts else list(find(trunk, r'norm\d+'))
            for name in names:
                trunk.get_submodule(name).requires_grad_(True)


def place_by_name(position):
    """(block, role) of a position in a trunk of no family: all of its layer's name, and the last of that."""
    layer = position.partition('.pairs.')[0]
    return layer, layer.rpartition('.')[2]


def registered(name):
    """The method of a name, with or without the package that it is in; None: METHODS.get would import what it says."""
    scope, _, leaf = name.rpartition('.')
    kind = METHODS.module_dict.get(leaf)
    return kind if kind and scope.partition('.')[0] in ('', kind.__module__.partition('.')[0]) else None


def build_method(method):
    """A method from its name, its config `dict(type=NAME, **options)`, or itself; ValueError if it cannot be.

    The name is that of a registered method and nothing else: the config may come out of a file.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, (str, dict, type(None))):
        raise ValueError(f"a method is a name or a dict, e.g. dict(type='E3VA', rank=8), not {str(method):.100}")
    options = dict(type=method) if isinstance(method, str) else dict(method or {})
    # every method has these, see `tune`
    also, train_input = options.pop('also', ()), options.pop('train_input', True)
    shared = 'recompute', 'backward', 'gelu'
    others = [options.pop(name, None) for name in shared]
    name = options.pop('type', None)
    if name is None:
        raise ValueError(f"no method is named in {method!r}; write method=dict(type='E3VA', rank=8)")
    METHODS.import_from_location()
    kind = registered(name) if isinstance(name, str) else name
    if kind is None:
        raise ValueError(f'unknown method {name!r}; {near(name, METHODS.module_dict, 30)}. One of your own is known '
                         'once its module is imported')
    if not (inspect.isclass(kind) and issubclass(kind, Method)):
        raise ValueError(f'{str(name):.100} is no method: give the name of one, or a subclass of e3va.methods.Method')
    known = [name for name in inspect.signature(kind.__init__).parameters if name != 'self']
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f'method {name} has no option {unknown[0]!r}; it has: {", ".join(known)}, and what all '
                         f'have: {", ".join(shared)}, also, train_input')
    method = with_options(kind(**options), also, *others)
    if not choice('train_input', train_input, (True, False)):
        method.train_input = method.config['train_input'] = False
    return method


def with_options(method, also, recompute, backward, gelu):
    """The method with what every method may be given, see `tune`; of what is None it keeps its own."""
    return in_8_bits(in_part(again_by_block(beside(method, also), recompute), backward), gelu)


def beside(method, also):
    """The method with modules that train beside it, `also` of `tune`; recorded with its own options."""
    if names := also_names(also):
        method.also = (*method.also, *(name for name in names if name not in method.also))
        method.config['also'] = method.also
    return method


def again_by_block(method, way):
    """The method with its trunk's blocks run again in backward, `recompute` of `tune`; no delta depends on it."""
    if way is not None:
        method.recompute = choice('recompute', way, tuple(WAYS))
        if not method.backpropagates:
            instead = " Its own mode='stream' runs the blocks again" if hasattr(method, 'mode') else ''
            raise ValueError(f'recompute={way!r}: {type(method).__name__} backpropagates nothing through the trunk, '
                             f'whose blocks keep nothing as it is: leave it out.{instead}')
    return method


def in_part(method, share):
    """The method with the gradient of a share of the images, `backward` of `tune`; no delta depends on it."""
    if share is not None:
        method.backward = number('backward', share, 0, 1)
        if not share:
            raise ValueError('backward=0 would train nothing in the trunk: give a share above 0')
        if not method.backpropagates:
            raise ValueError(f'backward={share}: {type(method).__name__} backpropagates nothing through the trunk: '
                             'leave it out')
    return method


def in_8_bits(method, way):
    """The method with what the trunk's GELUs keep, `gelu` of `tune`; no delta depends on it."""
    if way is not None:
        method.gelu = choice('gelu', way, gelus.WAYS)
        if not method.backpropagates:
            raise ValueError(f'gelu={way!r}: {type(method).__name__} backpropagates nothing through the trunk, whose '
                             'GELUs keep nothing as it is: leave it out')
    return method

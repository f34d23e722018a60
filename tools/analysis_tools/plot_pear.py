r"""Draw which units a run with Pear (or vanilla pruning) has pruned, and which serve in their place.

    python tools/analysis_tools/plot_pear.py RUN --out pear.png

The folder of a run, whose last checkpoint is taken, a checkpoint (epoch_100.pth), or a delta of one
(delta_epoch_100.safetensors). The run itself draws the same at its pruning step, to the visualizer. Every position is
printed too, a line each: block, role, contribution (per entry where units differ in size), and the block and role of
the unit that serves it.
"""
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from e3va.command.line import plot_parser, plotting
from e3va.cost.plot import FORMATS
from e3va.files import foreign
from e3va.methods.routing import TABLE, follow_routing
from e3va.pear import picture as pear_map
from e3va.pear import plan as pear
from e3va.train.saved_run import run_of
from e3va.tuned import scoped, tune


def read(path):
    """(state dict of the trunk, its config with its method, the default scope) of a checkpoint or a delta."""
    state, backbone, prefix, scope = run_of(path)
    if f'{prefix}{TABLE}.served_by' not in state:
        raise ValueError(f'{path} holds no table of Pear: it is of another method, of an epoch in front of the pruning '
                         'step, or merged')
    if not backbone.get('trunk') or not backbone.get('method'):
        raise ValueError(f'{path} does not say which trunk it is of: it is of a model that was not built from a config')
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state, backbone, scope


def rows(state, backbone, scope):
    """`pear.rows` of the trunk that a state dict is of."""
    options = {key: value for key, value in backbone.items() if key not in ('type', 'trunk', 'method')}
    with DefaultScope.overwrite_default_scope(scope if scope in ROOT.children else None), foreign.no_imports():
        trunk = tune(foreign.build_trunk(dict(options, type=scoped(backbone['trunk']))), backbone['method'])
    follow_routing(trunk, state)
    return pear.rows(trunk)


def main(argv=None):
    args = plot_parser(__doc__, 'Pear', 'pear.png').parse_args(argv)
    with plotting(args, FORMATS):
        found = rows(*read(args.run))
        pear_map.save(found, args.out)
        places = {row['name']: f'{row["block"]} {row["role"]}' for row in found}
        for row in found:
            print(f'{row["block"]}\t{row["role"]}\t{row["score"]:.4g}\t{places.get(row["served_by"], "none")}')


if __name__ == '__main__':
    main()

"""What is measured: configs at full size and methods on them; on a CPU the same ones, thin and small."""
import dataclasses
from pathlib import Path

from e3va.command.config import load_config
from e3va.cost import batch, spec
from tests.test_configs.reduce import reduce_model

TASKS = Path(__file__).parents[2] / 'configs' / '_base_' / 'tasks'
QUICK = 'attention=fused,trunk_weights=bf16'


@dataclasses.dataclass(frozen=True)
class Group:
    """Methods that are timed in turn on one config.

    Attributes:
        task: a file of configs/_base_/tasks.
        images: batch.
        dtype: 'fp32', or that of autocast.
        methods: as for tools/analysis_tools/cost.py.
        seconds: what it takes on an H100 at most (estimated): with fewer left it is not begun.
    """

    task: str
    images: int
    dtype: str
    methods: str
    seconds: int

    @property
    def name(self):
        return f'{self.task.partition("_swin")[0]}, batch {self.images}, {self.dtype}'

    @property
    def specs(self):
        return spec.parse(self.methods)


# In the order in which they are measured: what the goals speak of comes first.
GROUPS = (
    Group('coco_cascade_swin_l', 1, 'fp32', 'full,full-cp,fixed,e3va,e3va:mode=bf16,e3va:mode=int8,e3va:mode=stream,'
          'lora,lora:recompute=block,gps', 80),
    Group('coco_cascade_swin_l', 2, 'fp32', 'full,full-cp,fixed,e3va,e3va:mode=stream,lora,gps', 60),
    Group('coco_cascade_swin_l', 1, 'fp16', f'full,fixed,e3va,e3va:mode=stream,e3va:{QUICK},lora', 45),
    Group('ade20k_upernet_swin_l', 4, 'fp32', 'full,fixed,e3va,e3va:mode=stream,lora,e3va_mix,'
          'e3va_mix:recompute=block', 50),
    Group('voc_retinanet_swin_l', 2, 'fp32', 'full,fixed,e3va,e3va:mode=stream,lora', 40),
    Group('coco_cascade_swin_l', 1, 'bf16', f'fixed,e3va,e3va:{QUICK},e3va:{QUICK},trunk_compile=True', 90),
)
# Of these the largest batches that fit a card are looked for.
FITS = ('coco_cascade_swin_l', 'full,fixed,lora:rank=64,e3va,e3va:mode=stream,e3va_mix:recompute=block')


def config(task, reduced):
    """The stock config of a task and (H, W) of its images; `reduced`, as the tests have it, for a CPU."""
    cfg = spec.stock(load_config(str(TASKS / f'{task}.py')))
    if not reduced:
        return cfg, batch.default_size(cfg)
    reduce_model(cfg.model)
    return cfg, (64, 96)

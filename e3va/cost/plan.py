"""What a training step will take of a card, for any batch, found on a CPU that could not run it.

The two halves of a step (see halves.py) are counted for two batches, and other batches lie on the line through the two.

Against a real step on the CPU, random weights, MiB, fp32 where nothing is said. The real columns are those of
`tools/analysis_tools/cost.py CONFIG --methods METHOD --size H W --batch N --dtype DTYPE`, the planned ones those of
`tools/analysis_tools/plan_memory.py` with the same words:

    config, size, batch                 method        saved: real, planned      peak: real, planned
    RetinaNet Swin-T, 480x800, 1        full          1097.0     1097.1         1588.3     1588
                                        fixed          264.2      264.2          549.8      550
                                        e3va           364.2      364.2          654.9      655
                                        e3va, stream   284.0      284.0          570.3      570
                                        lora           806.5      806.5         1093.8     1094
      batch 4, from 1 and 2             e3va          1456.8     1456.8         1912.5     1914
      bf16                              full           742.8      742.1         1246.2     1245
                                        e3va           248.2      248.2          547.4      547
    UPerNet Swin-T, 512x512, 2          full          2661.7     2661.7         3944.0     3944
                                        fixed         1511.2     1511.2         2583.5     2584
                                        e3va          1649.6     1649.6         2726.9     2727
                                        e3va, stream  1539.8     1539.8         2617.1     2617
                                        lora          2265.1     2265.1         3339.0     3339
    Cascade Mask R-CNN Swin-T,          full          1089.5     1089.5         2155.0     2155
      480x800, 1                        fixed          245.9      247.7         1103.2     1120
                                        e3va           351.3      347.9         1208.4     1208
                                        e3va, stream   271.0      267.5         1128.1     1128
                                        lora           795.5      799.0         1656.1     1656
    the same, Swin-L, 800x1344, 1       full          7721.9     7724
                                        e3va          1348.7     1352

No CUDA was at hand: its kernels may keep and take other amounts, and its autocast has other rules for bf16. Which boxes
heads draw differs from image to image, and a trained network finds more true ones than a new one: for the heads of four
convolutions of coco_cascade_swin_b.py, fixed, batch 1, 8 boxes give 1050 MiB saved, 128 (all that they draw) 1670.
"""
import dataclasses
from typing import Optional

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from ..trunks.sampled import drawing, most
from . import batch, spec
from .halves import rest_step, trunk_step
from .live import unique_bytes
from .measure import DTYPES, build, failing

PHASES = ('images', 'trunk_forward', 'rest_forward', 'rest_backward', 'trunk_backward')


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes of a training step of one method.

    Attributes:
        label: the method, as `Spec.label`.
        weights, gradients, moments: of all parameters and buffers; of what trains; AdamW's two of what trains.
        first: the least batch that trains (1, or 2 where a batch norm would see one value a channel).
        counted: {name: (bytes for `first` images, for one image more, for one whose gradient goes through the trunk on
            top)}: `saved` for backward, and for each of `PHASES` the most that is there at once. The third is none
            unless a share of the images is drawn.
        share: that share, `backward` of `tune`; else None.
    """

    label: str
    weights: int
    gradients: int
    moments: int
    first: int
    counted: dict
    share: Optional[float] = None

    def count(self, name, images):
        one, more, drawn = self.counted[name]
        return one + (images - self.first) * more + ((most(images, self.share) - 1) * drawn if self.share else 0)

    def saved(self, images):
        return self.count('saved', images)

    def peak(self, images):
        """The most that is there at once."""
        moving = [self.count(phase, images) for phase in PHASES]
        # what a few images' heads take on top of what is saved, such as distances of boxes, many images' take too
        moving.append(self.saved(images) + self.counted['rest_forward'][0] - self.counted['saved'][0])
        # the update: on CUDA, AdamW takes the square roots of all its moments at once
        return self.weights + self.moments + max(*moving, 2 * self.gradients)

    def workspace(self, images):
        """What is there at the peak beside weights, moments and `saved`: temporaries, and gradients as they come."""
        return self.peak(images) - self.weights - self.moments - self.saved(images)

    def largest(self, room):
        """The largest batch whose peak is within `room` bytes, 0 where there is none."""
        images = self.first
        while self.peak(images) <= room:
            images += 1
        return images - 1 if images > self.first else 0


def plan(cfg, specs, size=None, dtype='fp32', objects=batch.OBJECTS, say=lambda text: None):
    """Plans of some methods on one config; for the other arguments see `measure`.

    Args:
        objects (int): boxes in an image, for a detector. Heads that draw proposals always draw the true boxes too, so
            many of them stand for the proposals of a network that has learned to find them.

    Returns:
        tuple: (H, W) of the images and a list of `Plan`.
    """
    size, plans = in_turn(cfg, specs, size, dtype, objects, say)
    return size, list(plans)


def in_turn(cfg, specs, size=None, dtype='fp32', objects=batch.OBJECTS, say=lambda text: None):
    """`plan` with a generator in the place of the list: a method is counted when its plan is asked for."""
    for name, value in (('--size', min(size or (1, ))), ('--objects', objects)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, not {value}')
    cfg = spec.stock(cfg)
    configs = [spec.tuned(cfg, each).model for each in specs]
    size = tuple(size or batch.default_size(cfg))
    batch.generate(cfg, (1, 1), 1)                              # says at once where there is no ground truth
    MMLogger.get_instance('e3va', log_level='ERROR')
    init_default_scope(cfg.default_scope)
    return size, one_by_one(cfg, specs, configs, size, dtype, objects, say)


def one_by_one(cfg, specs, configs, size, dtype, objects, say):
    """The plans of `in_turn`, whose arguments were checked."""
    model, known = None, {}
    for each, config in zip(specs, configs):
        say(f'building {each.label}')
        if model is None:                                       # neck and heads are the same for all methods
            batch.fix_size(config, size)
            model = build(config)
            trunk = model.backbone
        else:
            trunk = build(config.backbone)

        def count(images, drawn=1):
            say(f'counting {each.label}, batch {images}')
            place = f'{each.label} cannot train at {size[0]}x{size[1]}, batch {images}'
            with failing(place), drawing(lambda images, share: drawn):
                shape = model.data_preprocessor(batch.generate(cfg, size, images), True)['inputs'].shape
                below = trunk_step(trunk.train(), shape, DTYPES[dtype])
                key = str((below['maps'], below['tree']))
                if key not in known:                            # the same for all methods whose maps are alike
                    known[key] = rest_step(model, crowded(batch.generate(cfg, size, images), objects), DTYPES[dtype],
                                           below['maps'], below['tree'])
                return together(below, known[key])

        model.backbone = nn.Identity()
        parameters = [*model.parameters(), *trunk.parameters()]
        gradients = unique_bytes(parameter for parameter in parameters if parameter.requires_grad)
        try:
            first, one = 1, count(1)
        except ValueError:
            first, one = 2, count(2)
        share, two = trunk.tuning.method.backward, count(first + 1)
        if share:                                               # from batches of which a part is drawn
            three, more = count(first + 2), count(first + 2, 2)
            counted = {name: (2 * two[name] - three[name], three[name] - two[name], more[name] - three[name])
                       for name in one}
        else:
            counted = {name: (one[name], two[name] - one[name], 0) for name in one}
        yield Plan(each.label, unique_bytes([*parameters, *model.buffers(), *trunk.buffers()]), gradients,
                   2 * gradients, first, counted, share)


def crowded(data, objects):
    """The data with as many boxes in each image, the same ones again."""
    for sample in data['data_samples']:
        if 'gt_instances' in sample:
            sample.gt_instances = sample.gt_instances[torch.arange(objects) % len(sample.gt_instances)]
    return data


def together(below, above):
    """See `Plan.counted`, from what `trunk_step` and `rest_step` have found."""
    maps = [0 if kept else size for size, kept in zip(below['sizes'], below['kept'])]
    kept = sum(size for size, kept in zip(maps, above['kept']) if kept)
    return dict(saved=below['saved'] + kept + above['saved'], images=above['images'], trunk_forward=below['forward'],
                rest_forward=below['alive'] + sum(maps) + above['forward'],
                rest_backward=below['ready'] + kept + above['backward'],
                trunk_backward=above['gradients'] + below['backward'])

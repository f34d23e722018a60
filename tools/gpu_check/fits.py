"""The largest batches that fit cards of 11, 16 and 24 GB, by a limit on the allocator of the card that is there."""
import cases
import torch
from mmengine.registry import init_default_scope

from e3va.cost import batch, spec
from e3va.cost.clock import on
from e3va.cost.measure import build
from e3va.cost.step import Step

CARDS = (11, 16, 24)
MOST = 8                # images; a batch that fits is then 8 or more
SECONDS = 15            # that a method takes


def measure(record):
    """A row a method and card."""
    task, methods = cases.FITS
    cfg, size = cases.config(task, reduced=False)
    init_default_scope(cfg.default_scope)
    data = batch.generate(cfg, size, MOST)
    for each in spec.parse(methods):
        with record.attempt(f'largest batch: {each.label}', SECONDS) as there:
            if not there:
                continue
            config = spec.tuned(cfg, each).model
            batch.fix_size(config, size)
            model = build(config)
            with on('cuda', model):
                images = 0
                for card in CARDS:                                      # what fits a card fits a larger one
                    if card * 2**30 > torch.cuda.mem_get_info()[1]:
                        raise ValueError(f'the card that is there is smaller than {card} GiB')
                    while images < MOST and fits(model, first(data, images + 1), card):
                        images += 1
                    record.row(f'largest batch: {each.label}, {card} GB', method=each.label, card_gb=card,
                               images=images, most=MOST)


def fits(model, data, card):
    """Whether a step runs where the process may hold `card` GiB, what CUDA itself holds counted."""
    torch.cuda.empty_cache()
    unused, total = torch.cuda.mem_get_info()
    context = total - unused - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((card * 2**30 - context) / total)
    try:
        with Step(model, data, None) as step:
            step.run()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.)
        model.zero_grad()


def first(data, images):
    return {key: values[:images] for key, values in data.items()}

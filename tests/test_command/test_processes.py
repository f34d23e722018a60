"""9. Two processes under DDP: the gradients of one process on the joined batch."""
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from e3va.gps.gradients import select
from e3va.gps.method import sparse_layers
from tests.conftest import TRUNKS, build, distance, image, in_two_processes, projected, stir, tensors

METHODS = ('full', 'lora', 'e3va', 'e3va_stream', 'e3va_trainable')
PAIRS = [(trunk, method) for trunk in ('swin_mmdet', 'swin_mmpretrain', 'swin_timm', 'vit_mmpretrain', 'vit_timm')
         for method in METHODS if (method, trunk[:3]) != ('e3va_trainable', 'vit')] + [('convnext_mmpretrain', 'gps')]
BATCHES = 4                     # of a selection


def model_of(trunk, method):
    changes = dict(drop_path_rate=0.) if 'drop_path_rate' in TRUNKS[trunk][1] else {}
    torch.manual_seed(0)
    model = build(trunk, method, **changes)
    stir(model)
    return model.train()


def gradients(model, images):
    """Of a loss that is a mean over images."""
    outs = tensors(model(images))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(out.shape[1:], generator=generator) for out in outs]
    sum((out * weight).flatten(1).mean(1).mean() for out, weight in zip(outs, weights)).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def selection(rank=0, processes=1):
    """What GPS selects where a process has its share of the batches."""
    model = build('vit_timm', dict(type='GPS', k=2)).eval()
    batches = [image('vit_timm', seed=seed) for seed in range(rank, BATCHES, processes)]
    assert select(model, batches, lambda batch: projected(model(batch))) == dict(used=BATCHES, skipped=0)
    return torch.cat([layer.index.flatten() for layer in sparse_layers(model).values()])


def halves(rank, folder):
    """Run in each process: its half of the batch; the first process writes the gradients down."""
    for trunk, method in PAIRS:
        model = DistributedDataParallel(model_of(trunk, method), find_unused_parameters=False)
        found = gradients(model, image(trunk, batch=4)[2 * rank:2 * rank + 2])
        if rank == 0:
            torch.save(found, folder / f'{trunk}-{method}.pth')
    torch.save(selection(rank, 2), folder / f'selection-{rank}.pth')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return in_two_processes(halves, tmp_path_factory.mktemp('two_processes'))


@pytest.mark.parametrize('trunk,method', PAIRS)
def test_gradients_of_two_processes(folder, trunk, method):
    want = gradients(model_of(trunk, method), image(trunk, batch=4))
    got = torch.load(folder / f'{trunk}-{method}.pth')
    assert all(float(gradient.abs().max()) > 0 for gradient in want)
    assert distance(want, got) <= 1e-6


def test_two_processes_select_the_same(folder):
    """The gradients are added up over the processes: near ties apart, what one process selects on all batches."""
    one, two = (torch.load(folder / f'selection-{rank}.pth') for rank in range(2))
    assert torch.equal(one, two)
    assert (one == selection()).float().mean() >= 0.999

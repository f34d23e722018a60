"""Live bytes against counts by hand, the memory tracker of torch, and saved activations."""
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from e3va.cost.live import LiveBytes, unique_bytes
from e3va.cost.saved import saved_bytes

FLOAT = 4


def test_counts_what_is_there():
    with LiveBytes() as live:
        a = torch.ones(10)
        b = a + 1                           # 10 more
        assert live.current == FLOAT * 20
        c = b.view(2, 5).t()                # the same storage
        c *= 2
        del a
        assert live.current == FLOAT * 10
        del b
        assert live.current == FLOAT * 10   # the view still holds it
        del c
    assert (live.current, live.peak) == (0, FLOAT * 20)


def test_what_was_there_before_is_not_counted():
    weight = nn.Parameter(torch.ones(3, 4))
    with LiveBytes() as live:
        view = weight.view(12)
        assert live.current == 0
        out = view * 2
        assert live.current == FLOAT * 12
    del out
    assert live.current == 0                # also what is freed after the end


def test_resized_storages_and_constants():
    with LiveBytes() as live:
        out = torch.empty(0)
        torch.add(torch.ones(8), torch.ones(8), out=out)
        assert live.current == FLOAT * 8
        constant = torch.tensor([1., 2., 3.])
        assert live.current == FLOAT * (8 + 3)
        del constant


def test_peak_of_a_linear_layer():
    """y = x W: the gradient of y (2, 7) and of W (7, 5) are there at the end of backward, y's sum before it."""
    model, x = nn.Linear(5, 7, bias=False), torch.randn(2, 5)
    with LiveBytes() as live:
        y = model(x)
        assert live.current == FLOAT * 14
        y.backward(torch.ones(2, 7))        # its gradient is made before
        assert live.current == FLOAT * (14 + 35)
    assert live.peak == FLOAT * (14 + 14 + 35)


def test_agrees_with_the_tracker_of_torch():
    """On a training step of a small network, from which torch's own tracker is told nothing but the network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.randn(4, 3, 8, 8)

    def step():
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.zeros(4).long())
        loss.backward()

    with LiveBytes() as live:
        step()
    model.zero_grad()
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        step()
    parameters = unique_bytes([*model.parameters(), *model.buffers()])
    peak = tracker.get_tracker_snapshot('peak')[torch.device('cpu')]['Total']
    assert live.peak == peak - parameters > 0


def test_sees_what_a_context_keeps():
    """A tensor as an attribute of a context is invisible to saved-tensor hooks, and alive."""
    class Hidden(torch.autograd.Function):

        @staticmethod
        def forward(ctx, x):
            ctx.kept = x * 3
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.kept

    x = torch.ones(100, requires_grad=True)
    assert saved_bytes(lambda: Hidden.apply(x).sum(), nn.Module()) == 0
    with LiveBytes() as live:
        loss = Hidden.apply(x).sum()
        assert live.current == FLOAT * (100 + 1)
        loss.backward()


def test_unique_bytes():
    a = torch.ones(6)
    assert unique_bytes([a, a[:2], a.view(2, 3), torch.ones(2)]) == FLOAT * 8

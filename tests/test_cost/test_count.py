"""Bytes and operations of a step against counts by hand, on a network of two linear layers."""
import copy

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn

import e3va
from e3va.cost import count
from e3va.cost.step import Step, settle

FLOAT, B, C, H, D = 4, 6, 16, 32, 8         # images; channels in, inside, out
DATA = dict(inputs=torch.arange(B * C, dtype=torch.uint8).view(B, C))


class Preprocessor(BaseDataPreprocessor):
    """Integers to floats, in new memory, as the libraries' own do."""

    def forward(self, data, training=False):
        return dict(inputs=data['inputs'].float())


class Network(BaseModel):
    """x -> relu(x W1) W2 without biases; W1 is frozen on request."""

    def __init__(self, frozen=False):
        super().__init__(Preprocessor())
        self.first, self.second = nn.Linear(C, H, bias=False), nn.Linear(H, D, bias=False)
        self.first.requires_grad_(not frozen)

    def forward(self, inputs, mode='tensor'):
        out = self.second(self.first(inputs).relu())
        return dict(loss=out.square().mean()) if mode == 'loss' else out


@pytest.mark.parametrize('frozen', [False, True])
def test_a_training_step(frozen):
    got = count.training(Network(frozen), DATA, None)
    one, two = B * C * H, B * H * D                     # multiply-adds of the two products
    assert got['forward_gflops'] * 1e9 == 2 * (one + two)
    # second: gradients of its weight and of its input; first: of its weight only; all of it counts as run
    assert got['backward_gflops'] * 1e9 == 2 * (two if frozen else 2 * two + one)
    # the trainable first keeps its input, relu its output, which is the second's input; the square its own input
    saved = FLOAT * ((0 if frozen else B * C) + B * H + B * D)
    assert got['saved_bytes'] == saved
    assert saved <= got['alive_bytes'] <= saved + FLOAT * 2             # and the loss
    weights, trained = C * H + H * D, H * D + (0 if frozen else C * H)
    steps = 1 if frozen else 2                                          # AdamW counts its steps in a tensor each
    assert got['kept_bytes'] == FLOAT * (weights + 3 * trained + steps)
    # what is kept and what is saved do not overlap, and are all there when the backward begins, but for the gradients
    assert got['peak_bytes'] >= FLOAT * (weights + 2 * trained) + saved


def test_a_step_leaves_nothing_behind():
    model, data = Network(), DATA
    before = [parameter.clone() for parameter in model.parameters()]
    with Step(model, data, None) as step:
        loss = step.forward()
        step.backward(loss)
        assert all(parameter.grad is not None for parameter in model.parameters())
        step.update()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not hasattr(step, 'optimizer')
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters()))     # it did step


def test_autocast_computes_in_its_type():
    seen = []
    model, data = Network(), DATA
    model.second.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    count.training(model, data, torch.bfloat16)
    count.inference(model, torch.randn(B, C), torch.bfloat16)
    assert set(seen) == {torch.bfloat16}


def test_inference():
    got = count.inference(Network().eval(), torch.randn(B, C), None)
    assert got['inference_gflops'] * 1e9 == 2 * (B * C * H + B * H * D)
    assert got['parameters'] == C * H + H * D
    assert got['inference_peak_bytes'] == FLOAT * 2 * B * H             # relu's input and output


def test_attention_on_the_cpu_counts():
    """Two products of (L, C) and (L, L) for each head, by scaled_dot_product_attention's own kernel."""
    heads, length, width = 3, 16, 8
    q = torch.randn(1, heads, length, width, requires_grad=True)
    with count.flops() as counter:
        out = nn.functional.scaled_dot_product_attention(q, q, q)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * heads * length * length * width
    assert counter.get_total_flops() - forward == 2.5 * forward         # five products; the scores are made again


def test_gps_selects_before_it_is_counted():
    """By the loss of the batch, once; what is kept for backward depends on it."""
    stock = Network()
    model = e3va.tune(copy.deepcopy(stock), dict(type='GPS'))
    settle(model, DATA)
    stock(DATA['inputs'].float(), mode='loss')['loss'].backward()
    for ours, layer in ((model.first, stock.first), (model.second, stock.second)):
        live = layer.weight.grad.any(1)                                 # behind a relu some have none
        best = layer.weight.grad.abs().argmax(1)
        assert live.any() and torch.equal((ours.index[:, 0].long() % layer.in_features)[live], best[live])
    before = model.first.index.clone()
    settle(model, dict(inputs=DATA['inputs'].flip(1)))
    assert torch.equal(model.first.index, before)
    count.training(model, DATA, None)

"""One training step and one inference of a model, as a runner does them."""
import copy
from functools import partial

import torch

from ..gps.gradients import select
from ..gps.hook import task_loss
from ..gps.method import GPS, selected
from ..trunks.sampled import drawing, most
from ..tuned import find_tuned


def settle(model, data):
    """Do what a method's hook does once, before the first step: GPS selects, by the loss of this batch."""
    _, trunk = find_tuned(model)
    if isinstance(trunk.tuning.method, GPS) and not selected(trunk):
        select(model.train(), [copy.deepcopy(data)], partial(task_loss, model))


class Step:
    """One step of a model; its gradients and Adam's moments live as long as the `with`, so that several models fit.

    Args:
        model (nn.Module): an OpenMMLab model.
        data (dict): what its loader gives.
        dtype (torch.dtype): of autocast; None for none.
    """

    def __init__(self, model, data, dtype):
        self.model, self.data, self.dtype = model, data, dtype
        self.device = next(model.parameters()).device.type

    def __enter__(self):
        self.model.train()
        for module in self.model.modules():
            if hasattr(module, 'tuning'):
                module.tuning.hooked = True                     # what a method's hook does costs nothing
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # The weights are random and the cost does not depend on the rate: a small one, so that no value runs away.
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype is torch.float16)
        for parameter in self.trained:                          # Adam makes its moments in the first step
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.fresh = copy.deepcopy(self.data)                   # preprocessors and models edit what they get
        return self

    def __exit__(self, *error):
        self.model.zero_grad()
        del self.optimizer

    def forward(self):
        """The loss of the batch, a scalar; under `backward=` of the step in which most images' gradient is taken."""
        with autocast(self.device, self.dtype), drawing(most):
            data, self.fresh = self.model.data_preprocessor(self.fresh, True), None
            return self.model.parse_losses(self.model(**data, mode='loss'))[0]

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def update(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def run(self):
        self.backward(self.forward())
        self.update()


def autocast(device, dtype):
    return torch.autocast(device, dtype, enabled=dtype is not None)


def infer(trunk, image, dtype):
    """What a trunk gives out for images."""
    with torch.no_grad(), autocast(image.device.type, dtype):
        return trunk(image)

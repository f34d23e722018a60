"""Saved activations: what autograd keeps between forward and backward, the larger part of training memory."""
import weakref

import torch

from ..trunks.sampled import drawing, most


def saved_bytes(forward, module):
    """Bytes that autograd keeps for backward when `forward()` has run, parameters and buffers of `module` excluded.

    Each storage counts once and whole, however many tensors and views of it are saved: that is what stays allocated.
    What is saved on the way for a part of the graph that is then dropped (a matcher's costs, an accuracy) is not kept.
    Under `backward=` (of `tune`) it is the step in which most images are drawn. Tensors that a custom autograd function
    keeps by `save_for_backward` are seen, attributes of its context are not.

    Args:
        forward (callable): one forward pass, e.g. `lambda: model(**data, mode='loss')`; kept is what is needed for the
            backward of what it returns.
        module (nn.Module): its parameters and buffers are there anyway.

    Returns:
        int: bytes.
    """
    owned = {tensor.untyped_storage()._cdata for tensors in (module.parameters(), module.buffers())
             for tensor in tensors}
    kept = []

    def pack(tensor):
        saved = tensor.detach()             # the tensor itself would hold its own graph; this one only the graph holds
        if saved.untyped_storage()._cdata not in owned:
            kept.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved), drawing(most):
        returned = forward()  # noqa: F841 holds the graph
    storages = [saved.untyped_storage() for saved in (reference() for reference in kept) if saved is not None]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def saved_mib(runner):
    """What one training step of a runner saves for backward, in MiB: the first images of its training set."""
    model, loader = runner.model.train(), runner.train_dataloader
    batch = loader.collate_fn([loader.dataset[i] for i in range(min(loader.batch_size or 4, len(loader.dataset)))])
    data = model.data_preprocessor(batch, True)
    runner.call_hook('before_train_iter', batch_idx=0, data_batch=batch)        # DMLoRA draws its branches there
    return saved_bytes(lambda: model(**data, mode='loss'), model) / 2 ** 20

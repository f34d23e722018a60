"""Saved activations: what autograd keeps between forward and backward, the larger part of training memory."""
import torch


def saved_bytes(forward, module):
    """Bytes that autograd saves for backward while `forward()` runs, parameters and buffers of `module` excluded.

    Each storage counts once and whole, however many tensors and views of it are saved: that is what stays allocated.
    Tensors that a custom autograd function keeps by `save_for_backward` are seen, attributes of its context are not.

    Args:
        forward (callable): one forward pass, e.g. `lambda: model(**data, mode='loss')`.
        module (nn.Module): its parameters and buffers are there anyway.

    Returns:
        int: bytes.
    """
    owned = {tensor.untyped_storage().data_ptr() for tensors in (module.parameters(), module.buffers())
             for tensor in tensors}
    saved = {}                       # holds the storages, so that no address is used twice while we count

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())

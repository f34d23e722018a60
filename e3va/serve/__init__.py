"""One frozen trunk in memory, and tasks that are added, removed and replaced while it serves.

    server = e3va.serve.Server()
    server.add('cells', 'cells.safetensors')                            # its config is in it, its trunk is the first's
    server.add('trees', 'trees.safetensors')
    samples = server(['a.jpg', 'b.jpg'])                                # {'cells': [data sample, ...], 'trees': [...]}

A task is a model of its library whose frozen parameters are the server's own tensors (`trunk.Pool`), so that a trunk is
in memory once. Highways go beside one pass of it (`highway.shared`); LoRA, adapters and prompts are modules beside the
weights, in the task's own model; the entries that GPS has selected are exchanged (`written`) when their task comes up.
"""
from .server import Removed, Server

__all__ = ['Removed', 'Server']

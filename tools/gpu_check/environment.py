"""What the machine is, that the stack imports, that mmcv's operators give on the device what they give on the CPU."""
import os
import platform

import torch
from record import Record, part_arguments

import e3va  # noqa: F401 helps the stack import

MOST = 1e-3             # of outputs and gradients around 1, in single precision


def main():
    args = part_arguments(__doc__)
    record = Record(args.out, 'environment', args.device, args.seconds)
    record.row('machine', python=platform.python_version(), system=platform.platform(), cores=os.cpu_count(),
               **card(args.device))
    for library in ('mmdet.apis', 'mmseg.apis', 'mmpretrain.apis', 'timm'):
        with record.attempt(f'import {library}'):
            __import__(library)
            record.row(f'import {library}')
    for name, compare in dict(nms=nms, roi_align=roi_align, deform_conv=deform_conv, deformable_attention=attention,
                              focal_loss=focal_loss).items():
        with record.attempt(f'mmcv {name}'):
            distance = compare(args.device)
            record.row(f'mmcv {name}', 'done' if distance <= MOST else 'failed', distance=distance,
                       why=f'{distance:.1e} away from what the CPU gives')


def card(device):
    if device == 'cpu':
        return {}
    free, total = torch.cuda.mem_get_info()
    return dict(memory_gib=total / 2**30, free_gib=free / 2**30, cuda=torch.version.cuda,
                capability='.'.join(map(str, torch.cuda.get_device_capability())),
                processors=torch.cuda.get_device_properties(0).multi_processor_count)


def boxes(count):
    corner = 100 * torch.rand(count, 2)
    return torch.cat([corner, corner + 5 + 40 * torch.rand(count, 2)], dim=1)


def nms(device):
    """How many of the boxes that are kept differ."""
    from mmcv.ops import nms
    torch.manual_seed(0)
    found, scores = boxes(500), torch.rand(500)
    want, got = (set(nms(found.to(place), scores.to(place), 0.5)[1].tolist()) for place in ('cpu', device))
    return len(want ^ got)


def gradients(operator, device, *inputs):
    """The largest distance of an operator's outputs and gradients on a device from those on the CPU."""
    results = []
    for place in ('cpu', device):
        given = [value.detach().to(place) for value in inputs]
        leaves = [value.requires_grad_() for value in given if value.is_floating_point()]
        out = operator(*given)
        torch.manual_seed(1)
        found = torch.autograd.grad((out * torch.randn(out.shape).to(place)).sum(), leaves, allow_unused=True)
        results.append([out.detach().cpu(), *(value.cpu() for value in found if value is not None)])
    return max(float((a - b).abs().max()) for a, b in zip(*results))


def roi_align(device):
    from mmcv.ops import roi_align
    torch.manual_seed(0)
    rois = torch.cat([torch.arange(20).remainder(2)[:, None].float(), boxes(20)], dim=1)
    return gradients(lambda x: roi_align(x, rois.to(x.device), 7, 0.25, 2, 'avg', True), device,
                     torch.randn(2, 8, 40, 40))


def deform_conv(device):
    from mmcv.ops import deform_conv2d
    torch.manual_seed(0)
    return gradients(lambda *given: deform_conv2d(*given, 1, 1, 1, 2, 2), device, torch.randn(2, 8, 20, 20),
                     torch.randn(2, 36, 20, 20), torch.randn(6, 4, 3, 3))


def attention(device):
    """mmcv's kernel on a card; on a CPU it has PyTorch's own operators alone, which are compared with themselves."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
    torch.manual_seed(0)
    shapes, starts = torch.tensor([[12, 16], [6, 8]]), torch.tensor([0, 192])

    def run(value, places, weights):
        if not value.is_cuda:
            return multi_scale_deformable_attn_pytorch(value, shapes, places, weights)
        return MultiScaleDeformableAttnFunction.apply(value, shapes.to(value.device), starts.to(value.device), places,
                                                      weights, 2)
    return gradients(run, device, torch.randn(2, 240, 4, 8), torch.rand(2, 50, 4, 2, 3, 2), torch.rand(2, 50, 4, 2, 3))


def focal_loss(device):
    """A detector's loss, by mmcv's kernel on a card and by mmdet's formula on a CPU."""
    from mmdet.models.losses import FocalLoss
    torch.manual_seed(0)
    target = torch.randint(0, 11, (50, ))
    return gradients(lambda scores: FocalLoss(reduction='none')(scores, target.to(scores.device)), device,
                     torch.randn(50, 10))


if __name__ == '__main__':
    main()

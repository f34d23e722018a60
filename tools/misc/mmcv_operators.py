"""Are the operators of two builds of mmcv equal, bit for bit?

    python tools/misc/mmcv_operators.py FILE        in one environment: results are written to FILE
    python tools/misc/mmcv_operators.py FILE        in the other: FILE is there, so the results are compared with it

Names exported, and outputs and gradients of fixed inputs: nms, soft-nms, roi_align, deformable convolution, modulated
deformable convolution, multi-scale deformable attention, masked convolution. Exit status 1 where they differ.
On a CPU mmcv has no kernels for the last two: the attention is compared as mmcv computes it there, in PyTorch.
"""
import sys
from pathlib import Path

import torch
from mmcv import _ext, ops


def random(*shape):
    return torch.randn(*shape, requires_grad=True)


def boxes(count):
    corner = 100 * torch.rand(count, 2)
    return torch.cat([corner, corner + 5 + 40 * torch.rand(count, 2)], dim=1)


def suppressed():
    found, scores = boxes(500), torch.rand(500)
    out = list(ops.nms(found, scores, 0.5)) + list(ops.nms(found, scores, 0.5, offset=1))
    for way in ('naive', 'linear', 'gaussian'):
        out += ops.soft_nms(found, scores, 0.3, method=way)
    return out + list(ops.batched_nms(found, scores, torch.arange(500) % 3, dict(type='nms', iou_threshold=0.5)))


def aligned():
    rois = torch.cat([torch.arange(20).remainder(2)[:, None].float(), boxes(20)], dim=1)
    x = random(2, 8, 40, 40)
    return [x], [ops.roi_align(x, rois, 7, 0.25, ratio, mode, shift)
                 for ratio in (0, 2) for mode in ('avg', 'max') for shift in (True, False)]


def deformed():
    x, offset, weight = random(2, 8, 20, 20), random(2, 36, 20, 20), random(6, 4, 3, 3)
    return [x, offset, weight], [ops.deform_conv2d(x, offset, weight, 1, 1, 1, 2, 2)]


def modulated():
    x, offset, mask, weight, bias = random(2, 8, 20, 20), random(2, 36, 20, 20), random(2, 18, 20, 20), random(
        6, 4, 3, 3), random(6)
    return [x, offset, mask, weight, bias], [
        ops.modulated_deform_conv2d(x, offset, mask.sigmoid(), weight, bias, 1, 1, 1, 2, 2)]


def attended():
    shapes = torch.tensor([[12, 16], [6, 8]])
    starts = torch.tensor([0, 192])
    value, places, weights = random(2, 240, 4, 8), torch.rand(2, 50, 4, 2, 3, 2, requires_grad=True), random(
        2, 50, 4, 2, 3)
    # mmcv calls its kernel on a device alone; on a CPU this is what runs
    out = [ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(value, shapes, places, weights)]
    try:
        out.append(ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, places, weights, 2))
    except RuntimeError as error:
        print(f'deformable attention: {str(error).splitlines()[0]}')
    return [value, places, weights], out


def masked():
    x, mask = random(1, 8, 20, 20), (torch.rand(1, 20, 20) > 0.5).float()
    try:
        return [x], [ops.masked_conv2d(x, mask, torch.randn(6, 8, 3, 3), torch.randn(6), 1, 1)]
    except RuntimeError as error:
        print(f'masked convolution: {str(error).splitlines()[0]}')
        return [x], []


def results():
    out = dict(names=[name for name in dir(_ext) if not name.startswith('__')])
    torch.manual_seed(0)
    out['nms'] = suppressed()
    for case in (aligned, deformed, modulated, attended, masked):
        inputs, outputs = case()
        loss = sum((value * torch.randn(value.shape)).sum() for value in outputs)
        out[case.__name__] = [*outputs, *(torch.autograd.grad(loss, inputs) if outputs else [])]
    return {key: [value.detach() if torch.is_tensor(value) else value for value in values]
            for key, values in out.items()}


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith('-'):
        sys.exit(__doc__.strip())
    torch.set_num_threads(1)                                             # the order of sums
    path, found = Path(sys.argv[1]), results()
    if not path.is_file():
        torch.save(found, path)
        return
    kept, differ = torch.load(path), False
    for key, values in found.items():
        equal = len(values) == len(kept[key]) and all(
            torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(values, kept[key]))
        differ |= not equal
        print(f'{key}: {len(values)} {"equal" if equal else "DIFFERENT"}')
    sys.exit(differ)


if __name__ == '__main__':
    main()

"""Images as a caller gives them, and what a task's own transforms make of them."""
import os

import numpy as np
from mmengine.registry import TRANSFORMS

from ..registry import type_name


def check(image, number=0):
    """An image as it can be read: a path, or an array (height, width, 3), BGR, uint8; ValueError for anything else."""
    if isinstance(image, (str, os.PathLike)):
        if not os.path.isfile(image):
            raise ValueError(f'there is no image {image}')
        return str(image)
    where = f'image {number}'
    if not isinstance(image, np.ndarray):
        raise ValueError(f'{where} is a {type(image).__name__}: give a path, or a numpy array (height, width, 3), BGR, '
                         'uint8, as cv2.imread gives it')
    if image.size == 0:
        raise ValueError(f'{where} has no pixels: its shape is {image.shape}')
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        raise ValueError(f'{where} is grey, {image.shape}: give three channels, e.g. cv2.cvtColor(image, '
                         'cv2.COLOR_GRAY2BGR)')
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(f'{where} has an alpha channel, {image.shape}: give its three colours, image[..., :3]')
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f'{where} has the shape {image.shape}, and images are (height, width, 3)')
    if image.dtype != np.uint8:
        raise ValueError(f'{where} is of {image.dtype}, and models were trained on 8 bits: scale it to 0..255 and give '
                         'image.astype(numpy.uint8)')
    return image


class Transforms:
    """The transforms of a config's test images: files by its own reader, arrays past it."""

    def __init__(self, steps):
        from mmengine.dataset import Compose  # slow to import, and not for who serves nothing
        steps = [dict(step) for step in steps]
        if not steps:
            raise ValueError('the config has no transforms for test images: give one with a test_dataloader')
        loads = 'Load' in str(type_name(steps[0]['type'], TRANSFORMS))
        first = steps.pop(0) if loads else dict(type='LoadImageFromFile')
        self.read, self.floats = TRANSFORMS.build(first), first.get('to_float32', False)
        self.rest = Compose(steps)

    def __call__(self, image):
        """What the model's data preprocessor takes, a batch of one."""
        known = dict(img_id=0, img_path=image if isinstance(image, str) else None)
        if isinstance(image, str):
            try:
                data = self.read(known)
            except Exception as error:                                  # whatever a decoder makes of a damaged file
                raise ValueError(f'{image} cannot be read as an image ({type(error).__name__}: {error})') from error
        else:
            size = image.shape[:2]
            data = dict(known, img=image.astype(np.float32) if self.floats else image, img_shape=size, ori_shape=size)
        packed = self.rest(data)
        return dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])

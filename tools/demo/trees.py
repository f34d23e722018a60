"""Tree crowns: four annotated aerial images of the wheel `deepforest`, cut into tiles, in COCO format.

Split by image, not by chance: neighbouring tiles of one image would leak. The two large images are from one
site (Yellowstone), 13 km apart; the small ones from two others.
"""
import numpy as np
from PIL import Image
from voc import coco, read_xml, write_json
from whole import whole

SPLITS = dict(
    train=('2019_YELL_2_528000_4978000_image_crop2', 'SOAP_061'),
    val=('2019_YELL_2_541000_4977000_image_crop', 'OSBS_029'))
TILE = 224                               # px; a crown is about 40 px wide
STEP = dict(train=224, val=224)
VISIBLE = 0.4                            # a box of which a tile shows less is neither a target nor a mistake


def starts(length, tile, step):
    """First pixels of the tiles that cover `length`; the last tile ends with the image."""
    return sorted({*range(0, max(length - tile, 0), step), max(length - tile, 0)})


def cut(objects, left, top, tile):
    """The objects as one tile sees them: clipped, and `difficult` where less than `VISIBLE` of the area is left."""
    seen = []
    for kind, (x, y, w, h), difficult in objects:
        x1, y1 = max(x - left, 0), max(y - top, 0)
        x2, y2 = min(x + w - left, tile), min(y + h - top, tile)
        if x2 - x1 >= 1 and y2 - y1 >= 1:
            share = (x2 - x1) * (y2 - y1) / (w * h)
            seen.append((kind, [x1, y1, x2 - x1, y2 - y1], difficult or share < VISIBLE))
    return seen


def make_tiles(sources, folder, tile=TILE, step=STEP, splits=SPLITS):
    """Write `folder`/{train,val}.json and `folder`/images/, complete or not at all.

    Args:
        sources: {stem: (image path, VOC xml path)}.
    """
    with whole(folder) as part:
        (part / 'images').mkdir(parents=True)
        for split, stems in splits.items():
            tiles = []
            for stem in stems:
                image_path, xml_path = sources[stem]
                image = np.asarray(Image.open(image_path).convert('RGB'))
                # every label (Tree, Alive, Dead) is a tree
                objects = [('tree', box, difficult) for _, box, difficult in read_xml(xml_path)[3]]
                for top in starts(image.shape[0], tile, step[split]):
                    for left in starts(image.shape[1], tile, step[split]):
                        name = f'{stem}_{left}_{top}.png'
                        seen = image[top:top + tile, left:left + tile]
                        Image.fromarray(seen).save(part / 'images' / name)
                        tiles.append((name, seen.shape[1], seen.shape[0], cut(objects, left, top, tile)))
            write_json(part / f'{split}.json', coco(tiles, ['tree']))

"""Pascal VOC annotations (XML) as COCO json, so that one dataset class and one evaluator serve both."""
import json
from xml.etree import ElementTree

from whole import whole


def read_xml(path):
    """One VOC file as (file name, width, height, objects).

    An object is (class name, [x, y, w, h] in px, difficult). Boxes without area are dropped. Raises ValueError
    where the file is no VOC annotation.
    """
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(float(root.findtext(f'size/{side}'))) for side in ('width', 'height'))
        if min(width, height) < 1:
            raise ValueError(f'its <size> is {width} x {height}')
        objects = []
        for item in root.iter('object'):
            left, top, right, bottom = (float(item.findtext(f'bndbox/{side}'))
                                        for side in ('xmin', 'ymin', 'xmax', 'ymax'))
            left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
            if right - left >= 1 and bottom - top >= 1:
                objects.append((item.findtext('name').strip(), [left, top, right - left, bottom - top],
                                item.findtext('difficult', '0').strip() == '1'))
    except (OSError, ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'{path} is not a readable Pascal VOC annotation ({error})') from None
    return root.findtext('filename', '').strip(), width, height, objects


def coco(images, classes):
    """A COCO dict of `images`, a list of (file name, width, height, objects as in `read_xml`).

    Difficult objects become `iscrowd`: neither a target nor a mistake.
    """
    label = {name: i + 1 for i, name in enumerate(classes)}
    out = dict(images=[], annotations=[], categories=[dict(id=i, name=name) for name, i in label.items()])
    for image_id, (name, width, height, objects) in enumerate(images):
        out['images'].append(dict(id=image_id, file_name=name, width=width, height=height))
        for kind, box, difficult in objects:
            out['annotations'].append(dict(
                id=len(out['annotations']) + 1, image_id=image_id, category_id=label[kind], bbox=box,
                area=box[2] * box[3], iscrowd=int(difficult)))
    return out


def write_json(path, content):
    """Write `content` as json; an interrupted call leaves no half file, a full disk is a ValueError."""
    with whole(path) as part:
        part.write_text(json.dumps(content))

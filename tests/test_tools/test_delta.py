"""tools/misc/delta.py: what is said of a delta, where its bytes are, and what is amiss."""
import pytest

from e3va.delta import file as delta_file
from tests.conftest import tool
from tests.test_serve.models import base, make


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

"""Folders for a hub, half precision, averaged weights: what a delta keeps and what is said of it."""
import json
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader

import e3va
from e3va.delta import file as delta_file
from e3va.delta.extract import rounded
from e3va.delta.publish import text_of
from e3va.trunks.mapped import sharing
from tests.conftest import METHODS, build, stir, tool
from tests.test_serve.models import CLASSES, base, make


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('publish')
    file = base(folder, 'vit_mmpretrain')
    return make(folder, 'mmpretrain', 'e3va', file, vit=True, base=file)


def test_a_folder(made, tmp_path, capsys):
    """Its card has the measured numbers, it loads by its address, and its config is one of mmengine's."""
    rows = [dict(task='cells', metric='accuracy', value=91.25, device='a CPU', commit='abc', command='python x | y')]
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    out = tmp_path / 'cells-e3va'
    tool('model_converters/publish_delta.py').main([str(made[0]), str(out), '--results', str(tmp_path / 'rows.jsonl')])
    assert '1 measured results' in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ['README.md', 'config.py', 'delta.safetensors',
                                                           'metafile.yml']
    assert (out / 'delta.safetensors').read_bytes() == made[0].read_bytes()
    card = (out / 'README.md').read_text()
    head = yaml.safe_load(card.split('---')[1])
    assert head['library_name'] == 'e3va' and head['pipeline_tag'] == 'image-classification'
    assert head['model-index'][0]['results'][0]['metrics'] == [dict(type='accuracy', value=91.25)]
    assert r'| cells | accuracy | 91.25 | a CPU | abc | python x \| y |' in card and ', '.join(CLASSES) in card
    model = yaml.safe_load((out / 'metafile.yml').read_text())['Models'][0]
    assert model['Results'] == [dict(Task='cells', Metrics=dict(accuracy=91.25))]
    assert Config.fromfile(out / 'config.py').model.type == 'ImageClassifier'
    state = CheckpointLoader.load_checkpoint(f'e3va://{out}')['state_dict']
    assert all(torch.equal(state[name], value) for name, value in made[1].state_dict().items())


def test_nothing_measured(made, tmp_path):
    tool('model_converters/publish_delta.py').main([str(made[0]), str(tmp_path / 'out')])
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert 'Not measured.' in card and 'model-index' not in card


@pytest.mark.parametrize('rows, said', [('{"task": "a"}', 'a row has task, metric and value'), ('no', 'a row has'),
                                        (None, 'there is no file')])
def test_odd_results(made, tmp_path, capsys, rows, said):
    if rows is not None:
        (tmp_path / 'rows.jsonl').write_text(rows)
    with pytest.raises(SystemExit):
        tool('model_converters/publish_delta.py').main(
            [str(made[0]), str(tmp_path / 'out'), '--results', str(tmp_path / 'rows.jsonl')])
    assert said in capsys.readouterr().err and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('dtype, kind', [('bf16', torch.bfloat16), ('fp16', torch.float16)])
@pytest.mark.parametrize('method', ['e3va', 'gps', 'lora_1bit', 'lora'])
def test_half_precision(tmp_path, method, dtype, kind):
    """Half the bytes; a load gives the rounded values in the model's type; codes and indices are as they were."""
    tuned = build('vit_mmpretrain', method)
    stir(tuned)
    tuned.tuning.method.loaded(tuned, frozenset())
    e3va.save_delta(tuned, tmp_path / 'whole.safetensors')
    e3va.save_delta(tuned, tmp_path / 'half.safetensors', dtype=dtype)
    tensors = delta_file.read(tmp_path / 'half.safetensors')[0]
    again = build('vit_mmpretrain', method)
    e3va.load_delta(again, tmp_path / 'half.safetensors')
    for name, value in e3va.delta(again).items():
        own, packed = e3va.delta(tuned)[name], 'lora_1bit' == method and '.pairs.' in name
        if packed or not own.is_floating_point():
            continue
        assert tensors[name].dtype == kind and torch.equal(value, own.to(kind).to(own.dtype))
    if method == 'e3va':
        sizes = [(tmp_path / f'{name}.safetensors').stat().st_size for name in ('whole', 'half')]
        payload = sum(value.nbytes for value in e3va.delta(tuned).values())
        assert abs(sizes[0] - sizes[1] - payload // 2) < 100             # names of types, and what is filled up


def test_what_is_no_half():
    with pytest.raises(ValueError, match="dtype='int8': a delta is written in 'bf16', 'fp16'"):
        rounded({}, 'int8')
    with pytest.raises(ValueError, match='fp16.* cannot hold values of a'):
        rounded(dict(a=torch.tensor([1e30])), 'fp16')
    kept = rounded({'head.running_mean': torch.ones(3), 'n': torch.ones(3).long()}, 'bf16')
    assert [value.dtype for value in kept.values()] == [torch.float32, torch.int64]


def test_swin_l_without_a_head_is_small(tmp_path):
    """E3VA of rank 8 on Swin-L: 7.3 MB in fp32."""
    with sharing({}):                                                   # its weights take no memory
        tuned = MODELS.build(dict(
            type='e3va.Tuned', trunk='mmdet.SwinTransformer', method=dict(METHODS['e3va'], rank=8), embed_dims=192,
            depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=7))
    values = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in e3va.delta(tuned).items()}
    delta_file.write(tmp_path / 'delta.safetensors', values, dict(
        method=tuned.tuning.method.config, base=None, dataset_meta={}, trunk=dict(
            type='SwinTransformer', prefix='', sha256='0' * 64, config=tuned.tuning.config)))
    assert (tmp_path / 'delta.safetensors').stat().st_size <= 7.3e6


def test_a_strangers_names_stay_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "', open('made', 'w'), '"
    values = dict(default_scope='mmdet', model={'type': 'A', evil: [{evil: '{{$NO:' + evil + '}}'}]}, test_pipeline=[])
    Path('config.py').write_text(text_of(values))
    again = Config.fromfile('config.py')
    assert again.model.to_dict() == values['model'] and not Path('made').exists()


def test_what_is_there_stays(made, tmp_path):
    """A folder with another README, or the config of a training; an output that is an input."""
    (tmp_path / 'out').mkdir()
    for name in ('README.md', 'config.py'):
        (tmp_path / 'out' / name).write_text('mine')
        with pytest.raises(SystemExit):
            tool('model_converters/publish_delta.py').main([str(made[0]), str(tmp_path / 'out')])
        assert [path.read_text() for path in (tmp_path / 'out').iterdir()] == ['mine']
        (tmp_path / 'out' / name).unlink()
    delta = tmp_path / 'delta.safetensors'
    delta.write_bytes(Path(made[0]).read_bytes())
    before = delta.read_bytes()
    with pytest.raises(SystemExit):
        tool('model_converters/merge_delta.py').main([str(delta), str(delta)])
    with pytest.raises(SystemExit):
        tool('model_converters/publish_delta.py').main(['config.py', str(delta), str(delta)])
    assert delta.read_bytes() == before

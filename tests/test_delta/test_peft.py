"""LoRA as adapter files of HF PEFT: read by PEFT, written by PEFT, the same outputs; and what cannot be expressed."""
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import e3va
from e3va.delta.peft import export_peft, import_peft
from tests.conftest import build, distance, image, pair, projected, stir

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5)
ALL = 'q', 'k', 'v', 'proj', 'fc1', 'fc2'


def classifier(**options):
    """A small timm classifier, the same at each call, tuned by LoRA where options are given."""
    torch.manual_seed(0)
    model = timm.create_model('vit_tiny_patch16_224', **SMALL).eval()
    return e3va.tune(model, dict(type='LoRA', **options)) if options else model


@pytest.mark.parametrize('options', [
    dict(rank=4), dict(rank=3, alpha=7, roles=('q', 'v', 'proj', 'fc1')), dict(rank=2, roles=('k',)),
    dict(rank=3, alpha=1, roles=ALL, train_out_norms=True), dict(rank=4, bits=1)])
def test_peft_reads_what_we_write(options, peft, tmp_path):
    """The stock classifier under PEFT gives our outputs, its head and norms included, and merges to our merge."""
    tuned = classifier(**options)
    stir(tuned)
    export_peft(tuned, tmp_path)
    read = peft.PeftModel.from_pretrained(classifier(), tmp_path).eval()
    x = torch.randn(2, 3, 32, 32)
    assert distance(tuned(x), classifier()(x)) > 0.1
    assert distance(tuned(x), read(x)) <= 1e-5
    merged = {name.replace('modules_to_save.default.', ''): value
              for name, value in read.merge_and_unload().state_dict().items() if 'original_module' not in name}
    assert distance(list(e3va.merge(tuned).state_dict().values()), list(merged.values())) <= 1e-5


@pytest.mark.parametrize('trunk', ['swin_mmdet', 'swin_timm', 'vit_mmpretrain_maps', 'convnext_mmpretrain'])
def test_on_dense_trunks(trunk, peft, tmp_path):
    stock, tuned = pair(trunk, 'lora', stirred=True)
    export_peft(tuned, tmp_path)
    read = peft.PeftModel.from_pretrained(stock, tmp_path)
    read.eval(), tuned.eval()
    assert distance(tuned(image(trunk)), read(image(trunk))) <= 1e-5


@pytest.mark.parametrize('ours,theirs', [
    (dict(rank=4, roles=('q', 'k', 'v')), dict(r=4, lora_alpha=12, target_modules=['qkv'])),
    (dict(rank=4, roles=('q', 'k', 'v', 'fc2')), dict(r=4, target_modules=['qkv', 'fc2'], use_rslora=True)),
    (dict(rank=4, roles=ALL), dict(r=4, target_modules=r'.*blocks\.1\.(attn\.proj|mlp\.fc1)',
                                   alpha_pattern={'attn.proj': 5})),
    (dict(rank=2, roles=('fc1', 'fc2')), dict(r=2, target_modules=['fc1', 'fc2'], modules_to_save=['head']))])
def test_we_read_what_peft_writes(ours, theirs, peft, tmp_path):
    """One A for q, k and v, other scales, layers left out, a classifier of its own."""
    written = peft.get_peft_model(classifier(), peft.LoraConfig(init_lora_weights=False, **theirs)).eval()
    stir(written)
    written.save_pretrained(tmp_path)
    tuned = classifier(**ours)
    stir(tuned)
    if 'modules_to_save' not in theirs:
        tuned.head.load_state_dict(classifier().head.state_dict())
    assert import_peft(tuned, tmp_path) is tuned
    x = torch.randn(2, 3, 32, 32)
    assert distance(written(x), classifier()(x)) > 1e-3
    assert distance(tuned(x), written(x)) <= 1e-5
    merged = e3va.merge(tuned)
    assert distance(merged(x), written(x)) <= 1e-5


@pytest.mark.parametrize('stirred', [False, True])
def test_round_trip(stirred, tmp_path):
    """Written and read again the delta is the same bit for bit, also untrained, with B = 0."""
    tuned, again = (classifier(rank=3, alpha=2, roles=('q', 'v', 'fc1'), train_out_norms=True) for _ in range(2))
    if stirred:
        stir(tuned)
    export_peft(tuned, tmp_path / 'a' / 'b')
    stir(again)
    import_peft(again, tmp_path / 'a' / 'b')
    for name, value in e3va.delta(tuned).items():
        assert torch.equal(e3va.delta(again)[name], value), name


def test_files(tmp_path):
    """The names and shapes of PEFT: q and v of rank 3 are one pair of rank 6, its B zero where they do not meet."""
    tuned = classifier(rank=3, alpha=6, roles=('q', 'v', 'proj'))
    stir(tuned)
    export_peft(tuned, tmp_path)
    config = json.loads((tmp_path / 'adapter_config.json').read_text())
    names = [f'blocks.{i}.attn.{layer}' for i in range(2) for layer in ('qkv', 'proj')]
    assert config['peft_type'] == 'LORA' and config['target_modules'] == names
    assert (config['r'], config['lora_alpha']) == (6, 12)
    assert config['rank_pattern'] == {name: 3 for name in names[1::2]}
    assert config['alpha_pattern'] == {name: 6 for name in names[1::2]}
    assert config['modules_to_save'] == ['head']
    tensors = load_file(tmp_path / 'adapter_model.safetensors')
    assert set(tensors) == {f'base_model.model.{name}.lora_{part}.weight' for name in names for part in 'AB'} | {
        'base_model.model.head.weight', 'base_model.model.head.bias'}
    a, b = (tensors[f'base_model.model.blocks.0.attn.qkv.lora_{part}.weight'] for part in 'AB')
    q, v = tuned.blocks[0].attn.qkv.pairs.values()
    assert torch.equal(a, torch.cat([q.down, v.down]))
    assert torch.equal(b[:24, :3], q.up) and torch.equal(b[48:, 3:], v.up)
    assert not b[:24, 3:].any() and not b[24:48].any() and not b[48:, :3].any()


def test_layer_against_peft(peft):
    """On one linear layer with the same factors: outputs, gradients and count."""
    ours = classifier(rank=4, alpha=2, roles=('fc1',))
    stir(ours)
    theirs = peft.get_peft_model(classifier(), peft.LoraConfig(r=4, lora_alpha=2, target_modules=['fc1'],
                                                              modules_to_save=['head'])).train()
    with torch.no_grad():
        theirs.base_model.model.head.modules_to_save['default'].load_state_dict(ours.head.state_dict())
        for block, other in zip(ours.blocks, theirs.base_model.model.blocks):
            other.mlp.fc1.lora_A['default'].weight.copy_(block.mlp.fc1.pairs['0'].down)
            other.mlp.fc1.lora_B['default'].weight.copy_(block.mlp.fc1.pairs['0'].up)
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == theirs.get_nb_trainable_parameters()[0]
    x = torch.randn(2, 3, 32, 32)
    outs = [model(x) for model in (ours, theirs)]
    assert distance(*outs) <= 1e-5
    for out in outs:
        projected(out).backward()
    for block, other in zip(ours.blocks, theirs.base_model.model.blocks):
        assert distance(block.mlp.fc1.pairs['0'].down.grad, other.mlp.fc1.lora_A['default'].weight.grad) <= 1e-5
        assert distance(block.mlp.fc1.pairs['0'].up.grad, other.mlp.fc1.lora_B['default'].weight.grad) <= 1e-5


def edit(folder, config=None, drop=None, add=None):
    """Change an adapter's files."""
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), **(config or {}))))
    path = folder / 'adapter_model.safetensors'
    tensors = {f'base_model.model.{name}': value for name, value in (add or {}).items()}
    tensors.update({name: value for name, value in load_file(path).items() if not drop or drop not in name})
    save_file(tensors, path)


@pytest.mark.parametrize('change,words', [
    (dict(config=dict(peft_type='LOHA')), 'an adapter of the type LOHA; e3va reads LORA'),
    (dict(config=dict(use_dora=True)), 'use_dora=True is not plain LoRA'),
    (dict(config=dict(bias='all')), "bias='all' trains biases"),
    (dict(config=dict(init_lora_weights='pissa')), "init_lora_weights='pissa' has changed the trunk"),
    (dict(add={'blocks.0.attn.qkv.lora_magnitude_vector': torch.ones(72)}), r'no place for .*magnitude_vector \(72,\)'),
    (dict(add={'blocks.7.attn.qkv.lora_A.weight': torch.ones(4, 24)}), r'no place for blocks.7'),
    (dict(add={'blocks.0.attn.qkv.lora_B.weight': torch.ones(72, 8)}, drop='0.attn.qkv.lora_B'),
     'blocks.0.attn.qkv: it has rank 8 and changes q, k, v, the model rank 4 on q, v'),
    (dict(add={'blocks.0.attn.qkv.lora_B.weight': torch.ones(24, 8)}, drop='0.attn.qkv.lora_B'),
     r'B \(24, 8\) are not of a layer 24 -> 72'),
    (dict(drop='lora_A'), 'blocks.0.attn.qkv.lora_A.weight is missing beside its other half'),
    (dict(drop='lora_'), 'changes none of the layers blocks.0.attn.qkv'),
    (dict(config=dict(lora_alpha=None)), 'lora_alpha must be a number, not None'),
    (dict(config=dict(lora_alpha='8')), "lora_alpha must be a number, not '8'"),
    (dict(config=dict(lora_alpha=float('nan'))), 'lora_alpha must be a number, not nan'),
    (dict(config=dict(alpha_pattern={'(': 1})), 'is no table of names and numbers'),
    (dict(add={'blocks.0.attn.qkv.lora_B.weight': torch.ones(72, 8, dtype=torch.int32)}, drop='0.attn.qkv.lora_B'),
     'torch.int32 instead of torch.float32'),
    (dict(add={'blocks.0.attn.qkv.lora_A.weight': torch.full((8, 24), torch.nan)}, drop='0.attn.qkv.lora_A'),
     'blocks.0.attn.qkv.lora_A.weight'),
    (dict(add={'head.weight': torch.full((5, 24), torch.inf)}, drop='head.weight'), 'NaN or infinite: head.weight'),
    (dict(add={'head.weight': torch.ones(9, 24)}, drop='head.weight'), r'no place for head.weight \(9, 24\)')])
def test_what_cannot_be_expressed(change, words, tmp_path):
    """One error; and the model keeps its values."""
    tuned = classifier(rank=4)
    stir(tuned)
    export_peft(tuned, tmp_path)
    edit(tmp_path, **change)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        import_peft(tuned, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())


def test_other_refusals(tmp_path):
    with pytest.raises(ValueError, match='is no adapter of PEFT'):
        import_peft(classifier(rank=4), tmp_path)
    with pytest.raises(ValueError, match='the model is tuned by BitFit: tune it by LoRA'):
        export_peft(build('vit_timm', 'bitfit'), tmp_path)
    with pytest.raises(ValueError, match='is quantised, pruned or shared, and cannot take'):
        import_peft(classifier(rank=4, bits=2), tmp_path)
    export_peft(classifier(rank=8, roles=('q', 'v', 'proj')), tmp_path)
    words = 'it has rank 16, the model rank 4 on q, v; .*rank 8, the model rank 4; .*and 1 more'
    with pytest.raises(ValueError, match=words):
        import_peft(classifier(rank=4, roles=('q', 'v', 'proj')), tmp_path)

"""Layers by name in any module: against HF PEFT with the same names, on 30 trunks of timm, and what is refused."""
import copy
import re

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import e3va
from tests.conftest import before_step, distance, projected, stir

VIT = dict(img_size=32, depth=2, embed_dim=48, num_heads=2)
# Name: (options, size of the images, how the last of its layers is called in full), small where the class allows it.
TRUNKS = dict(
    vit_small_patch16_dinov3=(VIT, 32), eva02_base_patch14_224=(dict(VIT, img_size=28), 28),
    vit_pe_core_tiny_patch16_384=(VIT, 32), beit_base_patch16_224=(VIT, 32), vit_base_patch16_siglip_224=(VIT, 32),
    deit3_small_patch16_224=(VIT, 32), samvit_base_patch16=(dict(VIT, img_size=64, global_attn_indexes=(1,)), 64),
    swinv2_tiny_window8_256=(dict(img_size=64, embed_dim=24, depths=(1, 1), num_heads=(1, 2), window_size=4), 64),
    hiera_tiny_224=(dict(img_size=(64, 64), embed_dim=24, stages=(1, 1, 1, 1)), 64), pvt_v2_b0=({}, 32),
    davit_tiny=(dict(depths=(1, 1), embed_dims=(24, 48), num_heads=(2, 2)), 64), tiny_vit_5m_224=({}, 224),
    maxvit_tiny_tf_224=(dict(img_size=64, depths=(1, 1), embed_dim=(32, 64)), 64),
    sam2_hiera_tiny=({}, 64),
    convnextv2_atto=({}, 32), convnext_atto=(dict(conv_mlp=True), 32), poolformer_s12=({}, 32),
    xcit_nano_12_p16_224=(dict(img_size=32, depth=1), 32), cait_xxs24_224=(dict(img_size=32, depth=1), 32),
    coat_lite_tiny=(dict(img_size=32), 32), edgenext_xx_small=({}, 64), levit_128s=({}, 224),
    resnet18=(dict(layers=(1, 1, 1, 1), channels=(8, 16, 16, 16)), 32), resnext50_32x4d=(dict(layers=(1, 1, 1, 1)), 32),
    resnetv2_50=(dict(layers=(1, 1), channels=(32, 64)), 32), regnety_002=({}, 32), efficientnet_b0=({}, 32),
    tf_efficientnet_b0=({}, 32), mobilenetv3_small_100=({}, 32), densenet121=(dict(block_config=(2, 2)), 32),
    mobilevitv2_050=({}, 64), repvit_m0_9=({}, 32), hrnet_w18_small=({}, 64))
METHODS = dict(LoRA=dict(rank=2), BitFit={}, NormTuning={}, SSF={}, GPS=dict(criterion='magnitude'),
               DMLoRA=dict(rank=2, branches=2))


def make(name):
    """(model, images); norms that start at zero do not, so that gradients reach everything."""
    options, size = TRUNKS[name]
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, **{'num_classes': 3, **options})
    except TypeError:                                                   # an option that its factory sets already
        model = timm.create_model(name, num_classes=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 and not parameter.any():
                parameter.normal_(std=0.1)
            elif not parameter.any():
                parameter.normal_(std=0.02)
    return model, torch.randn(2, 3, size, size)


@pytest.mark.parametrize('name,method', [       # every other one: three methods a trunk, each on half
    (name, method) for i, name in enumerate(TRUNKS) for j, method in enumerate(METHODS) if (i + j) % 2 == 0])
def test_thirty_trunks(name, method):
    """The stock outputs at the start, gradients for all that trains, frozen entries as they were, merged the same."""
    stock, x = make(name)
    tuned = e3va.tune(copy.deepcopy(stock), dict(type=method, **METHODS[method]))
    stock.eval(), tuned.eval()
    with torch.no_grad():
        assert not tuned.tuning.method.starts_at_trunk or distance(stock(x), tuned(x)) <= 1e-6
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    before, reached = copy.deepcopy(tuned.state_dict(keep_vars=False)), set()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(2 if method == 'DMLoRA' else 1):                  # each of its branches has its turn
        before_step(tuned.train(), step)
        optimizer.zero_grad()
        projected(tuned(x), seed=step).backward()
        optimizer.step()
        reached |= {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    assert trained == reached
    same = {id(value): name for name, value in tuned.state_dict(keep_vars=True).items() if name in trained}
    moved = {same.get(id(value), name) for name, value in tuned.state_dict(keep_vars=True).items()
             if not torch.equal(value, before[name])}
    trained_norms = {name.rpartition('.')[0] for name in trained}
    moved -= {name for name in moved if name.rpartition('.')[0] in trained_norms
              and name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))}
    assert moved <= trained
    stir(tuned.eval())
    try:
        merged = e3va.merge(tuned)
    except ValueError as error:
        assert method == 'SSF' and 'a layer without bias' in str(error)
        return
    with torch.no_grad():
        want = tuned.train().eval()(x)
        assert distance(want, merged.eval()(x)) <= 1e-4 * max(1, float(want.abs().max()))
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in stock.named_parameters()}


@pytest.mark.parametrize('name,targets', [
    ('deit3_small_patch16_224', ['qkv', 'proj']), ('vit_base_patch16_siglip_224', r'.*blocks\.1\..*(fc1|fc2)'),
    ('convnextv2_atto', ['fc1', 'fc2', 'downsample.1']), ('resnet18', ['conv1', 'conv2', 'downsample.0']),
    ('pvt_v2_b0', ['q', 'kv', 'sr']), ('davit_tiny', r'stages\..*\.(qkv|fc1|fc2)'),
    ('tf_efficientnet_b0', ['conv_stem', 'conv_pw', 'conv_pwl']), ('hiera_tiny_224', ['qkv', 'patch_embed.proj'])])
def test_as_peft(name, targets, peft, tmp_path):
    """The same names give HF PEFT the same layers, counts and, with its factors, outputs."""
    from e3va.delta.peft import import_peft
    stock, x = make(name)
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=targets, init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(stock), config).eval()
    ours = e3va.tune(copy.deepcopy(stock), dict(type='LoRA', rank=4, alpha=64, targets=targets)).eval()
    for parameter in ours.get_classifier().parameters():
        parameter.requires_grad_(False)
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == theirs.get_nb_trainable_parameters()[0]
    theirs.save_pretrained(tmp_path)
    import_peft(ours, tmp_path)
    with torch.no_grad():
        want = theirs(x)
        assert distance(want, stock.eval()(x)) > 2e-4 and distance(want, ours(x)) <= 1e-5 * max(1, want.abs().max())


def test_a_weight_that_is_read_alone(peft):
    """BEiT's `F.linear(x, self.qkv.weight, bias)` goes past PEFT's layer without a word, and not past ours."""
    stock, x = make('beit_base_patch16_224')
    ours = e3va.tune(copy.deepcopy(stock), dict(type='LoRA', rank=2, targets=['qkv']))
    stir(ours)
    with torch.no_grad():
        assert distance(ours.eval()(x), stock.eval()(x)) > 1e-3
        assert distance(ours(x), e3va.merge(ours)(x)) <= 1e-5


class Twice(nn.Module):
    """A layer at two places, one that is called twice, one that is read, torch's attention and its encoder layer."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second = self.first
        self.read = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.second(self.first(x)) + self.again(self.again(x).relu())
        x = self.mix(x)
        return self.norm(self.encoder(x + self.attention(x, x, x)[0]))

    def mix(self, x):
        return F.linear(x, self.read.weight, self.read.bias)


@pytest.mark.parametrize('method', [dict(type='LoRA', rank=2), dict(type='FourierFT', n=9, init='zero'), 'SSF',
                                    dict(type='MoRA', rank=1), dict(type='GPS', criterion='random')])
def test_shared_called_twice_and_read(method):
    """Each acts wherever its layer does, in evaluation too, where torch's encoder has a way around its layers."""
    torch.manual_seed(0)
    stock, x = Twice(), torch.randn(2, 5, 8)
    tuned = e3va.tune(copy.deepcopy(stock), method)
    tuned.tuning.hooked = True
    assert tuned.first is tuned.second
    projected(tuned(x)).backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    stir(tuned.eval())
    stock.load_state_dict(e3va.merge(tuned).state_dict())
    stock.eval()
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), stock(x), atol=1e-5, rtol=1e-5)
    for name in ('first', 'again', 'read', 'encoder.linear1'):
        assert not torch.equal(stock.get_submodule(name).weight, Twice().get_submodule(name).weight), name


def test_a_layer_that_nothing_calls(capsys):
    """Where the code does not say that a weight is read, the first training step does."""
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x):
            return F.linear(self.layers[0](x), self.layers[1].weight)

    tuned, x = e3va.tune(Hidden(), dict(type='LoRA', rank=2)), torch.randn(2, 8)
    tuned.eval()(x), tuned.train()(x), tuned(x)
    said = capsys.readouterr()
    assert (said.out + said.err).count('1 adapted layers of Hidden were not called in the first step') == 1
    assert 'layers.1' in said.out + said.err


class Quantised(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.round(), self.bias)


@pytest.mark.parametrize('options,words', [
    (dict(targets=['qvk']), r"targets=\['qvk'\]: no layer of VisionTransformer has such a name; near: .*qkv"),
    (dict(targets='qkv'), r"one string is a regular expression over full names; .*targets=\['qkv'\]"),
    (dict(targets=['norm1']), r'names blocks.0.norm1 \(LayerNorm\), .* LoRA adapts Linear and Conv2d'),
    (dict(targets=r'blocks\.\d+\.mlp'), r'names blocks.0.mlp \(Mlp\), blocks.1.mlp \(Mlp\) of'),
    (dict(targets=['qkv', 'attn']), r"targets=\['attn'\] names blocks.0.attn \(Attention\)"),
    (dict(targets=['head']), 'names head of VisionTransformer alone, which trains whole anyway'),
    (dict(targets=['qkv'], roles=('q',)), 'two spellings'), (dict(targets=[]), 'is a list of names'),
    (dict(targets=3), 'is a list of names'), (dict(targets='('), 'no regular expression'),
    (dict(also=['patch_embde']), r"also='patch_embde': .* has nothing that it names; near: patch_embed"),
    (dict(also=['blocks.0.attn.q_norm']), 'has no parameters in blocks.0.attn.q_norm')])
def test_refusals(options, words):
    with pytest.raises(ValueError, match=re.compile(words, re.I)):
        e3va.tune(make('deit3_small_patch16_224')[0], dict(type='LoRA', **options))


def test_refused_layers():
    for layer, words in [(Quantised(8, 8), '0 of Sequential is a Quantised, which computes something else'),
                         (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), 'made of others'),
                         (nn.utils.spectral_norm(nn.Linear(8, 8)), 'made of others')]:
        with pytest.raises(ValueError, match=words):
            e3va.tune(nn.Sequential(layer), dict(type='LoRA', rank=2))
    with pytest.raises(ValueError, match='attention.out_proj .*read by .*MultiheadAttention'):
        e3va.tune(Twice(), dict(type='LoRA', rank=2, targets=['attention.out_proj']))
    with pytest.raises(ValueError, match='roles=.*does not know the roles .*targets='):
        e3va.tune(make('resnet18')[0], dict(type='LoRA', roles=('q',)))
    for method in ('E3VA', 'Adapter', 'AdaptFormer', 'VPT', 'Partial'):
        with pytest.raises(ValueError, match=f'{method} does not know the trunk .*ResNet.* LoRA, .* take any trunk'):
            e3va.tune(make('resnet18')[0], method)
    with pytest.raises(ValueError, match='NormTuning finds nothing to train in Sequential'):
        e3va.tune(nn.Sequential(nn.Linear(8, 8)), 'NormTuning')
    with pytest.raises(ValueError, match='MoRA finds no layer in ResNet: it adapts Linear'):
        e3va.tune(make('resnet18')[0], 'MoRA')
    with pytest.raises(ValueError, match='E3VA backpropagates nothing through the trunk'):
        e3va.tune(make('deit3_small_patch16_224')[0], dict(type='E3VA', rank=2, also=['patch_embed']))


def test_the_default_is_said(capsys):
    """One line: which layers, how many, how many parameters; a name that matches nothing beside others is warned of."""
    tuned = e3va.tune(make('resnet18')[0], dict(type='LoRA', rank=2))
    said = capsys.readouterr()
    count = e3va.report(tuned)['trained']
    assert re.search(rf'LoRA on ResNet, .* not know: \d+ Conv2d, .*conv1.*{count:,} parameters; .*targets=',
                     said.out + said.err)
    e3va.tune(make('deit3_small_patch16_224')[0], dict(type='LoRA', targets=['qkv', 'q_proj']))
    said = capsys.readouterr()
    assert "'q_proj' matches nothing" in said.out + said.err


def test_also(tmp_path):
    """What `also` names trains whole beside the method, batch norms too, with their buffers in the delta."""
    options = dict(also=['bn1.bias', r'layer1\..*'])
    stock, x = make('resnet18')
    tuned, again = (e3va.tune(copy.deepcopy(stock), dict(type='LoRA', rank=2, **options)) for _ in range(2))
    saved = set(e3va.delta(tuned))
    assert {'bn1.bias', 'layer1.0.conv1.weight', 'layer1.0.bn2.running_var', 'layer2.0.bn1.bias', 'fc.weight',
            'layer2.0.conv1.pairs.0.up'} <= saved
    assert not saved & {'layer2.0.conv1.weight', 'layer1.0.conv1.pairs.0.up'}
    assert tuned.train().layer1[0].bn1.training and not tuned.layer3[0].bn2.training
    own = sum(value.numel() for name, value in tuned.named_parameters() if name.startswith('layer1.'))
    rows = {row['name']: row for row in e3va.report(tuned)['rows']}
    assert sum(row['trained'] for name, row in rows.items() if name.startswith('layer1.')) == own
    assert rows['layer1.0.conv1.weight']['part'] == 'trunk'
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad(), projected(tuned(x)).backward(), optimizer.step()
    e3va.save_delta(tuned, tmp_path / 'delta')
    e3va.load_delta(again, tmp_path / 'delta')
    assert torch.equal(tuned.eval()(x), again.eval()(x))
    assert e3va.merge(tuned).eval()(x).sub(tuned(x)).abs().max() < 1e-4
    assert e3va.tune(copy.deepcopy(stock), 'Fixed', also='layer4').tuning.method.config['also'] == ('layer4',)


def test_whole_models(tmp_path):
    """Names of the module that was given: inside a backbone, outside it, and in a module that has none."""
    import mmdet.models  # noqa: F401

    from e3va.registry import MODELS

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = MODELS.build(dict(type='mmdet.ResNet', depth=18, base_channels=8))
            self.neck, self.encoder = nn.Conv2d(64, 8, 1), nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

        def forward(self, x):
            x = self.neck(self.backbone(x)[-1]).mean((2, 3))
            return self.encoder[1](self.encoder[0](x))

    def trained(model):
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    x = torch.randn(2, 3, 32, 32)
    model = e3va.tune(Detector(), dict(type='LoRA', rank=2, targets=r'backbone\.layer4\..*conv\d'))
    assert hasattr(model.backbone, 'tuning') and 'neck.weight' in trained(model)
    assert {name for name in trained(model) if 'layer4.0.conv1' in name} and not {
        name for name in trained(model) if 'layer3' in name}
    model = e3va.tune(Detector(), dict(type='LoRA', rank=2, targets=['encoder.0', 'encoder.1', 'layer4.0.conv1']))
    assert trained(model) == {'neck.weight', 'neck.bias', *(
        f'{layer}.pairs.0.{name}' for layer in ('encoder.0', 'encoder.1', 'backbone.layer4.0.conv1')
        for name in ('down', 'up'))}
    assert e3va.report(model)['head'] == 64 * 8 + 8
    before = copy.deepcopy(model)
    stir(model)
    e3va.save_delta(model, tmp_path / 'delta')
    e3va.load_delta(before, tmp_path / 'delta')
    assert torch.equal(before.eval()(x), model.eval()(x))
    assert e3va.merge(model).eval()(x).sub(model(x)).abs().max() < 1e-5
    features = timm.create_model('resnet18', features_only=True)
    tuned = e3va.tune(nn.ModuleDict(dict(encoder=features, decoder=nn.Conv2d(512, 2, 1))),
                      dict(type='LoRA', rank=2, targets=r'encoder\.layer4\..*conv\d', also=['decoder']))
    assert trained(tuned) == {'decoder.weight', 'decoder.bias', *(
        f'encoder.layer4.{i}.conv{j}.pairs.0.{name}' for i in (0, 1) for j in (1, 2) for name in ('down', 'up'))}


def test_pear_by_names(tmp_path):
    """Pruned and shared in a trunk of no family, saved and loaded."""
    from e3va.pear import plan
    stock, x = make('pvt_v2_b0')
    tuned, again = (e3va.tune(copy.deepcopy(stock), dict(type='LoRA', rank=2, targets=['q', 'kv'])) for _ in range(2))
    stir(tuned)
    units = list(tuned.tuning.method.units(tuned).values())
    plan.prune(tuned, plan.plan(plan.score(units, 'magnitude'), *plan.alike(tuned), 0.5))
    assert plan.rows(tuned)[0]['role'] == 'q'
    e3va.save_delta(tuned, tmp_path / 'delta')
    e3va.load_delta(again, tmp_path / 'delta')
    assert torch.equal(tuned.eval()(x), again.eval()(x))


@pytest.mark.parametrize('trunk,options', [
    ('mmdet.ResNet', dict(depth=50, base_channels=8, frozen_stages=1, norm_eval=True)),
    ('mmseg.MixVisionTransformer', dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]))])
@pytest.mark.parametrize('method', [dict(type='LoRA', rank=2), dict(type='LoRA', rank=2, also=['layer1', 'layers.0.0']),
                                    'SSF', 'BitFit', 'NormTuning'])
def test_configs(trunk, options, method, tmp_path):
    """`e3va.Tuned` on trunks of OpenMMLab that are no family: a step, all gradients, the delta on a rebuilt one."""
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401

    from e3va.registry import MODELS
    if isinstance(method, dict) and 'also' in method:
        method = dict(method, also=['layer1'] if trunk == 'mmdet.ResNet' else ['layers.0.0'])
    torch.manual_seed(0)
    tuned, again = (MODELS.build(dict(type='e3va.Tuned', trunk=trunk, method=method, **options)) for _ in range(2))
    again.load_state_dict({name: value for name, value in tuned.state_dict().items() if name in tuned.tuning.keys},
                          strict=False)
    x = torch.randn(1, 3, 64, 64)
    projected(tuned.train()(x)).backward()
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)
    stir(tuned)
    e3va.save_delta(tuned, tmp_path / 'delta')
    e3va.load_delta(again, tmp_path / 'delta')
    assert distance(tuned.eval()(x), again.eval()(x)) == 0

"""SAM as a segmenter: beside the authors' own model, its loss by hand, the six rows of GPS's Table 5, a run of GPS."""
import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn
from torch.nn import functional as F

import e3va
from e3va.command.config import apply_method, apply_settings, load_config, load_method
from e3va.datasets.checkpoints import make_checkpoint
from e3va.datasets.polyp import LoadMask
from e3va.datasets.synthetic import make_kvasir
from e3va.gps.gradients import select
from e3va.gps.method import sparse_layers
from e3va.models.sam import SAMSegmentor, mask_losses, prompts_and_masks
from e3va.trunks.vit_sam import own_names
from tests.test_configs.reduce import reduce

TASK = Path(__file__).parents[2] / 'configs/_base_/tasks/kvasir_sam_vit_b.py'
SMALL = dict(type='mmpretrain.ViTSAM', img_size=64, patch_size=16, out_channels=32, window_size=3, arch=dict(
    embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=96, global_attn_indexes=[1, 3]))
SHAPE = dict(embed_dim=24, depth=4, num_heads=2, global_attn_indexes=(1, 3), img_size=64, out_chans=32, window_size=3)
BASE = dict(type='mmpretrain.ViTSAM', arch='base', img_size=1024, out_channels=256, window_size=14)


def tuned_by(method, trunk=SMALL):
    options = {key: value for key, value in copy.deepcopy(trunk).items() if key != 'type'}
    return dict(type='e3va.Tuned', trunk=trunk['type'], method=method, **options)


def segmentor(backbone=SMALL):
    torch.manual_seed(0)
    import mmpretrain.models  # noqa: F401
    return SAMSegmentor(copy.deepcopy(backbone))


@pytest.fixture(scope='module')
def public(tmp_path_factory):
    """A checkpoint in the public layout, of random values."""
    return str(make_checkpoint(tmp_path_factory.mktemp('sam') / 'sam.pth', 'sam_vit_b', **SHAPE))


def batch(count=2, seed=0):
    """Images (B, 3, 64, 64) and data samples with masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 2, (count, 1, 64, 64), generator=generator)
    samples = [SegDataSample(metainfo=dict(ori_shape=(64, 64)), gt_sem_seg=PixelData(data=mask)) for mask in masks]
    return torch.randn(count, 3, 64, 64, generator=generator), samples


# ---- the authors' model

def test_outputs_are_the_authors(public):
    """Their encoder, decoder and post-processing on the same checkpoint, images of their own sizes."""
    encoder = ImageEncoderViT(use_rel_pos=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **SHAPE)
    theirs = Sam(encoder, *prompts_and_masks(32, (4, 4), (64, 64))).eval()
    theirs.load_state_dict(torch.load(public, weights_only=True))
    ours = segmentor().eval()
    load_checkpoint(ours, public, strict=True)
    images = 255 * torch.rand(2, 3, 64, 64)
    sizes = [(64, 64), (50, 90)]
    want = theirs([dict(image=each, original_size=size) for each, size in zip(images, sizes)], multimask_output=False)
    with torch.no_grad():
        found = ours.predict((images - theirs.pixel_mean) / theirs.pixel_std,
                             [SegDataSample(metainfo=dict(ori_shape=size)) for size in sizes])
    for each, other, size in zip(want, found, sizes):
        logits = F.interpolate(each['low_res_logits'], (64, 64), mode='bilinear', align_corners=False)
        logits = F.interpolate(logits, size, mode='bilinear', align_corners=False)[0]
        assert (other.seg_logits.data[1:] - logits).abs().max() < 1e-5
        assert torch.equal(other.pred_sem_seg.data == 1, each['masks'][0])


def test_the_public_model_has_our_names_and_shapes():
    """sam_vit_b as the authors build it."""
    from segment_anything import build_sam_vit_b
    with torch.device('meta'):
        theirs, ours = own_names(build_sam_vit_b().state_dict()), segmentor(BASE).state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in ours.items()}


def test_a_generated_checkpoint_is_of_the_public_layout(public):
    assert {name.partition('.')[0] for name in torch.load(public, weights_only=True)} == {
        'image_encoder', 'prompt_encoder', 'mask_decoder'}
    for options, message in ((dict(format='timm'), 'official format alone'), (dict(depths=(1, 2)), 'cannot be built')):
        with pytest.raises(ValueError, match=message):
            make_checkpoint(f'{public}.other', 'sam_vit_b', **options)


# ---- the loss

def test_loss_by_hand():
    logits = torch.tensor([[[[0.5, -2.], [3., 0.]]], [[[1., 1.], [-1., 4.]]]])
    target = torch.tensor([[[[1, 0], [1, 1]]], [[[0, 1], [255, 255]]]])
    p, t, counts = 1 / (1 + np.exp(-logits.double().numpy())), (target == 1).numpy(), (target != 255).numpy()
    entropy = -(np.log(p) * t + np.log(1 - p) * ~t)[counts].mean()
    iou = [(p * t * counts)[i].sum() / ((p + t - p * t) * counts)[i].sum() for i in range(2)]
    found = mask_losses(logits, target)
    assert float(found['loss_bce']) == pytest.approx(entropy, abs=1e-6)
    assert float(found['loss_iou']) == pytest.approx(1 - sum(iou) / 2, abs=1e-6)


def test_a_batch_is_the_mean_of_its_images():
    model, (images, samples) = segmentor().eval(), batch(3)
    whole = model.loss(images, samples)
    single = [model.loss(images[i:i + 1], samples[i:i + 1]) for i in range(3)]
    for name, value in whole.items():
        assert float(value) == pytest.approx(float(sum(each[name] for each in single)) / 3, abs=1e-6)


def test_what_trains():
    """The decoder whole, the prompt encoder not; the quality head has a gradient of zero and stays as it is."""
    model, (images, samples) = segmentor(tuned_by('Fixed')), batch()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f'mask_decoder.{name}' for name, _ in model.mask_decoder.named_parameters()}
    head = copy.deepcopy(model.mask_decoder.iou_prediction_head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model.loss(images, samples).values()).backward()
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
        optimizer.step()
    for before, after in zip(head.parameters(), model.mask_decoder.iou_prediction_head.parameters()):
        assert torch.equal(before, after) and not after.grad.any()


# ---- GPS

@pytest.mark.parametrize('method, encoder, printed', [
    ('full', 89_670_912, None), ('fixed', 0, '4.06'), ('bitfit', 12 * (6912 + 2 * 768) + 768 + 2 * 256, '4.16'),
    ('sam_adapter', 63_312, '4.12'), ('ssf', 12 * 11 * 768 * 2 + 2 * 768, '4.26'), ('gps', 168_448, None)])
def test_counts_of_table_5(method, encoder, printed):
    """The encoder's count with the decoder's 4,058,340. Not printed so: Full (93.73, 93.8) and GPS (4.23, 4.22)."""
    with torch.device('meta'):
        model = segmentor(tuned_by(load_method(method).method.to_dict(), BASE))
    report = e3va.report(model)
    assert report['trained'] == encoder
    assert sum(parameter.numel() for parameter in model.mask_decoder.parameters()) == 4_058_340 == report['head']
    assert printed in (None, f'{(encoder + 4_058_340) / 1e6:.2f}')


def test_gps_selects_by_the_loss_over_the_batches():
    """The largest gradient of each row, summed over batches, of the stock model; what trains whole, by the code."""
    stock, tuned = segmentor(), segmentor(tuned_by(dict(type='GPS', k=1)))
    assert stock.state_dict().keys() <= tuned.state_dict().keys()
    tuned.load_state_dict(stock.state_dict(), strict=False)
    batches = [batch(1, seed) for seed in range(3)]
    for each in batches:
        sum(stock.loss(*each).values()).backward()
    select(tuned, batches, lambda each: sum(tuned.loss(*each).values()))
    gradients = {name: parameter.grad for name, parameter in stock.backbone.named_parameters()}
    layers = sparse_layers(tuned.backbone)
    assert {'patch_embed.projection', 'channel_reduction.0', 'channel_reduction.2', 'layers.1.attn.qkv'} < set(layers)
    for name, layer in layers.items():
        rows = gradients[f'{name}.weight'].abs().flatten(1)
        best = rows.argmax(1) + torch.arange(len(rows)) * rows.shape[1]
        assert torch.equal(layer.index.flatten().long(), best)
    trained = {name for name, parameter in tuned.backbone.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if not name.endswith('.values')}
    assert {name for name in trained if name.endswith('.values')} == {f'{name}.values' for name in layers}
    assert whole == {name for name in gradients if name.endswith('bias') and '.ln' not in name}
    assert {'channel_reduction.1.bias', 'channel_reduction.3.bias'} < whole
    assert not any('pos' in name or name.endswith('weight') for name in whole)


def test_the_task_runs_and_selects_on_training_images_alone(tmp_path, monkeypatch):
    """`--method gps` at reduced size from a checkpoint of the public layout: selection, two epochs, mDice and mIoU."""
    monkeypatch.chdir(tmp_path)
    make_kvasir('data/Kvasir-SEG', images=2, size=(48, 64), classes=1)
    method = load_method('gps')
    cfg = reduce(apply_settings(apply_method(load_config(TASK), method), method))
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.optimizer.lr) == ('Adam', 2e-4)
    shape = dict(embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, global_attn_indexes=(1,), img_size=256, out_chans=32)
    cfg.load_from = str(make_checkpoint('sam.pth', 'sam_vit_b', **shape))
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    runner = Runner.from_cfg(cfg)
    start, read = own_names(torch.load('sam.pth', weights_only=True)), []
    load = LoadMask.transform

    def watched(self, results):
        read.append((Path(results['seg_map_path']).name.rstrip('0123456789.jpg'), runner.model.training))
        return load(self, results)

    monkeypatch.setattr(LoadMask, 'transform', watched)
    metrics = []
    monkeypatch.setattr(runner.val_loop.evaluator, 'evaluate', lambda size, stock=runner.val_loop.evaluator.evaluate:
                        metrics.append(stock(size)) or metrics[-1])
    runner.train()
    assert {name for name, training in read if training} == {'train'} and ('val', False) in read
    assert set(metrics[-1]) == {'mDice', 'mIoU'} and all(0 <= value <= 100 for value in metrics[-1].values())
    end, trunk = runner.model.state_dict(), runner.model.backbone
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    trained = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    assert moved <= trained and 'backbone.layers.0.attn.qkv.bias' in moved
    assert all(layer.selected for layer in sparse_layers(trunk).values())


# ---- deltas and bad input

def test_a_delta_finds_the_public_checkpoint(public, tmp_path):
    """It records no names but its own: the base is the file as one downloads it."""
    config = tuned_by(dict(type='LoRA', rank=2))
    model = segmentor(config).eval()
    load_checkpoint(model, public)
    for layer in model.backbone.layers:
        nn.init.normal_(layer.attn.qkv.pairs['0'].up)
    nn.init.normal_(model.mask_decoder.mask_tokens.weight)
    e3va.save_delta(model, tmp_path / 'delta.safetensors', base=public)
    again = segmentor(config).eval()
    load_checkpoint(again, f'e3va://{tmp_path}/delta.safetensors')
    images, _ = batch()
    assert torch.equal(model(images), again(images))
    merged = e3va.merge(model)
    assert (merged(images) - model(images)).abs().max() < 1e-5
    assert merged.state_dict().keys() == segmentor().state_dict().keys()


def test_bad_input(public, tmp_path):
    model, (images, _) = segmentor(), batch()
    with pytest.raises(ValueError, match=r'images of \(64, 80\) px, and its position code is for \(64, 64\)'):
        model(F.pad(images, (0, 16)))
    for wrong in (dict(SMALL, out_channels=0), dict(SMALL, out_indices=[1, 3]), dict(type='mmpretrain.MobileNetV2')):
        with pytest.raises(ValueError, match='needs a ViTSAM with its neck .* and one output, not the'):
            segmentor(wrong)
    encoder = {name: value for name, value in torch.load(public, weights_only=True).items() if 'image' in name}
    torch.save(encoder, tmp_path / 'encoder.pth')
    with pytest.raises(ValueError, match='prompt encoder and mask decoder at random values'):
        load_checkpoint(model, str(tmp_path / 'encoder.pth'))


def test_registered_name():
    with MODELS.switch_scope_and_registry('mmseg') as registry:
        model = registry.build(dict(type='e3va.SAMSegmentor', backbone=copy.deepcopy(SMALL)))
    assert type(model) is SAMSegmentor

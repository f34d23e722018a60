"""What `import e3va` brings along, and what works without the libraries that a user may not have."""
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = '''
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *where):
        return None if name.partition('.')[0] in {names!r} else self.finder.find_spec(name, *where)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
'''
OPENMMLAB = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def run(code, missing=()):
    """A program in a process of its own, in which some libraries cannot be found; its output."""
    ended = subprocess.run([sys.executable, '-c', BLOCK.format(names=missing) + code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


READERS = '''
import mmengine.runner
from mmengine.runner import CheckpointLoader
from e3va.delta import scheme as delta_scheme
from e3va.models import timm_scheme
from e3va.files import checkpoint as trusted
assert CheckpointLoader._get_checkpoint_loader('a.pth') is trusted.load_from_local
assert CheckpointLoader._get_checkpoint_loader('e3va://a') is delta_scheme.load_scheme
assert CheckpointLoader._get_checkpoint_loader('timm://a') is timm_scheme.load_scheme
from mmengine.runner import checkpoint
assert checkpoint.load_url is trusted.load_url
'''


def test_import_is_light():
    """Beside torch, mmengine's registries and safetensors nothing that takes time: no runner, no library of models.

    A runner that is imported behind it reads by our loaders.
    """
    heavy = ('mmengine.runner', 'mmengine.model', 'mmengine.optim', 'mmengine.hooks', 'torch.distributed.fsdp',
             'torch.distributed.optim', 'sympy', 'matplotlib', 'scipy', 'timm', 'torchvision', *OPENMMLAB)
    run(f'import e3va\nfound = [name for name in {heavy!r} if name in sys.modules]\nassert not found, found\n{READERS}')


def test_the_runner_first():
    """It reads by our loaders too; and mmpretrain takes a torchvision of another build than its torch, as below."""
    run(f"import mmpretrain.models\nassert 'mmengine.runner' in sys.modules\nimport e3va\n{READERS}")


def test_timm_users_without_openmmlab(tmp_path):
    """ViT and Swin under E3VA, ConvNeXt under BitFit, GPS, DMLoRA, Pear's table; a step, a delta saved and loaded."""
    run(f'''
import e3va, timm, torch
small = dict(vit_tiny_patch16_224=dict(img_size=32, embed_dim=24, depth=2, num_heads=2),
             swin_tiny_patch4_window7_224=dict(img_size=32, embed_dim=12, depths=(1, 1), num_heads=(1, 2),
                                               window_size=4),
             convnext_atto=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)))
for name, method in (('vit_tiny_patch16_224', dict(type='E3VA', rank=2)),
                     ('swin_tiny_patch4_window7_224', dict(type='E3VA', rank=2)),
                     ('convnext_atto', dict(type='BitFit')),
                     ('vit_tiny_patch16_224', dict(type='GPS', criterion='random')),
                     ('vit_tiny_patch16_224', dict(type='DMLoRA', rank=2, branches=2)),
                     ('vit_tiny_patch16_224', dict(type='LoRA', rank=2, bits=1))):
    torch.manual_seed(0)
    model = e3va.tune(timm.create_model(name, num_classes=3, **small[name]), method)
    model.tuning.hooked = True                                          # in the place of the methods' hooks
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model.train()(torch.randn(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    e3va.save_delta(model, {str(tmp_path / 'delta.safetensors')!r})
    torch.manual_seed(0)
    again = e3va.tune(timm.create_model(name, num_classes=3, **small[name]), method)
    e3va.load_delta(again, {str(tmp_path / 'delta.safetensors')!r})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), again.eval()(x)), (name, method)
    str(e3va.report(model))
assert not any(name in sys.modules for name in {OPENMMLAB!r})
''', OPENMMLAB)


def test_openmmlab_users_without_timm():
    """A ViT of mmpretrain is tuned; what needs timm says so."""
    run('''
import e3va, mmpretrain.models
from mmengine.registry import MODELS
arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', arch=arch, img_size=32, method='LoRA'))
try:
    MODELS.build(dict(type='e3va.TimmTrunk', name='vit_tiny_patch16_224'))
except ImportError as error:
    assert 'timm' in str(error)
else:
    raise AssertionError('no error')
''', ('timm', ))


def test_torchvision_first():
    """In the environment of tools/setup_env.sh, whose torchvision is of another build than its torch."""
    run('import torchvision, timm')


def test_openmmlab_beside_transformers_5():
    """mmpretrain's multi-modal models take what version 5 left out; all others, and mmdet's, are there."""
    folder = Path(sys.prefix, 'peft')                                   # where the set-up keeps it, for tests
    if not folder.is_dir():
        pytest.skip('no transformers 5 beside this environment')
    run(f'''
sys.path.append({str(folder)!r})
import e3va
import transformers
assert int(transformers.__version__.partition('.')[0]) >= 5
import mmdet.models, mmpretrain.models, mmseg.models
model = e3va.registry.MODELS.build(dict(type='e3va.Tuned', trunk='mmpretrain.VisionTransformer', method='LoRA',
                                        arch='deit-tiny', img_size=32))
assert e3va.report(model)['trained'] > 0
''')

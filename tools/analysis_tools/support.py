r"""Which method takes which family of backbones: every pair is built, small, and the program's own refusals are shown.

    python tools/analysis_tools/support.py                  # the table
    python tools/analysis_tools/support.py --write          # to docs/support.md, which a test compares
    python tools/analysis_tools/support.py --bytes          # what each keeps for backward, at real size; some minutes
    python tools/analysis_tools/support.py --time           # what reading a backbone block by block takes; some minutes

The backbones are those that the tests run on: TRUNKS of tests/conftest.py, CASES of tests/test_trunks/test_families.py.
"""
import argparse
import contextlib
import logging
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'support.md'
sys.path.insert(0, str(ROOT))

WORKS, MERGES, REFUSES = '○', '●', '–'
METHODS = (
    'Full', 'Fixed', 'LoRA', 'E3VAMix', 'DMLoRA', 'AdaMix', 'GPS', 'SPT', 'SSF', 'BitFit', 'NormTuning', 'FourierFT',
    'MoRA', 'FacT', 'E3VA', 'LST', 'Adapter', 'AdapterPfeiffer', 'AdaptFormer', 'Mona', 'RepAdapter', 'LoRand',
    'Compacter', 'Partial', 'VPT', 'E2VPT', 'NOAH', 'EVP')
OPTIONS = dict(AdapterPfeiffer=dict(rank=2), EVP=dict(reduction=4))    # of the others: METHODS of test_families.py
HEAD = f"""# Backbones and methods

Every pair was built from a small stock backbone by `python tools/analysis_tools/support.py --write`; a test fails when
this page is out of date. {MERGES} works, and `e3va.merge` gives back the stock backbone; {WORKS} works;
{REFUSES} refuses, by the number below with the program's own reason. What works also trains: the tests run a step
of each.

Backbones of no family listed here (ResNet, EfficientNet, RegNet, any `nn.Module`): Full, Fixed, LoRA, DMLoRA, GPS, SSF,
BitFit and NormTuning take them, FourierFT and MoRA where they have linear layers; the others go by blocks, and say so.
"""


# a backbone of each family at real size, (timm's name or OpenMMLab's type, options); images of 224 px, or as named
REAL = dict(
    swin_mm=('mmdet.SwinTransformer', {}), swin_timm=('swin_tiny_patch4_window7_224', {}),
    vit_mm=('mmpretrain.VisionTransformer', dict(arch='deit-s')),
    vit_timm=('vit_small_patch14_dinov2', dict(img_size=224)),
    vit_sam=('mmpretrain.ViTSAM', dict(img_size=224)), convnext=('convnextv2_tiny', {}),
    eva=('vit_small_patch16_dinov3', dict(img_size=224)), pvt_mm=('mmseg.MixVisionTransformer', {}),
    beit_mm=('mmpretrain.BEiTViT', {}), eva02_mm=('mmpretrain.ViTEVA02', dict(img_size=224)),
    swinv2_mm=('mmpretrain.SwinTransformerV2', dict(img_size=224, window_size=7)), davit_mm=('mmpretrain.DaViT', {}),
    hivit=('mmpretrain.HiViT', {}), mvit_mm=('mmpretrain.MViT', dict(arch='tiny')), beit=('beit_base_patch16_224', {}),
    swinv2_timm=('swinv2_tiny_window8_256', dict(img_size=224, window_size=7)),
    vit_sam_timm=('samvit_base_patch16_224', {}), pvt_v2=('pvt_v2_b2', {}), tiny_vit=('tiny_vit_21m_224', {}),
    davit=('davit_tiny', {}), hiera=('hiera_tiny_224', {}), hieradet=('sam2_hiera_tiny', {}),
    mvitv2=('mvitv2_tiny', {}), metaformer=('caformer_s18', {}), maxxvit=('maxvit_tiny_tf_224', {}))
KEPT = {
    'E3VA': dict(type='E3VA'), 'bf16': dict(type='E3VA', mode='bf16'), 'int8': dict(type='E3VA', mode='int8'),
    'stream': dict(type='E3VA', mode='stream'), 'LoRA': dict(type='LoRA'),
    'LoRA gelu int8': dict(type='LoRA', gelu='int8'),
    'LoRA block': dict(type='LoRA', recompute='block'), 'LoRA block_int8': dict(type='LoRA', recompute='block_int8')}


def real(family):
    """The stock backbone of REAL."""
    import timm
    import torch

    from e3va.registry import MODELS
    kind, options = REAL[family]
    torch.manual_seed(0)
    if '.' in kind:
        return MODELS.build(dict(type=kind, **options))
    return timm.create_model(kind, num_classes=0, **options)


def times(runs=20):
    """Markdown: inference block by block as a share of the stock forward's time, the median over runs in turn."""
    import statistics
    import time

    import torch

    from e3va.trunks import FAMILIES
    from e3va.trunks.walk import by_blocks, through_block
    lines, image = ['| family | backbone | block by block / stock |', '|---|---|---:|'], torch.randn(1, 3, 224, 224)
    for family, (kind, _) in REAL.items():
        trunk = real(family)
        trunk.eval()
        trunk.tuning = type('Tuning', (), dict(parts=FAMILIES[family]))
        ways = (getattr(trunk, FAMILIES[family].ENTRY(trunk)), lambda x: by_blocks(through_block, trunk, x))
        ratios = []
        with torch.no_grad():
            for _ in range(runs + 2):
                spent = []
                for way in ways:
                    start = time.perf_counter()
                    way(image)
                    spent.append(time.perf_counter() - start)
                ratios.append(spent[1] / spent[0])
        lines.append(f'| {family} | `{kind}` | {statistics.median(ratios[2:]):.3f} |')
        print(lines[-1], file=sys.stderr)
    return '\n'.join(lines)


def kept_bytes():
    """Markdown: what the backbone alone keeps for backward, one image, fp32: Full in MiB, of the others the share."""
    import torch

    import e3va
    from e3va.cost.saved import saved_bytes
    from tests.conftest import tensors
    lines = []
    for family, (kind, _) in REAL.items():
        def bytes_of(method):
            trunk = e3va.tune(real(family), method)
            trunk.train()
            image = torch.randn(1, 3, 224, 224)
            return saved_bytes(lambda: sum(out.sum() for out in tensors(trunk(image))), trunk)
        full = bytes_of(dict(type='Full'))

        def share(method):
            try:
                return f'{bytes_of(method) / full:.3f}'
            except ValueError:                                          # no GELU is in it
                return ''
        shares = ' | '.join(map(share, KEPT.values()))
        lines.append(f'| {family} | `{kind}` | {full / 2 ** 20:.0f} MiB | {shares} |')
        print(lines[-1], file=sys.stderr)
    head = ['family', 'backbone', 'Full', *KEPT]
    return '\n'.join([f'| {" | ".join(head)} |', '|---|---|' + '---:|' * (len(head) - 2), *lines])


def trunks():
    """{family: (what it is, a function that builds a small one)}, in the order of `trunks.FAMILIES`."""
    from e3va.trunks import FAMILIES
    from tests import conftest
    from tests.test_trunks import test_families
    makers = {next(family for family in FAMILIES if name.startswith(family)): (lambda name=name: conftest.build(name))
              for name in reversed(conftest.TRUNKS)}
    makers |= {family: (lambda case=case: test_families.make(case))
               for case, (family, *_) in reversed(test_families.CASES.items()) if family not in makers}
    return {family: (title(parts), makers[family]) for family, parts in FAMILIES.items()}


def title(parts):
    """What the family's file says that it is: its docstring up to the layout of the tokens."""
    return re.split(r': |\. |\.?$', parts.__doc__.partition('\n')[0])[0]


def cell(make, method):
    """(mark, why it refuses or None)."""
    import e3va
    from e3va.methods import build_method
    from tests.test_trunks import test_families
    method = build_method(dict(type=method, **{**OPTIONS, **test_families.METHODS}.get(method, {})))
    trunk = make()
    try:
        e3va.tune(trunk, method)
    except ValueError as error:
        return REFUSES, reason(str(error), type(method).__name__, type(trunk).__name__)
    return (MERGES if method.mergeable else WORKS), None


def reason(text, method, trunk):
    """The message without the method, the trunk and the advice: one for all pairs that are refused alike."""
    text = re.sub(rf'^{method} cannot tune an? {trunk}: ', '', text)
    text = re.sub(r'^[\w.]+ has no', 'it has no', text)
    return re.split(r'\. |; its roles| Take another|; take ', text)[0]


def table():
    """Markdown: a row a family, a column a method; then the reasons."""
    lines, reasons = [], {}
    for what, make in trunks().values():
        marks = []
        for method in METHODS:
            mark, why = cell(make, method)
            marks.append(mark if why is None else f'{mark}<sup>{reasons.setdefault(why, len(reasons) + 1)}</sup>')
        lines.append(f'| {what} | {" | ".join(marks)} |')
    head = f'| backbone | {" | ".join(METHODS)} |\n|---|{"---|" * len(METHODS)}\n'
    return (f'{HEAD}\n{head}' + '\n'.join(lines) + '\n\n'
            + '\n'.join(f'{number}. {why}' for why, number in reasons.items()) + '\n')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help=f'write {PAGE.relative_to(ROOT)}')
    parser.add_argument('--bytes', action='store_true', help='print what is kept for backward')
    parser.add_argument('--time', action='store_true', help='print what reading block by block takes')
    args = parser.parse_args(argv)
    if args.bytes or args.time:
        print(kept_bytes() if args.bytes else times())
        return
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        logging.disable(logging.WARNING)
        text = table()
    if args.write:
        from e3va.files.whole import write
        write(PAGE, text)
    else:
        print(text)


if __name__ == '__main__':
    import e3va  # noqa: F401 first of all: it helps the stack import
    main()

r"""Which method takes which family of backbones: every pair is built, small, and the program's own refusals are shown.

    python tools/analysis_tools/support.py                  # the table
    python tools/analysis_tools/support.py --write          # to docs/support.md, which a test compares

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
METHODS = dict(
    Full={}, Fixed={}, LoRA=dict(rank=2), DMLoRA=dict(rank=2, branches=2), GPS=dict(criterion='magnitude'), SSF={},
    BitFit={}, NormTuning={}, FourierFT=dict(n=20), MoRA=dict(rank=2), FacT=dict(rank=2), E3VA=dict(rank=2),
    Adapter=dict(rank=2), AdapterPfeiffer=dict(rank=2), AdaptFormer=dict(rank=2), Mona=dict(rank=4),
    RepAdapter=dict(rank=2), LoRand=dict(rank=2), Compacter=dict(rank=4, n=2), Partial=dict(blocks=1),
    VPT=dict(tokens=2), EVP=dict(reduction=4))
HEAD = f"""# Backbones and methods

Every pair was built from a small stock backbone by `python tools/analysis_tools/support.py --write`; a test fails when
this page is out of date. {MERGES} works, and `e3va.merge` gives back the stock backbone; {WORKS} works;
{REFUSES} refuses, by the number below with the program's own reason. What works also trains: the tests run a step
of each.

Backbones of no family listed here (ResNet, EfficientNet, RegNet, any `nn.Module`): Full, Fixed, LoRA, DMLoRA, GPS, SSF,
BitFit and NormTuning take them, FourierFT and MoRA where they have linear layers; the others go by blocks, and say so.
"""


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
    method = build_method(dict(type=method, **METHODS[method]))
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
    args = parser.parse_args(argv)
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

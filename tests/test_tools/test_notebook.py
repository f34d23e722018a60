"""docs/tutorial.ipynb, from its first cell to its last, in a kernel of its own."""
import sys

import pytest

from tests.conftest import ROOT

nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')


def test_the_tutorial_runs(tmp_path, monkeypatch):
    """LoRA learns the new patterns better than Fixed; its delta loads to equal outputs, and on no other backbone."""
    monkeypatch.setenv('PYTHONPATH', ':'.join([str(ROOT), *filter(None, sys.path)]))
    monkeypatch.setenv('JUPYTER_DATA_DIR', str(tmp_path / 'jupyter'))   # a user's kernels are not asked
    notebook = nbformat.read(ROOT / 'docs/tutorial.ipynb', as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3', resources=dict(
        metadata=dict(path=str(tmp_path)))).execute()
    said = ''.join(output.get('text', '') for cell in notebook.cells if cell.cell_type == 'code'
                   for output in cell.outputs)
    scores = {line.split()[0]: float(line.split()[3]) for line in said.splitlines() if 'new patterns:' in line}
    assert list(scores) == ['Fixed', 'BitFit', 'E3VA', 'LoRA'] and scores['LoRA'] > max(80, scores['Fixed'] + 5)
    assert 'equal outputs, bit for bit: True' in said and 'another backbone: the trunk that LoRA' in said
    assert 'with the stock names: True' in said

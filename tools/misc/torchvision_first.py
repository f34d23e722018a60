"""Copied into .venv by tools/setup_env.sh where torchvision's own library does not load: e3va completes it first.

Then timm, mmpretrain and torchvision can be imported in any order, in a notebook too. A line of the .pth file beside it
imports this module whenever Python starts, which costs nothing until torchvision is asked for.
"""
import sys


class First:
    """A finder that finds nothing: it only sees that torchvision is about to be imported."""

    asked = False

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == 'torchvision' and not cls.asked:
            cls.asked = True
            try:
                import e3va  # noqa: F401 declares the operators that torchvision names
            except ImportError:                                         # was uninstalled
                pass


sys.meta_path.insert(0, First)

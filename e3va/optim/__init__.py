"""Optimizer wrappers of methods that train a part of a tensor, and their AMP twins."""

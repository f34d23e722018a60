"""The options that a checkpoint records, against those of the run that goes on from it."""


def same_options(saved, own, words):
    """Compare recorded options with a run's own.

    Args:
        saved (dict): {option: value} of the checkpoint.
        own (dict): of the run; it may have more, which are not compared.
        words (str): the message, in which {theirs} and {ours} become the options that differ, as NAME=VALUE, and {both}
            the same as NAME=VALUE instead of VALUE.

    Raises:
        ValueError: some differ.
    """
    found = {name: (value, own.get(name)) for name, value in saved.items() if value != own.get(name)}
    if found:
        raise ValueError(words.format(
            theirs=', '.join(f'{name}={theirs!r}' for name, (theirs, _) in found.items()),
            ours=', '.join(f'{name}={ours!r}' for name, (_, ours) in found.items()),
            both=', '.join(f'{name}={theirs!r} instead of {ours!r}' for name, (theirs, ours) in found.items())))

"""What the data sets say when a file is not there."""
import os


def existing(data, folder, name):
    """The path of a file or folder of a data set; ValueError where it is missing."""
    path = os.path.join(os.path.expanduser(folder), name)
    if not os.path.exists(path):
        raise ValueError(f'{data}: there is no {path}; set data_root to the folder that holds the data, '
                         'configs/_base_/tasks/README.md shows its layout')
    return path

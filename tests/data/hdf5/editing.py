"""Changes to HDF5 files."""

import h5py


def edit(path, change):
    """Call a function with a file that is open for writing."""
    with h5py.File(path, "a") as opened:
        change(opened)


def shorten(name, cut):
    """A change that leaves some of an array's rows."""

    def change(raw):
        values = raw[name][:]
        del raw[name]
        raw[name] = values[cut]

    return change

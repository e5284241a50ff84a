"""Files of spectra in the PFS/BOSZ layout: reading, writing and description."""

from scaling.data.hdf5.describe import Description, describe_set
from scaling.data.hdf5.leaks import find_leaks
from scaling.data.hdf5.reader import SpectraFile, open_spectra
from scaling.data.hdf5.writer import write_spectra

__all__ = ["Description", "SpectraFile", "describe_set", "find_leaks", "open_spectra", "write_spectra"]

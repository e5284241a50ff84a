"""Files of spectra in the PFS/BOSZ layout: read, written, described."""

"""The information limit: how well labels can be determined from spectra in principle."""

from scaling.data.information.limit import InformationLimit, information_limit

__all__ = ["InformationLimit", "information_limit"]

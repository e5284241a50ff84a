"""The information limit: how well labels can be known from spectra at all."""

from scaling.data.information.limit import InformationLimit, information_limit

__all__ = ["InformationLimit", "information_limit"]

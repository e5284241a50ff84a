"""Publication-quality figures: each function returns its own Matplotlib `Figure` and touches no global state.

Each is one journal column wide (8.5 cm), which a phone shows at full size. Colours are colour-blind safe, every
axis has its unit, intervals are bands, and errors excluded from the fit are drawn open.
"""

from analysis.report.figures.answers import error_budgets
from analysis.report.figures.curves import error_against_compute, error_against_data, error_against_size, one_curve
from analysis.report.figures.diagnostics import held_out, profiles, residuals
from analysis.report.figures.observed import Observed
from analysis.report.figures.search import learning_rates
from analysis.report.figures.style import COLUMN, FORMATS, error_label, label_name, save, short
from analysis.report.figures.surface import error_surface

__all__ = [
    "COLUMN",
    "FORMATS",
    "Observed",
    "error_against_compute",
    "error_against_data",
    "error_against_size",
    "error_budgets",
    "error_label",
    "error_surface",
    "held_out",
    "label_name",
    "learning_rates",
    "one_curve",
    "profiles",
    "residuals",
    "save",
    "short",
]

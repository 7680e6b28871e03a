"""What the Trainer's own pushes carry: whole commits with plan, record, report and card, and nothing that is secret."""

from .limits import check_pushes
from .parcel import sweep_parcels
from .wrap import wrap_pushes

__all__ = ["check_pushes", "sweep_parcels", "wrap_pushes"]

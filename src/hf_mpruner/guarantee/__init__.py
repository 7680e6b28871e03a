"""What a measured drop says about the true one: paired outcomes, an upper confidence bound, and the price of several tests."""

from .levels import TestLevels
from .outcomes import Outcomes

__all__ = ["Outcomes", "TestLevels"]

"""What the general rules of `sizes` and `inputs` cannot guess, one entry per model type."""

from __future__ import annotations

from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {}
"""Model type -> config values that replace the ones guessed, nested as the config is."""

CLASSES: dict[str, str] = {}
"""Model type -> class, where not the first of the Auto classes."""

INPUTS: dict[str, dict[str, Any]] = {}
"""Model type -> inputs that replace the ones guessed: a list is a tensor's value, a tuple its shape, None leaves out."""

NOT_BUILDABLE: dict[str, str] = {}
"""Model type -> why no specimen can be built."""

"""Extreme Sensitivity Analysis: find the few weights a language model cannot live without, and prove it."""

__version__ = "0.1.0"

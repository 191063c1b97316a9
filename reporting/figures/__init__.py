"""Figures from plain arrays and dicts, as matplotlib figures that the caller saves."""

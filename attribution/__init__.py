"""Influence and agreement: which pairs help, and which can be trusted."""

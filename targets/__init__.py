"""Targets, one folder each."""

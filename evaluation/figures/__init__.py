"""Figures: functions from a table to a matplotlib Figure, drawn without pyplot."""

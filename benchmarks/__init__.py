"""Measurements behind the budgets: ratios of programs measured in one run, never absolute times."""

"""Statistics of the campaign: intervals, tests, effect sizes, reliability, power and curves, on plain arrays."""

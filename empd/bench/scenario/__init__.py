"""One file for each scenario: a `Size`, a quick one, and `measure(size, where)`, which yields figures."""

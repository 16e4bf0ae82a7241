"""Results in other packages' formats."""

"""Whether a result is to be trusted: what is looked at, and every sentence that says so."""

"""What the benchmarks measure on, one kind of problem a file.

Reference posteriors, held-out models, the paper's targets, other mixtures, models of several modes,
models of many dimensions, and in ``verdicts`` posteriors whose answers are known by quadrature.
``data`` holds the data and the reference moments, ``pack`` makes the files there.
"""

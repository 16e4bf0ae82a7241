"""What the benchmarks measure on, one kind of problem a file.

Reference posteriors, held-out models, the paper's targets, other mixtures, models of several modes,
models of many dimensions, in ``verdicts`` posteriors whose answers are known by quadrature, and in
``structured`` those whose latent values repeat over groups or times.
``data`` holds the data and the reference moments, ``pack`` makes the files there.
"""

"""Benchmarks of the package: ``python -m benchmarks SUITE``; README.md says how to run and extend.

``problems`` holds what is measured on, ``methods`` what is measured, ``suites`` what is asked of
both and the pages that answer it, ``results`` the measured rows.
"""

"""The bench: every loss against autodiff, against other libraries, and against what no code avoids.

Run it by `python -m bench`; `--help` says the rest.
"""

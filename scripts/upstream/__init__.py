"""What rayprep takes for granted of SGLang and its kernel libraries, held against their wheels.

`contracts/` is the table, `checks.py` and `wheel.py` look whether a row holds, `release.py` fetches a release's wheels.
`scripts/check-sglang` and `tests/upstream` use it. Nothing of a wheel is imported or run.
"""

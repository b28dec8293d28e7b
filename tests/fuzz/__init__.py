"""Property tests of every parser of foreign files: ``make fuzz``, or ``python -m tests.fuzz``."""

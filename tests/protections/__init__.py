"""Takes each protection out and shows that its test fails: ``python -m tests.protections``."""

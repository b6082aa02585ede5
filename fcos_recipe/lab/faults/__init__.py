"""Training runs that are hurt on purpose (`scripts/fault_test.sh`): `fault_test` makes the faults,
`soak` kills the demo for an hour, `tools` looks at what is left.
"""

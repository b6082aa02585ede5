"""Fault injection into training runs (`scripts/fault_test.sh`): `fault_test` makes the faults,
`soak` kills the demo repeatedly, `tools` compares runs and inspects processes.
"""

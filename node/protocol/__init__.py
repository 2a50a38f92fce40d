"""The commit protocol of one key, pure: epochs, records, a drive's register, judging, and the drive's verbs.

The rules are the ones that were model-checked (docs/decisions/0002). Nothing in here does I/O, reads
a clock or draws a random number, so the same code runs in a drive process, in a coordinator, in a
simulation and in a property test.
"""

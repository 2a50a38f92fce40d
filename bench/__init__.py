"""Benchmarks: CPU per MiB and per operation of a local cluster, beside the aims; never asserted."""

"""The deterministic simulation: see tests/sim/world.py."""

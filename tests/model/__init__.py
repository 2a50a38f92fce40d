"""An explicit-state model of the commit protocol, and the runs that check it."""

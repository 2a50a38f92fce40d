"""Real processes, real gRPC, real files: the specification's power-off tests and their tools."""

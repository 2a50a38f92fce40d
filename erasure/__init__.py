"""Erasure coding as pure functions.

Nothing here reads a file, a socket, a clock or a random number. From a cluster's shape to the bytes
of a shard: `geometry` groups drives into sets and picks k and n, `placement` says which drive holds
which shard of a key, `stripe` cuts an object into blocks, `codec` computes parity and lost shards,
`frame` seals each block with a checksum that knows where the block belongs, and `plan` chooses the
shards that a read asks for. Every error derives from `errors.ErasureError`.
"""

"""The inside of a drive process: one catalog, its shard files, and the loop that serves their verbs.

    serve     the socket: frames in, answers out, one write batch for all that came at once
    keys      the commit protocol's verbs on the catalog
    scans     listings, the full walk, what is pending
    files     shard files: staging, reading, checking, sweeping
    syncer    one flush of the log for all who wrote meanwhile
    rows      what a catalog row is, byte by byte
    engine    RocksDB, and nothing of it elsewhere
    layout    the directory: format.json, foreign things, the check file

Only node.runtime.drive_process imports this package; the node never does.
"""

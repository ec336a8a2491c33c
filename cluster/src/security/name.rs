//! The name of a node in its certificate: `node-<id>.<cluster id in hex>.andante`.

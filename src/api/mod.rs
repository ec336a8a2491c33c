//! The public API `andante.v1`: gRPC, and HTTP for metrics and probes. Thin: it validates, maps errors, calls the
//! router.

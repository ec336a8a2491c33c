#!/usr/bin/env bash
# Settles of three nodes against puts of three nodes of etcd 3.4, on this machine, in one run.
# Installs etcd (Debian's package) if it is missing. More arguments go to the benchmark, e.g. --rounds 5.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v etcd >/dev/null; then
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends etcd-server
fi
etcd --version | head -1
exec cargo bench --bench etcd -- --etcd "$(command -v etcd)" "$@"

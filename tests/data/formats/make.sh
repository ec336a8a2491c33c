#!/usr/bin/env bash
# Makes the fixture of a feature level: a node's data directory with something of every on-disk format in it, and what
# must be read from it. Run once per level, with the program that was released with it:
#   tests/data/formats/make.sh PROGRAM LEVEL
set -euo pipefail
program=$(realpath "$1") level=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'kill -9 $node 2>/dev/null || true; rm -rf "$work"' EXIT
export ANDANTE_ADDR=127.0.0.1:7490

start() {
    # So few that logs are cut and snapshots written.
    "$program" node --data-dir "$work/data" --grpc $ANDANTE_ADDR --http 127.0.0.1:7491 --shards 2 \
        --set settings.snapshot_every_entries=20 >"$work/log" 2>&1 &
    node=$!
    until curl -sf http://127.0.0.1:7491/readyz >/dev/null; do kill -0 $node; done
}

token() {
    # The first requests only wake a campaign.
    while :; do
        t=$("$program" score --listener anna --surface radio --market DE --candidate "$1:1" --slots 1 --json |
            python3 -c 'import json,sys; p=json.load(sys.stdin)["placements"]; print(p[0]["token"] if p else "")')
        [ -z "$t" ] || { echo "$t"; return; }
    done
}

stream() { "$program" outcome "$1" --kind stream --stream-ms 60000 --json >/dev/null; }

start
for name in running paused ended; do
    "$program" campaign create $name --owner label --label team=a --track "t-$name,u-$name" --end +365d \
        --budget-micros 9000000000000000 --price-micros 1000 --hold-ms 3600000 --frequency-cap 200 --json >/dev/null
done
for i in $(seq 30); do
    stream "$(token t-running)"
    stream "$(token t-paused)"
done
open=$(token t-running)
settled=$(token t-running)
stream "$settled"
"$program" campaign pause paused --json >/dev/null
"$program" campaign end ended --json >/dev/null
# From level 2 on a deletion leaves a record of its own.
"$program" campaign create gone --owner label --track t-gone --end +365d --budget-micros 9000000 --price-micros 1000 \
    --json >/dev/null
"$program" campaign delete gone --request-id gone --json >/dev/null
kill -TERM $node && wait $node
# Once more, and this time it ends without any farewell: what it had said is in the log alone.
start
stream "$(token t-running)"
"$program" campaign list --json >"$work/campaigns.json"
kill -9 $node || true
wait $node || true
tar -C "$work" -czf "$here/level-$level.tar.gz" data
python3 - "$work/campaigns.json" "$open" "$settled" >"$here/level-$level.json" <<'PY'
import json, sys
campaigns, open_token, settled_token = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
json.dump({"open_token": open_token, "settled_token": settled_token, "campaigns": campaigns}, sys.stdout, indent=1)
PY
ls -l "$here"

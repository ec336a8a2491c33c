"""Asks for promotion scores and reports what became of the placements.

    python -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python -m grpc_tools.protoc -I ../../src/api/proto --python_out=. --grpc_python_out=. \
        ../../src/api/proto/andante/v1/{score,outcome}.proto
    venv/bin/python score_and_report.py --addr 127.0.0.1:7400,127.0.0.1:7410 --market SE --candidate nl-01:0.9

Prints what it did as one JSON object. With TLS and a token: --ca FILE, and ANDANTE_TOKEN in the environment.
"""

import argparse
import json
import os
import random
import sys
import time

import grpc

from andante.v1 import outcome_pb2, outcome_pb2_grpc, score_pb2, score_pb2_grpc

# A score that comes later is of no use to the listener.
SCORE_DEADLINE_S = 0.25
# For all tries of a report together.
REPORT_DEADLINE_S = 5.0
# For one try of a report: a node that answers nothing leaves time for another.
REPORT_TRY_S = 2.0
# Between two tries of a report, doubled each time, with up to as much again by chance.
FIRST_BACKOFF_S = 0.02
MAX_BACKOFF_S = 0.5
# The server takes this many events at once.
EVENTS_MAX = 1_000


class Bearer(grpc.UnaryUnaryClientInterceptor):
    """Says who is calling."""

    def __init__(self, token):
        self._token = token

    def intercept_unary_unary(self, continuation, details, request):
        metadata = list(details.metadata or []) + [("authorization", f"Bearer {self._token}")]
        return continuation(details._replace(metadata=metadata), request)


def connect(addresses, ca_file, token):
    """One channel over all nodes: calls go round, past nodes that can't be reached."""
    # A name resolver of gRPC's own takes several addresses of one kind.
    target = f"ipv4:{','.join(addresses)}" if len(addresses) > 1 else addresses[0]
    options = [
        (
            "grpc.service_config",
            json.dumps(
                {
                    "loadBalancingConfig": [{"round_robin": {}}],
                    # Nodes that drain say so; calls avoid them.
                    "healthCheckConfig": {"serviceName": ""},
                }
            ),
        ),
        # Scores are never repeated behind our back: each try hands out tokens.
        ("grpc.enable_retries", 0),
    ]
    if len(addresses) > 1:
        # Otherwise gRPC makes a host name of the whole list, which is none.
        options.append(("grpc.default_authority", addresses[0]))
    if ca_file:
        with open(ca_file, "rb") as file:
            credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
        if len(addresses) > 1:
            # Of several addresses gRPC can check one name only: their certificates must all hold the first one.
            options.append(("grpc.ssl_target_name_override", addresses[0].rsplit(":", 1)[0]))
        channel = grpc.secure_channel(target, credentials, options=options)
    else:
        channel = grpc.insecure_channel(target, options=options)
    return grpc.intercept_channel(channel, Bearer(token)) if token else channel


def score(channel, listener, market, candidates, slots, deadline_s):
    """Scores and tokens. An error is not repeated here: the listener's next request is a better one."""
    request = score_pb2.ScoreRequest(
        listener_id=listener,
        surface="radio",
        market=market,
        candidates=[score_pb2.Candidate(track_id=track, relevance=relevance) for track, relevance in candidates],
        slots=slots,
    )
    return score_pb2_grpc.ScoreServiceStub(channel).Score(request, timeout=deadline_s)


# Asking again may help; the event counts once however often it is reported.
RETRIED_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
}
OPEN = {outcome_pb2.OUTCOME_STATUS_UNAVAILABLE, outcome_pb2.OUTCOME_STATUS_UNKNOWN}


def report(channel, events, deadline_s=REPORT_DEADLINE_S):
    """Reports a batch until each event's fate is known; one status for each, in order.

    UNAVAILABLE or UNKNOWN at the end: report those again later, with the same tokens.
    """
    stub = outcome_pb2_grpc.OutcomeServiceStub(channel)
    results = [outcome_pb2.OUTCOME_STATUS_UNAVAILABLE] * len(events)
    left = list(range(len(events)))
    until = time.monotonic() + deadline_s
    backoff_s = FIRST_BACKOFF_S
    while left:
        batch = left[:EVENTS_MAX]
        request = outcome_pb2.ReportRequest(events=[events[i] for i in batch])
        try:
            timeout_s = max(0.001, min(REPORT_TRY_S, until - time.monotonic()))
            answer = stub.Report(request, timeout=timeout_s)
            for i, result in zip(batch, answer.results, strict=True):
                results[i] = result.status
            left = [i for i in left if i not in set(batch) or results[i] in OPEN]
            progress = any(results[i] not in OPEN for i in batch)
        except grpc.RpcError as error:
            if error.code() not in RETRIED_CODES:
                raise
            for i in batch:
                results[i] = outcome_pb2.OUTCOME_STATUS_UNKNOWN
            progress = False
        if progress:
            backoff_s = FIRST_BACKOFF_S
            continue
        wait_s = backoff_s * (1 + random.random())
        if time.monotonic() + wait_s >= until:
            break
        time.sleep(wait_s)
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
    return results


def candidate(text):
    track, relevance = text.rsplit(":", 1)
    return track, float(relevance)


def main():
    parser = argparse.ArgumentParser(description="Ask for promotion scores and report what became of the placements.")
    parser.add_argument("--addr", default="127.0.0.1:7400", help="host:port of the nodes, separated by commas")
    parser.add_argument("--ca", help="the authority's certificate (PEM); with it TLS is used")
    parser.add_argument("--listener", default="anna")
    parser.add_argument("--market", default="SE")
    parser.add_argument("--candidate", type=candidate, action="append", required=True, metavar="TRACK:RELEVANCE")
    parser.add_argument("--requests", type=int, default=1, help="score requests, one after the other")
    parser.add_argument("--deadline-ms", type=float, default=1_000 * SCORE_DEADLINE_S)
    args = parser.parse_args()

    channel = connect(args.addr.split(","), args.ca, os.environ.get("ANDANTE_TOKEN"))
    placements, incomplete = [], 0
    for _ in range(args.requests):
        reply = score(channel, args.listener, args.market, args.candidate, slots=1, deadline_s=args.deadline_ms / 1_000)
        incomplete += bool(reply.coverage.missing)
        placements.extend(reply.placements)

    events = []
    for placement in placements:
        events.append(outcome_pb2.OutcomeEvent(token=placement.token, kind=outcome_pb2.OUTCOME_KIND_IMPRESSION))
        events.append(
            outcome_pb2.OutcomeEvent(token=placement.token, kind=outcome_pb2.OUTCOME_KIND_STREAM, stream_ms=187_000)
        )
    first = report(channel, events)
    again = report(channel, events)

    def names(statuses):
        return [outcome_pb2.OutcomeStatus.Name(status).removeprefix("OUTCOME_STATUS_") for status in statuses]

    json.dump({"incomplete": incomplete, "placements": len(placements), "first": names(first), "again": names(again)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()

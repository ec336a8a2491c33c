//! Raft's messages as frames and back. What a peer sent is `InvalidData` when it makes no sense, never a panic.

use std::io;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};

use crate::{
    proto::{
        AppendAnswer, AppendCall, AppendConflict, AppendMatched, TransferLeaderAnswer, TransferLeaderCall, VoteAnswer,
        VoteCall, append_answer,
    },
    raft::{
        codec::{
            damaged, decode_entry, encode_entry, log_id_from_proto, log_id_to_proto, vote_from_proto, vote_to_proto,
        },
        types::{LogId, TypeConfig, Vote},
    },
};

/// A vote that has to be there.
pub(super) fn vote(vote: Option<&crate::proto::Vote>) -> io::Result<Vote> {
    vote.map(vote_from_proto).ok_or_else(|| damaged("a message without a vote"))
}

fn log_id(id: Option<&crate::proto::LogId>) -> Option<LogId> {
    id.map(log_id_from_proto)
}

fn log_id_proto(id: Option<&LogId>) -> Option<crate::proto::LogId> {
    id.map(log_id_to_proto)
}

pub(super) fn append_call(request: &AppendEntriesRequest<TypeConfig>) -> AppendCall {
    AppendCall {
        vote: Some(vote_to_proto(&request.vote)),
        prev_log_id: log_id_proto(request.prev_log_id.as_ref()),
        entries: request.entries.iter().map(encode_entry).collect(),
        leader_commit: log_id_proto(request.leader_commit.as_ref()),
    }
}

pub(super) fn append_request(call: AppendCall) -> io::Result<AppendEntriesRequest<TypeConfig>> {
    let prev_log_id = log_id(call.prev_log_id.as_ref());
    let entries = call.entries.into_iter().map(decode_entry).collect::<io::Result<Vec<_>>>()?;
    // openraft takes it for granted.
    let first = prev_log_id.map_or(0, |id| id.index.saturating_add(1));
    if let Some((entry, _)) = entries.iter().zip(first..).find(|(entry, index)| entry.log_id.index != *index) {
        return Err(damaged(format_args!("entry {} is not where it belongs", entry.log_id.index)));
    }
    let (vote, leader_commit) = (vote(call.vote.as_ref())?, log_id(call.leader_commit.as_ref()));
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(super) fn append_answer(response: &AppendEntriesResponse<TypeConfig>) -> AppendAnswer {
    use append_answer::Result;
    let result = match response {
        AppendEntriesResponse::Success => Result::Matched(AppendMatched::default()),
        // Only from a peer that knows what `up_to` is: absent means everything.
        AppendEntriesResponse::PartialSuccess(up_to) => {
            Result::Matched(AppendMatched { up_to: log_id_proto(up_to.as_ref()) })
        }
        AppendEntriesResponse::Conflict => Result::Conflict(AppendConflict {}),
        AppendEntriesResponse::HigherVote(vote) => Result::HigherVote(vote_to_proto(vote)),
    };
    AppendAnswer { result: Some(result) }
}

pub(super) fn append_response(answer: AppendAnswer) -> io::Result<AppendEntriesResponse<TypeConfig>> {
    use append_answer::Result;
    Ok(match answer.result {
        Some(Result::Matched(AppendMatched { up_to: None })) => AppendEntriesResponse::Success,
        Some(Result::Matched(AppendMatched { up_to: Some(up_to) })) => {
            AppendEntriesResponse::PartialSuccess(Some(log_id_from_proto(&up_to)))
        }
        Some(Result::Conflict(AppendConflict {})) => AppendEntriesResponse::Conflict,
        Some(Result::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote_from_proto(&vote)),
        None => return Err(damaged("an answer to an append without a result")),
    })
}

pub(super) fn vote_call(request: &VoteRequest<TypeConfig>) -> VoteCall {
    VoteCall {
        vote: Some(vote_to_proto(&request.vote)),
        last_log_id: log_id_proto(request.last_log_id.as_ref()),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(super) fn vote_request(call: &VoteCall) -> io::Result<VoteRequest<TypeConfig>> {
    let mut request = VoteRequest::new(vote(call.vote.as_ref())?, log_id(call.last_log_id.as_ref()));
    request.leadership_transfer = call.leadership_transfer;
    Ok(request)
}

pub(super) fn vote_answer(response: &VoteResponse<TypeConfig>) -> VoteAnswer {
    VoteAnswer {
        vote: Some(vote_to_proto(&response.vote)),
        granted: response.vote_granted,
        last_log_id: log_id_proto(response.last_log_id.as_ref()),
    }
}

pub(super) fn vote_response(answer: &VoteAnswer) -> io::Result<VoteResponse<TypeConfig>> {
    Ok(VoteResponse::new(vote(answer.vote.as_ref())?, log_id(answer.last_log_id.as_ref()), answer.granted))
}

pub(super) fn transfer_call(request: &TransferLeaderRequest<TypeConfig>) -> TransferLeaderCall {
    TransferLeaderCall {
        from: Some(vote_to_proto(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: log_id_proto(request.last_log_id()),
    }
}

pub(super) fn transfer_request(call: &TransferLeaderCall) -> io::Result<TransferLeaderRequest<TypeConfig>> {
    Ok(TransferLeaderRequest::new(vote(call.from.as_ref())?, call.to, log_id(call.last_log_id.as_ref())))
}

pub(super) fn transfer_answer(response: &TransferLeaderResponse<TypeConfig>) -> TransferLeaderAnswer {
    match response {
        Ok(()) => TransferLeaderAnswer::default(),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            TransferLeaderAnswer { vote_changed: Some(vote_to_proto(actual)), ..TransferLeaderAnswer::default() }
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => TransferLeaderAnswer {
            not_flushed: true,
            flushed: log_id_proto(actual.as_ref()),
            ..TransferLeaderAnswer::default()
        },
    }
}

pub(super) fn transfer_response(
    request: &TransferLeaderRequest<TypeConfig>,
    answer: &TransferLeaderAnswer,
) -> TransferLeaderResponse<TypeConfig> {
    if let Some(actual) = &answer.vote_changed {
        let (expected, actual) = (*request.from_leader(), vote_from_proto(actual));
        return Err(TransferLeaderError::VoteChanged { expected, actual });
    }
    if answer.not_flushed {
        let (expected, actual) = (request.last_log_id().copied(), log_id(answer.flushed.as_ref()));
        return Err(TransferLeaderError::LogNotFlushed { expected, actual });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::EntryPayload;

    use super::*;
    use crate::raft::types::{Command, Entry, LeaderId};

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 3, node_id: 7 }, index }
    }

    fn some_vote() -> Vote {
        Vote { leader_id: LeaderId { term: 4, node_id: 7 }, committed: true }
    }

    fn append(prev: Option<u64>, entries: &[u64]) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index: &u64| {
            let payload = EntryPayload::Normal(Command(Bytes::from_static(b"command")));
            Entry { log_id: id(*index), payload }
        };
        AppendEntriesRequest {
            vote: some_vote(),
            prev_log_id: prev.map(id),
            entries: entries.iter().map(entry).collect(),
            leader_commit: Some(id(1)),
        }
    }

    #[test]
    fn everything_sent_arrives_the_same() {
        for request in [append(None, &[0, 1]), append(Some(4), &[5]), append(Some(4), &[])] {
            let arrived = append_request(append_call(&request)).expect("makes sense");
            assert_eq!(format!("{arrived:?}"), format!("{request:?}"));
        }
        for response in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(id(3))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(some_vote()),
        ] {
            assert_eq!(append_response(append_answer(&response)).expect("makes sense"), response);
        }
        for last in [None, Some(id(9))] {
            let request = VoteRequest { vote: some_vote(), last_log_id: last, leadership_transfer: last.is_some() };
            assert_eq!(vote_request(&vote_call(&request)).expect("makes sense"), request);
            let response = VoteResponse::new(some_vote(), last, last.is_some());
            assert_eq!(vote_response(&vote_answer(&response)).expect("makes sense"), response);
            let request = TransferLeaderRequest::new(some_vote(), 3, last);
            assert_eq!(transfer_request(&transfer_call(&request)).expect("makes sense"), request);
            for response in [
                Ok(()),
                Err(TransferLeaderError::VoteChanged { expected: some_vote(), actual: Vote::new(5, 2) }),
                Err(TransferLeaderError::LogNotFlushed { expected: last, actual: Some(id(2)) }),
            ] {
                assert_eq!(transfer_response(&request, &transfer_answer(&response)), response);
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(append_request(AppendCall::default()).is_err(), "no vote");
        for (prev, entries) in [(None, [1_u64, 2]), (Some(4), [6, 7]), (Some(4), [5, 7])] {
            let call = append_call(&append(prev, &entries));
            assert!(append_request(call).is_err(), "{entries:?} after {prev:?}");
        }
        assert!(append_response(AppendAnswer::default()).is_err());
        assert!(vote_request(&VoteCall::default()).is_err());
        assert!(vote_response(&VoteAnswer::default()).is_err());
        assert!(transfer_request(&TransferLeaderCall::default()).is_err());
    }
}

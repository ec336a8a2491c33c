//! What consensus keeps on disk, as protobuf. Decoding damaged bytes is `InvalidData`, never a panic.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;

use super::types::{Command, Entry, LeaderId, LogId, Member, Membership, StoredMembership, Vote};
use crate::proto;

/// Synced bytes that do not decode.
pub(crate) fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

fn decode<M: Message + Default>(what: &str, bytes: Bytes) -> io::Result<M> {
    M::decode(bytes).map_err(|e| damaged(format_args!("{what} does not decode: {e}")))
}

pub(crate) fn log_id_to_proto(id: &LogId) -> proto::LogId {
    proto::LogId { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id_from_proto(id: &proto::LogId) -> LogId {
    LogId { leader_id: LeaderId { term: id.term, node_id: id.node_id }, index: id.index }
}

/// Encodes a log id.
pub fn encode_log_id(id: &LogId) -> Bytes {
    log_id_to_proto(id).encode_to_vec().into()
}

/// Decodes a log id.
pub fn decode_log_id(bytes: Bytes) -> io::Result<LogId> {
    Ok(log_id_from_proto(&decode("log id", bytes)?))
}

pub(crate) fn vote_to_proto(vote: &Vote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote_from_proto(vote: &proto::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, node_id: vote.node_id }, committed: vote.committed }
}

/// Encodes a vote.
pub fn encode_vote(vote: &Vote) -> Bytes {
    vote_to_proto(vote).encode_to_vec().into()
}

/// Decodes a vote.
pub fn decode_vote(bytes: Bytes) -> io::Result<Vote> {
    Ok(vote_from_proto(&decode("vote", bytes)?))
}

fn membership_to_proto(membership: &Membership) -> proto::Membership {
    let voter_sets = membership.get_joint_config().iter();
    proto::Membership {
        voter_sets: voter_sets.map(|set| proto::VoterSet { node_ids: set.iter().copied().collect() }).collect(),
        members: membership
            .nodes()
            .map(|(id, member)| proto::Member { node_id: *id, address: member.address.clone() })
            .collect(),
    }
}

fn membership_from_proto(membership: proto::Membership) -> io::Result<Membership> {
    let sets: Vec<BTreeSet<u64>> =
        membership.voter_sets.into_iter().map(|set| set.node_ids.into_iter().collect()).collect();
    let members: BTreeMap<u64, Member> =
        membership.members.into_iter().map(|m| (m.node_id, Member { address: m.address })).collect();
    if sets.is_empty() && members.is_empty() {
        // What an empty state stands for; `Membership::new` refuses it.
        return Ok(Membership::default());
    }
    Membership::new(sets, members).map_err(|e| damaged(format_args!("membership: {e}")))
}

/// Encodes an entry.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let payload = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(command) => Some(proto::entry::Payload::Command(command.0.clone())),
        EntryPayload::Membership(m) => Some(proto::entry::Payload::Membership(membership_to_proto(m))),
    };
    let id = &entry.log_id;
    let entry = proto::Entry { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index, payload };
    entry.encode_to_vec().into()
}

/// Decodes an entry; its command shares `bytes`.
pub fn decode_entry(bytes: Bytes) -> io::Result<Entry> {
    let entry: proto::Entry = decode("log entry", bytes)?;
    let log_id = LogId { leader_id: LeaderId { term: entry.term, node_id: entry.node_id }, index: entry.index };
    let payload = match entry.payload {
        None => EntryPayload::Blank,
        Some(proto::entry::Payload::Command(command)) => EntryPayload::Normal(Command(command)),
        Some(proto::entry::Payload::Membership(m)) => EntryPayload::Membership(membership_from_proto(m)?),
    };
    Ok(Entry { log_id, payload })
}

/// What a state stands for: the entry applied last and the configuration in force then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// The last entry applied.
    pub last: Option<LogId>,
    /// The last configuration applied.
    pub membership: StoredMembership,
}

/// Encodes what a state stands for (the state store's marker, a snapshot's meta).
pub fn encode_applied(applied: &Applied) -> Bytes {
    applied_to_proto(applied).encode_to_vec().into()
}

pub(crate) fn applied_to_proto(applied: &Applied) -> proto::Applied {
    proto::Applied {
        last: applied.last.as_ref().map(log_id_to_proto),
        membership_id: applied.membership.log_id().as_ref().map(log_id_to_proto),
        membership: Some(membership_to_proto(applied.membership.membership())),
    }
}

/// Decodes what a state stands for.
pub fn decode_applied(bytes: Bytes) -> io::Result<Applied> {
    applied_from_proto(decode("applied marker", bytes)?)
}

pub(crate) fn applied_from_proto(message: proto::Applied) -> io::Result<Applied> {
    let membership = membership_from_proto(message.membership.unwrap_or_default())?;
    Ok(Applied {
        last: message.last.as_ref().map(log_id_from_proto),
        membership: StoredMembership::new(message.membership_id.as_ref().map(log_id_from_proto), membership),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 3, node_id: 7 }, index }
    }

    fn joint() -> Membership {
        let members = [1, 2, 3, 4].map(|id| (id, Member { address: format!("n{id}:1") }));
        let sets = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
        Membership::new(sets, BTreeMap::from(members)).expect("valid")
    }

    #[test]
    fn everything_persisted_reads_back_the_same() {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Command(Bytes::new())),
            EntryPayload::Normal(Command(Bytes::from_static(b"command"))),
            EntryPayload::Membership(joint()),
        ];
        for (index, payload) in (0..).zip(payloads) {
            let entry = Entry { log_id: id(index), payload };
            assert_eq!(decode_entry(encode_entry(&entry)).expect("decodes"), entry);
        }
        for committed in [false, true] {
            let vote = Vote { leader_id: LeaderId { term: u64::MAX, node_id: 0 }, committed };
            assert_eq!(decode_vote(encode_vote(&vote)).expect("decodes"), vote);
        }
        assert_eq!(decode_log_id(encode_log_id(&id(u64::MAX))).expect("decodes"), id(u64::MAX));
        let full = Applied { last: Some(id(9)), membership: StoredMembership::new(Some(id(4)), joint()) };
        for applied in [Applied::default(), full] {
            assert_eq!(decode_applied(encode_applied(&applied)).expect("decodes"), applied);
        }
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        let garbage = Bytes::from_static(&[0xff; 7]);
        assert_eq!(decode_entry(garbage.clone()).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
        assert_eq!(decode_vote(garbage.clone()).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
        assert_eq!(decode_applied(garbage).expect_err("damaged").kind(), io::ErrorKind::InvalidData);
    }
}

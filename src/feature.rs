//! Feature levels: what each brought, and which commands a cluster may use already.
//!
//! A program knows all levels up to its own. Each node tells the directory the level of its program; once all know more
//! than the cluster uses, its level is raised for good. What came with a level is proposed only from then on, so that no
//! node ever applies a command, or stores a record, that its program does not understand.
//!
//! - **1** A node alone: the book's commands but `Delete`; the directory's `Bootstrap` and `PutSetting`.
//! - **2** Clusters. The book's `Delete` ([`DELETE_ONCE`]): what was asked of a campaign that it deleted is answered as gone,
//!   also a `Create`, `Update` or `SetState`. Changes that are made to one campaign of a name only, and state
//!   changes that are remembered although there was nothing to change ([`EXACT_CHANGES`]). Settings that all nodes take from the directory: written as
//!   soon as a program of this level starts, since older ones ignore them; changed only when no node goes by its own
//!   configuration any more ([`CLUSTER_SETTINGS`]). The directory's `AddNode`, `UpdateNode`, `SetTargets`,
//!   `ConfirmReplicas` and `RaiseFeatureLevel` need no gate: programs of level 1 can neither form nor join a cluster of
//!   several nodes, so whoever has a replica of such a directory knows them. The node alone that is upgraded marks its
//!   data directory before it proposes the first of them, and programs of level 1 refuse it from then on.

use crate::campaign::proto::{Delete, SetState, State, Update, command::Kind};

/// Highest feature level this program knows.
pub const FEATURE_LEVEL: u32 = 2;

/// From this level on campaigns are deleted by a command that makes their latest requests, itself among them, be remembered
/// when they are gone.
pub const DELETE_ONCE: u32 = 2;

/// From this level on changes name the incarnation that they are for, and a change of state is remembered also if there
/// was nothing to change.
pub const EXACT_CHANGES: u32 = 2;

/// From this level on every node obeys the cluster's settings in the directory, so that they may change.
pub const CLUSTER_SETTINGS: u32 = 2;

/// The command of a change of settings in a cluster of this level.
pub fn settings_change(level: u32, update: Update) -> Kind {
    let expected_incarnation = if level < EXACT_CHANGES { 0 } else { update.expected_incarnation };
    Kind::Update(Update { expected_incarnation, ..update })
}

/// The command of a change of state in a cluster of this level.
pub fn state_change(level: u32, set: SetState) -> Kind {
    if level >= DELETE_ONCE && set.state() == State::Deleting {
        let SetState { request_id, name, expected_revision, expected_incarnation, now_ms, .. } = set;
        return Kind::Delete(Delete { request_id, name, expected_revision, expected_incarnation, now_ms });
    }
    let is_exact = level >= EXACT_CHANGES;
    let expected_incarnation = if is_exact { set.expected_incarnation } else { 0 };
    Kind::SetState(SetState { expected_incarnation, remember_unchanged: is_exact, ..set })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clusters_that_know_it_delete_with_a_memory_and_change_what_was_meant() {
        let change = |state: State| SetState {
            request_id: "r".into(),
            name: "n".into(),
            state: state.into(),
            expected_revision: 3,
            now_ms: 4,
            expected_incarnation: 5,
            remember_unchanged: false,
        };
        let delete = Delete {
            request_id: "r".into(),
            name: "n".into(),
            expected_revision: 3,
            now_ms: 4,
            expected_incarnation: 5,
        };
        for state in [State::Active, State::Paused, State::Ended, State::Deleting] {
            let oldest = SetState { expected_incarnation: 0, ..change(state) };
            assert_eq!(state_change(1, change(state)), Kind::SetState(oldest));
            let exact = SetState { remember_unchanged: true, ..change(state) };
            let newest = if state == State::Deleting { Kind::Delete(delete.clone()) } else { Kind::SetState(exact) };
            assert_eq!(state_change(2, change(state)), newest);
            assert_eq!(state_change(3, change(state)), newest);
        }
    }

    #[test]
    fn only_clusters_that_know_it_change_settings_of_one_incarnation() {
        let update = Update { expected_revision: 3, expected_incarnation: 5, ..Update::default() };
        let oldest = Update { expected_incarnation: 0, ..update.clone() };
        assert_eq!(settings_change(1, update.clone()), Kind::Update(oldest));
        assert_eq!(settings_change(2, update.clone()), Kind::Update(update));
    }
}

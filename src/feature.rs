//! Feature levels: what each brought, and which commands a cluster may use already.
//!
//! A program knows all levels up to its own. Each node tells the directory the level of its program; once all know more
//! than the cluster uses, its level is raised for good. What came with a level is proposed only from then on, so that no
//! node ever applies a command, or stores a record, that its program does not understand.
//!
//! - **1** A node alone: the book's commands but `Delete`; the directory's `Bootstrap` and `PutSetting`.
//! - **2** Clusters. The book's `Delete` ([`DELETE_ONCE`]). Settings that all nodes take from the directory: written as
//!   soon as a program of this level starts, since older ones ignore them; changed only when no node goes by its own
//!   configuration any more ([`CLUSTER_SETTINGS`]). The directory's `AddNode`, `UpdateNode`, `SetTargets`,
//!   `ConfirmReplicas` and `RaiseFeatureLevel` need no gate: programs of level 1 can neither form nor join a cluster of
//!   several nodes, so whoever has a replica of such a directory knows them. The node alone that is upgraded marks its
//!   data directory before it proposes the first of them, and programs of level 1 refuse it from then on.

use crate::campaign::proto::{Delete, SetState, State, command::Kind};

/// Highest feature level this program knows.
pub const FEATURE_LEVEL: u32 = 2;

/// From this level on campaigns are deleted by a command that is remembered when they are gone.
pub const DELETE_ONCE: u32 = 2;

/// From this level on every node obeys the cluster's settings in the directory, so that they may change.
pub const CLUSTER_SETTINGS: u32 = 2;

/// The command of a change of state in a cluster of this level.
pub fn state_change(level: u32, set: SetState) -> Kind {
    if level < DELETE_ONCE || set.state() != State::Deleting {
        return Kind::SetState(set);
    }
    let SetState { request_id, name, expected_revision, now_ms, .. } = set;
    Kind::Delete(Delete { request_id, name, expected_revision, now_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clusters_that_know_it_delete_with_a_memory_and_nothing_else_changes() {
        let change = |state: State| SetState {
            request_id: "r".into(),
            name: "n".into(),
            state: state.into(),
            expected_revision: 3,
            now_ms: 4,
        };
        let delete = Delete { request_id: "r".into(), name: "n".into(), expected_revision: 3, now_ms: 4 };
        for state in [State::Active, State::Paused, State::Ended, State::Deleting] {
            assert_eq!(state_change(1, change(state)), Kind::SetState(change(state)));
            let newest =
                if state == State::Deleting { Kind::Delete(delete.clone()) } else { Kind::SetState(change(state)) };
            assert_eq!(state_change(2, change(state)), newest);
            assert_eq!(state_change(3, change(state)), newest);
        }
    }
}

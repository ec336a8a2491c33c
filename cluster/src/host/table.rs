//! The replicas on this node.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::group::Group;
use crate::GroupId;

/// The groups that have a replica on this node. They come and go as the directory says.
pub(super) struct GroupTable {
    // Read for every frame, written a few times in a node's life.
    groups: ArcSwap<BTreeMap<GroupId, Arc<Group>>>,
    changes: watch::Sender<u64>,
}

impl Default for GroupTable {
    fn default() -> Self {
        Self { groups: ArcSwap::default(), changes: watch::Sender::new(0) }
    }
}

impl GroupTable {
    /// The replica of a group, if it is here. Wait-free.
    pub(super) fn get(&self, group: GroupId) -> Option<Arc<Group>> {
        self.groups.load().get(&group).cloned()
    }

    /// All replicas, the directory's first.
    pub(super) fn all(&self) -> Vec<Arc<Group>> {
        self.groups.load().values().cloned().collect()
    }

    /// Ticks whenever a replica comes or goes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn insert(&self, group: Arc<Group>) {
        self.groups.rcu(|groups| {
            let mut groups = BTreeMap::clone(groups);
            groups.insert(group.id(), group.clone());
            groups
        });
        self.changes.send_modify(|count| *count += 1);
    }

    pub(super) fn remove(&self, group: GroupId) {
        self.groups.rcu(|groups| {
            let mut groups = BTreeMap::clone(groups);
            groups.remove(&group);
            groups
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// Lets go of all replicas.
    pub(super) fn clear(&self) {
        self.groups.store(Arc::default());
        self.changes.send_modify(|count| *count += 1);
    }
}

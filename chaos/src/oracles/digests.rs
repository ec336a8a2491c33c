//! Replicas are equal at equal applied index: the same command, the same reply, the same digest of the whole state.

use std::collections::BTreeMap;

use andante_cluster::ShardId;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use super::{Applied, Found, Oracle};
use crate::world::World;

/// A digest walks the whole book: it is taken at every so manieth index.
const DIGEST_EVERY: u64 = 8;

/// Equal digests, and state machine safety: all nodes apply the same command at an index.
#[derive(Default)]
pub(super) struct Digests {
    commands: BTreeMap<(ShardId, u64), Seen>,
    digests: BTreeMap<(ShardId, u64), Seen>,
}

/// A hash and the position of the node that had it first.
#[derive(Clone, Copy)]
struct Seen(u64, usize);

fn same(seen: &mut BTreeMap<(ShardId, u64), Seen>, what: &str, at: (ShardId, u64), hash: u64, node: usize) -> Found {
    let Seen(first, by) = *seen.entry(at).or_insert(Seen(hash, node));
    if first == hash {
        return Ok(());
    }
    let (shard, index) = at;
    Err(format!("{shard}, index {index}: node-{} has another {what} than node-{} had", node + 1, by + 1))
}

impl Oracle for Digests {
    fn name(&self) -> &'static str {
        "digests"
    }

    fn applied(&mut self, applied: &Applied<'_>) -> Found {
        let at = (applied.shard, applied.index);
        let command = xxh3_64(&applied.command.encode_to_vec());
        same(&mut self.commands, "command", at, command, applied.node)?;
        if applied.index.is_multiple_of(DIGEST_EVERY) {
            same(&mut self.digests, "digest", at, applied.book.digest(), applied.node)?;
        }
        Ok(())
    }

    /// Everything is calm: all replicas of a shard stand at the same index, with the same digest.
    fn audit(&mut self, world: &World) -> Found {
        let mut first = BTreeMap::new();
        for (position, shard) in world.replicas() {
            let digest = shard.book().digest();
            let (by, other) = *first.entry(shard.id).or_insert((position, digest));
            if digest != other {
                let (one, two) = (by + 1, position + 1);
                return Err(format!(
                    "{}: the digests of node-{one} and node-{two} differ although all is calm",
                    shard.id
                ));
            }
        }
        Ok(())
    }
}

//! A start, step by step: what fails changes nothing more, and nothing runs then.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::future::try_join_all;
use tonic::service::Routes;

use super::{
    Fatal, Host, HostConfig, Identity, Leadership, MachineFactory, StartError, Tasks,
    address::{announce, follow_addresses, knock},
    balance::balance,
    coordinator::coordinate,
    disk::DiskGuard,
    form::{await_membership, form},
    group::{Group, Pristine},
    handler::Handler,
    identity::{DataDir, format_of},
    join,
    leaders::LeaderTable,
    reconcile::reconcile,
    replicas::follow_directory,
    shared::{Gate, Shared},
    start::{OpenStores, Restored, boot, open_stores},
    table::GroupTable,
};
use crate::{
    ShardId,
    directory::{Directory, DirectoryMachine},
    env::{Env, Incoming},
    peer::Peers,
    proto::{NodeIdentity, PutSetting, directory_command, directory_reply},
    raft::{Flusher, types::Member},
    security::{Authority, PeerSecurity, keep_fresh},
};

impl Host {
    /// See [`Host::start`].
    pub(super) async fn launch(
        env: Env,
        config: HostConfig,
        factory: MachineFactory,
        services: Routes,
    ) -> Result<Self, StartError> {
        // First of all: an address that is taken is found out before anything is changed.
        let listened = env.network.listen(config.peer_addr).await;
        let incoming = listened.map_err(|source| StartError::Listen { address: config.peer_addr, source })?;
        let address = config.advertise.clone().unwrap_or_else(|| incoming.local_addr().to_string());
        let mut random_id = [0; 16];
        env.rng.fill(&mut random_id);
        let (data, mut identity) = boot(&config, random_id)?;
        let data = Arc::new(data);

        let mut known_peers = Vec::new();
        let mut welcome = None;
        if identity.joined && !identity.formed {
            let mut taken_up = join::join(&env, &config, &data, &mut identity, &address).await?;
            known_peers = std::mem::take(&mut taken_up.peers);
            welcome = Some(taken_up);
        }
        let cluster_id = identity.cluster_id.as_ref().try_into();
        let cluster_id: [u8; 16] = cluster_id.map_err(|_| StartError::Io {
            what: "identity file",
            source: io::Error::new(io::ErrorKind::InvalidData, "the cluster id must have 16 bytes"),
        })?;
        let security = join::security(&env, &config, cluster_id, identity.node_id, welcome).await?;
        let peers = Peers::new(&env, cluster_id, identity.node_id, security.clone());
        peers.set_addresses(known_peers.into_iter().collect(), 0);

        let fatal = Fatal::default();
        let (directory_machine, directory) = DirectoryMachine::new();
        let (stores, restored) =
            restore(&env, &data, &identity, &factory, directory_machine, &directory, &fatal).await?;
        let flusher = Flusher::new(stores.state.clone(), env.blocking.clone(), fatal.clone());
        let mut tasks = Tasks(Vec::new());
        tasks.spawn(flusher.clone().run());
        let shared = Arc::new(Shared {
            node_id: identity.node_id,
            cluster_id,
            feature_level: config.feature_level,
            is_secure: !config.plaintext_peers,
            member: Member { address },
            snapshot_every: config.snapshot_every,
            factory,
            transport: peers.transport(),
            peers,
            stores: stores.group_stores(&env, flusher),
            log: stores.log.clone(),
            gate: Arc::new(Gate::new(fatal)),
            groups: GroupTable::default(),
            leaders: Arc::new(LeaderTable::new(identity.node_id, identity.shard_count)),
            answerer: OnceLock::new(),
            directory,
            env,
        });
        // From here on dropping it ends what runs.
        let mut host = Self {
            identity: Identity {
                cluster_id,
                incarnation: 0,
                node_id: identity.node_id,
                boot_id: identity.boot_id,
                shards: identity.shard_count,
            },
            buckets: Arc::default(),
            peer_addr: incoming.local_addr(),
            log: stores.log,
            state: stores.state,
            disk: DiskGuard::new(config.min_free_bytes),
            tasks,
            closed: tokio::sync::Mutex::new(false),
            data: parking_lot::Mutex::new(Some(data.clone())),
            shared,
        };
        host.run(&config, identity, restored, security, incoming, services).await?;
        Ok(host)
    }

    async fn run(
        &mut self,
        config: &HostConfig,
        mut identity: NodeIdentity,
        restored: Vec<Restored>,
        security: PeerSecurity,
        incoming: Box<dyn Incoming>,
        services: Routes,
    ) -> Result<(), StartError> {
        let shared = self.shared.clone();
        let forms = !identity.formed && !identity.joined;
        let pristine = if forms { Pristine::Form } else { Pristine::Wait };
        let mut restored = restored.into_iter().map(|restored| restored.into_replica(&shared.stores));
        let Some((replica, log)) = restored.next() else { return Err(StartError::NotJoined) };
        let directory = Group::start(&shared, replica, log, pristine).await?;
        shared.groups.insert(directory.clone());
        shared.peers.start(incoming, Arc::new(Handler(Arc::downgrade(&shared))), services);
        self.tasks.spawn(follow_addresses(shared.clone()));
        self.tasks.spawn(tell_leads(shared.clone()));
        let cluster = if identity.joined && !identity.formed {
            await_membership(&shared).await?
        } else {
            form(&shared, &directory, &identity).await?
        };
        if cluster.shards != identity.shard_count {
            return Err(StartError::ShardCountDiffers { stored: cluster.shards, asked: identity.shard_count });
        }
        self.identity.incarnation = cluster.incarnation;
        self.buckets = shared.directory.borrow().buckets.clone();
        secure(&shared, &directory).await?;
        if let PeerSecurity::Mutual(mutual) = security {
            let (clock, blocking) = (shared.env.clock.clone(), shared.env.blocking.clone());
            let (dir, directory) = (config.data_dir.clone(), shared.directory.clone());
            self.tasks.spawn(keep_fresh(mutual, dir, directory, shared.node_id, clock, blocking));
        }
        // All shards at once: their first writes share fsyncs.
        let groups = restored.map(|(replica, log)| Group::start(&shared, replica, log, pristine));
        for group in try_join_all(groups).await? {
            shared.groups.insert(group);
        }
        // Before the directory hears that this node knows a newer level: from then on older programs must not open what
        // may come.
        let format = format_of(shared.feature_level);
        if !identity.formed || identity.format_version < format {
            identity.formed = true;
            identity.format_version = identity.format_version.max(format);
            if let Some(data) = self.data.lock().as_ref() {
                data.write_identity(&identity)?;
            }
        }
        let (stores, blocking) = (shared.env.stores.clone(), shared.env.blocking.clone());
        self.tasks.spawn(self.disk.clone().run(stores, blocking, config.data_dir.clone()));
        self.tasks.spawn(follow_directory(shared.clone()));
        let hints = config.join.as_ref().map(|join| join.addresses.clone()).unwrap_or_default();
        self.tasks.spawn(announce(shared.clone(), hints));
        self.tasks.spawn(knock(shared.clone()));
        self.tasks.spawn(coordinate(shared.clone()));
        self.tasks.spawn(reconcile(shared.clone()));
        self.tasks.spawn(balance(shared.clone()));
        self.tasks.spawn(build_deferred_snapshots(shared));
        Ok(())
    }
}

/// Opens the stores and restores the machines, off the async threads. A cluster's node that has lost a log is refused.
async fn restore(
    env: &Env,
    data: &Arc<DataDir>,
    identity: &NodeIdentity,
    factory: &MachineFactory,
    machine: DirectoryMachine,
    directory: &tokio::sync::watch::Receiver<Arc<Directory>>,
    fatal: &Fatal,
) -> Result<(OpenStores, Vec<Restored>), StartError> {
    let mut stores = open_stores(env, data, identity.boot_id).await?;
    let (on_thread, fatal, data, on_thread_identity) = (env.clone(), fatal.clone(), data.clone(), identity.clone());
    let (factory, directory) = (factory.clone(), directory.clone());
    let restored = env.blocking.call(move || {
        let (env, identity) = (on_thread, on_thread_identity);
        let shards = |stores: &OpenStores| {
            let here = shards_here(stores, &directory.borrow(), &identity);
            here.into_iter().map(|shard| (shard.group(), factory(shard))).collect()
        };
        let restored = stores.restore(&env, &data, identity.boot_id, Box::new(machine), shards, &fatal)?;
        Ok((stores, restored))
    });
    let panicked = || StartError::Io { what: "restoring", source: io::Error::other("a machine panicked") };
    let (stores, restored) = restored.await.ok_or_else(panicked)??;
    if identity.formed
        && let Some(lost) = restored.iter().find(|restored| restored.log.is_pristine())
    {
        return Err(StartError::LostGroup { group: lost.group });
    }
    Ok((stores, restored))
}

/// The shards whose replicas are here: a new cluster has them all, else those with a log, and those that the directory
/// says this node votes in (if one of them has no log, it was lost).
fn shards_here(stores: &OpenStores, directory: &Directory, identity: &NodeIdentity) -> BTreeSet<ShardId> {
    let all = (0..identity.shard_count).map(ShardId);
    if !identity.formed && !identity.joined {
        return all.collect();
    }
    let here = |shard: &ShardId| {
        let confirmed = directory.replicas.get(shard).is_some_and(|here| here.nodes.contains(&identity.node_id));
        confirmed || stores.found.contains_key(&shard.group())
    };
    all.filter(here).collect()
}

/// Makes the cluster's authority when there is none, and makes sure that this node talks as the others do.
async fn secure(shared: &Shared, directory: &Group) -> Result<(), StartError> {
    let refused = |why: &dyn ToString| StartError::Security(why.to_string());
    let has_authority = shared.directory.borrow().settings.contains_key(Authority::SETTING);
    let alone = shared.directory.borrow().nodes.len() <= 1;
    match (shared.is_secure, has_authority) {
        (true, true) | (false, false) => return Ok(()),
        (false, true) if alone => return Ok(()),
        (false, true) => return Err(refused(&"the nodes of this cluster use TLS; this one was told not to")),
        (true, false) if !alone => return Err(refused(&"the nodes of this cluster use no TLS; this one was told to")),
        (true, false) => {}
    }
    if !matches!(*directory.leadership.borrow(), Leadership::Leader { .. }) {
        return Err(refused(&"the cluster has no authority, and this node does not lead it"));
    }
    let authority = Authority::generate(shared.cluster_id, shared.env.clock.now_ms()).map_err(|e| refused(&e))?;
    let (name, value) = (Authority::SETTING.to_owned(), Some(Bytes::from(authority.encode())));
    let put = directory_command::Command::PutSetting(PutSetting { name, value, expected_revision: Some(0) });
    match shared.tell_directory(put, super::form::deadline()).await.map_err(|e| refused(&e))? {
        directory_reply::Reply::Done(_) | directory_reply::Reply::Mismatch(_) => Ok(()),
        directory_reply::Reply::Refused(why) => Err(StartError::Security(why)),
    }
}

/// Tells the peers whenever this node leads other groups than before.
async fn tell_leads(shared: Arc<Shared>) {
    let mut led = shared.leaders.led_changes();
    loop {
        shared.peers.notify_leads();
        if led.changed().await.is_err() {
            return;
        }
    }
}

/// Has deferred snapshots built, one after the other.
async fn build_deferred_snapshots(shared: Arc<Shared>) {
    loop {
        let due = shared.stores.permits.next_deferred().await;
        if let Some(group) = shared.groups.get(due) {
            // One that fails has stopped.
            let _ = group.raft.trigger().snapshot().await;
        }
    }
}

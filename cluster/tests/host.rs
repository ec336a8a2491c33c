//! A node from start to stop, on in-memory stores: what is acknowledged survives, what recovers is exact, and an
//! error says honestly whether a command may have been applied.

mod toy;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tonic::service::Routes;

use andante_cluster::{
    GroupId, Host, HostConfig, ProposeError, ShardId,
    host::{Leadership, MAX_COMMAND_BYTES, MachineFactory, SettingError, StartError, recover_stopped, replay_logs},
    storage::{Stores, memory::MemoryStores},
};
use bytes::Bytes;
use tokio::time::Instant;

use toy::{
    PANIC, add, add_ones, config, digests, env, factory, leads, propose, shards, soon, start, try_start, until, value,
};

const S0: ShardId = ShardId(0);

/// Many tasks of many threads share a host.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>(_: T) {}
    shared::<Host>();
    let _calls = |host: &'static Host| {
        sent(host.propose(S0, Bytes::new(), soon()));
        sent(host.put_setting("name", None, None, soon()));
        sent(host.digest(S0));
        sent(host.shutdown());
        sent(Host::start(env(MemoryStores::default()), config("".as_ref()), factory(), Routes::default()));
    };
};

#[tokio::test]
async fn a_command_is_applied_once_and_answered_with_the_machines_reply() {
    let dir = tempfile::tempdir().expect("dir");
    let host = start(MemoryStores::default(), dir.path()).await;
    let first = propose(&host, S0, add(7, 5)).await.expect("applied");
    let second = propose(&host, S0, add(7, 2)).await.expect("applied");
    assert_eq!((value(&first.reply), value(&second.reply)), (5, 7));
    assert!(second.index > first.index);
    let other = propose(&host, ShardId(1), add(7, 1)).await.expect("applied");
    assert_eq!(value(&other.reply), 1, "shards share nothing");
    host.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_graceful_restart_gives_the_same_state_and_has_nothing_to_apply_again() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    add_ones(&host, 50).await;
    let (before, identity) = (digests(&host).await, host.identity().clone());
    host.shutdown().await.expect("stops");
    let stopped: Vec<_> = shards(&host).map(|shard| host.status(shard)).collect();
    for status in &stopped {
        assert_eq!(status.durable, status.applied, "the records stand for everything applied");
        assert_eq!(status.flushed, status.last_log);
    }
    drop(host);

    let host = start(stores, dir.path()).await;
    assert_eq!(digests(&host).await, before);
    assert_eq!(host.identity().cluster_id, identity.cluster_id);
    assert_eq!(host.identity().boot_id, identity.boot_id + 1, "each start is counted");
    let again = propose(&host, S0, add(0, 1)).await.expect("applied");
    assert_eq!(value(&again.reply), 2);
}

#[tokio::test]
async fn a_crash_loses_no_acknowledged_command() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    for round in 1..=5 {
        let host = start(stores.clone(), dir.path()).await;
        add_ones(&host, 20).await;
        let before = digests(&host).await;
        // Dropping the host is a crash: the twins lose what was not synced.
        drop(host);
        let host = start(stores.clone(), dir.path()).await;
        assert_eq!(digests(&host).await, before, "round {round}");
        let sum = propose(&host, S0, add(0, 0)).await.expect("applied");
        assert_eq!(value(&sum.reply), round);
    }
}

#[tokio::test]
async fn an_independent_replay_of_the_logs_gives_what_recovery_gives() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let small = || HostConfig { snapshot_every: 40, ..config(dir.path()) };
    let host = try_start(stores.clone(), small()).await.expect("starts");
    for _ in 0..3 {
        add_ones(&host, 30).await;
    }
    drop(host);
    let replayed = replay_logs(&env(stores.clone()), dir.path(), &factory()).expect("replays");
    let recovered = recover_stopped(&env(stores.clone()), dir.path(), &factory()).expect("recovers");
    assert_eq!(recovered, replayed, "without a start too");
    let host = try_start(stores, small()).await.expect("starts");
    assert_eq!(digests(&host).await, replayed.iter().map(|shard| shard.digest).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_and_snapshots_never_get_ahead_of_the_flushed_log() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    add_ones(&host, 10).await;
    stores.log.hold_flushes();
    // Nothing of this is acknowledged while the log does not flush; neither may anything of it be seen on disk.
    let waiting = host.propose(S0, add(1, 1), Instant::now() + Duration::from_millis(50));
    assert!(matches!(waiting.await, Err(ProposeError::Unknown(_))), "queued, hence unknown");
    host.trigger_snapshot(S0).await.expect("triggered");
    until("the records of everything flushed are durable", || {
        let status = host.status(S0);
        assert!(status.durable <= status.flushed, "{status:?}");
        assert!(status.snapshot <= status.flushed, "{status:?}");
        status.durable == status.flushed
    })
    .await;
    let status = host.status(S0);
    assert!(status.last_log > status.flushed, "the entry is in the log, not flushed");
    stores.log.release_flushes();
    until("the entry is applied after all", || host.status(S0).applied == host.status(S0).last_log).await;
}

#[tokio::test]
async fn a_snapshot_lets_the_log_be_purged_and_the_next_start_goes_on_behind_it() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let small = || HostConfig { snapshot_every: 20, shards: Some(1), ..HostConfig::new(dir.path()) };
    let host = try_start(stores.clone(), small()).await.expect("starts");
    for _ in 0..10 {
        add_ones(&host, 10).await;
    }
    until("the log is purged", || host.status(S0).purged > Some(50)).await;
    let status = host.status(S0);
    assert!(status.purged <= status.snapshot && status.snapshot <= status.durable, "{status:?}");
    let before = digests(&host).await;
    drop(host);
    let host = try_start(stores, small()).await.expect("starts");
    assert_eq!(digests(&host).await, before);
}

#[tokio::test]
async fn damaged_records_are_rebuilt_from_snapshot_and_log() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let small = || HostConfig { snapshot_every: 20, ..config(dir.path()) };
    let host = try_start(stores.clone(), small()).await.expect("starts");
    for _ in 0..10 {
        add_ones(&host, 10).await;
    }
    until("the log is purged", || host.status(S0).purged.is_some()).await;
    let before = digests(&host).await;
    host.shutdown().await.expect("stops");
    drop(host);
    stores.state.damage(S0.group());
    let made = Arc::new(AtomicU32::new(0));
    let counted: MachineFactory = {
        let made = made.clone();
        Arc::new(move |shard| {
            made.fetch_add(1, Ordering::Relaxed);
            factory()(shard)
        })
    };
    let host = Host::start(env(stores.clone()), small(), counted, Routes::default()).await.expect("rebuilds");
    toy::all_lead(&host).await;
    assert_eq!(made.load(Ordering::Relaxed), 4, "one machine for each shard: its maker may keep a hold of it");
    assert_eq!(digests(&host).await, before);
    add_ones(&host, 10).await;
    let before = digests(&host).await;
    host.shutdown().await.expect("stops");
    drop(host);
    let host = try_start(stores, small()).await.expect("starts");
    assert_eq!(digests(&host).await, before, "what was rebuilt is durable again");
}

#[tokio::test]
async fn damaged_records_of_a_purged_log_without_its_snapshot_refuse_the_start() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let small = || HostConfig { snapshot_every: 20, ..config(dir.path()) };
    let host = try_start(stores.clone(), small()).await.expect("starts");
    for _ in 0..10 {
        add_ones(&host, 10).await;
    }
    until("the log is purged", || host.status(S0).purged.is_some()).await;
    host.shutdown().await.expect("stops");
    drop(host);
    stores.state.damage(S0.group());
    let snapshots = env(stores.clone()).stores.open_snapshots(dir.path(), &*env(stores.clone()).blocking);
    snapshots.expect("opens").remove_group(S0.group()).expect("removed");
    let refused = try_start(stores, small()).await.err().expect("a hole is an error");
    assert!(matches!(&refused, StartError::Gap { group, .. } if *group == S0.group()), "{refused}");
}

#[tokio::test]
async fn a_group_that_has_lost_its_log_refuses_the_start() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    start(stores.clone(), dir.path()).await.shutdown().await.expect("stops");
    let (tx, removed) = tokio::sync::oneshot::channel();
    let log = stores.open_log(dir.path(), &*env(stores.clone()).blocking).expect("opens");
    log.remove_group(GroupId(2), Box::new(move |done| drop(tx.send(done))));
    removed.await.expect("answers").expect("removed");
    let refused =
        Host::start(env(stores), config(dir.path()), factory(), Routes::default()).await.err().expect("refused");
    assert!(matches!(refused, StartError::LostGroup { group: GroupId(2) } | StartError::Gap { .. }), "{refused}");
}

#[tokio::test]
async fn a_second_node_on_the_same_directory_is_refused_until_the_first_is_gone() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    let refused =
        Host::start(env(MemoryStores::default()), config(dir.path()), factory(), Routes::default()).await.err();
    assert!(matches!(refused, Some(StartError::Locked { .. })), "{refused:?}");
    drop(host);
    start(stores, dir.path()).await;
}

#[tokio::test]
async fn the_number_of_shards_is_chosen_once() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let with = |shards| HostConfig { shards, ..HostConfig::new(dir.path()) };
    for asked in [0, 257] {
        let refused = try_start(stores.clone(), with(Some(asked))).await.err();
        assert!(matches!(refused, Some(StartError::BadShardCount { .. })), "{refused:?}");
    }
    drop(try_start(stores.clone(), with(Some(3))).await.expect("starts"));
    let refused = try_start(stores.clone(), with(Some(5))).await.err();
    assert!(matches!(refused, Some(StartError::ShardCountDiffers { stored: 3, asked: 5 })), "{refused:?}");
    for asked in [None, Some(3)] {
        let host = try_start(stores.clone(), with(asked)).await.expect("starts");
        assert_eq!(host.identity().shards, 3);
        let directory = host.directory().borrow().clone();
        for hash in 0..5_000 {
            assert_eq!(Some(host.shard_of(hash)), directory.shard_of(hash));
        }
    }
}

#[tokio::test]
async fn a_proposal_error_says_whether_the_command_may_have_been_applied() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    propose(&host, S0, add(1, 1)).await.expect("applied");

    // Surely not applied.
    let late = host.propose(S0, add(1, 1), Instant::now()).await;
    assert!(matches!(late, Err(ProposeError::Unavailable(_))), "{late:?}");
    let nowhere = propose(&host, ShardId(99), add(1, 1)).await;
    assert!(matches!(nowhere, Err(ProposeError::Unavailable(_))), "{nowhere:?}");
    let large = propose(&host, S0, Bytes::from(vec![0; MAX_COMMAND_BYTES + 1])).await;
    assert!(matches!(large, Err(ProposeError::TooLarge { .. })), "{large:?}");
    let refused = propose(&host, S0, Bytes::from_static(b"?")).await.expect("applied: the machine itself refuses it");
    assert_eq!(refused.reply, Bytes::from_static(b"refused"));
    assert_eq!(value(&propose(&host, S0, add(1, 0)).await.expect("applied").reply), 1);

    // Unknown: the log did not flush before the deadline, and then it does.
    stores.log.hold_flushes();
    let held = host.propose(S0, add(1, 1), Instant::now() + Duration::from_millis(20)).await;
    assert!(matches!(held, Err(ProposeError::Unknown(_))), "{held:?}");
    stores.log.release_flushes();
    assert_eq!(value(&propose(&host, S0, add(1, 0)).await.expect("applied").reply), 2, "this one was applied");

    host.shutdown().await.expect("stops");
    assert_eq!(propose(&host, S0, add(1, 1)).await, Err(ProposeError::Stopping));
}

#[tokio::test]
async fn what_is_in_flight_is_bounded_and_the_bound_is_free_again_when_the_disk_is() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    stores.log.hold_flushes();
    let deadline = Instant::now() + Duration::from_secs(2);
    let flood = (0..andante_cluster::host::MAX_IN_FLIGHT + 10).map(|_| host.propose(S0, add(1, 1), deadline));
    let outcomes = futures::future::join_all(flood).await;
    let count = |wanted: fn(&ProposeError) -> bool| {
        outcomes.iter().filter(|outcome| outcome.as_ref().is_err_and(wanted)).count()
    };
    assert_eq!(count(|e| matches!(e, ProposeError::Overloaded)), 10);
    // Their callers have gone, but they are still in flight: the bound is about memory, not about callers.
    assert_eq!(propose(&host, S0, add(1, 1)).await, Err(ProposeError::Overloaded));
    stores.log.release_flushes();
    until("everything in flight is applied", || host.status(S0).applied == host.status(S0).last_log).await;
    let reply = propose(&host, S0, add(1, 0)).await.expect("applied").reply;
    assert_eq!(value(&reply), andante_cluster::host::MAX_IN_FLIGHT as u64);
}

#[tokio::test]
async fn a_failed_sync_stops_the_node_and_acknowledges_nothing() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    propose(&host, S0, add(1, 1)).await.expect("applied");
    stores.log.fail_next_sync();
    let lost = propose(&host, S0, add(1, 1)).await;
    assert!(matches!(lost, Err(ProposeError::Unknown(_))), "{lost:?}");
    let mut fatal = host.fatal();
    let why = fatal.wait_for(Option::is_some).await.expect("runs").clone();
    assert!(why.is_some_and(|why| why.contains("not durable")));
    assert_eq!(propose(&host, ShardId(1), add(1, 1)).await, Err(ProposeError::Stopping));
    assert!(host.shutdown().await.is_err(), "nothing is reported as saved");
    drop(host);
    let host = start(stores, dir.path()).await;
    assert_eq!(value(&propose(&host, S0, add(1, 0)).await.expect("applied").reply), 1);
}

#[tokio::test]
async fn a_machine_that_panics_stops_the_node() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores, dir.path()).await;
    let outcome = propose(&host, S0, Bytes::from_static(PANIC)).await;
    assert!(matches!(outcome, Err(ProposeError::Unknown(_))), "{outcome:?}");
    let why = host.fatal().wait_for(Option::is_some).await.expect("runs").clone();
    assert!(why.is_some_and(|why| why.contains("invariant is broken")));
    assert_eq!(propose(&host, ShardId(1), add(1, 1)).await, Err(ProposeError::Stopping));
}

#[tokio::test]
async fn settings_are_kept_and_watched_and_written_only_at_the_expected_revision() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    let mut watch = host.directory();
    watch.borrow_and_update();
    let put =
        |value: &'static [u8], expected| host.put_setting("keys", Some(Bytes::from_static(value)), expected, soon());
    let first = put(b"a", Some(0)).await.expect("written");
    watch.changed().await.expect("runs");
    assert_eq!(watch.borrow().settings["keys"].value, Bytes::from_static(b"a"));
    assert_eq!(put(b"b", Some(0)).await, Err(SettingError::Mismatch { revision: first }));
    let second = put(b"b", Some(first)).await.expect("written");
    let nameless = host.put_setting("", None, None, soon()).await;
    assert!(matches!(nameless, Err(SettingError::Refused(_))), "{nameless:?}");
    drop(host);
    let host = start(stores, dir.path()).await;
    let setting = host.directory().borrow().settings["keys"].clone();
    assert_eq!((setting.value, setting.revision), (Bytes::from_static(b"b"), second));
}

#[tokio::test]
async fn a_term_is_announced_only_when_everything_before_it_is_applied() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = start(stores.clone(), dir.path()).await;
    for _ in 0..20 {
        add_ones(&host, 10).await;
    }
    let terms: Vec<_> = shards(&host).map(|shard| *host.leadership(shard).borrow()).collect();
    drop(host);
    let host = Host::start(env(stores), config(dir.path()), factory(), Routes::default()).await.expect("starts");
    for (shard, before) in shards(&host).zip(terms) {
        leads(&host, shard).await;
        let (Leadership::Leader { term: old }, Leadership::Leader { term: new }) =
            (before, *host.leadership(shard).borrow())
        else {
            panic!("leads")
        };
        assert!(new > old);
        let (applied, _) = host.digest(shard).await.expect("runs");
        assert_eq!(applied, host.status(shard).last_log, "nothing acknowledged is left to apply");
    }
}

#[tokio::test]
async fn a_nearly_full_disk_is_reported() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    stores.set_free_bytes(1);
    let host = start(stores.clone(), dir.path()).await;
    until("the disk is low", || host.disk_low()).await;
    propose(&host, S0, add(1, 1)).await.expect("what frees space must still be possible");
}

#[tokio::test]
async fn shards_that_fill_up_together_all_get_their_snapshots() {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let host = try_start(stores, HostConfig { snapshot_every: 30, ..config(dir.path()) }).await.expect("starts");
    add_ones(&host, 40).await;
    // Nothing more is proposed: those that had to wait get their turn all the same.
    until("all have a snapshot", || shards(&host).all(|shard| host.status(shard).snapshot.is_some())).await;
}

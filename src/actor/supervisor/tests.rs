//! A shard whose log is real and whose leadership is played.

use std::{collections::BTreeSet, time::Duration};

use andante_cluster::{
    Machine, ShardId,
    env::{Clock, Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    host::HostConfig,
    storage::memory::MemoryStores,
};
use prost::Message;
use tokio::time::Instant;
use tonic::service::Routes;

use super::*;
use crate::{
    actor::{Ask, BookMachine, Cell, Taken, cell::TakeRefused},
    campaign::{
        proto::{Command, Create, Grant, Holder, Kind, Reply, Spec, command},
        token::campaign_key,
    },
    router::Catalog,
    settings::{ClusterSettings, VersionedSettings},
};

const SHARD: ShardId = ShardId(0);
const HOUR_MS: u64 = 3_600_000;
const PRICE_MICROS: u64 = 1_000;
/// A node that led before.
const OTHER: Holder = Holder { node_id: 9, boot_id: 1, cell_epoch: 1 };
const LEADER: fn(u64) -> Leadership = |term| Leadership::Leader { term };
const ANOTHER: Leadership = Leadership::Follower { leader: Some(9) };
const NOBODY: Leadership = Leadership::Follower { leader: None };

struct Stage {
    host: Arc<Host>,
    shard: Arc<Shard>,
    clock: Arc<NodeClock>,
    metrics: Arc<Metrics>,
    leadership: watch::Sender<Leadership>,
    supervisor: ActorRef<ShardMessage>,
    _dir: tempfile::TempDir,
}

impl Stage {
    async fn start() -> Self {
        Self::start_with(SettingsInForce::fixed(ClusterSettings::default())).await
    }

    async fn start_with(cluster_settings: SettingsInForce) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let env = Env {
            clock: clock.clone(),
            network: Arc::new(TcpNetwork),
            rng: Arc::new(SystemRng),
            blocking: Arc::new(OsThreads),
            stores: Arc::new(MemoryStores::default()),
        };
        let shard = Shard::new(SHARD, 100, Arc::new(Catalog::default()));
        let machine = shard.clone();
        let factory = Arc::new(move |_| Box::new(BookMachine::new(machine.clone(), None)) as Box<dyn Machine>);
        let config = HostConfig { shards: Some(1), ..HostConfig::new(dir.path()) };
        let host = Arc::new(Host::start(env, config, factory, Routes::default()).await.expect("starts"));
        let leads = |now: &Leadership| matches!(now, Leadership::Leader { .. });
        host.leadership(SHARD).wait_for(leads).await.expect("leads");
        let clock = Arc::new(NodeClock::new(clock, cluster_settings.clone()));
        let metrics = Arc::new(Metrics::new());
        let (leadership, news) = watch::channel(NOBODY);
        let args = ShardArgs {
            shard: shard.clone(),
            host: host.clone(),
            leadership: news,
            clock: clock.clone(),
            settings: Arc::new(Settings { max_restarts: 1, ..Settings::default() }),
            cluster_settings,
            metrics: metrics.clone(),
        };
        let (supervisor, _) = Actor::spawn(None, ShardSupervisor, args).await.expect("starts");
        Self { host, shard, clock, metrics, leadership, supervisor, _dir: dir }
    }

    async fn apply(&self, kind: command::Kind) -> Reply {
        let command = Command { kind: Some(kind) }.encode_to_vec();
        let deadline = Instant::now() + Duration::from_secs(10);
        let applied = self.host.propose(SHARD, command.into(), deadline).await.expect("is applied");
        Reply::decode(applied.reply).expect("decodes")
    }

    /// A campaign; `active`: another node has handed out its tokens until now.
    async fn campaign(&self, name: &str, active: bool) -> u64 {
        let now_ms = self.clock.now_ms();
        let spec = Spec {
            name: name.into(),
            owner: "label".into(),
            tracks: vec!["track".into()],
            start_ms: now_ms - HOUR_MS,
            end_ms: now_ms + HOUR_MS,
            budget_micros: 1_000_000 * PRICE_MICROS,
            price_micros: PRICE_MICROS,
            billable: Kind::Stream.into(),
            min_stream_ms: 30_000,
            hold_ms: 10_000,
            boost_cap: 1.0,
            expected_billable_share: 0.5,
            ..Default::default()
        };
        let reply =
            self.apply(command::Kind::Create(Create { request_id: "r".into(), spec: Some(spec), now_ms })).await;
        let incarnation = reply.campaign.expect("was created").incarnation;
        let key = campaign_key(name);
        if active {
            let grants = vec![Grant {
                campaign: key,
                incarnation,
                number: 1,
                n: 10,
                holder: Some(OTHER),
                issue_until_ms: now_ms + 5_000,
            }];
            self.apply(command::Kind::Tick(crate::campaign::proto::Tick { now_ms, grants, ..Default::default() }))
                .await;
        }
        key
    }

    fn cell(&self, key: u64) -> Arc<Cell> {
        self.shard.cell(key).expect("it is there")
    }

    fn take(&self, key: u64) -> Result<Taken, TakeRefused> {
        let (now_ms, monotonic_ms) = (self.clock.now_ms(), self.clock.monotonic_ms());
        self.cell(key).take(&Ask { now_ms, monotonic_ms, listener: 1, surface: 0, market: *b"DE", placing: true })
    }

    fn open_micros(&self, key: u64) -> u64 {
        self.shard.book().campaign(key).expect("it is there").ledger.open_micros()
    }

    fn tick(&self) {
        self.supervisor.send_message(ShardMessage::Tick).expect("it runs");
    }

    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let waited = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waited).await.expect(what);
    }

    async fn lead(&self, term: u64) {
        self.leadership.send_replace(LEADER(term));
        self.until("it leads", || self.shard.role() == Role::Leading).await;
    }
}

#[tokio::test]
async fn a_new_leader_hands_out_for_active_campaigns_before_their_actors_are_there() {
    let stage = Stage::start().await;
    let active = [stage.campaign("a1", true).await, stage.campaign("a2", true).await];
    let dormant = stage.campaign("d1", false).await;
    assert_eq!(stage.take(active[0]), Err(TakeRefused::NotServing), "a follower hands out nothing");

    stage.lead(1).await;
    stage.until("cells hand out", || active.iter().all(|key| stage.cell(*key).block().is_some())).await;
    let first = stage.take(active[0]).expect("hands out");
    assert_eq!(stage.metrics.actors_alive.get(), 0);

    stage.tick();
    stage.until("actors follow", || stage.metrics.actors_alive.get() == 2).await;
    let second = stage.take(active[0]).expect("hands out");
    assert_eq!((second.number, second.sequence), (first.number, first.sequence + 1), "the actor goes on");
    assert_eq!(stage.take(dormant), Err(TakeRefused::NotServing), "nobody asked for it");
}

#[tokio::test]
async fn a_leader_closes_by_the_clusters_settings_of_the_moment_and_only_if_they_are_known_for_certain() {
    let versioned = |revision, skew_margin_ms, close_grace_ms| VersionedSettings {
        settings: ClusterSettings { skew_margin_ms, close_grace_ms, ..ClusterSettings::default() },
        revision,
    };
    let in_force = SettingsInForce::new(versioned(1, 100, 0));
    let stage = Stage::start_with(in_force.clone()).await;
    let key = stage.campaign("c1", false).await;
    let incarnation = stage.shard.book().campaign(key).expect("it is there").incarnation;
    // Its last token has expired 25 s ago.
    let now_ms = stage.clock.now_ms() - 40_000;
    let (holder, issue_until_ms) = (Some(OTHER), now_ms + 5_000);
    let grants = vec![Grant { campaign: key, incarnation, number: 1, n: 10, holder, issue_until_ms }];
    stage.apply(command::Kind::Tick(crate::campaign::proto::Tick { now_ms, grants, ..Default::default() })).await;
    assert_eq!(stage.open_micros(key), 10 * PRICE_MICROS);
    stage.lead(1).await;

    let closes_nothing = async |why: &str| {
        stage.shard.mark_due_dirty();
        for _ in 0..20 {
            stage.tick();
        }
        assert!(stage.supervisor.call(|reply| ShardMessage::Crash(0, reply), None).await.is_ok(), "ticks were handled");
        // A closing would stand in the log before this.
        stage.apply(command::Kind::Tick(crate::campaign::proto::Tick::default())).await;
        assert!(stage.shard.book().campaign(key).expect("it is there").open.contains_key(&1), "{why}");
    };
    closes_nothing("there may be newer settings").await;
    in_force.advance(versioned(2, 60_000, 0));
    in_force.confirm();
    closes_nothing("a longer margin").await;
    in_force.advance(versioned(3, 100, 600_000));
    closes_nothing("a longer grace").await;
    in_force.advance(versioned(4, 100, 0));
    stage.shard.mark_due_dirty();
    stage.tick();
    stage.until("it closes", || stage.metrics.allowances_closed.get() == 1).await;
}

#[tokio::test]
async fn a_supervisor_that_ends_seals_the_cells_it_stood_behind() {
    let stage = Stage::start().await;
    let key = stage.campaign("a1", true).await;
    stage.lead(1).await;
    stage.until("it hands out", || stage.take(key).is_ok()).await;
    stage.supervisor.kill();
    stage.until("it hands out nothing", || stage.take(key).is_err()).await;
    assert_eq!(stage.cell(key).drain_leftovers().len(), 1, "for its successor to give back");
}

#[tokio::test]
async fn a_deposed_leader_gives_back_at_once_what_it_did_not_hand_out() {
    let stage = Stage::start().await;
    let (with_actor, without) = (stage.campaign("a1", true).await, stage.campaign("a2", true).await);
    let others = stage.open_micros(with_actor);
    stage.lead(1).await;
    stage.tick();
    stage.until("actors follow", || stage.metrics.actors_alive.get() == 2).await;
    // One more that was granted an allowance in the next term, and has no actor yet.
    assert!(stage.cell(without).block().is_some());
    for key in [with_actor, without] {
        stage.take(key).expect("hands out");
        assert!(stage.open_micros(key) > others + PRICE_MICROS);
    }

    stage.leadership.send_replace(ANOTHER);
    stage.until("actors end", || stage.metrics.actors_alive.get() == 0).await;
    for key in [with_actor, without] {
        let left = others + PRICE_MICROS;
        stage.until("only what was handed out is set aside", || stage.open_micros(key) == left).await;
        assert_eq!(stage.take(key), Err(TakeRefused::NotServing));
    }
    assert!(!stage.shard.scores());
}

#[tokio::test]
async fn a_leader_without_a_quorum_hands_out_what_it_has_and_proposes_nothing() {
    let stage = Stage::start().await;
    let key = stage.campaign("a1", true).await;
    stage.lead(1).await;
    stage.tick();
    stage.until("an actor follows", || stage.metrics.actors_alive.get() == 1).await;

    stage.leadership.send_replace(NOBODY);
    stage.until("it is cut off", || stage.shard.role() == Role::CutOff).await;
    assert!(stage.shard.scores());
    let applied = stage.host.status(SHARD).applied;
    let before = stage.take(key).expect("hands out");
    for _ in 0..20 {
        stage.tick();
    }
    assert!(stage.supervisor.call(|reply| ShardMessage::Crash(0, reply), None).await.is_ok(), "ticks were handled");
    assert_eq!(stage.host.status(SHARD).applied, applied);

    for term in [1, 2] {
        stage.lead(term).await;
        stage.leadership.send_replace(NOBODY);
        stage.until("it is cut off", || stage.shard.role() == Role::CutOff).await;
    }
    stage.lead(2).await;
    let after = stage.take(key).expect("hands out");
    assert_eq!((after.number, after.sequence), (before.number, before.sequence + 1), "its allowance is still its own");
}

#[tokio::test]
async fn leading_again_and_again_leaves_nothing_behind_and_repeats_no_token() {
    let stage = Stage::start().await;
    let keys = [stage.campaign("a1", true).await, stage.campaign("a2", true).await];
    let others = stage.open_micros(keys[0]);
    let mut taken = BTreeSet::new();
    for term in 1..60 {
        stage.leadership.send_replace(LEADER(term));
        if term % 3 > 0 {
            stage.until("it hands out", || stage.cell(keys[0]).block().is_some()).await;
        }
        for key in keys {
            if let Ok(token) = stage.take(key) {
                assert!(taken.insert((key, token.number, token.sequence)), "a token was handed out twice");
            }
        }
        if term % 2 > 0 {
            stage.tick();
        }
        stage.leadership.send_replace(if term % 5 == 0 { NOBODY } else { ANOTHER });
        if term % 7 > 0 {
            tokio::task::yield_now().await;
        }
    }
    stage.leadership.send_replace(ANOTHER);
    stage.until("it follows", || stage.shard.role() == Role::Following).await;
    stage.until("actors end", || stage.metrics.actors_alive.get() == 0).await;
    for key in keys {
        let handed_out = taken.iter().filter(|(campaign, ..)| *campaign == key).count() as u64;
        let left = others + handed_out * PRICE_MICROS;
        stage.until("only what was handed out is set aside", || stage.open_micros(key) == left).await;
    }
    assert!(taken.len() > 20, "{}", taken.len());
}

#[tokio::test]
async fn a_drained_follower_has_nothing_to_give_back() {
    let stage = Stage::start().await;
    let key = stage.campaign("a1", true).await;
    stage.lead(1).await;
    stage.until("it hands out", || stage.take(key).is_ok()).await;
    stage.leadership.send_replace(ANOTHER);
    stage.supervisor.call(ShardMessage::Drain, None).await.expect("drains");
    stage.leadership.send_replace(LEADER(2));
    stage.until("it leads, and starts nothing any more", || stage.shard.role() == Role::Leading).await;
    assert!(stage.cell(key).block().is_none());
}

#[tokio::test]
async fn a_takeover_grants_nothing_to_a_campaign_in_quarantine() {
    let stage = Stage::start().await;
    let (good, bad) = (stage.campaign("a1", true).await, stage.campaign("a2", true).await);
    stage.lead(1).await;
    stage.until("it hands out", || stage.take(bad).is_ok()).await;
    stage.tick();
    stage.until("actors follow", || stage.metrics.actors_alive.get() == 2).await;
    stage.supervisor.call(|reply| ShardMessage::Crash(bad, reply), None).await.expect("crashes");
    stage.until("it is quarantined", || stage.metrics.actors_quarantined.get() == 1).await;
    // No quorum for a while, then a term of its own: what it knows of its actors stays.
    stage.leadership.send_replace(NOBODY);
    stage.lead(2).await;
    stage.tick();
    stage.take(good).expect("hands out");
    assert_eq!(stage.take(bad), Err(TakeRefused::NotServing));
    assert_eq!(stage.cell(bad).life(), crate::actor::Life::Quarantined);

    stage.leadership.send_replace(ANOTHER);
    stage.until("nothing is held against it any more", || stage.metrics.actors_quarantined.get() == 0).await;
    stage.lead(3).await;
    stage.until("it is tried again", || stage.take(bad).is_ok()).await;
}

#[tokio::test]
async fn an_allowance_that_comes_when_its_actor_has_ended_is_given_back() {
    let stage = Stage::start().await;
    let key = stage.campaign("a1", false).await;
    for round in 0..30 {
        stage.lead(round + 1).await;
        let (now_ms, monotonic_ms) = (stage.clock.now_ms(), stage.clock.monotonic_ms());
        let ask = Ask { now_ms, monotonic_ms, listener: 1, surface: 0, market: *b"DE", placing: true };
        stage.cell(key).offer(&ask, crate::actor::track_key("track"), 1.0);
        stage.tick();
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        stage.leadership.send_replace(ANOTHER);
        stage.until("it follows", || stage.shard.role() == Role::Following).await;
    }
    stage.until("nothing is set aside", || stage.metrics.actors_alive.get() == 0 && stage.open_micros(key) == 0).await;
    assert!(stage.shard.book().campaign(key).expect("it is there").next_allowance > 1, "some were granted");
}

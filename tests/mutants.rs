//! The seeded bugs of the book are bugs: each lets one machine do what no machine may. (Those of logs, actors and
//! routers need a whole cluster.)

#![cfg(andante_mutants)]

use std::sync::Arc;

use andante::{
    actor::{BookMachine, Cell, CellObserver, Shard},
    campaign::{
        proto::{self, Holder, Kind, OutcomeStatus, Reply, State, command::Kind as Command},
        token::campaign_key,
    },
};
use andante_cluster::{Machine, ShardId, mutants};
use prost::Message;

struct Nobody;

impl CellObserver for Nobody {
    fn published(&self, _: &Arc<Cell>) {}
    fn removed(&self, _: &Arc<Cell>) {}
    fn applied(&self, _: ShardId, _: u64) {}
    fn restored(&self, _: ShardId, _: bool) {}
}

/// A machine, with what it has applied so far.
struct Stage {
    shard: Arc<Shard>,
    machine: BookMachine,
    index: u64,
}

impl Stage {
    fn new() -> Self {
        let shard = Shard::new(ShardId(0), 100, Arc::new(Nobody));
        Self { machine: BookMachine::new(shard.clone()), shard, index: 0 }
    }

    /// With a campaign that has an open allowance of four tokens.
    fn granted() -> Self {
        let mut stage = Self::new();
        stage.create(10_000);
        stage.grant(1, 4);
        stage
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.index += 1;
        let command = proto::Command { kind: Some(command) }.encode_to_vec().into();
        Reply::decode(self.machine.apply(self.index, &command)).unwrap()
    }

    fn create(&mut self, budget_micros: u64) -> Reply {
        let create = proto::Create { request_id: "create".into(), spec: Some(spec(budget_micros)), now_ms: 0 };
        self.apply(Command::Create(create))
    }

    fn grant(&mut self, incarnation: u32, n: u32) -> Reply {
        let (number, issue_until_ms) = {
            let book = self.shard.book();
            (book.campaign(campaign_key("c")).unwrap().next_allowance, book.shard_time_ms() + 5_000)
        };
        let (campaign, holder) = (campaign_key("c"), Some(Holder { node_id: 1, boot_id: 1, cell_epoch: 1 }));
        let grant = proto::Grant { campaign, incarnation, number, n, holder, issue_until_ms };
        self.apply(Command::Tick(proto::Tick { grants: vec![grant], ..Default::default() }))
    }

    fn report(&mut self, sequence: u32, kind: Kind) -> OutcomeStatus {
        let outcome = proto::Outcome {
            campaign: campaign_key("c"),
            incarnation: 1,
            number: 1,
            sequence,
            kind: kind.into(),
            stream_ms: 60_000,
        };
        self.apply(Command::Settle(proto::Settle { outcomes: vec![outcome] })).outcomes().next().unwrap()
    }

    fn close(&mut self, now_ms: u64) {
        let close = proto::CloseExpired { now_ms, skew_margin_ms: 1_000, retry_window_ms: 0, purge_after_ms: 1 << 40 };
        self.apply(Command::CloseExpired(close));
    }

    fn delete(&mut self) {
        let set = proto::SetState { name: "c".into(), state: State::Deleting.into(), ..Default::default() };
        self.apply(Command::SetState(set));
        self.close(1_000_000);
        assert!(self.shard.book().is_empty());
    }

    /// Takes over another one's snapshot.
    fn install(&mut self, from: &Self) {
        self.machine.restore(&mut from.machine.snapshot()).unwrap();
    }

    fn overspent(&self) -> bool {
        let book = self.shard.book();
        let ledger = &book.campaign(campaign_key("c")).unwrap().ledger;
        ledger.settled_micros() + ledger.open_micros() > ledger.budget_micros()
    }
}

fn spec(budget_micros: u64) -> proto::Spec {
    proto::Spec {
        name: "c".into(),
        owner: "label".into(),
        tracks: vec!["track".into()],
        end_ms: 1 << 40,
        budget_micros,
        price_micros: 1_000,
        billable: Kind::Stream.into(),
        min_stream_ms: 30_000,
        hold_ms: 10_000,
        boost_cap: 1.0,
        expected_billable_share: 1.0,
        ..Default::default()
    }
}

/// Something that must never be, as it comes about.
type Wrong = fn() -> bool;

const WRONGS: &[(&str, Wrong)] = &[
    ("GrantNotReserved", || {
        let mut stage = Stage::granted();
        stage.grant(1, 10);
        stage.overspent()
    }),
    ("BudgetCutAccepted", || {
        let mut stage = Stage::granted();
        stage.apply(Command::Update(proto::Update { spec: Some(spec(2_000)), ..Default::default() }));
        stage.overspent()
    }),
    ("CloseIgnoresHold", || {
        let mut stage = Stage::granted();
        stage.close(5_000);
        stage.report(0, Kind::Stream) != OutcomeStatus::Billed
    }),
    ("ReleasedSettles", || {
        let mut stage = Stage::granted();
        stage.report(0, Kind::NotUsed);
        stage.report(0, Kind::Stream) != OutcomeStatus::Released
    }),
    ("DedupSkippedAfterRestore", || {
        let (mut stage, mut other) = (Stage::granted(), Stage::new());
        stage.report(0, Kind::Stream);
        other.install(&stage);
        other.report(0, Kind::Stream) == OutcomeStatus::Billed
    }),
    ("BitmapNotInSnapshot", || {
        let (mut stage, mut other) = (Stage::granted(), Stage::new());
        stage.report(2, Kind::Stream);
        other.install(&stage);
        other.report(2, Kind::Stream) == OutcomeStatus::Billed && stage.machine.digest() != other.machine.digest()
    }),
    ("SnapshotMerged", || {
        let (mut stage, mut other) = (Stage::granted(), Stage::new());
        other.install(&stage);
        stage.delete();
        other.install(&stage);
        stage.machine.digest() != other.machine.digest()
    }),
    ("IncarnationIgnored", || {
        let mut stage = Stage::granted();
        stage.delete();
        stage.create(10_000);
        stage.grant(2, 4);
        stage.report(0, Kind::Stream) == OutcomeStatus::Billed
    }),
    ("RequestForgotten", || {
        let mut stage = Stage::granted();
        !stage.create(10_000).repeated
    }),
];

#[test]
fn each_bug_of_the_book_shows_once_it_is_chosen_and_only_then() {
    for (id, wrong) in WRONGS {
        assert!(!wrong(), "without {id}");
    }
    for (id, wrong) in WRONGS {
        mutants::choose(id).unwrap();
        assert!(wrong(), "{id}");
        assert!(mutants::hits() > 0, "{id}");
    }
}

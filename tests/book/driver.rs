//! Drives book and model by the same commands and compares all there is to see after each.

use std::collections::BTreeMap;

use andante::campaign::{
    book::{Book, CampaignState, Effect},
    proto::{Command, Deletion, GrantStatus, OutcomeStatus, Reply},
    token::campaign_key,
};
use andante_cluster::Record;

use crate::{
    history::History,
    model::{Answer, Campaign, Model},
};

/// A book under test.
pub(crate) struct Driver {
    pub(crate) book: Book,
    pub(crate) model: Model,
    history: History,
    /// What a state store would hold, fed by changes alone.
    store: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Driver {
    pub(crate) fn new() -> Self {
        Self { book: Book::new(), model: Model::default(), history: History::default(), store: BTreeMap::new() }
    }

    pub(crate) fn apply(&mut self, command: &Command) -> Reply {
        let before = open_and_settled(&self.book);
        let reply = self.book.apply(command);
        let answer = self.model.apply(command);
        assert_eq!(answered(&reply), answer);
        self.book.check().unwrap();
        self.compare();
        self.effects_explain(&before);
        self.history.record(command, &reply, &self.book);
        reply
    }

    /// Book and model see the same campaigns, money and allowances; invariant 1 holds in the model's own sums.
    fn compare(&self) {
        let (book, model) = (&self.book, &self.model);
        assert_eq!(u128::from(book.shard_time_ms()), model.time);
        let names: Vec<&String> = book.campaigns().map(|state| &state.spec.name).collect();
        assert_eq!(names, model.campaigns.keys().collect::<Vec<_>>());
        for (name, expected) in &model.campaigns {
            let state = book.campaign_by_name(name).unwrap();
            assert!(std::ptr::eq(state, book.campaign(state.key).unwrap()));
            let (settled, open) = (expected.settled_micros(), expected.open_micros());
            assert!(settled + open <= expected.spec.budget_micros.into(), "overspend");
            assert_eq!(u128::from(state.ledger.settled_micros()), settled);
            assert_eq!(u128::from(state.ledger.open_micros()), open);
            compare_campaign(state, expected);
        }
        let told = |d: &Deletion| {
            let requests: Vec<_> = d.requests.iter().map(|r| (r.id.clone(), r.operation())).collect();
            (d.campaign, d.incarnation, requests, u128::from(d.at_ms))
        };
        let mut gone: Vec<_> =
            model.gone.iter().map(|g| (campaign_key(&g.name), g.incarnation, g.requests.clone(), g.at)).collect();
        gone.sort_by_key(|(key, incarnation, ..)| (*key, *incarnation));
        assert_eq!(book.deletions().map(told).collect::<Vec<_>>(), gone);
        let due = |c: &Campaign| c.open().iter().map(|n| c.blocks[n].issue_until + c.blocks[n].hold).min();
        let due = model.campaigns.values().filter_map(due).min();
        assert_eq!(book.next_close_due_ms(5_000).map(u128::from), due.map(|due| due + 5_000));
    }

    /// The effects tell actors everything that changed.
    fn effects_explain(&self, before: &BTreeMap<(u64, u32), Money>) {
        let mut expected = before.clone();
        let effects = self.book.last_effects();
        for delta in &effects.outcomes {
            let money = expected.get_mut(&(delta.key, delta.incarnation)).unwrap();
            money.settled += delta.settled_micros;
            money.open -= delta.settled_micros + delta.released_micros;
        }
        for effect in &effects.events {
            match effect {
                Effect::Granted { key, incarnation, number } => {
                    let money = expected.get_mut(&(*key, *incarnation)).unwrap();
                    let state = self.book.campaign(*key).unwrap();
                    let allowance = state.open.get(number).unwrap();
                    money.open += u64::from(allowance.n) * allowance.price_micros;
                }
                Effect::Shrunk { key, incarnation, number, tokens } => {
                    let price = self.history.price_of(*key, *incarnation, *number);
                    expected.get_mut(&(*key, *incarnation)).unwrap().open -= u64::from(*tokens) * price;
                }
                Effect::Closed { key, incarnation, expired, price_micros, .. } => {
                    expected.get_mut(&(*key, *incarnation)).unwrap().open -= u64::from(*expired) * price_micros;
                }
                Effect::Removed { key, incarnation, .. } => {
                    let money = expected.remove(&(*key, *incarnation)).unwrap();
                    assert_eq!(money.open, 0);
                }
                Effect::Changed { key, incarnation } => {
                    expected.entry((*key, *incarnation)).or_default();
                }
                Effect::TimeSet => {}
            }
        }
        assert_eq!(expected, open_and_settled(&self.book));
    }

    /// What a crash and a restart do to the book: the store's records, or a snapshot's, make the same book again.
    pub(crate) fn restart(&mut self) {
        for change in self.book.take_changes() {
            match change.value {
                Some(value) => drop(self.store.insert(change.key, value)),
                None => drop(self.store.remove(&change.key)),
            }
        }
        let stored: Vec<Record> =
            self.store.iter().map(|(key, value)| Record { key: key.clone(), value: value.clone() }).collect();
        let snapshot: Vec<Record> = self.book.snapshot().collect();
        assert!(snapshot.is_sorted_by(|a, b| a.key < b.key));
        assert_eq!(stored, snapshot, "changes add up to a snapshot");
        let mut restored = Book::restore(snapshot).unwrap();
        assert_eq!(restored.digest(), self.book.digest());
        assert_eq!(restored.take_changes(), [], "what was restored is stored already");
        self.book = restored;
        self.compare();
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Money {
    settled: u64,
    open: u64,
}

fn open_and_settled(book: &Book) -> BTreeMap<(u64, u32), Money> {
    let money = |s: &CampaignState| Money { settled: s.ledger.settled_micros(), open: s.ledger.open_micros() };
    book.campaigns().map(|state| ((state.key, state.incarnation), money(state))).collect()
}

fn answered(reply: &Reply) -> Answer {
    let grant = |grant: &andante::campaign::proto::GrantReply| match grant.status() {
        GrantStatus::Granted => (GrantStatus::Granted, grant.allowance.as_ref().unwrap().n),
        status => (status, 0),
    };
    Answer {
        refusal: reply.refusal(),
        lowest_budget: reply.lowest_budget_micros.into(),
        grants: reply.grants.iter().map(grant).collect(),
        outcomes: reply.outcomes.iter().map(|status| OutcomeStatus::try_from(*status).unwrap()).collect(),
        closed: reply.closed,
        repeated: reply.repeated,
    }
}

fn compare_campaign(state: &CampaignState, expected: &Campaign) {
    assert_eq!(state.incarnation, expected.incarnation);
    assert_eq!(*state.spec, expected.spec);
    assert_eq!((state.state, state.revision), (expected.state, expected.revision));
    assert_eq!(u128::from(state.ended_ms), expected.ended.unwrap_or(0));
    assert_eq!(state.next_allowance, expected.next());
    assert_eq!(state.control.as_ref().map(|control| control.mu.to_bits()), expected.mu);
    assert_eq!(state.open.keys().copied().collect::<Vec<_>>(), expected.open());
    assert_eq!(state.closed.keys().copied().collect::<Vec<_>>(), expected.kept());
    for (number, allowance) in state.open.iter().chain(&state.closed) {
        let block = &expected.blocks[number];
        assert_eq!(u128::from(allowance.n), block.n);
        assert_eq!(u128::from(allowance.price_micros), block.price);
        assert_eq!(u128::from(allowance.hold_ms), block.hold);
        assert_eq!(allowance.holder, block.holder);
        assert_eq!(u128::from(allowance.granted_ms), block.granted);
        assert_eq!(u128::from(allowance.issue_until_ms), block.issue_until);
        assert_eq!(u128::from(allowance.closed_ms), block.closed.unwrap_or(0));
        assert_eq!(u128::from(allowance.outstanding()), expected.outstanding(*number));
    }
    let counters = &state.counters;
    let blocks = expected.blocks.values();
    assert_eq!(u128::from(counters.granted), blocks.clone().map(|b| b.granted_n).sum::<u128>());
    assert_eq!(u128::from(counters.shrunk), blocks.clone().map(|b| b.granted_n - b.n).sum::<u128>());
    assert_eq!(u128::from(counters.expired), blocks.map(|b| b.expired).sum::<u128>());
    assert_eq!(u128::from(counters.refused_closed), expected.refused);
    let billed = expected.settled.len();
    let (mut impressions, mut streams) = (expected.noted_as("impression"), expected.noted_as("stream"));
    match expected.spec.billable {
        1 => impressions += billed,
        _ => streams += billed,
    }
    let counted = [
        counters.billed,
        counters.released,
        counters.impressions,
        counters.streams,
        counters.short_streams,
        counters.skips,
    ]
    .map(|count| count as usize);
    let released = expected.released.len();
    let (short, skips) = (expected.noted_as("short stream"), expected.noted_as("skip"));
    assert_eq!(counted, [billed, released, impressions, streams, short, skips]);
    assert_eq!(counters.saves as usize, expected.noted_as("save"));
}

//! The model against the book of a shard: the same money, set aside and billed, after every step.

use proptest::prelude::*;

use super::*;
use crate::campaign::{
    allowance::grant_size,
    book::{Book, CampaignState},
    proto::{
        CloseExpired, Command, Create, Grant, GrantStatus, Holder, Kind, Outcome, OutcomeStatus, Settle, Shrink, Spec,
        State, Tick, command,
    },
    token::campaign_key,
};

const PRICE: u64 = 10;
const HOLD_MS: u64 = 10_000;
const MARGIN_MS: u64 = 1_000;
const END_MS: u64 = 200_000;
const LIFE_MS: u64 = 5_000;

/// A token handed out: its allowance in the model, and in the book with the sequence number.
#[derive(Clone, Copy)]
struct Token {
    model: u64,
    number: u32,
    sequence: u32,
}

/// The book with what a cell knows of the current allowance.
struct Twin {
    book: Book,
    key: u64,
    number: u32,
    n: u32,
    issued: u32,
    issue_until_ms: u64,
}

impl Twin {
    fn new(budget_micros: u64) -> Self {
        let mut book = Book::new();
        let spec = Spec {
            name: "twin".into(),
            end_ms: END_MS,
            budget_micros,
            price_micros: PRICE,
            billable: Kind::Impression as i32,
            min_stream_ms: 30_000,
            hold_ms: HOLD_MS,
            boost_cap: 1.0,
            expected_billable_share: 1.0,
            ..Spec::default()
        };
        let create = Create { request_id: "r".into(), spec: Some(spec), now_ms: 1 };
        let reply = book.apply(&Command { kind: Some(command::Kind::Create(create)) });
        assert_eq!(reply.campaign.map(|c| c.state()), Some(State::Active), "{}", reply.detail);
        Twin { book, key: campaign_key("twin"), number: 0, n: 0, issued: 0, issue_until_ms: 0 }
    }

    fn campaign(&self) -> &CampaignState {
        self.book.campaign(self.key).expect("it was created")
    }

    fn tick(&mut self, tick: Tick) -> Vec<GrantStatus> {
        let reply = self.book.apply(&Command { kind: Some(command::Kind::Tick(tick)) });
        let granted = reply.grants.iter().find_map(|g| g.allowance.as_ref());
        if let Some(allowance) = granted {
            (self.number, self.n, self.issued) = (allowance.number, allowance.n, 0);
            self.issue_until_ms = allowance.issue_until_ms;
        }
        reply.grants.iter().map(|g| g.status()).collect()
    }

    fn take(&mut self, now_ms: u64, pace_share_tokens: u64) -> Result<(u32, u32), Refusal> {
        let incarnation = self.campaign().incarnation;
        let holder = Some(Holder { node_id: 1, boot_id: 1, cell_epoch: 1 });
        if now_ms >= self.issue_until_ms || self.issued >= self.n {
            let open = self.campaign().open.contains_key(&self.number);
            let shrink = Shrink { campaign: self.key, incarnation, number: self.number, issued: self.issued, holder };
            self.tick(Tick { now_ms, shrinks: open.then_some(shrink).into_iter().collect(), ..Tick::default() });
            self.n = self.issued;
            let n = grant_size(self.campaign().ledger.free_micros(), PRICE, pace_share_tokens);
            if n == 0 {
                return Err(Refusal::NothingFree);
            }
            let number = self.campaign().next_allowance;
            let issue_until_ms = now_ms + LIFE_MS;
            let grant = Grant { campaign: self.key, incarnation, number, n, holder, issue_until_ms };
            match self.tick(Tick { now_ms, grants: vec![grant], ..Tick::default() })[..] {
                [GrantStatus::Granted] => {}
                [GrantStatus::TooManyOpen] => return Err(Refusal::TooManyOpen),
                ref other => panic!("{other:?} at {now_ms}"),
            }
        }
        self.issued += 1;
        Ok((self.number, self.issued - 1))
    }

    fn settle(&mut self, token: Token) -> bool {
        let outcome = Outcome {
            campaign: self.key,
            incarnation: self.campaign().incarnation,
            number: token.number,
            sequence: token.sequence,
            kind: Kind::Impression as i32,
            stream_ms: 0,
        };
        let settle = Settle { outcomes: vec![outcome] };
        let reply = self.book.apply(&Command { kind: Some(command::Kind::Settle(settle)) });
        reply.outcomes().next() == Some(OutcomeStatus::Billed)
    }

    fn close(&mut self, now_ms: u64) {
        let close =
            CloseExpired { now_ms, skew_margin_ms: MARGIN_MS, retry_window_ms: 1_000, purge_after_ms: 1_000_000_000 };
        self.book.apply(&Command { kind: Some(command::Kind::CloseExpired(close)) });
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Hands out a token.
    Take,
    /// Settles one of the tokens handed out, maybe too late.
    Settle(prop::sample::Index),
    /// Time goes by, and what is due closes.
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Take),
        4 => any::<prop::sample::Index>().prop_map(Step::Settle),
        2 => (1..4_000u64).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #[test]
    fn the_model_and_the_book_agree_on_every_micro(steps in steps(), tokens in 1..200u64, pace in 1..8u64) {
        let mut twin = Twin::new(tokens * PRICE);
        let mut model = Escrow::new(tokens * PRICE, HOLD_MS, MARGIN_MS, END_MS);
        let mut out: Vec<Token> = Vec::new();
        let mut now_ms = 1;
        for step in steps {
            match step {
                Step::Take if now_ms >= END_MS => {}
                Step::Take => {
                    let wish = Wish { pace_share_micros: pace * PRICE, life_ms: LIFE_MS };
                    let (ours, theirs) = (model.take(now_ms, PRICE, wish), twin.take(now_ms, pace));
                    prop_assert_eq!(ours.map(drop), theirs.map(drop));
                    if let (Ok(model), Ok((number, sequence))) = (ours, theirs) {
                        out.push(Token { model, number, sequence });
                    }
                }
                Step::Settle(which) if !out.is_empty() => {
                    let token = out.swap_remove(which.index(out.len()));
                    prop_assert_eq!(model.settle(token.model, PRICE), twin.settle(token));
                }
                Step::Settle(_) => {}
                Step::Wait(ms) => {
                    now_ms += ms;
                    model.close_due(now_ms);
                    twin.close(now_ms);
                }
            }
            let ledger = twin.campaign().ledger;
            prop_assert_eq!(model.settled_micros(), ledger.settled_micros());
            prop_assert_eq!(model.open_micros(), ledger.open_micros());
            prop_assert_eq!(model.open_count, twin.campaign().open.len());
        }
    }
}

#[test]
fn an_allowance_takes_no_more_than_half_of_what_is_free_and_comes_back_when_it_closes() {
    let mut escrow = Escrow::new(1_000, HOLD_MS, MARGIN_MS, END_MS);
    let wish = Wish { pace_share_micros: 1_000_000, life_ms: LIFE_MS };
    let number = escrow.take(0, 10, wish).unwrap();
    assert_eq!(escrow.open_micros(), 500);
    assert_eq!(escrow.holds(), Holds { issued_micros: 10, ..Holds::default() });
    assert_eq!(escrow.close_due(LIFE_MS + HOLD_MS + MARGIN_MS - 1), 0);
    assert_eq!(escrow.close_due(LIFE_MS + HOLD_MS + MARGIN_MS), 1);
    assert_eq!((escrow.open_micros(), escrow.holds()), (0, Holds::default()));
    assert!(!escrow.settle(number, 10), "closed");
    assert_eq!(escrow.settled_micros(), 0);
}

#[test]
fn a_dear_opportunity_gives_the_rest_of_a_small_allowance_back_for_a_larger_one() {
    let mut escrow = Escrow::new(1_000, HOLD_MS, MARGIN_MS, END_MS);
    let wish = Wish { pace_share_micros: 30, life_ms: LIFE_MS };
    let first = escrow.take(0, 10, wish).unwrap();
    let second = escrow.take(0, 400, wish).unwrap();
    assert_ne!(first, second);
    assert_eq!(escrow.open_micros(), 410);
}

//! What a client may rely on, judged from commands and replies alone, without any ledger.

use std::collections::{BTreeMap, BTreeSet};

use andante::campaign::{
    book::Book,
    proto::{self, Command, GrantStatus, Kind, Outcome, OutcomeStatus, Reply, command},
};

/// Campaign, incarnation, allowance, sequence.
type Token = (u64, u32, u32, u32);

/// A granted allowance, as its holder knows it.
#[derive(Debug)]
struct Promise {
    n: u32,
    price_micros: u64,
    granted_ms: u64,
    until_ms: u64,
    /// Its time is over: for good, even if an operator sets shard time back.
    is_over: bool,
}

/// All that was promised and answered.
#[derive(Debug, Default)]
pub(crate) struct History {
    time_ms: u64,
    promises: BTreeMap<(u64, u32, u32), Promise>,
    billed: BTreeSet<Token>,
    released: BTreeSet<Token>,
    noted: BTreeSet<(Token, i32, bool)>,
}

impl History {
    pub(crate) fn record(&mut self, command: &Command, reply: &Reply, book: &Book) {
        match command.kind.as_ref() {
            Some(command::Kind::Tick(tick)) => {
                for shrink in &tick.shrinks {
                    // What its holder gave back it promised to nobody.
                    if let Some(promise) = self.promises.get_mut(&(shrink.campaign, shrink.incarnation, shrink.number))
                    {
                        promise.n = promise.n.min(shrink.issued);
                    }
                }
                for grant in &reply.grants {
                    if grant.status() == GrantStatus::Granted {
                        self.promise(grant.allowance.as_ref().expect("a grant carries its allowance"));
                    }
                }
            }
            Some(command::Kind::Settle(settle)) => {
                for (outcome, status) in settle.outcomes.iter().zip(&reply.outcomes) {
                    self.judge(outcome, OutcomeStatus::try_from(*status).expect("a known status"), book);
                }
            }
            Some(command::Kind::CloseExpired(close)) => self.time_ms = self.time_ms.max(close.now_ms),
            Some(command::Kind::SetShardTime(set)) => {
                self.time_ms = set.now_ms;
                // Promises by a clock that was ahead can't be kept.
                for promise in self.promises.values_mut() {
                    promise.is_over |= promise.granted_ms > set.now_ms;
                }
            }
            _ => {}
        }
        for promise in self.promises.values_mut() {
            promise.is_over |= promise.until_ms <= self.time_ms;
        }
        self.nothing_acknowledged_is_lost(book);
    }

    fn promise(&mut self, allowance: &proto::Allowance) {
        let promise = Promise {
            n: allowance.n,
            price_micros: allowance.price_micros,
            granted_ms: allowance.granted_ms,
            until_ms: allowance.issue_until_ms + allowance.hold_ms,
            is_over: false,
        };
        let id = (allowance.campaign, allowance.incarnation, allowance.number);
        assert!(self.promises.insert(id, promise).is_none(), "an allowance's number is never used twice");
    }

    fn judge(&mut self, outcome: &Outcome, status: OutcomeStatus, book: &Book) {
        let token = (outcome.campaign, outcome.incarnation, outcome.number, outcome.sequence);
        let promise = self.promises.get(&(token.0, token.1, token.2));
        let is_promised = promise.is_some_and(|p| token.3 < p.n && !p.is_over);
        match status {
            OutcomeStatus::Billed => {
                assert!(!self.released.contains(&token), "billed though released: {token:?}");
                assert!(self.billed.insert(token), "billed twice: {token:?}");
            }
            OutcomeStatus::Released => {
                assert!(!self.billed.contains(&token), "released though billed: {token:?}");
                self.released.insert(token);
            }
            OutcomeStatus::Recorded => {
                let long = outcome.stream_ms >= 30_000;
                assert!(self.noted.insert((token, outcome.kind, long)), "recorded twice: {token:?}");
            }
            _ if is_promised && outcome.kind() != Kind::Unspecified => {
                // The answers that a token with a promise may get else.
                let is_answered = match status {
                    OutcomeStatus::Duplicate => true,
                    // A deleted campaign goes with its last token, which somebody has been answered for.
                    OutcomeStatus::UnknownCampaign | OutcomeStatus::InvalidToken => {
                        let is_gone = book.campaign(token.0).is_none_or(|campaign| campaign.incarnation != token.1);
                        is_gone && (self.billed.contains(&token) || self.released.contains(&token))
                    }
                    OutcomeStatus::InvalidEvent => ![1, 2, 4, 5, 6].contains(&outcome.kind),
                    _ => false,
                };
                assert!(is_answered, "a promise was broken: {token:?} was answered {status:?}");
            }
            _ => {}
        }
    }

    /// Each campaign's settled money is what was answered BILLED, to the micro.
    fn nothing_acknowledged_is_lost(&self, book: &Book) {
        for state in book.campaigns() {
            let from = (state.key, state.incarnation, 0, 0);
            let to = (state.key, state.incarnation, u32::MAX, u32::MAX);
            assert_eq!(state.counters.billed, self.billed.range(from..=to).count() as u64);
        }
    }

    /// Price of a granted allowance's tokens.
    pub(crate) fn price_of(&self, campaign: u64, incarnation: u32, number: u32) -> u64 {
        self.promises[&(campaign, incarnation, number)].price_micros
    }
}

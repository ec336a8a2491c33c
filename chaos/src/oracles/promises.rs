//! Invariant 2, and what clients are promised: an acknowledged settle is there, once; a refused one never; nothing is
//! billed that nobody was given or nobody reported; no token is given to two requests.
//!
//! It keeps books of its own, from the commands as they are applied and from what clients are told, and holds the
//! ledgers against them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use andante::{
    campaign::{
        allowance::Allowance,
        book::{Book, Effect},
        proto::{self, command::Kind as Command},
        token::campaign_key,
    },
    v1,
};
use andante_cluster::ShardId;

use super::{Applied, Found, Oracle, TokenId, Told};
use crate::{markers::Markers, world::World};

/// What is within this time of each other raced.
const RACE_MS: u64 = 1_000;

/// The books of the promises.
pub(super) struct Promises {
    markers: Arc<Markers>,
    /// Commands up to this index have been seen, by shard.
    seen: BTreeMap<ShardId, u64>,
    /// Tokens that were billed, with their prices.
    billed: BTreeMap<TokenId, u64>,
    /// Billed money and tokens by campaign and incarnation.
    sums: BTreeMap<(u64, u32), (u64, u64)>,
    /// Tokens released.
    released: BTreeSet<TokenId>,
    /// Prices of allowances, as they were granted.
    prices: BTreeMap<(u64, u32, u32), u64>,
    /// Allowances that closed, and when.
    closed: BTreeMap<(u64, u32, u32), u64>,
    /// Tokens that clients were given: by which call, and when.
    given: BTreeMap<TokenId, (u64, u64)>,
    /// Tokens whose billable outcome a client has reported, or is reporting.
    reporting: BTreeSet<TokenId>,
    /// Tokens that a client reported as not used.
    not_used: BTreeSet<TokenId>,
    /// Told to be billed by the call that was answered so.
    acknowledged: BTreeSet<TokenId>,
    /// Told never to bill.
    refused: BTreeSet<TokenId>,
    /// Whose fate was unknown at some time.
    unknown: BTreeSet<TokenId>,
    /// Campaigns that a client asked to delete.
    deleting: BTreeSet<u64>,
}

impl Promises {
    pub(super) fn new(markers: Arc<Markers>) -> Self {
        Self {
            markers,
            seen: BTreeMap::new(),
            billed: BTreeMap::new(),
            sums: BTreeMap::new(),
            released: BTreeSet::new(),
            prices: BTreeMap::new(),
            closed: BTreeMap::new(),
            given: BTreeMap::new(),
            reporting: BTreeSet::new(),
            not_used: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            refused: BTreeSet::new(),
            unknown: BTreeSet::new(),
            deleting: BTreeSet::new(),
        }
    }

    fn settle(&mut self, applied: &Applied<'_>, settle: &proto::Settle) -> Found {
        for (outcome, status) in settle.outcomes.iter().zip(&applied.reply.outcomes) {
            let token = TokenId {
                campaign: outcome.campaign,
                incarnation: outcome.incarnation,
                number: outcome.number,
                sequence: outcome.sequence,
            };
            match proto::OutcomeStatus::try_from(*status) {
                Ok(proto::OutcomeStatus::Billed) => self.bill(applied, token)?,
                Ok(proto::OutcomeStatus::Released) if outcome.kind() == proto::Kind::NotUsed => {
                    if self.billed.contains_key(&token) {
                        return Err(format!("{token:?} was billed, and is released now"));
                    }
                    self.released.insert(token);
                }
                _ => {}
            }
            self.mark_race(applied, &token);
        }
        Ok(())
    }

    fn bill(&mut self, applied: &Applied<'_>, token: TokenId) -> Found {
        let at = format!("{}, index {}", applied.shard, applied.index);
        let campaign = applied.book.campaign(token.campaign).filter(|found| found.incarnation == token.incarnation);
        // The last outstanding token of a campaign that is being deleted takes it along.
        let has_gone = applied.book.last_effects().events.iter().any(|effect| {
            matches!(effect, Effect::Removed { key, incarnation, .. }
                if (*key, *incarnation) == (token.campaign, token.incarnation))
        });
        if campaign.is_none() && !has_gone {
            return Err(format!("{at}: {token:?} bills a campaign that is not there"));
        }
        let allowance = (token.campaign, token.incarnation, token.number);
        let Some(price_micros) = self.prices.get(&allowance).copied() else {
            return Err(format!("{at}: {token:?} bills on an allowance that is not there"));
        };
        if self.billed.insert(token, price_micros).is_some() {
            return Err(format!("{at}: {token:?} is billed twice"));
        }
        if self.released.contains(&token) {
            return Err(format!("{at}: {token:?} was released, and is billed"));
        }
        if self.refused.contains(&token) {
            return Err(format!("{at}: {token:?} was refused for good, and is billed"));
        }
        if !self.reporting.contains(&token) {
            return Err(format!("{at}: {token:?} is billed, but no client has reported it"));
        }
        let (micros, tokens) = self.sums.entry((token.campaign, token.incarnation)).or_default();
        *micros += price_micros;
        *tokens += 1;
        let Some(campaign) = campaign else { return Ok(()) };
        let ledger = campaign.ledger.settled_micros();
        // Other outcomes of the same command may come after this one.
        if *micros > ledger {
            let name = &campaign.spec.name;
            return Err(format!("{at}: {name} has settled {ledger} micros, but {micros} were billed"));
        }
        Ok(())
    }

    fn mark_race(&self, applied: &Applied<'_>, token: &TokenId) {
        let closed = self.closed.get(&(token.campaign, token.incarnation, token.number));
        if closed.is_some_and(|closed_ms| applied.at_ms.abs_diff(*closed_ms) <= RACE_MS) {
            self.markers.hit("close-raced-settle");
        }
    }

    fn mark_effects(&mut self, applied: &Applied<'_>) {
        for effect in &applied.book.last_effects().events {
            match effect {
                Effect::Granted { key, incarnation, number } => {
                    let campaign = applied.book.campaign(*key);
                    let allowance = campaign.and_then(|campaign| campaign.open.get(number));
                    if let Some(allowance) = allowance {
                        self.prices.insert((*key, *incarnation, *number), allowance.price_micros);
                    }
                }
                Effect::Closed { key, incarnation, number, expired, .. } => {
                    self.closed.insert((*key, *incarnation, *number), applied.at_ms);
                    if *expired > 0 {
                        self.markers.hit("stranded-money-returned");
                    }
                }
                Effect::Shrunk { key, incarnation, number, .. } => {
                    let allowance = TokenId { campaign: *key, incarnation: *incarnation, number: *number, sequence: 0 };
                    let next = TokenId { number: number + 1, ..allowance };
                    let raced =
                        self.given.range(allowance..next).any(|(_, (_, told_ms))| told_ms + RACE_MS >= applied.at_ms);
                    if raced {
                        self.markers.hit("shrink-raced-take");
                    }
                }
                _ => {}
            }
        }
        if applied.reply.refusal() == proto::Refusal::BudgetTooLow {
            self.markers.hit("budget-cut-refused");
        }
    }

    fn given(&mut self, call: u64, reply: &v1::ScoreResponse, told_ms: u64) -> Found {
        for placement in &reply.placements {
            let Some(token) = TokenId::read(&placement.token) else {
                return Err(format!(
                    "a placement of {} has a token of {} bytes",
                    placement.campaign,
                    placement.token.len()
                ));
            };
            if token.campaign != campaign_key(&placement.campaign) {
                return Err(format!("a placement of {} has a token of another campaign", placement.campaign));
            }
            if let Some((other, _)) = self.given.insert(token, (call, told_ms)) {
                return Err(format!("{token:?} was given to two requests, calls {other} and {call}"));
            }
        }
        Ok(())
    }

    fn reported(&mut self, event: &v1::OutcomeEvent, result: Option<&v1::OutcomeResult>) -> Found {
        use v1::OutcomeStatus as Status;
        let Some(token) = TokenId::read(&event.token) else { return Ok(()) };
        let status = result.map_or(Status::Unknown, v1::OutcomeResult::status);
        let Some(_) = self.given.get(&token) else {
            return match status {
                Status::Billed | Status::Recorded | Status::Duplicate | Status::Released => {
                    Err(format!("{token:?} was forged and answered {}", status.as_str_name()))
                }
                Status::InvalidToken => {
                    self.markers.hit("forged-token-refused");
                    Ok(())
                }
                _ => Ok(()),
            };
        };
        let billable = is_billable(event);
        match status {
            Status::Billed => {
                if !self.billed.contains_key(&token) {
                    return Err(format!("{token:?} was acknowledged as billed, but no ledger has billed it"));
                }
                if !self.acknowledged.insert(token) {
                    return Err(format!("{token:?} was acknowledged as billed by two calls"));
                }
            }
            Status::Duplicate if billable => {
                if !self.billed.contains_key(&token) {
                    return Err(format!("{token:?} is called a duplicate, but was never billed"));
                }
                let closed = self.closed.contains_key(&(token.campaign, token.incarnation, token.number));
                self.markers.hit(if closed { "retry-met-closed-bitmap" } else { "retry-met-open-bitmap" });
                if self.unknown.contains(&token) && !self.acknowledged.contains(&token) {
                    self.markers.hit("unknown-settle-had-billed");
                }
            }
            Status::Released if billable && !self.not_used.contains(&token) => {
                return Err(format!("{token:?} is called released, but nobody has released it"));
            }
            Status::RefusedClosed if billable => {
                self.markers.hit("refused-after-closing");
                if self.billed.contains_key(&token) {
                    return Err(format!("{token:?} is refused for good, but was billed"));
                }
                self.refused.insert(token);
            }
            Status::InvalidToken | Status::UnknownCampaign if self.deleting.contains(&token.campaign) => {
                self.markers.hit("token-of-deleted-campaign");
            }
            Status::InvalidToken | Status::UnknownCampaign => {
                return Err(format!("{token:?} was given to a client and is answered {}", status.as_str_name()));
            }
            Status::Unknown => {
                self.unknown.insert(token);
                if result.is_some() {
                    self.markers.hit("unknown-fate-told");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The ledgers of a book hold what was billed.
    fn check_book(&self, book: &Book) -> Found {
        for campaign in book.campaigns() {
            let (micros, tokens) = self.sums.get(&(campaign.key, campaign.incarnation)).copied().unwrap_or_default();
            let (settled, billed) = (campaign.ledger.settled_micros(), campaign.counters.billed);
            if (settled, billed) != (micros, tokens) {
                let name = &campaign.spec.name;
                return Err(format!(
                    "{name} has settled {settled} micros for {billed} tokens, but {tokens} for {micros} were billed"
                ));
            }
            let bits = |allowances: &BTreeMap<u32, Arc<Allowance>>| -> Found {
                for (number, allowance) in allowances {
                    for sequence in 0..allowance.n {
                        let token = TokenId {
                            campaign: campaign.key,
                            incarnation: campaign.incarnation,
                            number: *number,
                            sequence,
                        };
                        if allowance.is_settled(sequence) != self.billed.contains_key(&token) {
                            return Err(format!("the bitmap and what was billed differ for {token:?}"));
                        }
                    }
                }
                Ok(())
            };
            bits(&campaign.open)?;
            bits(&campaign.closed)?;
        }
        Ok(())
    }
}

/// Whether an outcome bills: workloads report streams that are long enough, and all campaigns bill those.
fn is_billable(event: &v1::OutcomeEvent) -> bool {
    event.kind() == v1::OutcomeKind::Stream && event.stream_ms >= 30_000
}

impl Oracle for Promises {
    fn name(&self) -> &'static str {
        "promises"
    }

    fn applied(&mut self, applied: &Applied<'_>) -> Found {
        let seen = self.seen.entry(applied.shard).or_default();
        if applied.index <= *seen {
            return Ok(());
        }
        *seen = applied.index;
        self.mark_effects(applied);
        match &applied.command.kind {
            Some(Command::Settle(settle)) => self.settle(applied, settle),
            _ => Ok(()),
        }
    }

    fn told(&mut self, told: &Told<'_>) -> Found {
        match told {
            Told::Scored { call, reply, told_ms, .. } => self.given(*call, reply, *told_ms),
            Told::Reporting(event) => {
                if let Some(token) = TokenId::read(&event.token) {
                    if is_billable(event) && self.given.contains_key(&token) {
                        self.reporting.insert(token);
                    } else if event.kind() == v1::OutcomeKind::NotUsed {
                        self.not_used.insert(token);
                    }
                }
                Ok(())
            }
            Told::Reported { event, result, .. } => self.reported(event, *result),
            Told::Deleting(campaign) => {
                self.deleting.insert(campaign_key(campaign));
                Ok(())
            }
            Told::Unanswered { .. } | Told::Operation(_) => Ok(()),
        }
    }

    fn audit(&mut self, world: &World) -> Found {
        world.replicas().into_iter().try_for_each(|(_, shard)| self.check_book(&shard.book()))
    }
}

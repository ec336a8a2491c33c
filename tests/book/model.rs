//! A naive model of the book, to compare it with.
//!
//! It shares no code and no idea with the real one: it never forgets a grant, keeps sets of (allowance, sequence)
//! instead of bitmaps and counts, derives every sum of money afresh from these sets in u128, and walks everything.

use std::collections::{BTreeMap, BTreeSet};

use andante::campaign::proto::{
    self, Command, Grant, GrantStatus, Holder, Kind, Operation, Outcome, OutcomeStatus, Refusal, Shrink, Spec, State,
    command,
};

const MICROS_MAX: u128 = 9_007_199_254_740_991;
const HOUR: u128 = 3_600_000;

/// One grant, for ever.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) granted_n: u128,
    pub(crate) n: u128,
    pub(crate) price: u128,
    pub(crate) hold: u128,
    pub(crate) holder: Holder,
    pub(crate) granted: u128,
    pub(crate) issue_until: u128,
    pub(crate) closed: Option<u128>,
    pub(crate) expired: u128,
    pub(crate) forgotten: bool,
}

type Token = (u32, u32);

#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    pub(crate) incarnation: u32,
    pub(crate) spec: Spec,
    pub(crate) state: State,
    pub(crate) revision: u64,
    pub(crate) ended: Option<u128>,
    pub(crate) requests: Vec<(String, Operation)>,
    pub(crate) blocks: BTreeMap<u32, Block>,
    pub(crate) settled: BTreeSet<Token>,
    pub(crate) released: BTreeSet<Token>,
    pub(crate) noted: BTreeSet<(Token, &'static str)>,
    pub(crate) refused: u128,
    pub(crate) mu: Option<u64>,
    /// Time of the latest Delete.
    pub(crate) deleted: Option<u128>,
}

/// A campaign that was deleted by a Delete and is gone, and what was asked of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gone {
    pub(crate) name: String,
    pub(crate) incarnation: u32,
    pub(crate) requests: Vec<(String, Operation)>,
    pub(crate) at: u128,
}

impl Campaign {
    pub(crate) fn settled_micros(&self) -> u128 {
        self.settled.iter().map(|(number, _)| self.blocks[number].price).sum()
    }

    pub(crate) fn outstanding(&self, number: u32) -> u128 {
        let gone = self.settled.union(&self.released).filter(|token| token.0 == number).count();
        self.blocks[&number].n - gone as u128
    }

    pub(crate) fn open(&self) -> Vec<u32> {
        self.blocks.iter().filter(|(_, block)| block.closed.is_none()).map(|(number, _)| *number).collect()
    }

    pub(crate) fn kept(&self) -> Vec<u32> {
        let is_kept = |block: &Block| block.closed.is_some() && !block.forgotten;
        self.blocks.iter().filter(|(_, block)| is_kept(block)).map(|(number, _)| *number).collect()
    }

    pub(crate) fn open_micros(&self) -> u128 {
        self.open().into_iter().map(|number| self.outstanding(number) * self.blocks[&number].price).sum()
    }

    pub(crate) fn next(&self) -> u32 {
        self.blocks.len() as u32 + 1
    }

    pub(crate) fn noted_as(&self, what: &str) -> usize {
        self.noted.iter().filter(|(_, note)| *note == what).count()
    }

    fn over_since(&self) -> u128 {
        self.ended.unwrap_or(self.spec.end_ms.into())
    }

    fn close_complete(&mut self, number: u32, time: u128) {
        if self.outstanding(number) == 0 {
            self.blocks.get_mut(&number).unwrap().closed = Some(time.max(1));
        }
    }
}

/// What the model answers.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) refusal: Refusal,
    pub(crate) lowest_budget: u128,
    pub(crate) grants: Vec<(GrantStatus, u32)>,
    pub(crate) outcomes: Vec<OutcomeStatus>,
    pub(crate) closed: u64,
    pub(crate) repeated: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) time: u128,
    pub(crate) created: u32,
    pub(crate) campaigns: BTreeMap<String, Campaign>,
    pub(crate) gone: Vec<Gone>,
}

impl Model {
    pub(crate) fn apply(&mut self, command: &Command) -> Answer {
        let answer = match &command.kind {
            None => refused(Refusal::UnknownCommand),
            Some(command::Kind::Create(c)) => self.create(c),
            Some(command::Kind::Update(u)) => self.update(u),
            Some(command::Kind::SetState(s)) => self.set_state(s),
            Some(command::Kind::Tick(t)) => {
                t.shrinks.iter().for_each(|s| self.shrink(s));
                let time = self.time.max(t.now_ms.into());
                let grants = t.grants.iter().map(|g| self.grant(g, time)).collect();
                for c in &t.checkpoints {
                    if let Some(control) = &c.control
                        && let Some(campaign) = self.find(c.campaign)
                        && campaign.incarnation == c.incarnation
                        && control.mu.is_finite()
                    {
                        campaign.mu = Some(control.mu.to_bits());
                    }
                }
                Answer { grants, ..Answer::default() }
            }
            Some(command::Kind::Settle(s)) => {
                // A deleted campaign goes in the middle of a command, with its last open token.
                let outcomes = s
                    .outcomes
                    .iter()
                    .map(|o| {
                        let status = self.outcome(o);
                        self.remove_deleted();
                        status
                    })
                    .collect();
                Answer { outcomes, ..Answer::default() }
            }
            Some(command::Kind::CloseExpired(c)) => self.close_expired(c),
            Some(command::Kind::SetShardTime(s)) => {
                self.set_time(u128::from(s.now_ms).min(253_402_300_799_999));
                Answer::default()
            }
            Some(command::Kind::Delete(d)) => self.delete(d),
        };
        self.remove_deleted();
        answer
    }

    fn remove_deleted(&mut self) {
        let is_gone = |c: &Campaign| c.state == State::Deleting && c.open().is_empty();
        for (name, campaign) in self.campaigns.iter().filter(|(_, c)| is_gone(c)) {
            let requests: Vec<_> = campaign.requests.iter().filter(|(id, _)| !id.is_empty()).cloned().collect();
            if let Some(deleted) = campaign.deleted
                && !requests.is_empty()
            {
                let at = deleted.max(self.time);
                self.gone.push(Gone { name: name.clone(), incarnation: campaign.incarnation, requests, at });
            }
        }
        self.campaigns.retain(|_, c| !is_gone(c));
    }

    /// Whether this was asked of a campaign that is gone by now.
    fn is_gone(&self, name: &str, id: &str, what: Operation) -> bool {
        !id.is_empty()
            && self.gone.iter().any(|gone| gone.name == name && gone.requests.contains(&(id.to_owned(), what)))
    }

    fn delete(&mut self, delete: &proto::Delete) -> Answer {
        let id = delete.request_id.clone();
        let is_gone = |what| self.is_gone(&delete.name, &id, what);
        if is_gone(Operation::DeleteOnce) || is_gone(Operation::Delete) {
            return repeated();
        }
        let time = self.time.max(delete.now_ms.into());
        let Some(campaign) = self.campaigns.get_mut(&delete.name) else { return refused(Refusal::NotFound) };
        let remembers = |what| !id.is_empty() && campaign.requests.contains(&(id.clone(), what));
        if remembers(Operation::DeleteOnce) {
            return repeated();
        }
        let stale = is_stale(campaign, delete.expected_incarnation, delete.expected_revision);
        if stale && !remembers(Operation::Delete) {
            return refused(Refusal::StaleRevision);
        }
        if campaign.state != State::Deleting {
            campaign.state = State::Deleting;
            campaign.revision += 1;
        }
        campaign.deleted = Some(time);
        remember(campaign, (id, Operation::DeleteOnce));
        Answer::default()
    }

    fn find(&mut self, key: u64) -> Option<&mut Campaign> {
        self.campaigns.iter_mut().find(|(name, _)| xxhash_rust::xxh3::xxh3_64(name.as_bytes()) == key).map(|(_, c)| c)
    }

    fn create(&mut self, create: &proto::Create) -> Answer {
        let Some(spec) = &create.spec else { return refused(Refusal::Invalid) };
        let request = (create.request_id.clone(), Operation::Create);
        if self.is_gone(&spec.name, &request.0, request.1) {
            return repeated();
        }
        if let Some(campaign) = self.campaigns.get(&spec.name) {
            let known = !request.0.is_empty() && campaign.requests.contains(&request);
            return if known { repeated() } else { refused(Refusal::AlreadyExists) };
        }
        if !is_sound(spec) {
            return refused(Refusal::Invalid);
        }
        self.created += 1;
        let campaign = Campaign {
            incarnation: self.created,
            spec: spec.clone(),
            state: State::Active,
            revision: 1,
            ended: None,
            requests: vec![request],
            blocks: BTreeMap::new(),
            settled: BTreeSet::new(),
            released: BTreeSet::new(),
            noted: BTreeSet::new(),
            refused: 0,
            mu: None,
            deleted: None,
        };
        self.campaigns.insert(spec.name.clone(), campaign);
        Answer::default()
    }

    fn update(&mut self, update: &proto::Update) -> Answer {
        let Some(spec) = &update.spec else { return refused(Refusal::Invalid) };
        if self.is_gone(&spec.name, &update.request_id, Operation::Update) {
            return repeated();
        }
        let Some(campaign) = self.campaigns.get_mut(&spec.name) else { return refused(Refusal::NotFound) };
        let request = (update.request_id.clone(), Operation::Update);
        let used = campaign.settled_micros() + campaign.open_micros();
        if !request.0.is_empty() && campaign.requests.contains(&request) {
            repeated()
        } else if is_stale(campaign, update.expected_incarnation, update.expected_revision) {
            refused(Refusal::StaleRevision)
        } else if campaign.state == State::Ended || campaign.state == State::Deleting {
            refused(Refusal::WrongState)
        } else if spec.billable != campaign.spec.billable {
            refused(Refusal::Invalid)
        } else if u128::from(spec.budget_micros) < used {
            let lowest_budget = used.max(spec.price_micros.into());
            Answer { lowest_budget, ..refused(Refusal::BudgetTooLow) }
        } else if !is_sound(spec) {
            refused(Refusal::Invalid)
        } else {
            campaign.spec = spec.clone();
            campaign.revision += 1;
            remember(campaign, request);
            Answer::default()
        }
    }

    fn set_state(&mut self, set: &proto::SetState) -> Answer {
        let operation = match set.state {
            1 => Operation::Resume,
            2 => Operation::Pause,
            3 => Operation::End,
            4 => Operation::Delete,
            _ => return refused(Refusal::Invalid),
        };
        let to = set.state();
        let time = self.time.max(set.now_ms.into());
        if self.is_gone(&set.name, &set.request_id, operation) {
            return repeated();
        }
        let Some(campaign) = self.campaigns.get_mut(&set.name) else { return refused(Refusal::NotFound) };
        let request = (set.request_id.clone(), operation);
        if !request.0.is_empty() && campaign.requests.contains(&request) {
            return repeated();
        }
        if is_stale(campaign, set.expected_incarnation, set.expected_revision) {
            return refused(Refusal::StaleRevision);
        }
        if campaign.state == to {
            if set.remember_unchanged {
                remember(campaign, request);
            }
            return Answer::default();
        }
        let is_over = campaign.state == State::Ended || campaign.state == State::Deleting;
        if is_over && !(campaign.state == State::Ended && to == State::Deleting) {
            return refused(Refusal::WrongState);
        }
        campaign.state = to;
        if to == State::Ended {
            campaign.ended = Some(time.max(1));
        }
        campaign.revision += 1;
        remember(campaign, request);
        Answer::default()
    }

    fn grant(&mut self, grant: &Grant, time: u128) -> (GrantStatus, u32) {
        let Some(campaign) = self.find(grant.campaign) else { return (GrantStatus::NotEligible, 0) };
        let in_flight = u128::from(campaign.spec.start_ms) <= time && time < campaign.spec.end_ms.into();
        if campaign.incarnation != grant.incarnation || campaign.state != State::Active || !in_flight {
            return (GrantStatus::NotEligible, 0);
        }
        if grant.number != campaign.next() {
            return (GrantStatus::WrongNumber, 0);
        }
        let until = u128::from(grant.issue_until_ms).min(campaign.spec.end_ms.into()).min(time + HOUR);
        let Some(holder) = grant.holder else { return (GrantStatus::Invalid, 0) };
        if grant.n == 0 || until <= time {
            return (GrantStatus::Invalid, 0);
        }
        if campaign.open().len() >= 64 || campaign.kept().len() >= 4_096 {
            return (GrantStatus::TooManyOpen, 0);
        }
        let used = campaign.settled_micros() + campaign.open_micros();
        let price = u128::from(campaign.spec.price_micros);
        let mut n = 0;
        // Greedily, in doubling steps, instead of by a division.
        for step in (0..17).rev().map(|bit| 1_u128 << bit) {
            let wanted = u128::from(grant.n).min(65_536);
            if n + step <= wanted && used + (n + step) * price <= campaign.spec.budget_micros.into() {
                n += step;
            }
        }
        if n == 0 {
            return (GrantStatus::NothingFree, 0);
        }
        let hold = campaign.spec.hold_ms.into();
        let block = Block {
            granted_n: n,
            n,
            price,
            hold,
            holder,
            granted: time,
            issue_until: until,
            closed: None,
            expired: 0,
            forgotten: false,
        };
        campaign.blocks.insert(grant.number, block);
        (GrantStatus::Granted, n as u32)
    }

    fn shrink(&mut self, shrink: &Shrink) {
        let time = self.time;
        let Some(campaign) = self.find(shrink.campaign) else { return };
        let Some(block) = campaign.blocks.get(&shrink.number) else { return };
        let is_holders = Some(block.holder) == shrink.holder && campaign.incarnation == shrink.incarnation;
        if !is_holders || block.closed.is_some() || u128::from(shrink.issued) >= block.n {
            return;
        }
        let seen = campaign.settled.iter().chain(&campaign.released).chain(campaign.noted.iter().map(|(t, _)| t));
        let back = seen.filter(|token| token.0 == shrink.number).map(|token| token.1 + 1).max().unwrap_or(0);
        let block = campaign.blocks.get_mut(&shrink.number).unwrap();
        block.n = block.n.min(shrink.issued.max(back).into());
        campaign.close_complete(shrink.number, time);
    }

    fn outcome(&mut self, outcome: &Outcome) -> OutcomeStatus {
        let time = self.time;
        let Some(campaign) = self.find(outcome.campaign) else { return OutcomeStatus::UnknownCampaign };
        if campaign.incarnation != outcome.incarnation {
            return OutcomeStatus::InvalidToken;
        }
        let Some(block) = campaign.blocks.get(&outcome.number).cloned() else { return OutcomeStatus::InvalidToken };
        let long = outcome.stream_ms >= campaign.spec.min_stream_ms;
        let what = match outcome.kind {
            1 => "impression",
            2 if long => "stream",
            2 => "short stream",
            4 => "skip",
            5 => "save",
            6 => "not used",
            _ => return OutcomeStatus::InvalidEvent,
        };
        if block.forgotten {
            return OutcomeStatus::ClosedUnknown;
        }
        if u128::from(outcome.sequence) >= block.n {
            return OutcomeStatus::InvalidToken;
        }
        let token = (outcome.number, outcome.sequence);
        if campaign.released.contains(&token) {
            return OutcomeStatus::Released;
        }
        let bills = match campaign.spec.billable() {
            Kind::Impression => what == "impression",
            _ => what == "stream",
        };
        if !bills && what != "not used" {
            let fresh = campaign.noted.insert((token, what));
            return if fresh { OutcomeStatus::Recorded } else { OutcomeStatus::Duplicate };
        }
        if campaign.settled.contains(&token) {
            return OutcomeStatus::Duplicate;
        }
        if block.closed.is_some() {
            campaign.refused += 1;
            return OutcomeStatus::RefusedClosed;
        }
        let fresh = if bills { campaign.settled.insert(token) } else { campaign.released.insert(token) };
        assert!(fresh);
        campaign.close_complete(outcome.number, time);
        if bills { OutcomeStatus::Billed } else { OutcomeStatus::Released }
    }

    fn close_expired(&mut self, close: &proto::CloseExpired) -> Answer {
        self.time = self.time.max(u128::from(close.now_ms).min(253_402_300_799_999));
        let (time, margin, retry) = (self.time, u128::from(close.skew_margin_ms), u128::from(close.retry_window_ms));
        self.gone.retain(|gone| gone.at + margin + retry > time);
        let mut closed = 0;
        for campaign in self.campaigns.values_mut() {
            for number in campaign.open() {
                let outstanding = campaign.outstanding(number);
                let block = campaign.blocks.get_mut(&number).unwrap();
                if block.issue_until + block.hold + margin <= time {
                    (block.closed, block.expired) = (Some(time.max(1)), outstanding);
                    closed += 1;
                }
            }
            for block in campaign.blocks.values_mut() {
                let kept_from = block.closed.map(|closed| closed.max(block.issue_until + block.hold));
                block.forgotten |= kept_from.is_some_and(|from| from + margin + retry <= time);
            }
        }
        // Those whose last allowance has just closed went as deleted ones, not as old ones.
        self.remove_deleted();
        let purge_after = u128::from(close.purge_after_ms);
        self.campaigns.retain(|_, c| c.over_since() + purge_after > time || !c.open().is_empty());
        Answer { closed, ..Answer::default() }
    }

    /// When the next closing, forgetting, purge and forgetting of a deletion are due.
    pub(crate) fn next_due(&self, margin: u128, retry: u128, purge: u128) -> [Option<u128>; 4] {
        let blocks = || self.campaigns.values().flat_map(|c| c.blocks.values());
        let open = blocks().filter(|b| b.closed.is_none()).map(|b| b.issue_until + b.hold + margin);
        let kept = blocks().filter(|b| !b.forgotten).filter_map(|b| Some(b.closed?.max(b.issue_until + b.hold)));
        let over = self.campaigns.values().map(|c| c.over_since() + purge);
        let gone = self.gone.iter().map(|gone| gone.at + margin + retry).min();
        [open.min(), kept.min().map(|from| from + margin + retry), over.min(), gone]
    }

    fn set_time(&mut self, time: u128) {
        self.time = time;
        self.gone.iter_mut().for_each(|gone| gone.at = gone.at.min(time));
        for campaign in self.campaigns.values_mut() {
            campaign.ended = campaign.ended.map(|ended| ended.min(time.max(1)));
            for block in campaign.blocks.values_mut().filter(|block| !block.forgotten) {
                if block.granted > time {
                    let life = block.issue_until - block.granted;
                    (block.granted, block.issue_until) = (time, time + life);
                }
                block.closed = block.closed.map(|closed| closed.min(time.max(1)));
            }
        }
    }
}

fn is_stale(campaign: &Campaign, incarnation: u32, revision: u64) -> bool {
    (incarnation != 0 && incarnation != campaign.incarnation) || (revision != 0 && revision != campaign.revision)
}

fn remember(campaign: &mut Campaign, request: (String, Operation)) {
    if !request.0.is_empty() {
        campaign.requests.push(request);
        let named: Vec<_> = campaign.requests.iter().filter(|(id, _)| !id.is_empty()).cloned().collect();
        campaign.requests = named[named.len().saturating_sub(16)..].to_vec();
    }
}

fn is_sound(spec: &Spec) -> bool {
    let (budget, price) = (u128::from(spec.budget_micros), u128::from(spec.price_micros));
    let hold = u128::from(spec.hold_ms);
    let not_negative = [spec.relevance_floor, spec.boost_cap, spec.expected_billable_share];
    budget <= MICROS_MAX
        && price > 0
        && price <= budget
        && spec.start_ms < spec.end_ms
        && (10_000..=HOUR).contains(&hold)
        && [Kind::Impression, Kind::Stream].contains(&spec.billable())
        && spec.min_stream_ms > 0
        && not_negative.iter().all(|x| x.is_finite() && *x >= 0.0)
}

fn repeated() -> Answer {
    Answer { repeated: true, ..Answer::default() }
}

fn refused(refusal: Refusal) -> Answer {
    Answer { refusal, ..Answer::default() }
}

//! Commands of owners: create, update, pause, resume, end, delete without a memory of it.

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::mutant;

use super::{
    super::{
        ledger::Ledger,
        limits::*,
        proto::{Command, Counters, Create, Operation, Refusal, Reply, SetState, Spec, State, Update, command::Kind},
        spec::check_safe,
        token::campaign_key,
        version::Version,
    },
    Book, CampaignState, Effect,
    records::Part,
};

/// Why a command of an owner changed nothing, with words.
pub(super) struct Refused {
    refusal: Refusal,
    detail: String,
    lowest_budget_micros: u64,
}

impl Refused {
    fn new(refusal: Refusal, detail: impl Into<String>) -> Self {
        Self { refusal, detail: detail.into(), lowest_budget_micros: 0 }
    }
}

impl Book {
    /// Applies one command. What is not allowed changes nothing and is answered as a refusal.
    ///
    /// # Panics
    /// If the ledger's invariants are broken: going on could overspend.
    pub fn apply(&mut self, command: &Command) -> Reply {
        self.effects.clear();
        self.commands += 1;
        match &command.kind {
            Some(Kind::Create(create)) => self.create(create),
            Some(Kind::Update(update)) => self.update(update),
            Some(Kind::SetState(set)) => self.set_state(set),
            Some(Kind::Tick(tick)) => self.tick(tick),
            Some(Kind::Settle(settle)) => self.settle(settle),
            Some(Kind::CloseExpired(close)) => self.close_expired(close),
            Some(Kind::SetShardTime(set)) => self.set_shard_time(set.now_ms),
            Some(Kind::Delete(delete)) => self.delete(delete),
            None => refused(Refusal::UnknownCommand, "the command is unknown to this version"),
        }
    }

    fn create(&mut self, create: &Create) -> Reply {
        let Some(spec) = &create.spec else {
            return refused(Refusal::Invalid, "settings are missing");
        };
        if create.request_id.len() > REQUEST_ID_BYTES_MAX {
            return refused(Refusal::Invalid, "the request id is too long");
        }
        let key = campaign_key(&spec.name);
        if self.deletions.remembers(key, &create.request_id, Operation::Create) {
            return Reply { repeated: true, ..Reply::default() };
        }
        if let Some(at) = self.by_key.get(&key).copied() {
            let state = &self.slot(at).state;
            if state.spec.name != spec.name {
                return refused(Refusal::NameCollision, "the hash of this name is taken: choose another name");
            }
            let campaign = Some(state.to_proto());
            if state.remembers(&create.request_id, Operation::Create) {
                return Reply { campaign, repeated: true, ..Reply::default() };
            }
            return Reply { campaign, ..refused(Refusal::AlreadyExists, "a campaign of this name exists") };
        }
        if let Err(field) = check_safe(spec) {
            return refused(Refusal::Invalid, format!("{field} is invalid"));
        }
        if self.len() >= CAMPAIGNS_PER_SHARD_MAX || self.next_incarnation == u32::MAX {
            return refused(Refusal::ShardFull, "the shard has as many campaigns as it may have");
        }

        let now_ms = self.time(create.now_ms);
        let mut state = CampaignState {
            key,
            incarnation: self.next_incarnation,
            revision: 0,
            state: State::Active,
            created_ms: now_ms,
            updated_ms: now_ms,
            ended_ms: 0,
            ledger: Ledger::new(spec.budget_micros),
            next_allowance: 1,
            counters: Counters::default(),
            control: None,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            requests: Arc::default(),
            deleted_once: false,
            spec: Arc::new(spec.clone()),
        };
        state.changed(&create.request_id, Operation::Create, now_ms);
        self.next_incarnation += 1;
        self.changes.meta = true;
        let at = self.insert(state);
        self.owner_changed(at)
    }

    fn update(&mut self, update: &Update) -> Reply {
        let Some(spec) = &update.spec else {
            return refused(Refusal::Invalid, "settings are missing");
        };
        let expected = Version { incarnation: update.expected_incarnation, revision: update.expected_revision };
        self.owner_command(&spec.name, &update.request_id, Operation::Update, expected, |book, at| {
            book.replace_settings(at, spec, update)
        })
    }

    fn replace_settings(&mut self, at: u32, spec: &Spec, update: &Update) -> Result<(), Refused> {
        let state = &self.slot(at).state;
        if !matches!(state.state, State::Active | State::Paused) {
            return Err(Refused::new(Refusal::WrongState, "the campaign is over"));
        }
        if spec.billable != state.spec.billable {
            return Err(Refused::new(Refusal::Invalid, "billable is fixed at creation"));
        }
        let used = state.ledger.lowest_budget_micros();
        if spec.budget_micros < used && !mutant!(BudgetCutAccepted) {
            let lowest_budget_micros = used.max(spec.price_micros);
            let detail = format!("{lowest_budget_micros} micros is the lowest budget possible now");
            return Err(Refused { lowest_budget_micros, ..Refused::new(Refusal::BudgetTooLow, detail) });
        }
        check_safe(spec).map_err(|field| Refused::new(Refusal::Invalid, format!("{field} is invalid")))?;

        let now_ms = self.time(update.now_ms);
        self.change_owned(at, |state| {
            state.ledger.set_budget(spec.budget_micros).expect("checked above");
            state.spec = Arc::new(spec.clone());
            state.changed(&update.request_id, Operation::Update, now_ms);
        });
        self.mark(at, Part::Settings);
        Ok(())
    }

    fn set_state(&mut self, set: &SetState) -> Reply {
        let (to, operation) = match set.state() {
            State::Active => (State::Active, Operation::Resume),
            State::Paused => (State::Paused, Operation::Pause),
            State::Ended => (State::Ended, Operation::End),
            State::Deleting => (State::Deleting, Operation::Delete),
            State::Unspecified => return refused(Refusal::Invalid, "no such state"),
        };
        let expected = Version { incarnation: set.expected_incarnation, revision: set.expected_revision };
        self.owner_command(&set.name, &set.request_id, operation, expected, |book, at| {
            let from = book.slot(at).state.state;
            let allowed = match from {
                State::Active | State::Paused => true,
                State::Ended => matches!(to, State::Ended | State::Deleting),
                State::Deleting | State::Unspecified => to == State::Deleting,
            };
            if !allowed {
                return Err(Refused::new(Refusal::WrongState, "the campaign is over"));
            }
            if from != to {
                let now_ms = book.time(set.now_ms);
                book.change_owned(at, |state| {
                    state.state = to;
                    if to == State::Ended {
                        // 0 means "not ended".
                        state.ended_ms = now_ms.max(1);
                    }
                    state.changed(&set.request_id, operation, now_ms);
                });
            } else if set.remember_unchanged && !set.request_id.is_empty() {
                book.slot_mut(at).state_mut().remember(&set.request_id, operation);
                book.mark(at, Part::Ledger);
            }
            Ok(())
        })
    }

    /// What update, set state and delete have in common: find it, recognise a retry, check the version, answer.
    pub(super) fn owner_command(
        &mut self,
        name: &str,
        request_id: &str,
        operation: Operation,
        expected: Version,
        change: impl FnOnce(&mut Self, u32) -> Result<(), Refused>,
    ) -> Reply {
        if request_id.len() > REQUEST_ID_BYTES_MAX {
            return refused(Refusal::Invalid, "the request id is too long");
        }
        if self.deletions.remembers(campaign_key(name), request_id, operation) {
            return Reply { repeated: true, ..Reply::default() };
        }
        let Some(at) = self.by_name.get(name).copied() else {
            return refused(Refusal::NotFound, "no campaign of this name");
        };
        let state = &self.slot(at).state;
        if state.remembers(request_id, operation) {
            return Reply { campaign: Some(state.to_proto()), repeated: true, ..Reply::default() };
        }
        let revision = state.revision;
        let there = Version { incarnation: state.incarnation, revision };
        let done = if expected.admits(there) {
            change(self, at)
        } else if (Version { revision: 0, ..expected }).admits(there) {
            let detail = format!("its revision is {revision}, not {}", expected.revision);
            Err(Refused::new(Refusal::StaleRevision, detail))
        } else {
            let detail = format!("it is campaign {} of this name, not {}", there.incarnation, expected.incarnation);
            Err(Refused::new(Refusal::StaleRevision, detail))
        };
        match done {
            Ok(()) if self.slot(at).state.revision == revision => {
                Reply { campaign: Some(self.slot(at).state.to_proto()), ..Reply::default() }
            }
            Ok(()) => self.owner_changed(at),
            Err(Refused { refusal, detail, lowest_budget_micros }) => {
                let campaign = Some(self.slot(at).state.to_proto());
                Reply { campaign, lowest_budget_micros, ..refused(refusal, detail) }
            }
        }
    }

    /// Changes what owners decide, with the index that depends on it.
    pub(super) fn change_owned(&mut self, at: u32, change: impl FnOnce(&mut CampaignState)) {
        let slot = self.slot_mut(at);
        let (key, before) = (slot.state.key, slot.state.over_since_ms());
        change(slot.state_mut());
        let after = slot.state.over_since_ms();
        self.purges.remove(&(before, key));
        self.purges.insert((after, key));
    }

    /// Settings or state changed: marks the record, tells the actors, removes what was only waiting for that.
    fn owner_changed(&mut self, at: u32) -> Reply {
        self.mark(at, Part::Ledger);
        let state = &self.slot(at).state;
        let (key, incarnation) = (state.key, state.incarnation);
        if state.revision == 1 {
            self.mark(at, Part::Settings);
        }
        self.effects.events.push(Effect::Changed { key, incarnation });
        self.remove_if_deleted(at);
        Reply { campaign: self.campaign(key).map(CampaignState::to_proto), ..Reply::default() }
    }

    /// Removes a campaign that is DELETING and has nothing open.
    pub(super) fn remove_if_deleted(&mut self, at: u32) {
        let state = &self.slot(at).state;
        if state.state == State::Deleting && state.open.is_empty() {
            self.remove(at);
        }
    }
}

/// A refusal.
pub(super) fn refused(refusal: Refusal, detail: impl Into<String>) -> Reply {
    Reply { refusal: refusal as i32, detail: detail.into(), ..Reply::default() }
}

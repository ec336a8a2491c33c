//! One search.
//!
//! Calls and returns stand in a list in the order of their times. The search takes a call that comes before any
//! return and whose effect is possible now, removes it together with its return, and starts again from the front. If
//! there is no such call, the one whose return comes first found no place: the latest choice is taken back and the next
//! one tried. A configuration (which calls have their place, and the state they lead to) that was reached before is not
//! entered again.
//!
//! Calls of unknown fate would make that hopeless if there are many: each may be anywhere. So they are in a list of
//! their own and are tried when no other call is possible; a configuration that only spent more of them than one that
//! was reached before is not entered; nor is a state that is older than a call without a place allows.

use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::BuildHasherDefault,
    mem,
};

use super::{Call, Specification, lists::Lists};

/// What one search found.
pub(super) enum Order<S> {
    /// An order that leads to this state.
    Found(S),
    /// There is none.
    None,
    /// Not known.
    OutOfSteps,
}

/// Looks for an order of what happened until a time. What returned later has its effect by then or not.
pub(super) fn find<S: Specification>(
    initial: &S,
    calls: &[Call<S::Operation>],
    until: u64,
    steps_max: u64,
) -> Order<S> {
    let mut search = Search::new(initial.clone(), calls, until);
    let mut steps = 0;
    let mut at = search.lists.first(ANSWERED);
    // The first return, once all answered calls before it were tried: then come the optional ones before it.
    let mut limit = None;
    while search.waiting > 0 {
        if limit.is_none() && search.events[at].is_return {
            limit = Some(at);
            at = search.lists.first(OPTIONAL);
        }
        if limit.is_some_and(|limit| at > limit) {
            let Some(taken_back) = search.take_back() else { return Order::None };
            at = search.lists.next(taken_back);
            limit = search.is_optional(taken_back).then(|| search.first_return());
            continue;
        }
        if steps == steps_max {
            return Order::OutOfSteps;
        }
        steps += 1;
        if search.place(search.events[at].call) {
            (at, limit) = (search.lists.first(ANSWERED), None);
        } else {
            at = search.lists.next(at);
        }
    }
    Order::Found(search.state)
}

/// The lists of events: calls with an answer and their returns; the other calls.
const ANSWERED: usize = 0;
const OPTIONAL: usize = 1;

/// A call or a return.
#[derive(Debug, Clone, Copy)]
struct Event {
    call: usize,
    is_return: bool,
}

/// A call that has its place.
struct Placed<S> {
    call: usize,
    /// The state without it.
    before: S,
}

/// A set of calls: bit n is call n.
type Calls = Vec<u64>;

struct Search<'a, S: Specification> {
    calls: &'a [Call<S::Operation>],
    /// In the order of their times.
    events: Vec<Event>,
    /// Where a call and its return are in `events`.
    positions: Vec<(usize, Option<usize>)>,
    /// The lowest age that answered calls allow which were called at a position or later.
    age_max_from: Vec<Option<S::Age>>,
    /// Events of calls without a place.
    lists: Lists,
    answered: Calls,
    placed: Calls,
    /// Answered calls without a place.
    waiting: usize,
    state: S,
    path: Vec<Placed<S>>,
    /// Configurations: answered calls that have their place, and the state; for each the smallest sets of other calls
    /// that have theirs. (Not std's random hasher: nothing here may depend on chance.)
    entered: HashMap<(Calls, S), Vec<Calls>, BuildHasherDefault<DefaultHasher>>,
}

impl<'a, S: Specification> Search<'a, S> {
    fn new(initial: S, calls: &'a [Call<S::Operation>], until: u64) -> Self {
        let mut timed: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * calls.len());
        let mut answered = vec![0; calls.len().div_ceil(64)];
        for (index, call) in calls.iter().enumerate().filter(|(_, call)| call.called <= until) {
            timed.push((call.called, false, index));
            if let Some(returned) = call.returned.filter(|returned| *returned <= until) {
                timed.push((returned, true, index));
                answered[index / 64] |= 1 << (index % 64);
            }
        }
        timed.sort_unstable();
        let events: Vec<Event> = timed.into_iter().map(|(_, is_return, call)| Event { call, is_return }).collect();
        let mut positions = vec![(0, None); calls.len()];
        for (position, event) in events.iter().enumerate() {
            if event.is_return {
                positions[event.call].1 = Some(position);
            } else {
                positions[event.call].0 = position;
            }
        }
        let mut age_max_from = vec![None; events.len()];
        let mut age_max = None;
        for (position, event) in events.iter().enumerate().rev() {
            if !event.is_return && positions[event.call].1.is_some() {
                let age_maxes = [age_max, S::age_max(&calls[event.call].operation)];
                age_max = age_maxes.into_iter().flatten().min();
            }
            age_max_from[position] = age_max;
        }
        let list_of = |event: &Event| if positions[event.call].1.is_some() { ANSWERED } else { OPTIONAL };
        Self {
            lists: Lists::new(2, events.iter().map(list_of)),
            waiting: events.iter().filter(|event| event.is_return).count(),
            events,
            positions,
            age_max_from,
            placed: vec![0; answered.len()],
            answered,
            calls,
            state: initial,
            path: Vec::new(),
            entered: HashMap::default(),
        }
    }

    fn is_optional(&self, position: usize) -> bool {
        self.positions[self.events[position].call].1.is_none()
    }

    /// The first return of a call without a place: only calls before that can be next.
    fn first_return(&self) -> usize {
        let mut at = self.lists.first(ANSWERED);
        while !self.events[at].is_return {
            at = self.lists.next(at);
        }
        at
    }

    /// Gives a call the next place if that is possible and new.
    fn place(&mut self, index: usize) -> bool {
        let call = &self.calls[index];
        if call.after.is_some_and(|other| self.placed[other / 64] & (1 << (other % 64)) == 0) {
            return false;
        }
        let Some(next) = self.state.apply(&call.operation) else { return false };
        // What may never have taken effect and would change nothing needs no place.
        if self.positions[index].1.is_none() && next == self.state {
            return false;
        }
        if self.is_too_old(next.age(), index) {
            return false;
        }
        self.flip(index);
        if !self.enter(&next) {
            self.flip(index);
            return false;
        }
        let (called, returned) = self.positions[index];
        self.lists.remove(called);
        if let Some(returned) = returned {
            self.lists.remove(returned);
            self.waiting -= 1;
        }
        self.path.push(Placed { call: index, before: mem::replace(&mut self.state, next) });
        true
    }

    /// Whether an answered call without a place, another one than `placing`, would find none at this age.
    fn is_too_old(&self, age: S::Age, placing: usize) -> bool {
        let exceeds = |age_max: Option<S::Age>| age_max.is_some_and(|age_max| age > age_max);
        let exceeds_from = |at: usize| self.age_max_from.get(at).is_some_and(|age_max| exceeds(*age_max));
        // Most often no call that comes now or later minds, with a place or without.
        if !exceeds_from(self.lists.first(ANSWERED)) {
            return false;
        }
        let mut at = self.lists.first(ANSWERED);
        while let Some(Event { call, is_return: false }) = self.events.get(at).copied() {
            if call != placing && exceeds(S::age_max(&self.calls[call].operation)) {
                return true;
            }
            at = self.lists.next(at);
        }
        // What is called after the first return has no place yet.
        exceeds_from(at)
    }

    /// Notes the configuration; false if one that is as good is known.
    fn enter(&mut self, state: &S) -> bool {
        let placed = || self.placed.iter().zip(&self.answered);
        let answered: Calls = placed().map(|(placed, answered)| placed & answered).collect();
        let others: Calls = placed().map(|(placed, answered)| placed & !answered).collect();
        let known = self.entered.entry((answered, state.clone())).or_default();
        if known.iter().any(|known| is_subset(known, &others)) {
            return false;
        }
        known.retain(|known| !is_subset(&others, known));
        known.push(others);
        true
    }

    /// Takes back the latest choice and answers where its call is. A call that only told of the state it left was no
    /// choice: it is as well there as later.
    fn take_back(&mut self) -> Option<usize> {
        loop {
            let Placed { call, before } = self.path.pop()?;
            let was_choice = before != self.state || !S::only_tells(&self.calls[call].operation);
            self.state = before;
            self.flip(call);
            let (called, returned) = self.positions[call];
            if let Some(returned) = returned {
                self.lists.put_back(returned);
                self.waiting += 1;
            }
            self.lists.put_back(called);
            if was_choice {
                return Some(called);
            }
        }
    }

    fn flip(&mut self, call: usize) {
        self.placed[call / 64] ^= 1 << (call % 64);
    }
}

fn is_subset(set: &[u64], of: &[u64]) -> bool {
    set.iter().zip(of).all(|(set, of)| set & !of == 0)
}

//! Edits: clients collide on a few campaigns that they create, change and delete all the time, and change those that
//! are there all the time.

mod call;

use std::sync::Arc;

use self::call::{Edit, Patience};
use super::campaigns::{self, PRICE_MICROS};
use crate::{
    dice::Dice,
    linearizability::{Action, Outcome, Refusal, State, Version},
    oracles::Told,
    world::client::{Client, Stage},
};

/// Campaigns that come and go: few, so that clients collide.
const NAMES: u64 = 4;
/// Listeners hear the first ones. Tokens hold their deletion up; the others go at once.
const HEARD: u64 = 2;
/// Edits of all clients together of campaigns that come and go: what a check of their histories can take.
const EDITS_MAX: u32 = 1_000;
/// Edits that one client has under way at a time.
const EDITORS: u32 = 2;
/// Versions of a campaign that an editor remembers, to edit from an old one sometimes.
const VERSIONS_MAX: usize = 4;
/// Nothing is purged in a run with a pause that is longer.
const RUN_MS_MAX: u64 = 600_000;
/// How long campaigns that are there all the time are paused, on average.
const PAUSED_MS: u64 = 1_500;

const PREFIX: &str = "edited-";

/// Whether all operations on a campaign of this name are told, from the first on.
pub fn are_all_told(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A track of a campaign that comes and goes.
pub(super) fn track(dice: &Dice) -> String {
    campaigns::track(&format!("{PREFIX}{}", dice.within(0..=HEARD - 1)), dice.within(0..=9))
}

/// Edits until nothing new may begin.
pub(super) async fn edit(client: Arc<Client>) {
    futures::future::join_all((0..EDITORS).map(|_| Editor::new(&client).work())).await;
}

/// What an editor knows of a campaign that comes and goes.
#[derive(Default)]
struct Known {
    /// Its latest versions, with their etags.
    versions: Vec<(Version, String)>,
    /// Where it stood; `None`: it was gone.
    state: Option<State>,
}

struct Editor<'a> {
    client: &'a Client,
    known: Vec<Known>,
    /// Edits that it may still make.
    left: u32,
}

impl<'a> Editor<'a> {
    fn new(client: &'a Client) -> Self {
        let known = (0..NAMES).map(|_| Known::default()).collect();
        Self { client, known, left: EDITS_MAX / (client.plan.load.clients * EDITORS) }
    }

    async fn work(mut self) {
        let client = self.client;
        loop {
            client.pause(client.plan.load.edit_pause_ms * u64::from(EDITORS)).await;
            if !matches!(client.stage.now(), Stage::Faults | Stage::Healed) {
                continue;
            }
            let _under_way = client.begin();
            if client.dice.one_in(4) {
                edit_standing(client).await;
            } else if self.left > 0 {
                self.left -= 1;
                self.edit_any().await;
            }
        }
    }

    async fn edit_any(&mut self) {
        let (client, dice) = (self.client, &self.client.dice);
        let number = dice.below(self.known.len());
        let known = &mut self.known[number];
        let (expected, etag) = match known.versions.last() {
            Some(latest) if dice.one_in(2) => {
                let (version, etag) = if dice.one_in(4) { dice.pick(&known.versions) } else { latest };
                (Some(*version), etag.clone())
            }
            _ => (None, String::new()),
        };
        let action = draw(client, known.state, expected);
        let takes_etag = action.expected().is_some();
        let takes_id = matches!(action, Action::Create { .. }) || (action != Action::Read && dice.one_in(2));
        let edit = Edit {
            name: format!("{PREFIX}{number}"),
            action,
            etag: if takes_etag { etag } else { String::new() },
            request_id: if takes_id { format!("edit-{}", client.next_call()) } else { String::new() },
        };
        if matches!(action, Action::Delete { .. }) {
            client.witness.told(&Told::Deleting(&edit.name));
        }
        let (outcome, etag) = call::make(client, &edit, Patience::Bounded).await;
        match outcome {
            Outcome::Shown(seen) => {
                known.state = Some(seen.state);
                if known.versions.last().is_none_or(|(version, _)| *version != seen.version) {
                    known.versions.push((seen.version, etag));
                }
                if known.versions.len() > VERSIONS_MAX {
                    known.versions.remove(0);
                }
                client.count("edits");
            }
            Outcome::Gone | Outcome::Refused(Refusal::NotFound) => known.state = None,
            Outcome::Refused(_) | Outcome::Unknown => {}
        }
    }
}

/// What to do to a campaign, by where it seems to stand.
fn draw(client: &Client, state: Option<State>, expected: Option<Version>) -> Action {
    let dice = &client.dice;
    let create = || Action::Create { budget_micros: budget(dice), price_micros: PRICE_MICROS };
    let keeps_ended = client.plan.settings.purge_after_ms > RUN_MS_MAX;
    match (state, dice.within(0..=99)) {
        (None, 0..=59) => create(),
        (Some(State::Ended | State::Deleting), 0..=29) => Action::Delete { expected },
        (Some(State::Deleting), 30..=59) => create(),
        (_, 0..=24) => Action::Read,
        (_, 25..=46) => Action::Update { budget_micros: Some(budget(dice)), price_micros: None, expected },
        (_, 47..=54) => Action::Update { budget_micros: None, price_micros: Some(price(dice)), expected },
        (_, 55..=65) => Action::Pause { expected },
        (_, 66..=76) => Action::Resume { expected },
        // A name whose campaign goes without being deleted has no history that could be checked.
        (_, 77..=80) if keeps_ended => Action::End { expected },
        (_, 77..=92) => Action::Delete { expected },
        _ => create(),
    }
}

/// Sometimes one below what is billed and set aside by then.
fn budget(dice: &Dice) -> u64 {
    PRICE_MICROS * if dice.one_in(3) { dice.within(1..=20) } else { dice.within(200..=4_000) }
}

fn price(dice: &Dice) -> u64 {
    dice.within(PRICE_MICROS / 2..=PRICE_MICROS * 2)
}

/// Changes a campaign that is there all the time, in a way that lets it deliver afterwards.
async fn edit_standing(client: &Client) {
    let (dice, load) = (&client.dice, &client.plan.load);
    let name = campaigns::name(dice.within(0..=u64::from(load.campaigns) - 1) as u32);
    let update = |budget_micros, price_micros| Action::Update { budget_micros, price_micros, expected: None };
    let enough = update(Some(load.deliveries * PRICE_MICROS * dice.within(50..=150) / 100), None);
    match dice.within(0..=3) {
        0 => {
            edit_until_known(client, &name, Action::Pause { expected: None }).await;
            client.pause(PAUSED_MS).await;
            edit_until_known(client, &name, Action::Resume { expected: None }).await;
        }
        1 => edit_until_known(client, &name, update(None, Some(price(dice)))).await,
        2 => {
            edit_until_known(client, &name, update(Some(budget(dice)), None)).await;
            edit_until_known(client, &name, enough).await;
        }
        _ => edit_until_known(client, &name, enough).await,
    }
}

async fn edit_until_known(client: &Client, name: &str, action: Action) {
    let request_id = format!("edit-{}", client.next_call());
    let edit = Edit { name: name.to_owned(), action, etag: String::new(), request_id };
    call::make(client, &edit, Patience::UntilQuiet).await;
}

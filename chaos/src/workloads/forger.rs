//! Tokens that nobody was given: made up, changed, of another cluster.

use std::sync::Arc;

use andante::{
    campaign::token::{TokenFields, TokenKeys, campaign_key},
    v1,
};

use super::{campaigns, listeners::report_once};
use crate::{
    oracles::Told,
    world::client::{Client, Stage},
};

const PAUSE_MS: u64 = 1_500;

/// Reports forged outcomes. An authentic-looking token has fields that make sense and a key of another cluster.
pub(super) async fn forge(client: Arc<Client>) {
    let mut key = [0; 32];
    andante_cluster::env::Rng::fill(&client.dice, &mut key);
    let foreign = TokenKeys::new(1, vec![(1, key)], 1).expect("one key");
    loop {
        client.pause(PAUSE_MS).await;
        if !matches!(client.stage.now(), Stage::Faults | Stage::Healed) {
            continue;
        }
        let _under_way = client.begin();
        let dice = &client.dice;
        let fields = TokenFields {
            campaign: campaign_key(&campaigns::name(dice.within(0..=u64::from(client.plan.load.campaigns) - 1) as u32)),
            incarnation: dice.within(1..=20) as u32,
            number: dice.within(1..=5) as u32,
            // Far beyond what is granted at once: never one that a client was given.
            sequence: 1_000_000 + dice.within(0..=1_000_000) as u32,
            listener: 1,
            surface: 1,
            expiry_ms: client.now_ms() + 60_000,
        };
        let mut token = foreign.mint(&fields).to_vec();
        match dice.within(0..=3) {
            0 => token.truncate(dice.below(token.len())),
            1 => {
                let at = dice.below(token.len());
                token[at] ^= 1 << dice.within(0..=7);
            }
            2 => token[0] = dice.within(2..=255) as u8,
            _ => {}
        }
        let event = v1::OutcomeEvent { token, kind: v1::OutcomeKind::Stream.into(), stream_ms: 31_000 };
        client.witness.told(&Told::Reporting(&event));
        report_once(&client, &event).await;
    }
}

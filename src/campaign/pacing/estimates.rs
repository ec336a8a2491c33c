//! What a pacer has learned, as bytes for its successor.

use prost::Message;

use super::{Means, Pacer, Takes};
use crate::campaign::{
    proto::PacingEstimates,
    quality::BillableShare,
    traffic::{Parts, Ratio, Traffic},
};

/// Version of the meaning of the fields.
const VERSION: u32 = 1;

pub(super) fn encode(pacer: &Pacer) -> Vec<u8> {
    let traffic = pacer.traffic.parts();
    let (billed, known) = pacer.share.counts();
    PacingEstimates {
        version: VERSION,
        opportunities: pacer.means.count,
        relevance_sum: pacer.means.relevance_sum,
        price_sum_micros: pacer.means.price_sum_micros,
        takes: pacer.takes.count,
        takes_micros: pacer.takes.micros,
        billed,
        known,
        level_count: traffic.level.count,
        level_mass_ms: traffic.level.mass,
        seen: traffic.seen,
        exposure_ms: traffic.exposure_ms,
    }
    .encode_to_vec()
}

/// Each group of fields is taken only if it makes sense: bytes from a damaged or newer source can't upset pacing.
pub(super) fn decode(pacer: &mut Pacer, bytes: &[u8]) {
    let Ok(stored) = PacingEstimates::decode(bytes) else { return };
    if stored.version != VERSION {
        return;
    }
    let sound = |values: &[f64]| values.iter().all(|v| v.is_finite() && *v >= 0.0);
    if sound(&[stored.opportunities, stored.relevance_sum, stored.price_sum_micros]) && stored.opportunities > 0.0 {
        pacer.means = Means {
            count: stored.opportunities,
            relevance_sum: stored.relevance_sum,
            price_sum_micros: stored.price_sum_micros,
        };
    }
    if sound(&[stored.takes, stored.takes_micros]) {
        pacer.takes = Takes { count: stored.takes, micros: stored.takes_micros };
    }
    pacer.share = BillableShare::restore(pacer.settings.expected_billable_share, stored.billed, stored.known);
    let parts = Parts {
        level: Ratio { count: stored.level_count, mass: stored.level_mass_ms },
        seen: stored.seen,
        exposure_ms: stored.exposure_ms,
    };
    let shape = pacer.traffic.prior().clone();
    pacer.traffic = Traffic::restore(shape, pacer.settings.flight_ms(), &parts);
}

//! One campaign's part of the record, and how a ledger is held against it.

use crate::{
    v1::{Campaign, OutcomeKind, OutcomeStatus},
    verify::{Event, Fate, Findings},
};

/// How often something was acknowledged, and how often its fate is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Acknowledged.
    pub acked: u64,
    /// Sent, but nobody can say whether it counts.
    pub unknown: u64,
}

impl Count {
    fn add(&mut self, fate: Fate) {
        match fate {
            Fate::Counted => self.acked += 1,
            Fate::Unknown => self.unknown += 1,
            Fate::TooLate | Fate::NotApplied | Fate::Wrong(_) => {}
        }
    }

    fn merge(&mut self, other: Count) {
        self.acked += other.acked;
        self.unknown += other.unknown;
    }
}

/// What was acknowledged for one campaign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its name.
    pub name: String,
    /// Its price; constant while the record is kept.
    pub price_micros: u64,
    /// Placements received.
    pub placed: u64,
    /// Billable outcomes.
    pub billed: Count,
    /// Impressions.
    pub impressions: Count,
    /// Streams too short to bill.
    pub short_streams: Count,
    /// Skips.
    pub skips: Count,
    /// Saves.
    pub saves: Count,
    /// Releases.
    pub released: Count,
    /// Events that came too late.
    pub too_late: u64,
}

impl Tally {
    /// An empty tally.
    pub fn new(name: &str, price_micros: u64) -> Self {
        Tally { name: name.to_owned(), price_micros, ..Tally::default() }
    }

    /// Notes what became of an event.
    pub fn add(&mut self, event: Event, fate: Fate) {
        if fate == Fate::TooLate {
            self.too_late += 1;
        }
        match event.kind {
            OutcomeKind::Stream if event.expected() == OutcomeStatus::Billed => self.billed.add(fate),
            OutcomeKind::Stream => self.short_streams.add(fate),
            OutcomeKind::Impression => self.impressions.add(fate),
            OutcomeKind::Skip => self.skips.add(fate),
            OutcomeKind::Save => self.saves.add(fate),
            OutcomeKind::NotUsed => self.released.add(fate),
            OutcomeKind::Unspecified => {}
        }
    }

    /// Adds another part of the same campaign's record.
    pub fn merge(&mut self, other: &Tally) {
        self.placed += other.placed;
        self.billed.merge(other.billed);
        self.impressions.merge(other.impressions);
        self.short_streams.merge(other.short_streams);
        self.skips.merge(other.skips);
        self.saves.merge(other.saves);
        self.released.merge(other.released);
        self.too_late += other.too_late;
    }

    /// Holds the campaign's ledger against this record: everything acknowledged is there once, nothing is there that
    /// was not sent, each billing costs the price, and settled plus set aside stays within the budget.
    pub fn compare(&self, campaign: &Campaign) -> Findings {
        let mut findings = Findings::default();
        let (Some(ledger), Some(spec)) = (&campaign.ledger, &campaign.spec) else {
            findings.wrong_answer(format!("{}: the server shows no ledger", self.name));
            return findings;
        };
        let counts = [
            ("billed", self.billed, ledger.billed),
            ("impressions", self.impressions, ledger.impressions),
            ("short streams", self.short_streams, ledger.short_streams),
            ("skips", self.skips, ledger.skips),
            ("saves", self.saves, ledger.saves),
            ("released", self.released, ledger.released),
        ];
        for (what, count, there) in counts {
            let most = count.acked + count.unknown;
            if there < count.acked {
                findings.lost_outcomes += count.acked - there;
                findings.note(format!("{}: {} {what} acknowledged, {there} in the ledger", self.name, count.acked));
            } else if there > most {
                findings.double_billed += there - most;
                findings.note(format!("{}: at most {most} {what} sent, {there} in the ledger", self.name));
            }
        }
        let exact = ledger.billed.saturating_mul(self.price_micros);
        if ledger.settled_micros != exact {
            findings.wrong_answer(format!(
                "{}: {} billed at {} micros make {exact}, settled is {}",
                self.name, ledger.billed, self.price_micros, ledger.settled_micros
            ));
        }
        let taken = ledger.settled_micros.saturating_add(ledger.open_micros);
        if taken > spec.budget_micros {
            findings.overspend_micros += taken - spec.budget_micros;
            findings.note(format!(
                "{}: {} settled + {} set aside exceed the budget {}",
                self.name, ledger.settled_micros, ledger.open_micros, spec.budget_micros
            ));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{CampaignSpec, Ledger};

    fn campaign(billed: u64, settled_micros: u64, open_micros: u64) -> Campaign {
        Campaign {
            spec: Some(CampaignSpec { budget_micros: 1_000, ..CampaignSpec::default() }),
            ledger: Some(Ledger { billed, settled_micros, open_micros, ..Ledger::default() }),
            ..Campaign::default()
        }
    }

    fn tally(acked: u64, unknown: u64) -> Tally {
        Tally { billed: Count { acked, unknown }, ..Tally::new("c", 10) }
    }

    #[test]
    fn what_was_acknowledged_must_be_there_and_unknowns_may_be() {
        for there in 7..=9 {
            assert!(tally(7, 2).compare(&campaign(there, there * 10, 0)).clean());
        }
        assert_eq!(tally(7, 2).compare(&campaign(5, 50, 0)).lost_outcomes, 2);
        assert_eq!(tally(7, 2).compare(&campaign(12, 120, 0)).double_billed, 3);
    }

    #[test]
    fn a_wrong_price_and_an_exceeded_budget_are_found() {
        assert_eq!(tally(7, 0).compare(&campaign(7, 71, 0)).wrong_answers, 1);
        assert!(tally(7, 0).compare(&campaign(7, 70, 930)).clean());
        assert_eq!(tally(7, 0).compare(&campaign(7, 70, 931)).overspend_micros, 1);
    }

    #[test]
    fn events_count_where_they_belong() {
        let mut t = Tally::new("c", 10);
        t.add(Event::stream(40_000), Fate::Counted);
        t.add(Event::stream(4_000), Fate::Counted);
        t.add(Event::of(OutcomeKind::NotUsed), Fate::Unknown);
        t.add(Event::of(OutcomeKind::Save), Fate::TooLate);
        let mut whole = t.clone();
        whole.merge(&t);
        assert_eq!(whole.billed, Count { acked: 2, unknown: 0 });
        assert_eq!(whole.short_streams, Count { acked: 2, unknown: 0 });
        assert_eq!(whole.released, Count { acked: 0, unknown: 2 });
        assert_eq!((whole.saves, whole.too_late), (Count::default(), 2));
    }
}

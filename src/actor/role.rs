//! What this node may do for a shard, from what it knows about who leads: values in, values out.

use andante_cluster::host::Leadership;

/// What this node does for a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Somebody else leads, or nobody is known to and this node did not lead last: its cells follow the log and hand
    /// out nothing.
    Following = 0,
    /// This node leads: it scores, proposes and closes.
    Leading = 1,
    /// This node led last, no quorum answers any more, and no newer leader is known. Its cells go on handing out what
    /// was set aside for them, which is safe whoever else leads by now; nothing is proposed.
    CutOff = 2,
}

impl Role {
    /// The role that news about who leads gives.
    pub fn after(self, news: &Leadership) -> Self {
        match (news, self) {
            (Leadership::Leader { .. }, _) => Self::Leading,
            (Leadership::Follower { leader: None }, Self::Leading | Self::CutOff) => Self::CutOff,
            (Leadership::Follower { .. }, _) => Self::Following,
        }
    }

    /// Whether cells hand out tokens.
    pub fn scores(self) -> bool {
        self != Self::Following
    }

    /// As stored in an atomic.
    pub(super) fn from_u8(byte: u8) -> Self {
        match byte {
            1 => Self::Leading,
            2 => Self::CutOff,
            _ => Self::Following,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_newer_leader_ends_the_scoring_of_one_that_led() {
        use Role::{CutOff, Following, Leading};
        let leader = Leadership::Leader { term: 3 };
        let nobody = Leadership::Follower { leader: None };
        let other = Leadership::Follower { leader: Some(2) };
        for (before, news, after) in [
            (Following, leader, Leading),
            (Following, nobody, Following),
            (Following, other, Following),
            (Leading, leader, Leading),
            (Leading, nobody, CutOff),
            (Leading, other, Following),
            (CutOff, leader, Leading),
            (CutOff, nobody, CutOff),
            (CutOff, other, Following),
        ] {
            assert_eq!(before.after(&news), after, "{before:?}, {news:?}");
            assert_eq!(Role::from_u8(before as u8), before);
        }
    }
}

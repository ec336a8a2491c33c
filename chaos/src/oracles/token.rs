//! What a token says, read without its key: by the layout that never changes within a version.

/// Which token it is: the unit that is billed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenId {
    /// Hash of the campaign's name.
    pub campaign: u64,
    /// The campaign's incarnation.
    pub incarnation: u32,
    /// The allowance.
    pub number: u32,
    /// Its sequence number.
    pub sequence: u32,
}

impl TokenId {
    /// Of a token's bytes; `None`: they are too few.
    pub fn read(token: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_be_bytes(token.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            campaign: u64::from_be_bytes(token.get(6..14)?.try_into().ok()?),
            incarnation: u32_at(14)?,
            number: u32_at(18)?,
            sequence: u32_at(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use andante::campaign::token::{TokenFields, TokenKeys};

    use super::*;

    #[test]
    fn it_reads_what_was_minted() {
        let fields = TokenFields {
            campaign: 0x0102_0304_0506_0708,
            incarnation: 9,
            number: 10,
            sequence: 11,
            listener: 12,
            surface: 13,
            expiry_ms: 14,
        };
        let token = TokenKeys::new(1, vec![(1, [7; 32])], 1).expect("keys").mint(&fields);
        let id = TokenId { campaign: fields.campaign, incarnation: 9, number: 10, sequence: 11 };
        assert_eq!(TokenId::read(&token), Some(id));
        assert_eq!(TokenId::read(&token[..20]), None);
    }
}

//! Delivery tokens: the proof that money was set aside for one placement.
//!
//! A token is 58 bytes, big-endian, of a layout that never changes within a version:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version: 1 |
//! | 1 | 1 | key id |
//! | 2 | 4 | incarnation of the cluster |
//! | 6 | 8 | campaign: hash of its name |
//! | 14 | 4 | incarnation of the campaign |
//! | 18 | 4 | allowance |
//! | 22 | 4 | sequence number within it |
//! | 26 | 8 | listener: hash of the id |
//! | 34 | 2 | surface: hash |
//! | 36 | 6 | expiry, UTC milliseconds |
//! | 42 | 16 | MAC: BLAKE3 keyed hash of bytes 0-41, truncated |
//!
//! The MAC says that this cluster minted the token; whether it bills is for the ledger to say.

use std::fmt;

use constant_time_eq::constant_time_eq_16;
use xxhash_rust::xxh3::xxh3_64;

/// Length of a token in bytes.
pub const TOKEN_BYTES: usize = BODY_BYTES + MAC_BYTES;
/// The only version there is.
pub const TOKEN_VERSION: u8 = 1;
/// Keys valid at once: two during a rotation, and room for a second rotation close behind.
pub const TOKEN_KEYS_MAX: usize = 4;

const BODY_BYTES: usize = 42;
const MAC_BYTES: usize = 16;
/// The expiry has 48 bits: enough until the year 10889.
const EXPIRY_MAX_MS: u64 = (1 << 48) - 1;

/// The hash of a campaign's name: its key everywhere, and (modulo 4096) its bucket. Fixed for ever.
pub fn campaign_key(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

/// The hash of a listener's id. Fixed for ever.
pub fn listener_hash(listener_id: &str) -> u64 {
    xxh3_64(listener_id.as_bytes())
}

/// The hash of a surface: the low 16 bits. Fixed for ever.
pub fn surface_hash(surface: &str) -> u16 {
    xxh3_64(surface.as_bytes()) as u16
}

/// What a token says. Key id and cluster incarnation belong to [`TokenKeys`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenFields {
    /// Hash of the campaign's name ([`campaign_key`]).
    pub campaign: u64,
    /// Incarnation of the campaign.
    pub incarnation: u32,
    /// Number of the allowance.
    pub number: u32,
    /// Sequence number within the allowance, from 0.
    pub sequence: u32,
    /// Hash of the listener's id ([`listener_hash`]).
    pub listener: u64,
    /// Hash of the surface ([`surface_hash`]).
    pub surface: u16,
    /// Until then it is billable for certain, UTC milliseconds; later than 2^48-1 counts as that.
    pub expiry_ms: u64,
}

/// Why bytes are not a token of this cluster. Whoever sent them gains nothing from a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not [`TOKEN_BYTES`] long.
    #[error("a token has {TOKEN_BYTES} bytes")]
    Length,
    /// Of a version this program does not know.
    #[error("unknown token version")]
    Version,
    /// Minted with a key that is not, or no longer, valid.
    #[error("unknown token key")]
    Key,
    /// Of the key that comes after the newest known here: this node may be behind the others. Ask again.
    #[error("the token's key is not known here yet")]
    KeyAhead,
    /// Damaged or forged.
    #[error("the token is damaged")]
    Mac,
    /// Minted before the cluster was restored from a backup.
    #[error("the token is of another incarnation of the cluster")]
    ClusterIncarnation,
}

/// Why keys can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeysError {
    /// None, or more than [`TOKEN_KEYS_MAX`].
    #[error("1 to {TOKEN_KEYS_MAX} token keys are needed")]
    Count,
    /// Two keys have the same id.
    #[error("two token keys have the same id")]
    SameId,
    /// The current key is not among them.
    #[error("the current token key is missing")]
    NoCurrent,
}

/// The keys valid now and the cluster's incarnation: mints and opens tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKeys {
    cluster_incarnation: u32,
    keys: Vec<(u8, [u8; 32])>,
    /// Position of the key that mints.
    current: usize,
}

impl TokenKeys {
    /// The id of the key made after the one with this id: 1 to 255, then from 1 again.
    pub fn id_after(id: u8) -> u8 {
        id.checked_add(1).unwrap_or(1)
    }

    /// Keys by id, in the order they were made; `current` is the id of the one that mints, all of them open.
    ///
    /// # Errors
    /// When the keys are none or too many, share an id, or lack the current one.
    pub fn new(cluster_incarnation: u32, keys: Vec<(u8, [u8; 32])>, current: u8) -> Result<Self, TokenKeysError> {
        if keys.is_empty() || keys.len() > TOKEN_KEYS_MAX {
            return Err(TokenKeysError::Count);
        }
        if keys.iter().enumerate().any(|(i, (id, _))| keys[..i].iter().any(|(other, _)| other == id)) {
            return Err(TokenKeysError::SameId);
        }
        let current = keys.iter().position(|(id, _)| *id == current).ok_or(TokenKeysError::NoCurrent)?;
        Ok(Self { cluster_incarnation, keys, current })
    }

    /// The incarnation of the cluster these keys mint for.
    pub fn cluster_incarnation(&self) -> u32 {
        self.cluster_incarnation
    }

    /// A token, with the current key. Allocates nothing: it is on the score path.
    pub fn mint(&self, fields: &TokenFields) -> [u8; TOKEN_BYTES] {
        let (key_id, key) = &self.keys[self.current];
        let mut token = [0; TOKEN_BYTES];
        token[0] = TOKEN_VERSION;
        token[1] = *key_id;
        token[2..6].copy_from_slice(&self.cluster_incarnation.to_be_bytes());
        token[6..14].copy_from_slice(&fields.campaign.to_be_bytes());
        token[14..18].copy_from_slice(&fields.incarnation.to_be_bytes());
        token[18..22].copy_from_slice(&fields.number.to_be_bytes());
        token[22..26].copy_from_slice(&fields.sequence.to_be_bytes());
        token[26..34].copy_from_slice(&fields.listener.to_be_bytes());
        token[34..36].copy_from_slice(&fields.surface.to_be_bytes());
        token[36..42].copy_from_slice(&fields.expiry_ms.min(EXPIRY_MAX_MS).to_be_bytes()[2..]);
        let mac = mac(key, &token[..BODY_BYTES]);
        token[BODY_BYTES..].copy_from_slice(&mac);
        token
    }

    /// What an authentic token says.
    ///
    /// # Errors
    /// When the bytes are not a token of this cluster and incarnation.
    pub fn open(&self, token: &[u8]) -> Result<TokenFields, TokenError> {
        let token: &[u8; TOKEN_BYTES] = token.try_into().map_err(|_| TokenError::Length)?;
        if token[0] != TOKEN_VERSION {
            return Err(TokenError::Version);
        }
        let Some((_, key)) = self.keys.iter().find(|(id, _)| *id == token[1]) else {
            // Keys stand in the order they were made.
            let ahead = self.keys.last().is_some_and(|(newest, _)| token[1] == Self::id_after(*newest));
            return Err(if ahead { TokenError::KeyAhead } else { TokenError::Key });
        };
        if !constant_time_eq_16(&mac(key, &token[..BODY_BYTES]), &bytes_at(token, BODY_BYTES)) {
            return Err(TokenError::Mac);
        }
        if u32::from_be_bytes(bytes_at(token, 2)) != self.cluster_incarnation {
            return Err(TokenError::ClusterIncarnation);
        }
        let mut expiry = [0; 8];
        expiry[2..].copy_from_slice(&token[36..42]);
        Ok(TokenFields {
            campaign: u64::from_be_bytes(bytes_at(token, 6)),
            incarnation: u32::from_be_bytes(bytes_at(token, 14)),
            number: u32::from_be_bytes(bytes_at(token, 18)),
            sequence: u32::from_be_bytes(bytes_at(token, 22)),
            listener: u64::from_be_bytes(bytes_at(token, 26)),
            surface: u16::from_be_bytes(bytes_at(token, 34)),
            expiry_ms: u64::from_be_bytes(expiry),
        })
    }
}

/// Never shows a key.
impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u8> = self.keys.iter().map(|(id, _)| *id).collect();
        f.debug_struct("TokenKeys")
            .field("cluster_incarnation", &self.cluster_incarnation)
            .field("ids", &ids)
            .field("current", &ids[self.current])
            .finish_non_exhaustive()
    }
}

fn mac(key: &[u8; 32], body: &[u8]) -> [u8; MAC_BYTES] {
    bytes_at(blake3::keyed_hash(key, body).as_bytes(), 0)
}

/// `N` bytes from an offset that the layout guarantees.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the layout fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: TokenFields = TokenFields {
        campaign: 0x0102_0304_0506_0708,
        incarnation: 0x1112_1314,
        number: 0x2122_2324,
        sequence: 0x3132_3334,
        listener: 0x4142_4344_4546_4748,
        surface: 0x5152,
        expiry_ms: 0x6162_6364_6566,
    };

    fn keys() -> TokenKeys {
        TokenKeys::new(0x7172_7374, vec![(3, [3; 32]), (4, [4; 32])], 4).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The MAC was computed by another implementation of BLAKE3.
    #[test]
    fn the_layout_is_fixed_for_ever() {
        assert_eq!(
            hex(&keys().mint(&FIELDS)),
            concat!(
                "01",
                "04",
                "71727374",
                "0102030405060708",
                "11121314",
                "21222324",
                "31323334",
                "4142434445464748",
                "5152",
                "616263646566",
                "",
                "d491c80a32d900e9e5a29a0d590d8f72"
            )
        );
    }

    /// The values were computed by another implementation of XXH3.
    #[test]
    fn the_hashes_are_fixed_for_ever() {
        assert_eq!(campaign_key("summer-hit"), 0xabc6_889b_deb6_dbb6);
        assert_eq!(campaign_key(""), 0x2d06_8005_38d3_94c2);
        assert_eq!(listener_hash("listener-1"), 0xdecc_24de_bdb7_031d);
        assert_eq!(surface_hash("radio"), 0xbd8e);
        assert_eq!(surface_hash("autoplay"), 0xfdff);
    }

    #[test]
    fn what_was_minted_opens() {
        assert_eq!(keys().open(&keys().mint(&FIELDS)), Ok(FIELDS));
        let late = TokenFields { expiry_ms: u64::MAX, ..FIELDS };
        assert_eq!(keys().open(&keys().mint(&late)), Ok(TokenFields { expiry_ms: EXPIRY_MAX_MS, ..FIELDS }));
    }

    #[test]
    fn every_single_bit_flip_is_refused() {
        let token = keys().mint(&FIELDS);
        for bit in 0..TOKEN_BYTES * 8 {
            let mut flipped = token;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(keys().open(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_older_key_opens_until_it_is_dropped() {
        let old = TokenKeys::new(0x7172_7374, vec![(3, [3; 32])], 3).unwrap().mint(&FIELDS);
        assert_eq!(keys().open(&old), Ok(FIELDS));
        let rotated = TokenKeys::new(0x7172_7374, vec![(4, [4; 32])], 4).unwrap();
        assert_eq!(rotated.open(&old), Err(TokenError::Key));
    }

    #[test]
    fn each_error_names_what_is_wrong() {
        let token = keys().mint(&FIELDS);
        assert_eq!(keys().open(&[]), Err(TokenError::Length));
        assert_eq!(keys().open(&token[..57]), Err(TokenError::Length));
        assert_eq!(keys().open(&[token.as_slice(), &[0]].concat()), Err(TokenError::Length));
        let mut other = token;
        other[0] = 2;
        assert_eq!(keys().open(&other), Err(TokenError::Version));
        other = token;
        for (id, error) in [(9, TokenError::Key), (2, TokenError::Key), (5, TokenError::KeyAhead)] {
            other[1] = id;
            assert_eq!(keys().open(&other), Err(error), "key {id}");
        }
        other[1] = 3;
        assert_eq!(keys().open(&other), Err(TokenError::Mac));
        let restored = TokenKeys::new(0x7172_7375, vec![(4, [4; 32])], 4).unwrap();
        assert_eq!(restored.open(&token), Err(TokenError::ClusterIncarnation));
    }

    #[test]
    fn keys_must_make_sense_and_are_never_shown() {
        assert_eq!(TokenKeys::new(1, vec![], 1), Err(TokenKeysError::Count));
        assert_eq!(TokenKeys::new(1, vec![(0, [0; 32]); 5], 0), Err(TokenKeysError::Count));
        assert_eq!(TokenKeys::new(1, vec![(1, [0; 32]), (1, [1; 32])], 1), Err(TokenKeysError::SameId));
        assert_eq!(TokenKeys::new(1, vec![(1, [0; 32])], 2), Err(TokenKeysError::NoCurrent));
        assert_eq!(
            format!("{:?}", keys()),
            "TokenKeys { cluster_incarnation: 1903326068, ids: [3, 4], current: 4, .. }"
        );
    }
}

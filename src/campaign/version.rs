//! Which version of which campaign of a name.

use std::fmt;

use super::proto::Campaign;

/// A version. Where one is expected, 0 stands for any: as a whole it is [`Version::ANY`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Tells campaigns of the same name apart.
    pub incarnation: u32,
    /// Counts the changes of settings and state.
    pub revision: u64,
}

impl Version {
    /// Expects nothing.
    pub const ANY: Self = Self { incarnation: 0, revision: 0 };

    /// A campaign's.
    pub fn of(campaign: &Campaign) -> Self {
        Self { incarnation: campaign.incarnation, revision: campaign.revision }
    }

    /// Whether a change that expects this one may be made to `there`.
    pub fn admits(self, there: Self) -> bool {
        [0, there.incarnation].contains(&self.incarnation) && [0, there.revision].contains(&self.revision)
    }

    /// Of its text. `None`: it is none, or not one of a campaign that can be there.
    pub fn parse(text: &str) -> Option<Self> {
        let (incarnation, revision) = text.split_once('-')?;
        let version = Self { incarnation: incarnation.parse().ok()?, revision: revision.parse().ok()? };
        (version.incarnation > 0 && version.revision > 0).then_some(version)
    }
}

/// Clients get it as an etag, which means nothing to them.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_being_written() {
        let version = Version { incarnation: 3, revision: 17 };
        assert_eq!(version.to_string(), "3-17");
        assert_eq!(Version::parse("3-17"), Some(version));
        for text in ["", "17", "3-", "-17", "0-17", "3-0", "3-17-1", "a-b", "4294967296-1", "1-18446744073709551616"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_change_is_made_only_to_what_it_expects() {
        let there = Version { incarnation: 3, revision: 17 };
        assert!(Version::ANY.admits(there) && there.admits(there));
        assert!(Version { incarnation: 0, ..there }.admits(there), "as written before there were incarnations in it");
        assert!(!Version { incarnation: 2, ..there }.admits(there), "another campaign of this name");
        assert!(!Version { revision: 16, ..there }.admits(there));
    }
}

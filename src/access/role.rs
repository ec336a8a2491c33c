//! Roles.

use std::fmt;

use super::proto;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask for scores.
    Score,
    /// Report outcomes.
    Outcome,
    /// Create, change, read and watch campaigns.
    Campaign,
    /// Everything.
    Operator,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Score, Role::Outcome, Role::Campaign, Role::Operator];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Score => "score",
            Role::Outcome => "outcome",
            Role::Campaign => "campaign",
            Role::Operator => "operator",
        }
    }

    fn to_record(self) -> proto::Role {
        match self {
            Role::Score => proto::Role::Score,
            Role::Outcome => proto::Role::Outcome,
            Role::Campaign => proto::Role::Campaign,
            Role::Operator => proto::Role::Operator,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    /// Whether a call that needs `role` is allowed: by that role, or because operators may do everything.
    pub fn allow(self, role: Role) -> bool {
        self.has(role) || self.has(Role::Operator)
    }

    /// Whether the role itself is among them.
    pub fn has(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The roles, in order.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }

    pub(super) fn to_record(self) -> Vec<i32> {
        self.iter().map(|role| role.to_record() as i32).collect()
    }

    /// Roles that this program does not know allow nothing.
    pub(super) fn from_record(roles: &[i32]) -> Self {
        roles.iter().filter_map(|known| Role::ALL.into_iter().find(|role| role.to_record() as i32 == *known)).collect()
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Roles(roles.into_iter().fold(0, |set, role| set | 1 << role as u8))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_allows_itself_and_operators_everything() {
        for held in Role::ALL {
            let roles = Roles::from_iter([held]);
            for needed in Role::ALL {
                assert_eq!(roles.allow(needed), held == needed || held == Role::Operator, "{held} for {needed}");
            }
        }
        assert!(!Role::ALL.into_iter().any(|role| Roles::default().allow(role)));
    }

    #[test]
    fn roles_survive_their_record_and_unknown_ones_allow_nothing() {
        let roles = Roles::from_iter([Role::Campaign, Role::Score]);
        assert_eq!(Roles::from_record(&roles.to_record()), roles);
        assert!(Roles::from_record(&[0, 5, -1]).is_empty());
    }
}

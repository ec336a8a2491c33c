//! What a node says of its groups, as it travels.

pub use crate::proto::{FollowerReport, GroupReport, LeaderReport, ReportResponse as NodeReport};

//! What the tests share.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test binary uses its own part of it")]

pub mod campaign;
pub mod fake_node;
pub mod scripted;
pub mod trio;
#[path = "../../cluster/tests/wires/mod.rs"]
pub mod wires;

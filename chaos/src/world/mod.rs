//! The simulated world: hosts, their clocks, disks and the network between them.

pub mod clock;
pub mod network;
pub mod node;
pub mod threads;
pub mod traffic;

//! The whole cluster in a deterministic simulation: one process per seed plays real nodes and clients over a simulated
//! network, clocks and disks, under faults, and holds them to their promises at every step.
#![allow(missing_docs)]
pub mod dice;
pub mod driver;
pub mod markers;
pub mod plan;
pub mod report;
pub mod trace;
pub mod world;

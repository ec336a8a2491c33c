//! The whole cluster in a deterministic simulation: one process per seed plays real nodes and clients over a simulated
//! network, clocks and disks, under faults, and holds them to their promises at every step.

pub mod dice;
mod draw;
pub mod driver;
pub mod faults;
pub mod linearizability;
pub mod logs;
pub mod markers;
pub mod mutants;
pub mod oracles;
pub mod plan;
pub mod report;
pub mod simulation;
pub mod trace;
pub mod witness;
pub mod workloads;
pub mod world;

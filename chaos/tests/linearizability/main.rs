//! The linearizability checker: against real histories with known verdicts, a brute-force checker, and a table of
//! anomalies.

mod anomalies;
mod archive;
mod book;
mod brute_force;
mod histories;
mod key_value;
mod mutated;
mod online;
mod properties;
mod register;

//! Durability proven with real processes: a node under strace, killed, and cut off from power.
//!
//! Each test runs the `andante` binary. What a machine lacks (strace, root, loop devices) is a visible skip, and a
//! failure where `CI=true` promises it.
//!
//! - [`strace`]: no Report is answered before the sync that covers it. Judged by [`check`], a function of the trace.
//! - [`kill`]: `kill -9` in the middle of a replay. [`power_loss`]: so does the power, and the proof that this can fail.
//! - [`sync_error`]: a sync fails, while the writes before it succeeded.
//! - [`no_sync`]: the proof that these tests fail for a build with the sync switched off.
//! - [`node`], [`replay`]: the processes. [`digests`]: what a stopped node's state hashes to. [`disk`]: a disk whose
//!   power can be cut. [`inject`]: system calls that lie or fail. [`http2`], [`syscalls`]: what a trace shows.
#![cfg(target_os = "linux")]

mod check;
mod digests;
mod disk;
mod http2;
mod inject;
mod kill;
mod no_sync;
mod node;
mod power_loss;
mod replay;
mod strace;
mod sync_error;
mod syscalls;
mod tools;

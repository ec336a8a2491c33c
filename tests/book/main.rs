//! The book of a shard, from outside: properties against an independent model, stories, and the core's purity.

mod driver;
mod history;
mod limits;
mod model;
mod ops;
mod properties;
mod purity;
mod stories;

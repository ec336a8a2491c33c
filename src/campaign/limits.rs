//! Every bound of the core, with its reason, in one place.
//!
//! Bounds that `apply` checks are part of what commands mean and never change; those checked only before a command
//! is proposed (marked *proposer*) may.

/// Bytes of a campaign's name. Names travel in every placement.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes of an owner. *proposer*
pub const OWNER_BYTES_MAX: usize = 63;
/// Labels of a campaign. *proposer*
pub const LABELS_MAX: usize = 16;
/// Bytes of a label's key and of its value. *proposer*
pub const LABEL_BYTES_MAX: usize = 63;
/// Tracks of a campaign: the catalog holds one entry for each. *proposer*
pub const TRACKS_MAX: usize = 500;
/// Bytes of a track id. *proposer*
pub const TRACK_BYTES_MAX: usize = 64;
/// Surfaces a campaign may name. *proposer*
pub const SURFACES_MAX: usize = 32;
/// Characters of a surface. *proposer*
pub const SURFACE_BYTES_MAX: usize = 32;
/// Markets a campaign may name: there are fewer countries. *proposer*
pub const MARKETS_MAX: usize = 250;

/// Largest amount of money in micros: what a double, hence JSON, carries exactly.
pub const MICROS_MAX: u64 = (1 << 53) - 1;
/// Latest time: the end of the year 9999. Sums of two times stay far from the end of u64.
pub const TIME_MAX_MS: u64 = 253_402_300_799_999;
/// Longest flight: a leap year. *proposer*
pub const FLIGHT_MAX_MS: u64 = 366 * 24 * 3_600_000;
/// Shortest hold time: below it, ordinary network trouble would eat the promise.
pub const HOLD_MIN_MS: u64 = 10_000;
/// Longest hold time: money of lost tokens is stranded for as long.
pub const HOLD_MAX_MS: u64 = 3_600_000;
/// Hold time where the owner names none.
pub const HOLD_DEFAULT_MS: u64 = 300_000;
/// Shortest minimum length of a stream.
pub const MIN_STREAM_MIN_MS: u64 = 1;
/// Longest minimum length of a stream: nothing that long is a track.
pub const MIN_STREAM_MAX_MS: u64 = 3_600_000;
/// Minimum length of a stream where the owner names none: the industry counts from 30 s on.
pub const MIN_STREAM_DEFAULT_MS: u64 = 30_000;
/// Highest relevance, of a candidate and hence of a floor. *proposer*
pub const RELEVANCE_MAX: f64 = 1_000_000.0;
/// Highest promotion score. *proposer*
pub const BOOST_CAP_MAX: f64 = 10.0;
/// Highest promotion score where the owner names none.
pub const BOOST_CAP_DEFAULT: f64 = 1.0;
/// Highest frequency cap: counters saturate far above. *proposer*
pub const FREQUENCY_CAP_MAX: u32 = 1_000;
/// Shortest frequency window. *proposer*
pub const FREQUENCY_WINDOW_MIN_MS: u64 = 60_000;
/// Longest frequency window, a week: counters are kept in memory for as long. *proposer*
pub const FREQUENCY_WINDOW_MAX_MS: u64 = 604_800_000;
/// Frequency window where the owner names a cap alone: a day.
pub const FREQUENCY_WINDOW_DEFAULT_MS: u64 = 86_400_000;
/// Expected billable share where the owner names none.
pub const BILLABLE_SHARE_DEFAULT: f64 = 0.5;

/// Bytes of a client's request id.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Write requests remembered per campaign: more than one client retries at a time.
pub const REQUESTS_REMEMBERED: usize = 16;
/// Deletions remembered per shard, for retries that come after the campaign is gone: seven a second with the default
/// retry window. Beyond that the oldest are forgotten early.
pub const DELETIONS_REMEMBERED: usize = 4_096;
/// Tokens of one allowance: seven bitmaps of 8 KiB each at most.
pub const ALLOWANCE_TOKENS_MAX: u32 = 65_536;
/// Open allowances per campaign; the next grant waits for a closing.
pub const OPEN_ALLOWANCES_MAX: usize = 64;
/// Closed allowances per campaign whose bitmaps are kept; the next grant waits until one is forgotten. Five seconds of
/// life for over an hour of hold and retry window make fewer than 1,000.
pub const CLOSED_ALLOWANCES_MAX: usize = 4_096;
/// Shortest life of an allowance: grants travel in ticks of the shard.
pub const ALLOWANCE_LIFE_MIN_MS: u64 = 5_000;
/// Longest life of an allowance.
pub const ALLOWANCE_LIFE_MAX_MS: u64 = 3_600_000;
/// Campaigns per shard: what one snapshot copies and one catalog feed carries.
pub const CAMPAIGNS_PER_SHARD_MAX: usize = 100_000;
/// Outcomes per command: some milliseconds of applying at most.
pub const OUTCOMES_PER_COMMAND_MAX: usize = 4_096;
/// Bytes of a campaign's encoded traffic estimates.
pub const ESTIMATES_BYTES_MAX: usize = 65_536;
/// Allowances closed, and allowances forgotten, by one command; the rest by the next. Keeps a command after a long
/// outage at tens of milliseconds.
pub const CLOSINGS_PER_COMMAND_MAX: usize = 16_384;
/// Campaigns purged by one command; the rest by the next. A purge drops up to some thousand allowance records.
pub const PURGES_PER_COMMAND_MAX: usize = 256;

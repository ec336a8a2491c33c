//! The one place that maps what went wrong to a gRPC status with google.rpc details.
//!
//! ErrorInfo is always there: domain [`DOMAIN`] and a [`reason`] that scripts can rely on. BadRequest names each bad
//! field, RetryInfo says when a retry makes sense.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::{
    access::Denied,
    campaign::{proto, version::Version},
    router::{ReadError, WriteError},
};

/// Domain of every ErrorInfo.
pub const DOMAIN: &str = "andante";

/// Reasons in ErrorInfo. They never change; new ones may come.
pub mod reason {
    /// A field of the request is wrong; BadRequest names it. Change the request.
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    /// The message is larger than the server reads. Send less at once.
    pub const MESSAGE_TOO_LARGE: &str = "MESSAGE_TOO_LARGE";
    /// No campaign of this name.
    pub const NOT_FOUND: &str = "NOT_FOUND";
    /// This very request was done before, and the campaign is gone by now. Nothing was done again, nor to a later campaign
    /// of the same name.
    pub const GONE: &str = "GONE";
    /// A campaign of this name exists.
    pub const ALREADY_EXISTS: &str = "ALREADY_EXISTS";
    /// Another campaign's name has the same hash. Choose another name.
    pub const NAME_COLLISION: &str = "NAME_COLLISION";
    /// What is to be changed did change since the etag was read. Read it again; metadata `etag` has the current one.
    pub const STALE_ETAG: &str = "STALE_ETAG";
    /// The budget is below what is billed and set aside; metadata `lowest_budget_micros` is possible now.
    pub const BUDGET_TOO_LOW: &str = "BUDGET_TOO_LOW";
    /// The campaign's state does not allow it; metadata `state` has it.
    pub const WRONG_STATE: &str = "WRONG_STATE";
    /// The shard has as many campaigns as it may have.
    pub const SHARD_FULL: &str = "SHARD_FULL";
    /// The node takes no new campaigns: it has as many as it may have, or its disk is nearly full.
    pub const NODE_FULL: &str = "NODE_FULL";
    /// This version of the cluster does not know the command; with metadata `feature_level`, the cluster's is too low as
    /// long as not every node runs a newer program.
    pub const UNSUPPORTED: &str = "UNSUPPORTED";
    /// The operator's time and the node's differ too much.
    pub const CLOCK_DIFFERS: &str = "CLOCK_DIFFERS";
    /// Surely not done; retry after the time in RetryInfo.
    pub const UNAVAILABLE: &str = "UNAVAILABLE";
    /// The server stops; surely not done. Ask another node, or this one later.
    pub const DRAINING: &str = "DRAINING";
    /// Too much in flight; surely not done. Retry after the time in RetryInfo.
    pub const OVERLOADED: &str = "OVERLOADED";
    /// It may or may not have been done. Repeat it with the same request id to learn it.
    pub const UNKNOWN_FATE: &str = "UNKNOWN_FATE";
    /// No token, or none that is valid now. Get a new one from an operator.
    pub const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
    /// The token lacks a role; metadata `role` has it.
    pub const ROLE_NEEDED: &str = "ROLE_NEEDED";
    /// There are as many access tokens, or token keys, as there may be.
    pub const TOO_MANY: &str = "TOO_MANY";
    /// The last operator's token can't be revoked.
    pub const LAST_OPERATOR: &str = "LAST_OPERATOR";
    /// The cluster has no authority: its nodes talk without TLS.
    pub const NO_AUTHORITY: &str = "NO_AUTHORITY";
    /// Not answered before the deadline; nothing was changed.
    pub const DEADLINE: &str = "DEADLINE";
    /// A bug. It is in the server's log.
    pub const INTERNAL: &str = "INTERNAL";
    /// There is no such method.
    pub const NO_SUCH_METHOD: &str = "NO_SUCH_METHOD";
    /// The call was broken off, or its bytes made no sense.
    pub const BROKEN_CALL: &str = "BROKEN_CALL";
}

/// When a retry makes sense after too much was in flight: requests take milliseconds.
pub(crate) const OVERLOAD_RETRY_MS: u64 = 20;
/// When a retry makes sense after an unknown fate: about an election.
const UNKNOWN_RETRY_MS: u64 = 200;

/// Why an RPC is not answered with a result.
#[derive(Debug, Clone)]
pub(crate) enum ApiError {
    /// The request is wrong; nothing was touched.
    Invalid(Vec<FieldViolation>),
    /// No campaign of this name.
    NotFound(String),
    /// A read has no answer; nothing was touched.
    Read(ReadError),
    /// A write did not succeed.
    Write(WriteError),
    /// The operator's clock and the node's differ.
    ClockDiffers(String),
    /// Too much in flight; nothing was touched.
    Overloaded(&'static str),
    /// The server stops; nothing was touched.
    Draining,
    /// The deadline passed. A write may have been applied.
    Deadline {
        /// Whether the call writes.
        writes: bool,
    },
    /// A handler panicked.
    Internal,
    /// The caller may not do this; nothing was touched.
    Denied(Denied),
    /// No access token with this id.
    NoSuchToken,
    /// As many access tokens as there may be.
    TooManyTokens(String),
    /// Nobody could administer the cluster any more.
    LastOperator(String),
    /// As many token keys as there may be.
    TooManyKeys(String),
    /// The cluster has no authority.
    NoAuthority,
    /// The cluster's feature level is too low; nothing was touched.
    FeatureLevel {
        /// The cluster's.
        level: u32,
        /// In words.
        text: String,
    },
    /// The cluster's settings are others than those that were read; nothing was touched.
    StaleSettings {
        /// Their revision.
        revision: u64,
        /// In words.
        text: String,
    },
}

impl ApiError {
    /// One bad field.
    pub(crate) fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        ApiError::Invalid(vec![FieldViolation::new(field, description)])
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        ApiError::Read(error)
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        ApiError::Write(error)
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Invalid(violations) => {
                let mut text = String::from("the request is invalid");
                if let Some(first) = violations.first() {
                    text = format!("{text}: {}: {}", first.field, first.description);
                }
                if violations.len() > 1 {
                    text = format!("{text} (and {} more)", violations.len() - 1);
                }
                let mut details = info(reason::INVALID_REQUEST, []);
                details.set_bad_request(violations);
                status(Code::InvalidArgument, text, details)
            }
            ApiError::NotFound(name) => {
                plain(Code::NotFound, reason::NOT_FOUND, format!("there is no campaign {name:?}"))
            }
            ApiError::Read(error) => {
                let text = error.to_string();
                match error {
                    ReadError::Unavailable { retry_after_ms, .. } => {
                        retry(Code::Unavailable, reason::UNAVAILABLE, text, retry_after_ms)
                    }
                    ReadError::Overloaded { retry_after_ms } => {
                        retry(Code::ResourceExhausted, reason::OVERLOADED, text, retry_after_ms)
                    }
                }
            }
            ApiError::Write(error) => write_status(error),
            ApiError::ClockDiffers(detail) => plain(Code::FailedPrecondition, reason::CLOCK_DIFFERS, detail),
            ApiError::Overloaded(what) => retry(
                Code::ResourceExhausted,
                reason::OVERLOADED,
                format!("too many {what} in flight; nothing was done"),
                OVERLOAD_RETRY_MS,
            ),
            ApiError::Draining => {
                plain(Code::Unavailable, reason::DRAINING, "the server is shutting down; nothing was done".into())
            }
            ApiError::Deadline { writes: true } => retry(
                Code::DeadlineExceeded,
                reason::UNKNOWN_FATE,
                "no answer before the deadline; it may or may not have been applied: repeat it with the same request id"
                    .into(),
                UNKNOWN_RETRY_MS,
            ),
            ApiError::Deadline { writes: false } => plain(
                Code::DeadlineExceeded,
                reason::DEADLINE,
                "no answer before the deadline; nothing was changed".into(),
            ),
            ApiError::Denied(Denied::Role(role)) => status(
                Code::PermissionDenied,
                Denied::Role(role).to_string(),
                info(reason::ROLE_NEEDED, [("role", role.to_string())]),
            ),
            ApiError::Denied(denied) => plain(Code::Unauthenticated, reason::UNAUTHENTICATED, denied.to_string()),
            ApiError::NoSuchToken => {
                plain(Code::NotFound, reason::NOT_FOUND, "there is no access token with this id".into())
            }
            ApiError::TooManyTokens(text) | ApiError::TooManyKeys(text) => {
                plain(Code::FailedPrecondition, reason::TOO_MANY, text)
            }
            ApiError::LastOperator(text) => plain(Code::FailedPrecondition, reason::LAST_OPERATOR, text),
            ApiError::NoAuthority => plain(
                Code::FailedPrecondition,
                reason::NO_AUTHORITY,
                "the cluster has no authority: its nodes talk without TLS (`insecure`)".into(),
            ),
            ApiError::FeatureLevel { level, text } => {
                let details = info(reason::UNSUPPORTED, [("feature_level", level.to_string())]);
                status(Code::FailedPrecondition, text, details)
            }
            ApiError::StaleSettings { revision, text } => {
                status(Code::Aborted, text, info(reason::STALE_ETAG, [("etag", revision.to_string())]))
            }
            ApiError::Internal => {
                plain(Code::Internal, reason::INTERNAL, "an internal error; it is in the server's log".into())
            }
        }
    }
}

fn write_status(error: WriteError) -> Status {
    let text = error.to_string();
    match error {
        WriteError::Refused { refusal, detail, lowest_budget_micros, campaign } => {
            use proto::Refusal;
            let (code, reason, metadata) = match refusal {
                Refusal::AlreadyExists => (Code::AlreadyExists, reason::ALREADY_EXISTS, None),
                Refusal::NotFound => (Code::NotFound, reason::NOT_FOUND, None),
                Refusal::StaleRevision => {
                    let etag = campaign.as_ref().map(|c| ("etag", Version::of(c).to_string()));
                    (Code::Aborted, reason::STALE_ETAG, etag)
                }
                Refusal::BudgetTooLow => {
                    let lowest = ("lowest_budget_micros", lowest_budget_micros.to_string());
                    (Code::FailedPrecondition, reason::BUDGET_TOO_LOW, Some(lowest))
                }
                Refusal::WrongState => {
                    let state = campaign.as_ref().map(|c| ("state", c.state().as_str_name().to_owned()));
                    (Code::FailedPrecondition, reason::WRONG_STATE, state)
                }
                Refusal::Invalid => (Code::InvalidArgument, reason::INVALID_REQUEST, None),
                Refusal::NameCollision => (Code::AlreadyExists, reason::NAME_COLLISION, None),
                // Not RESOURCE_EXHAUSTED: a retry won't help.
                Refusal::ShardFull => (Code::FailedPrecondition, reason::SHARD_FULL, None),
                Refusal::UnknownCommand => (Code::Unimplemented, reason::UNSUPPORTED, None),
                // A refusal that refuses nothing is a bug, but the caller's write was surely not applied.
                Refusal::Unspecified => (Code::Internal, reason::INTERNAL, None),
            };
            let mut details = info(reason, metadata);
            if refusal == Refusal::Invalid {
                details.add_bad_request_violation("spec", detail.clone());
            }
            if refusal == Refusal::BudgetTooLow {
                details.add_precondition_failure_violation(
                    "LOWEST_BUDGET",
                    "spec.budget_micros",
                    format!("at least {lowest_budget_micros} is possible now"),
                );
            }
            let text = if detail.is_empty() { reason.to_lowercase().replace('_', " ") } else { detail };
            status(code, text, details)
        }
        WriteError::Gone => plain(Code::NotFound, reason::GONE, text),
        WriteError::Unavailable { retry_after_ms, .. } => {
            retry(Code::Unavailable, reason::UNAVAILABLE, text, retry_after_ms)
        }
        // Not RESOURCE_EXHAUSTED: a retry won't help.
        WriteError::Full { .. } => plain(Code::FailedPrecondition, reason::NODE_FULL, text),
        WriteError::Overloaded { retry_after_ms } => {
            retry(Code::ResourceExhausted, reason::OVERLOADED, text, retry_after_ms)
        }
        WriteError::Unknown => retry(Code::Unknown, reason::UNKNOWN_FATE, text, UNKNOWN_RETRY_MS),
    }
}

/// A status from tonic itself (a message too large, an unknown method), with the ErrorInfo that it lacks.
pub(crate) fn complete(bare: &Status) -> Status {
    let reason = match bare.code() {
        Code::OutOfRange | Code::ResourceExhausted => reason::MESSAGE_TOO_LARGE,
        Code::Unimplemented => reason::NO_SUCH_METHOD,
        Code::DeadlineExceeded => reason::DEADLINE,
        Code::Unavailable => reason::UNAVAILABLE,
        Code::InvalidArgument => reason::INVALID_REQUEST,
        Code::NotFound => reason::NOT_FOUND,
        _ => reason::BROKEN_CALL,
    };
    plain(bare.code(), reason, bare.message().to_owned())
}

fn info(reason: &str, metadata: impl IntoIterator<Item = (&'static str, String)>) -> ErrorDetails {
    let metadata: HashMap<String, String> = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

fn plain(code: Code, reason: &str, text: String) -> Status {
    status(code, text, info(reason, []))
}

fn retry(code: Code, reason: &str, text: String, after_ms: u64) -> Status {
    let mut details = info(reason, []);
    details.set_retry_info(Some(Duration::from_millis(after_ms)));
    status(code, text, details)
}

fn status(code: Code, text: String, details: ErrorDetails) -> Status {
    Status::with_error_details(code, text, details)
}

#[cfg(test)]
mod tests {
    use proto::Refusal;

    use super::*;
    use crate::access::Role;

    fn refused(refusal: Refusal) -> ApiError {
        let campaign =
            proto::Campaign { incarnation: 3, revision: 7, state: proto::State::Ended as i32, ..Default::default() };
        ApiError::Write(WriteError::Refused {
            refusal,
            detail: "in words".into(),
            lowest_budget_micros: 42,
            campaign: Some(Box::new(campaign)),
        })
    }

    #[test]
    fn every_error_has_its_code_and_reason() {
        let unavailable = WriteError::Unavailable { reason: "no leader".into(), retry_after_ms: 50 };
        let table = [
            (ApiError::invalid("name", "bad"), Code::InvalidArgument, reason::INVALID_REQUEST),
            (ApiError::NotFound("a".into()), Code::NotFound, reason::NOT_FOUND),
            (ApiError::ClockDiffers("by a day".into()), Code::FailedPrecondition, reason::CLOCK_DIFFERS),
            (ApiError::Overloaded("scores"), Code::ResourceExhausted, reason::OVERLOADED),
            (ApiError::Draining, Code::Unavailable, reason::DRAINING),
            (ApiError::Deadline { writes: true }, Code::DeadlineExceeded, reason::UNKNOWN_FATE),
            (ApiError::Deadline { writes: false }, Code::DeadlineExceeded, reason::DEADLINE),
            (ApiError::Internal, Code::Internal, reason::INTERNAL),
            (ApiError::Denied(Denied::Missing), Code::Unauthenticated, reason::UNAUTHENTICATED),
            (ApiError::Denied(Denied::Malformed), Code::Unauthenticated, reason::UNAUTHENTICATED),
            (ApiError::Denied(Denied::Unknown), Code::Unauthenticated, reason::UNAUTHENTICATED),
            (ApiError::Denied(Denied::Expired), Code::Unauthenticated, reason::UNAUTHENTICATED),
            (ApiError::Denied(Denied::Role(Role::Score)), Code::PermissionDenied, reason::ROLE_NEEDED),
            (ApiError::NoSuchToken, Code::NotFound, reason::NOT_FOUND),
            (ApiError::TooManyTokens("t".into()), Code::FailedPrecondition, reason::TOO_MANY),
            (ApiError::TooManyKeys("t".into()), Code::FailedPrecondition, reason::TOO_MANY),
            (ApiError::LastOperator("t".into()), Code::FailedPrecondition, reason::LAST_OPERATOR),
            (ApiError::NoAuthority, Code::FailedPrecondition, reason::NO_AUTHORITY),
            (ApiError::FeatureLevel { level: 1, text: "t".into() }, Code::FailedPrecondition, reason::UNSUPPORTED),
            (ApiError::StaleSettings { revision: 7, text: "t".into() }, Code::Aborted, reason::STALE_ETAG),
            (WriteError::Unknown.into(), Code::Unknown, reason::UNKNOWN_FATE),
            (unavailable.into(), Code::Unavailable, reason::UNAVAILABLE),
            (WriteError::Overloaded { retry_after_ms: 5 }.into(), Code::ResourceExhausted, reason::OVERLOADED),
            (refused(Refusal::AlreadyExists), Code::AlreadyExists, reason::ALREADY_EXISTS),
            (refused(Refusal::NotFound), Code::NotFound, reason::NOT_FOUND),
            (refused(Refusal::StaleRevision), Code::Aborted, reason::STALE_ETAG),
            (refused(Refusal::BudgetTooLow), Code::FailedPrecondition, reason::BUDGET_TOO_LOW),
            (refused(Refusal::WrongState), Code::FailedPrecondition, reason::WRONG_STATE),
            (refused(Refusal::Invalid), Code::InvalidArgument, reason::INVALID_REQUEST),
            (refused(Refusal::NameCollision), Code::AlreadyExists, reason::NAME_COLLISION),
            (refused(Refusal::ShardFull), Code::FailedPrecondition, reason::SHARD_FULL),
            (refused(Refusal::UnknownCommand), Code::Unimplemented, reason::UNSUPPORTED),
        ];
        for (error, code, reason) in table {
            let what = format!("{error:?}");
            let status = Status::from(error);
            assert_eq!(status.code(), code, "{what}");
            let info = status.get_details_error_info().expect("ErrorInfo is always there");
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, DOMAIN), "{what}");
            assert!(!status.message().is_empty(), "{what}");
        }
    }

    #[test]
    fn an_unknown_fate_is_never_called_a_failure() {
        for error in [ApiError::Deadline { writes: true }, WriteError::Unknown.into()] {
            let status = Status::from(error);
            assert!(!status.message().contains("fail"), "{}", status.message());
            assert!(status.get_details_retry_info().is_some());
        }
    }

    #[test]
    fn bad_fields_are_all_named_and_the_first_is_in_the_message() {
        let violations = vec![FieldViolation::new("a", "is bad"), FieldViolation::new("b", "is worse")];
        let status = Status::from(ApiError::Invalid(violations));
        assert_eq!(status.message(), "the request is invalid: a: is bad (and 1 more)");
        let fields: Vec<String> =
            status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["a", "b"]);
    }

    #[test]
    fn refusals_carry_what_the_caller_needs_next() {
        let metadata = |refusal| Status::from(refused(refusal)).get_details_error_info().unwrap().metadata;
        assert_eq!(metadata(Refusal::StaleRevision)["etag"], "3-7");
        assert_eq!(metadata(Refusal::BudgetTooLow)["lowest_budget_micros"], "42");
        assert_eq!(metadata(Refusal::WrongState)["state"], "STATE_ENDED");
    }

    #[test]
    fn what_tonic_refuses_by_itself_gets_an_error_info_too() {
        for (code, reason) in [
            (Code::OutOfRange, reason::MESSAGE_TOO_LARGE),
            (Code::Unimplemented, reason::NO_SUCH_METHOD),
            (Code::Internal, reason::BROKEN_CALL),
        ] {
            let status = complete(&Status::new(code, "x"));
            assert_eq!(status.code(), code);
            assert_eq!(status.get_details_error_info().unwrap().reason, reason);
        }
    }
}

//! Failures in sentences, with an exit code that scripts can rely on.

use std::fmt;

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{api::reason, client::CallError, config::ConfigError, metrics::code_name};

pub(super) const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
pub(super) const NOT_FOUND: u8 = 3;
pub(super) const REFUSED: u8 = 4;
pub(super) const UNAVAILABLE: u8 = 5;
pub(super) const UNKNOWN_FATE: u8 = 6;
pub(super) const FATAL: u8 = 70;

/// Why a command did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: u8,
    message: String,
    /// Bad fields and what is wrong with them.
    violations: Vec<(String, String)>,
    /// gRPC code and reason, if a server said so.
    code: Option<&'static str>,
    reason: Option<String>,
    metadata: Vec<(String, String)>,
    retry_after_ms: Option<u64>,
}

impl Failure {
    pub(super) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            violations: Vec::new(),
            code: None,
            reason: None,
            metadata: Vec::new(),
            retry_after_ms: None,
        }
    }

    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    pub(super) fn to_json(&self) -> Value {
        let violations: Vec<Value> =
            self.violations.iter().map(|(field, why)| json!({"field": field, "description": why})).collect();
        let metadata: serde_json::Map<String, Value> =
            self.metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        json!({"error": {
            "message": self.message,
            "exit_code": self.exit,
            "code": self.code,
            "reason": self.reason,
            "violations": violations,
            "metadata": metadata,
            "retry_after_ms": self.retry_after_ms,
        }})
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (field, why) in &self.violations {
            write!(f, "\n  {field}: {why}")?;
        }
        for (key, value) in &self.metadata {
            write!(f, "\n  {key} is {value}")?;
        }
        if let Some(after) = self.retry_after_ms {
            write!(f, "\n  retry after {after} ms")?;
        }
        Ok(())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map(|info| info.reason.clone());
        let violations: Vec<(String, String)> = details
            .bad_request()
            .into_iter()
            .flat_map(|bad| &bad.field_violations)
            .map(|v| (v.field.clone(), v.description.clone()))
            .collect();
        let message = match (violations.is_empty(), status.message()) {
            // The violations follow one by one.
            (false, _) => "the request is invalid".to_owned(),
            (true, "") => format!("the server answered {}", code_name(status.code())),
            (true, message) => message.to_owned(),
        };
        let mut metadata: Vec<_> = info.into_iter().flat_map(|i| i.metadata.clone()).collect();
        metadata.sort();
        Self {
            exit: exit_code(status.code(), reason.as_deref()),
            message,
            violations,
            code: Some(code_name(status.code())),
            reason,
            metadata,
            retry_after_ms: details
                .retry_info()
                .and_then(|retry| retry.retry_delay)
                .map(|delay| delay.as_millis().try_into().unwrap_or(u64::MAX)),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(status) => status.into(),
            CallError::NotDone { status, .. } => Self { exit: UNAVAILABLE, ..status.into() },
            CallError::Unknown { status, .. } => Self { exit: UNKNOWN_FATE, ..status.into() },
            CallError::Unreachable(_) => Self::new(UNAVAILABLE, format!("{error}; is `andante node` running there?")),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.clone();
        }
        if let Some(error) = error.downcast_ref::<CallError>() {
            return error.clone().into();
        }
        if let Some(status) = error.downcast_ref::<Status>() {
            return status.clone().into();
        }
        let exit = if error.downcast_ref::<ConfigError>().is_some() { USAGE } else { FAILED };
        Self::new(exit, sentence(&error))
    }
}

/// The chain of causes as one sentence: what failed, and why. Some errors end with their cause; it is told once.
fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if sentence.is_empty() {
            sentence = cause;
        } else if !sentence.ends_with(&cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    sentence
}

fn exit_code(code: Code, reason: Option<&str>) -> u8 {
    match (code, reason) {
        (_, Some(reason::UNKNOWN_FATE)) | (Code::Unknown | Code::Cancelled, _) => UNKNOWN_FATE,
        (Code::NotFound, _) => NOT_FOUND,
        (
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated,
            _,
        ) => REFUSED,
        (Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded, _) => UNAVAILABLE,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("the log is damaged");
        let start = andante_cluster::host::StartError::Io { what: "log", source: cause };
        let error = anyhow::Error::new(start).context("the node can't start");
        assert_eq!(Failure::from(error).to_string(), "the node can't start: log: the log is damaged");
    }

    #[test]
    fn exit_codes_follow_what_the_caller_can_do() {
        let table = [
            (Code::NotFound, None, NOT_FOUND),
            (Code::InvalidArgument, None, REFUSED),
            (Code::Aborted, Some(reason::STALE_ETAG), REFUSED),
            (Code::Unavailable, None, UNAVAILABLE),
            (Code::DeadlineExceeded, Some(reason::DEADLINE), UNAVAILABLE),
            (Code::DeadlineExceeded, Some(reason::UNKNOWN_FATE), UNKNOWN_FATE),
            (Code::Unknown, Some(reason::UNKNOWN_FATE), UNKNOWN_FATE),
            (Code::Internal, None, FAILED),
        ];
        for (code, reason, exit) in table {
            assert_eq!(exit_code(code, reason), exit, "{code:?} {reason:?}");
        }
    }

    fn invalid() -> Failure {
        let mut details = ErrorDetails::with_error_info("INVALID_REQUEST", "andante", std::collections::HashMap::new());
        details.add_bad_request_violation("spec.price_micros", "must be at least 1");
        Status::with_error_details(Code::InvalidArgument, "the request is invalid: ...", details).into()
    }

    #[test]
    fn bad_fields_are_told_line_by_line() {
        assert_eq!(invalid().to_string(), "the request is invalid\n  spec.price_micros: must be at least 1");
    }

    #[test]
    fn a_script_gets_the_same_as_json() {
        let error = &invalid().to_json()["error"];
        assert_eq!(error["code"], "INVALID_ARGUMENT");
        assert_eq!(error["reason"], "INVALID_REQUEST");
        assert_eq!(error["violations"][0]["field"], "spec.price_micros");
        assert_eq!(error["exit_code"], 4);
    }

    #[test]
    fn causes_become_one_sentence() {
        let error = anyhow::anyhow!("no such file").context("f.json can't be read");
        assert_eq!(Failure::from(error).to_string(), "f.json can't be read: no such file");
    }
}

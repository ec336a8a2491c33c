//! RPCs by method and status code.

use std::sync::OnceLock;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};
use tonic::Code;

use super::{DurationHistogram, Label, Registrar};

/// Status codes, 0 to 16.
const CODES: usize = 17;

/// The RPCs of `andante.v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named as in the .proto files
pub enum Method {
    Score,
    Report,
    CreateCampaign,
    GetCampaign,
    ListCampaigns,
    UpdateCampaign,
    PauseCampaign,
    ResumeCampaign,
    EndCampaign,
    DeleteCampaign,
    ImportCampaigns,
    WatchPacing,
    GetServerInfo,
    ConfirmClock,
    GetClusterStatus,
    GetClusterSettings,
    UpdateClusterSettings,
    CreateToken,
    ListTokens,
    RevokeToken,
    CreateJoinToken,
    GetAuthority,
    RotateTokenKeys,
}

impl Method {
    /// All of them, in the order of their numbers.
    pub const ALL: [Method; 23] = [
        Method::Score,
        Method::Report,
        Method::CreateCampaign,
        Method::GetCampaign,
        Method::ListCampaigns,
        Method::UpdateCampaign,
        Method::PauseCampaign,
        Method::ResumeCampaign,
        Method::EndCampaign,
        Method::DeleteCampaign,
        Method::ImportCampaigns,
        Method::WatchPacing,
        Method::GetServerInfo,
        Method::ConfirmClock,
        Method::GetClusterStatus,
        Method::GetClusterSettings,
        Method::UpdateClusterSettings,
        Method::CreateToken,
        Method::ListTokens,
        Method::RevokeToken,
        Method::CreateJoinToken,
        Method::GetAuthority,
        Method::RotateTokenKeys,
    ];

    /// Its name in the .proto file.
    pub fn name(self) -> &'static str {
        match self {
            Method::Score => "Score",
            Method::Report => "Report",
            Method::CreateCampaign => "CreateCampaign",
            Method::GetCampaign => "GetCampaign",
            Method::ListCampaigns => "ListCampaigns",
            Method::UpdateCampaign => "UpdateCampaign",
            Method::PauseCampaign => "PauseCampaign",
            Method::ResumeCampaign => "ResumeCampaign",
            Method::EndCampaign => "EndCampaign",
            Method::DeleteCampaign => "DeleteCampaign",
            Method::ImportCampaigns => "ImportCampaigns",
            Method::WatchPacing => "WatchPacing",
            Method::GetServerInfo => "GetServerInfo",
            Method::ConfirmClock => "ConfirmClock",
            Method::GetClusterStatus => "GetClusterStatus",
            Method::GetClusterSettings => "GetClusterSettings",
            Method::UpdateClusterSettings => "UpdateClusterSettings",
            Method::CreateToken => "CreateToken",
            Method::ListTokens => "ListTokens",
            Method::RevokeToken => "RevokeToken",
            Method::CreateJoinToken => "CreateJoinToken",
            Method::GetAuthority => "GetAuthority",
            Method::RotateTokenKeys => "RotateTokenKeys",
        }
    }
}

/// Counts RPCs.
#[derive(Debug)]
pub struct RpcMetrics {
    methods: [PerMethod; Method::ALL.len()],
    requests: Family<[(&'static str, &'static str); 2], Counter>,
}

#[derive(Debug)]
struct PerMethod {
    in_flight: Gauge,
    duration: DurationHistogram,
    /// Made when a code is first seen: 390 series would be too many, most of them 0 for ever.
    codes: [OnceLock<Counter>; CODES],
}

impl RpcMetrics {
    pub(super) fn register(book: &mut Registrar) -> Self {
        let requests = Family::default();
        let duration = Family::<Label<&'static str>, DurationHistogram>::default();
        let in_flight = Family::<Label<&'static str>, Gauge>::default();
        let unit = Unit::Other("requests".to_owned());
        book.add("rpc", unit.clone(), "RPCs answered, by method and gRPC status code", requests.clone());
        book.add("rpc_duration", Unit::Seconds, "Time from a request to its answer, by method", duration.clone());
        book.add("rpc_in_flight", unit, "RPCs not answered yet, by method", in_flight.clone());
        let methods = Method::ALL.map(|method| {
            let label = [("method", method.name())];
            PerMethod {
                in_flight: in_flight.get_or_create(&label).clone(),
                duration: duration.get_or_create(&label).clone(),
                codes: Default::default(),
            }
        });
        Self { methods, requests }
    }

    /// An RPC begins. It ends with [`RpcGuard::finish`]; a guard that is dropped counts as CANCELLED.
    pub fn begin(&self, method: Method) -> RpcGuard<'_> {
        self.methods[method as usize].in_flight.inc();
        RpcGuard { metrics: self, method, code: Code::Cancelled }
    }
}

/// An RPC under way.
#[derive(Debug)]
#[must_use = "dropping it counts the RPC as cancelled"]
pub struct RpcGuard<'a> {
    metrics: &'a RpcMetrics,
    method: Method,
    code: Code,
}

impl RpcGuard<'_> {
    /// It is answered, after so many microseconds.
    pub fn finish(mut self, code: Code, micros: u64) {
        self.code = code;
        self.metrics.methods[self.method as usize].duration.observe_micros(micros);
    }
}

impl Drop for RpcGuard<'_> {
    fn drop(&mut self) {
        let method = &self.metrics.methods[self.method as usize];
        method.in_flight.dec();
        let counter = method.codes[self.code as usize].get_or_init(|| {
            let labels = [("method", self.method.name()), ("code", code_name(self.code))];
            self.metrics.requests.get_or_create(&labels).clone()
        });
        counter.inc();
    }
}

/// The code's name in gRPC's own spelling.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_listed_by_number() {
        for (i, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, i);
        }
    }
}

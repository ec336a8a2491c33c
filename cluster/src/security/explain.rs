//! Failed handshakes in words that tell an operator what to do.

use std::{fmt, io};

use rustls::{AlertDescription, CertificateError, Error, pki_types::UnixTime};
use time::OffsetDateTime;

/// The other end is not who it should be.
pub(super) fn refusal(why: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_string())
}

/// As [`explain`], at the end that has connected: who hangs up then may not speak TLS at all.
pub(super) fn explain_connecting(error: io::Error, whose: &str) -> io::Error {
    match error.kind() {
        kind @ (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            io::Error::new(kind, format!("{whose} hung up in the TLS handshake; does it use TLS?"))
        }
        _ => explain(error, whose),
    }
}

/// Says what a failed handshake with `whose` means.
pub(super) fn explain(error: io::Error, whose: &str) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) else {
        return io::Error::new(error.kind(), format!("TLS handshake with {whose}: {error}"));
    };
    match cause {
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => refusal(format_args!(
            "the certificate of {whose} expired at {}; here it is {}. Compare the clocks; if they are right, start \
             that node again so that it renews it",
            date(not_after),
            date(time)
        )),
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => refusal(format_args!(
            "the certificate of {whose} is valid from {}; here it is {}. Compare the clocks",
            date(not_before),
            date(time)
        )),
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            refusal(format_args!("{whose} belongs to another cluster: another authority signed its certificate"))
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => refusal(format_args!(
            "somebody else answers where {whose} is looked for: the certificate there is for {}",
            presented.join(", ")
        )),
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            refusal(format_args!("{whose} finds this node's certificate expired, or not valid yet: compare the clocks"))
        }
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            refusal(format_args!("{whose} belongs to another cluster: it does not know this node's authority"))
        }
        Error::InvalidMessage(_) => io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{whose} does not speak TLS: are there nodes with and without it in the cluster?"),
        ),
        other => io::Error::new(error.kind(), format!("TLS handshake with {whose}: {other}")),
    }
}

fn date(time: &UnixTime) -> String {
    let date = i64::try_from(time.as_secs()).ok().and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
    date.map_or_else(|| format!("{} s after 1970", time.as_secs()), |date| date.to_string())
}
